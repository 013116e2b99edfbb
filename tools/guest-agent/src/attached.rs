//! The agent as an ordinary process, for tests: the control stream is its standard input, and the machine is left alone.

use guest_protocol::{Restore, RestoreEntry};

use crate::identity::machine_id_line;
use crate::io::Io;
use crate::runner::{Guest, MemoryCount};
use crate::session;
use crate::stop::Stop;

struct Bystander;

impl Guest for Bystander {
    fn runtime_api_port(&self) -> u16 {
        0
    }

    /// In the working directory, which a test has for itself.
    fn store_env(&self, environ: &[u8], _owner: u32) -> Result<(), String> {
        std::fs::write("ember-env", environ).map_err(|error| error.to_string())
    }

    fn hooks_dir(&self) -> &'static str {
        "after-restore.d"
    }

    /// A clock of 0 stands for a kernel that refuses. The names go to files.
    fn make_unique(&mut self, restore: &Restore<'_>) -> Result<(), String> {
        if restore.unix_time_ns == 0 {
            return Err("The clock cannot be set".to_owned());
        }
        let store = |entry: RestoreEntry<'_>| match entry {
            RestoreEntry::HostName(name) => std::fs::write("ember-host-name", name),
            RestoreEntry::MachineId(id) => std::fs::write("ember-machine-id", machine_id_line(&id)),
            RestoreEntry::Env(_) | RestoreEntry::Clock(_) => Ok(()),
        };
        restore.entries.iter().try_for_each(store).map_err(|error| error.to_string())
    }

    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn zero_free_memory(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn memory(&self) -> MemoryCount {
        MemoryCount { total: 256 << 20, free: 128 << 20 }
    }

    fn goes_first(&mut self, _first: bool) {}
}

/// Runs a session over standard input until it stops.
pub fn run() -> Stop {
    let control = rustix::io::dup(rustix::stdio::stdin()).map_err(std::io::Error::from);
    let mut io = match control.and_then(Io::new) {
        Ok(io) => io,
        Err(error) => return Stop::Control(error),
    };
    if let Err(stop) = session::greet(&mut io, true) {
        return stop;
    }
    let stop = session::run(&mut io, &mut Bystander);
    session::say_farewell(&mut io, &stop);
    stop
}
