//! The names that tell one clone from another.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use guest_protocol::MACHINE_ID_LEN;
use rustix::mount::mount_bind;
use rustix::rand::{GetRandomFlags, getrandom};

/// What programs read.
const MACHINE_ID: &str = "/etc/machine-id";
/// Drivers of the VM Generation ID: since Linux 6.10, and before.
const DRIVERS: [&str; 2] = ["/sys/bus/platform/drivers/vmgenid", "/sys/bus/acpi/drivers/vmgenid"];

/// The machine id (machine-id(5)), in a file of its own that lies over the root's.
#[derive(Debug)]
pub struct MachineId {
    /// Open from before the freeze on: a restore writes 33 bytes and looks nothing up.
    file: File,
}

impl MachineId {
    /// Puts a file at `path` in front of the root's, with a random id until a restore brings one.
    ///
    /// # Errors
    /// A file cannot be made, or not be mounted over the root's.
    pub fn install(path: &str) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o444).open(path)?;
        let mut random = [0; MACHINE_ID_LEN];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let machine_id = MachineId { file };
        machine_id.set(&random)?;
        if !Path::new(MACHINE_ID).exists() {
            fs::create_dir_all("/etc")?;
            File::create(MACHINE_ID)?;
        }
        mount_bind(path, MACHINE_ID)?;
        Ok(machine_id)
    }

    /// Changes the id.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set(&self, id: &[u8; MACHINE_ID_LEN]) -> io::Result<()> {
        self.file.write_all_at(machine_id_line(id).as_bytes(), 0)
    }
}

/// The content of /etc/machine-id.
pub fn machine_id_line(id: &[u8; MACHINE_ID_LEN]) -> String {
    hex(id) + "\n"
}

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 0xf].map(|digit| char::from_digit(digit.into(), 16));
    bytes.iter().flat_map(digits).flatten().collect()
}

/// Whether the kernel's driver has found the VM Generation ID: then it reseeds by itself when that changes.
pub fn has_generation_driver() -> bool {
    let entries = |driver: &str| fs::read_dir(driver).into_iter().flatten().flatten();
    // Devices are links named after their ACPI id and number; what else is there are the driver's own files.
    let is_device = |entry: fs::DirEntry| {
        entry.file_name().to_string_lossy().contains(':')
            && entry.file_type().is_ok_and(|kind| kind.is_symlink())
    };
    DRIVERS.iter().flat_map(|driver| entries(driver)).any(is_device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_a_line_of_32_digits() {
        let id = [0, 1, 0x0a, 0xff, 0x10, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(machine_id_line(&id), "00010aff1005060708090a0b0c0d0e0f\n");
    }
}
