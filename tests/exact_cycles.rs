//! A busy guest with one vCPU that is frozen, baked and restored over and over computes as if nothing had happened. In the emulated
//! host its clock counts instructions: whoever else keeps this machine busy is never the reason for what the guest's kernel says.

mod common;
#[path = "common/cycles.rs"]
mod cycles;
#[path = "common/linux.rs"]
mod linux;

mod full {
    use crate::common::Place;
    use crate::cycles::{CYCLES, cycles};

    #[test]
    fn one_vcpu_goes_through_ten_cycles_under_load() {
        cycles(Place::new().path(), 1, 256, CYCLES);
    }
}
