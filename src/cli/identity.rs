//! What makes a clone unique: the content of its restore message.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::function::RestoreMessage;

use super::failure::{Failure, Kind};

/// A fresh restore message: random generation and entropy from the host's kernel, the time of now, and `env`.
///
/// # Errors
/// The host's generator gives nothing, or its clock stands before 1970: a clone could not become unique or on time.
pub fn restore_message(env: &[(String, String)]) -> Result<RestoreMessage, Failure> {
    let since = since_epoch()?;
    Ok(RestoreMessage {
        generation: random()?,
        entropy: random()?,
        unix_time_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
        env: env.iter().cloned().collect(),
    })
}

/// The host's wall clock.
///
/// # Errors
/// It stands before 1970.
pub fn since_epoch() -> Result<Duration, Failure> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::text(Kind::HostCannot, "The host's clock stands before 1970; set it"))
}

/// Random bytes from the host's kernel.
///
/// # Errors
/// Its generator gives nothing.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(rest, flags)
            .map_err(|e| Failure::new(Kind::HostCannot, &std::io::Error::from(e)))?;
    }
    Ok(bytes)
}

/// A random time below `max`.
///
/// # Errors
/// The host's generator gives nothing.
pub fn random_duration(max: Duration) -> Result<Duration, Failure> {
    let fraction = f64::from(u32::from_le_bytes(random()?)) / f64::from(u32::MAX);
    Ok(max.mul_f64(fraction))
}
