//! PID 1 of an Ember guest: loads modules, mounts the root, starts the function, and answers the host.

mod attached;
mod boot;
mod contract;
mod control;
mod exec;
mod freeze;
mod hooks;
mod http;
mod identity;
mod io;
mod lambda;
mod process;
mod quiet;
mod root;
mod runner;
mod session;
mod stop;
mod sys;
mod users;

use std::process::ExitCode;

/// Runs the session over standard input, beside whatever else the machine does; for tests.
const ATTACHED: &str = "--attached";

fn main() -> ExitCode {
    let attached = std::env::args().nth(1).as_deref() == Some(ATTACHED);
    let stop = if attached {
        attached::run()
    } else if rustix::process::getpid().is_init() {
        boot::run()
    } else {
        eprintln!("ember-agent is the first process of an Ember guest and does nothing elsewhere");
        return ExitCode::FAILURE;
    };
    eprintln!("ember-agent: {stop}");
    ExitCode::FAILURE
}
