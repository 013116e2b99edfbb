//! The kernel command line.

/// What Linux is told, a word and its reason each; times and exits are of Debian's 6.12 cloud kernel. The machine has a serial port, virtio-mmio devices, kvm-clock and the
/// TSC; it has no PIT, no 8259, no PCI, no CMOS clock and no keyboard controller.
const WORDS: &[&str] = &[
    // Messages of a guest that fails must reach somebody.
    "console=ttyS0",
    // Every character on the serial port is an exit: with all messages a boot takes twice as long.
    "quiet",
    // A guest that panics ends at once, not after somebody presses a key; the machine sees a reset.
    "panic=-1",
    // By triple fault, which needs neither ACPI nor a keyboard controller and works before either is up.
    "reboot=t",
    // The kernel tests its ciphers as they are registered: 0.9 of 2 seconds of boot.
    "cryptomgr.notests",
    // There is no PCI; looking for it is 230 exits through ports 0xcf8 and 0xcfc.
    "pci=off",
    // One serial port, where the kernel would probe four: 18 exits.
    "8250.nr_uarts=1",
    // The TSC is the host's and is set on restore; a timer that watches it would wake the guest twice a second.
    "tsc=reliable",
    // A machine that was frozen looks like one whose CPU hung; the lockup detectors would say so, and their timers
    // and threads touch memory after every restore.
    "nowatchdog",
    // Nobody loads a policy. Each module in the list is called at every system call that it could forbid, and a restored
    // guest pays a page fault for each first call; Landlock stays, which functions may use on themselves.
    "lsm=landlock",
    // Pressure stall information is counted at every context switch, and nobody reads it.
    "psi=0",
];

/// The command line for a quick, quiet boot; words of the user's own may be appended.
pub fn default_command_line() -> String {
    WORDS.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_separated_and_leave_room_for_more() {
        let line = default_command_line();
        assert!(line.starts_with("console=ttyS0 quiet "));
        assert!(line.len() < 512);
        assert!(WORDS.iter().all(|word| !word.contains(' ')));
    }
}
