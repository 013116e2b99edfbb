//! What makes a clone unique: the content of its restore message.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::faults::{Fault, injected};
use crate::function::{GENERATION_LEN, MACHINE_ID_LEN, RestoreMessage};

/// Why a clone cannot be made unique, or be told the time.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The host's clock is wrong.
    #[error("The host's clock stands before 1970; set it")]
    Clock,
    /// The host's kernel gives no random bytes.
    #[error("The host's generator of random numbers fails")]
    Random(#[source] io::Error),
}

/// What the user asks of a clone's identity.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Host name.
    pub host_name: Option<&'a str>,
    /// Machine id.
    pub machine_id: Option<[u8; MACHINE_ID_LEN]>,
    /// Environment beside the bundle's.
    pub env: &'a [(String, String)],
}

/// A fresh restore message: random generation and entropy from the host's kernel, names made from the generation unless
/// they are asked for.
///
/// # Errors
/// The host's generator gives nothing, or its clock stands before 1970: a clone could not become unique or on time.
pub fn restore_message(asked: Asked<'_>) -> Result<RestoreMessage, IdentityError> {
    since_epoch()?;
    let generation = random()?;
    let with_names = !injected(Fault::NamesAbsent);
    let host_name = asked.host_name.map_or_else(|| host_name(generation), str::to_owned);
    let machine_id = asked.machine_id.unwrap_or_else(|| machine_id(generation));
    Ok(RestoreMessage {
        generation,
        entropy: random()?,
        host_name: if with_names { host_name } else { String::new() },
        machine_id: with_names.then_some(machine_id),
        env: asked.env.iter().cloned().collect(),
    })
}

/// `clone-` and the first 8 digits of the generation.
fn host_name(generation: [u8; GENERATION_LEN]) -> String {
    format!("clone-{:08x}", u128::from_be_bytes(generation) >> 96)
}

/// The generation with the mark of a random UUID (RFC 9562, section 5.4), as machine-id(5) wants it.
fn machine_id(generation: [u8; GENERATION_LEN]) -> [u8; MACHINE_ID_LEN] {
    const VERSION: u128 = 0xf << 76;
    const VARIANT: u128 = 0x3 << 62;
    let number = u128::from_be_bytes(generation) & !(VERSION | VARIANT);
    (number | 4 << 76 | 2 << 62).to_be_bytes()
}

/// A machine id from 32 hexadecimal digits, not all zero (machine-id(5)); `None` for anything else.
pub fn parse_machine_id(text: &str) -> Option<[u8; MACHINE_ID_LEN]> {
    let digits = text.len() == 2 * MACHINE_ID_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|number| digits && *number != 0);
    number.map(u128::to_be_bytes)
}

/// The host's wall clock.
///
/// # Errors
/// It stands before 1970.
pub fn since_epoch() -> Result<Duration, IdentityError> {
    SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| IdentityError::Clock)
}

/// Random bytes from the host's kernel.
///
/// # Errors
/// Its generator gives nothing.
pub fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(rest, flags).map_err(|e| IdentityError::Random(e.into()))?;
    }
    Ok(bytes)
}

/// A random time below `max`.
///
/// # Errors
/// The host's generator gives nothing.
pub fn random_duration(max: Duration) -> Result<Duration, IdentityError> {
    let fraction = f64::from(u32::from_le_bytes(random()?)) / f64::from(u32::MAX);
    Ok(max.mul_f64(fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_generation() {
        let mut generation = [0xff; GENERATION_LEN];
        generation[0] = 1;
        assert_eq!(host_name(generation), "clone-01ffffff");
        let id = machine_id(generation);
        assert_eq!((id[0], id[6], id[8], id[15]), (1, 0x4f, 0xbf, 0xff));
    }

    #[test]
    fn what_is_asked_for_is_taken_and_the_rest_is_fresh() {
        let asked = Asked { host_name: Some("db-1"), machine_id: Some([5; 16]), env: &[] };
        let (one, two) = (restore_message(asked).unwrap(), restore_message(asked).unwrap());
        assert_eq!((one.host_name.as_str(), one.machine_id), ("db-1", Some([5; 16])));
        assert_ne!(one.generation, two.generation);
        assert_ne!(one.entropy, two.entropy);
    }
}
