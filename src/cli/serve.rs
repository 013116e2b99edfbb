//! `ember serve`.

use std::path::{Path, PathBuf};

use crate::serve::{self, Asked};

use super::args::ServeArgs;
use super::failure::{Failure, Kind};

/// Serves until told to end.
///
/// # Errors
/// The daemon cannot begin, or its zygote has ended.
pub fn serve(args: &ServeArgs) -> Result<u8, Failure> {
    if let Some(address) = args.tcp {
        eprintln!("ember: listening at {address} too: whoever reaches it may use the daemon");
    }
    let functions = args.register.iter().map(|(name, bundle)| Ok((name.clone(), absolute(bundle)?)));
    let asked = Asked {
        socket: args.socket.clone(),
        mode: args.mode,
        uids: args.allow_uid.clone(),
        tcp: args.tcp,
        shells: usize::try_from(args.shells).unwrap_or(usize::MAX),
        whole: args.require_jail,
        bounds: args.group.bounds(),
        drain: args.drain.0,
        functions: functions.collect::<Result<_, Failure>>()?,
    };
    serve::serve(&asked).map(|()| 0)
}

fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(Path::new(path)).map_err(|e| Failure::new(Kind::Usage, &e))
}
