//! Faults that tests inject, each with a name: `EMBER_FAULT=NAME[,NAME...]`.
//!
//! Only with the feature `faults`, which no build without debug assertions can have: `cargo build --features faults` makes one, and
//! `cargo xtask` builds `ember-with-faults` where a test asks for it. Without the feature [`injected`] is `false` at compile time, and
//! what would follow from it is not in the program.

#[cfg(all(feature = "faults", not(debug_assertions)))]
compile_error!("The feature `faults` is for tests and needs debug assertions: build without --release");

/// What can be made to go wrong, or to be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The agent's acknowledgement is lost.
    AcknowledgeNever,
    /// The agent's acknowledgement comes when the time for it is over.
    AcknowledgeLate,
    /// The agent acknowledges another generation than its clone's.
    AcknowledgeOld,
    /// The agent acknowledges two times at once.
    AcknowledgeTwice,
    /// The agent acknowledges once more, with what a command prints first.
    AcknowledgeAgain,
    /// The guest is not interrupted because of its new VM generation. Also tells what the interrupt costs.
    GenerationSilent,
    /// The restore message brings neither host name nor machine id. Also tells what they cost.
    NamesAbsent,
}

#[cfg(feature = "faults")]
impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::AcknowledgeNever => "acknowledge-never",
            Fault::AcknowledgeLate => "acknowledge-late",
            Fault::AcknowledgeOld => "acknowledge-old",
            Fault::AcknowledgeTwice => "acknowledge-twice",
            Fault::AcknowledgeAgain => "acknowledge-again",
            Fault::GenerationSilent => "generation-silent",
            Fault::NamesAbsent => "names-absent",
        }
    }
}

/// Whether a test asks for `fault`.
#[cfg(feature = "faults")]
pub fn injected(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static ASKED: OnceLock<String> = OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var("EMBER_FAULT").unwrap_or_default());
    asked.split(',').any(|name| name == fault.name())
}

/// Never: the feature `faults` is off.
#[cfg(not(feature = "faults"))]
pub const fn injected(_fault: Fault) -> bool {
    false
}
