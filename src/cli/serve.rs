//! `ember serve`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::serve::{self, Asked, Tcp, Token};

use super::args::ServeArgs;
use super::failure::{Failure, Kind};

/// Serves until told to end.
///
/// # Errors
/// The daemon cannot begin, or its zygote has ended.
pub fn serve(args: &ServeArgs) -> Result<u8, Failure> {
    let token = args.tcp_token.as_deref().map(token).transpose()?;
    if let (Some(address), None) = (args.tcp, &token) {
        eprintln!("ember: listening at {address} too: whoever reaches it may use the daemon");
    }
    let functions = args.register.iter().map(|(name, bundle)| Ok((name.clone(), absolute(bundle)?)));
    let asked = Asked {
        socket: args.socket.clone(),
        mode: args.mode,
        uids: args.allow_uid.clone(),
        tcp: args.tcp.map(|address| Tcp { address, token }),
        shells: usize::try_from(args.shells).unwrap_or(usize::MAX),
        whole: args.require_jail,
        bounds: args.group.bounds(),
        block_rate: args.block_rate,
        held_max: args.held_max,
        drain: args.drain.0,
        idle: args.idle.0,
        functions: functions.collect::<Result<_, Failure>>()?,
        reuse: args.reuse,
    };
    serve::serve(&asked).map(|()| 0)
}

/// Longest file with a token, bytes.
const TOKEN_FILE_MAX: u64 = 4096;

fn token(path: &Path) -> Result<Token, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(TOKEN_FILE_MAX).read_to_string(&mut text));
    read.map_err(|e| Failure::text(Kind::Usage, format!("Cannot read {}: {e}", path.display())))?;
    Token::new(text.trim()).ok_or_else(|| {
        let path = path.display();
        Failure::text(Kind::Usage, format!("{path} has no token: one word of 16 to 1024 visible characters"))
    })
}

fn absolute(path: &str) -> Result<PathBuf, Failure> {
    std::path::absolute(Path::new(path)).map_err(|e| Failure::new(Kind::Usage, &e))
}
