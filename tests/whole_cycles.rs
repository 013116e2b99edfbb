//! A busy guest that is frozen, baked and restored over and over computes as if nothing had happened.

mod common;
#[path = "common/cycles.rs"]
mod cycles;
#[path = "common/linux.rs"]
mod linux;

mod full {
    use crate::common::Place;
    use crate::cycles::{CYCLES, cycles};
    use crate::linux::kept;

    #[test]
    fn one_vcpu_goes_through_ten_cycles_under_load() {
        cycles(Place::new().path(), 1, 256, CYCLES);
    }

    #[test]
    fn two_vcpus_go_through_ten_cycles_under_load() {
        cycles(Place::new().path(), 2, 256, CYCLES);
    }

    #[test]
    fn four_vcpus_go_through_a_cycle_under_load() {
        cycles(Place::new().path(), 4, 512, 1);
    }

    #[test]
    fn eight_gib_go_through_a_cycle_under_load() {
        // Not on a tmpfs: there a page that is touched in a hole takes room twice, as the file's and as the clone's.
        cycles(tempfile::tempdir_in(kept()).unwrap().path(), 1, 8192, 1);
    }
}
