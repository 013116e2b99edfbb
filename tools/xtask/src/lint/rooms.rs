//! The table of ARCHITECTURE.md: which room may use which.

/// A part of the product.
#[derive(Debug)]
pub struct Room {
    /// Path from the top of the checkout, of a file or of a directory with a slash at the end.
    pub path: &'static str,
    /// The name by which others use it: a module of `ember`, or a crate.
    pub name: &'static str,
    /// Rooms it may use.
    pub may: &'static [&'static str],
    /// Crates and parts of the standard library it must not know.
    pub never: &'static [&'static str],
}

/// What would tie a format or a protocol to one machine.
const KVM_AND_MEMORY: &[&str] = &[
    "kvm_ioctls",
    "kvm_bindings",
    "vm_memory",
    "memmap2",
    "userfaultfd",
    "libc",
    "rustix",
    "std::path",
    "std::fs",
];

/// What does input and output on its own.
const IO: &[&str] = &["std::fs", "std::net", "std::os", "libc", "rustix", "vmm_sys_util"];

/// Every room. The first whose path fits is a file's own.
pub const ROOMS: [Room; 24] = [
    room("snapshot-format/src/", "snapshot_format", &[]).never(KVM_AND_MEMORY),
    room("tools/guest-protocol/src/", "guest_protocol", &[]).never(IO),
    room("tools/guest-agent/src/", "guest_agent", &["guest_protocol"]),
    room("tools/small-guests/src/", "small_guests", &[]),
    room("src/bus.rs", "bus", &[]),
    room("src/bus/", "bus", &[]),
    room("src/faults.rs", "faults", &[]),
    room("src/memory/", "memory", &[]),
    room("src/kvm/", "kvm", &["memory"]),
    room("src/devices/", "devices", &["memory", "bus", "faults", "snapshot_format"]),
    room("src/vcpu/", "vcpu", &["kvm", "bus", "snapshot_format", "boot"]),
    room("src/boot/", "boot", &["memory", "config"]),
    room("src/function/", "function", &["config", "faults", "guest_protocol", "snapshot_format"]).never(IO),
    room("src/bundle/", "bundle", &["snapshot_format", "memory"]),
    room("src/rootfs/", "rootfs", &["config"]),
    room("src/jail/", "jail", &[]),
    room(
        "src/vm/",
        "vm",
        &[
            "bus",
            "faults",
            "memory",
            "kvm",
            "devices",
            "vcpu",
            "boot",
            "function",
            "bundle",
            "rootfs",
            "jail",
            "config",
            "snapshot_format",
            "guest_protocol",
        ],
    ),
    room("src/config/", "config", &["snapshot_format"]),
    room(
        "src/failure/",
        "failure",
        &["vm", "memory", "devices", "boot", "function", "bundle", "rootfs", "jail", "config"],
    ),
    room(
        "src/serve/",
        "serve",
        &["vm", "function", "bundle", "devices", "memory", "jail", "failure", "config", "snapshot_format"],
    ),
    room(
        "src/cli/",
        "cli",
        &[
            "vm",
            "serve",
            "failure",
            "faults",
            "function",
            "bundle",
            "config",
            "rootfs",
            "boot",
            "jail",
            "devices",
            "memory",
            "snapshot_format",
        ],
    ),
    room("src/main.rs", "main", &["cli", "vm", "function", "bundle", "config"]),
    // The list of modules.
    room("src/lib.rs", "lib", &[]),
    // Black box: the binary and the format, never a room.
    room("tests/", "tests", &["snapshot_format", "small_guests"]),
];

/// Crates that only one room may name, wherever else they are among the dependencies.
pub const RESERVED: [(&str, &str); 6] = [
    ("kvm_ioctls", "kvm"),
    ("versionize", "snapshot_format"),
    ("versionize_derive", "snapshot_format"),
    ("bincode", "snapshot_format"),
    ("crc64", "snapshot_format"),
    ("crc_fast", "snapshot_format"),
];

/// Modules of `devices` that belong to all devices; each other one is a device and knows no other device.
pub const SHARED_BY_DEVICES: [&str; 5] = ["virtio", "table", "error", "states", "testing"];

/// Modules of `devices` whose business is all devices.
pub const KNOW_ALL_DEVICES: [&str; 2] = ["table", "states"];

const fn room(path: &'static str, name: &'static str, may: &'static [&'static str]) -> Room {
    Room { path, name, may, never: &[] }
}

impl Room {
    const fn never(mut self, crates: &'static [&'static str]) -> Self {
        self.never = crates;
        self
    }
}

/// The room of a file.
pub fn of(path: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| path == room.path || (room.path.ends_with('/') && path.starts_with(room.path)))
}

/// Whether a name is a room's: that of a module of `ember`, or that of a crate.
pub fn is_room(name: &str, in_ember: bool) -> bool {
    ROOMS.iter().any(|room| room.name == name && room.path.starts_with("src/") == in_ember)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_room_stands_in_the_table_of_architecture_md() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
        for room in ROOMS.iter().filter(|room| !["tests", "lib"].contains(&room.name)) {
            let name = room.path.trim_end_matches("src/");
            let name = if name.is_empty() { room.path } else { name };
            let documented = text.contains(&format!("`{name}`")) || room.path == "src/bus/";
            assert!(documented || name == "tools/small-guests/", "ARCHITECTURE.md does not name {name}");
        }
    }

    #[test]
    fn every_module_of_ember_is_a_room() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        for entry in std::fs::read_dir(root.join("src")).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let path = format!("src/{name}{}", if entry.path().is_dir() { "/" } else { "" });
            assert!(of(&path).is_some(), "{path} is in no room");
        }
    }
}
