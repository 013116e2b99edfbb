//! The device status field as a pure function (virtio 1.2, 2.1 and 3.1.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

/// The steps of initialisation: each bit and what must stand before it.
const LADDER: [(u32, u32); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
];

/// The device status field. Only bits of the specification are ever set, and none without those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Status(u32);

impl Status {
    /// A saved status.
    ///
    /// `None` for one that no device can have.
    pub(super) fn from_saved(bits: u32) -> Option<Self> {
        let climbed = climb(0, bits & !NEEDS_RESET, true);
        (climbed == bits & !NEEDS_RESET).then_some(Status(bits))
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The status after the driver wrote `value`, which is not 0 (that is a reset). A step whose predecessor is missing
    /// is not taken, FEATURES_OK only when the features are acceptable; nothing the driver writes takes a bit back.
    pub(super) fn after_write(self, value: u32, features_acceptable: bool) -> Self {
        Status(climb(self.0, value & !NEEDS_RESET, features_acceptable))
    }

    /// The status after the device found that it cannot go on.
    pub(super) fn broken(self) -> Self {
        Status(self.0 | NEEDS_RESET)
    }

    /// Whether the driver may still choose features.
    pub(super) fn features_open(self) -> bool {
        self.0 & (DRIVER | FEATURES_OK | FAILED | NEEDS_RESET) == DRIVER
    }

    /// Whether the driver may set up queues.
    pub(super) fn queues_open(self) -> bool {
        self.0 & (FEATURES_OK | FAILED | NEEDS_RESET) == FEATURES_OK
    }

    pub(super) fn features_fixed(self) -> bool {
        self.0 & FEATURES_OK != 0
    }

    /// Whether the driver has finished initialisation, broken or not.
    pub(super) fn driver_ok(self) -> bool {
        self.0 & DRIVER_OK != 0
    }

    /// Whether the device may use its queues.
    pub(super) fn live(self) -> bool {
        self.0 & (DRIVER_OK | FAILED | NEEDS_RESET) == DRIVER_OK
    }
}

fn climb(from: u32, asked: u32, features_acceptable: bool) -> u32 {
    let step = |status: u32, (bit, before): &(u32, u32)| {
        let allowed = status & before == *before && (*bit != FEATURES_OK || features_acceptable);
        if asked & bit != 0 && allowed { status | bit } else { status }
    };
    LADDER.iter().fold(from, step) | asked & FAILED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_climbs_step_by_step() {
        let mut status = Status::default();
        for written in [1, 3, 11, 15] {
            status = status.after_write(written, true);
            assert_eq!(status.bits(), written);
        }
        assert!(status.live());
    }

    #[test]
    fn features_that_are_not_acceptable_keep_the_device_from_starting() {
        let status = Status::default().after_write(3, true).after_write(11, false);
        assert_eq!(status.bits(), 3);
        assert_eq!(status.after_write(15, false).bits(), 3, "DRIVER_OK needs FEATURES_OK");
    }

    #[test]
    fn a_step_cannot_be_left_out_or_taken_back() {
        assert_eq!(Status::default().after_write(DRIVER_OK | FEATURES_OK, true).bits(), 0);
        assert_eq!(Status(15).after_write(1, true).bits(), 15);
    }

    #[test]
    fn needs_reset_is_the_devices_alone() {
        assert_eq!(Status(15).after_write(15 | NEEDS_RESET, true).bits(), 15);
        let broken = Status(15).broken();
        assert_eq!(broken.after_write(15, true), broken);
        assert!(!broken.live() && broken.driver_ok());
    }

    #[test]
    fn only_reachable_states_are_taken_from_a_bundle() {
        for bits in [0, 1, 3, 11, 15, 15 | NEEDS_RESET, 15 | FAILED, FAILED] {
            assert!(Status::from_saved(bits).is_some(), "{bits:#x}");
        }
        for bits in [2, 4, 7, 8, 16, 32, 256, u32::MAX] {
            assert!(Status::from_saved(bits).is_none(), "{bits:#x}");
        }
    }
}
