//! What a command ends with when it does not succeed: an exit code, and an error whose chain is printed once. A machine's process
//! tells it to whoever waits for its answer.

pub mod console;
mod kinds;
pub mod limits;

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it was, and with it the exit code (docs/exit-codes.md). `run` exits with the function's own code when the
/// function answered; these are Ember's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Kind {
    /// Flags, `ember.toml` or the event are wrong.
    Usage = 120,
    /// The bundle is damaged, incomplete, or not for this release.
    BadBundle = 121,
    /// This host cannot run the machine: no KVM, no permission, a CPU or frequency it lacks, no space.
    HostCannot = 122,
    /// The guest failed: it did not boot, crashed, misspoke, or the function ended or never got ready.
    GuestFailed = 123,
    /// A deadline passed.
    Timeout = 124,
    /// The clone did not acknowledge that it became unique; it was given no event.
    NotUnique = 125,
    /// Ember itself failed: its own child died, its output could not be written.
    Internal = 126,
}

impl Kind {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The kind of an exit code.
    pub fn from_code(code: u8) -> Option<Kind> {
        use Kind::{BadBundle, GuestFailed, HostCannot, Internal, NotUnique, Timeout, Usage};
        [Usage, BadBundle, HostCannot, GuestFailed, Timeout, NotUnique, Internal]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// A failed command. A process may report it for another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    kind: Kind,
    /// The error and its causes, outermost first.
    chain: Vec<String>,
    /// More for a person: the guest's last words.
    detail: Option<String>,
}

impl Failure {
    /// A failure of `kind` because of `error`.
    pub fn new(kind: Kind, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let mut chain: Vec<String> = causes.map(ToString::to_string).collect();
        // A transparent error repeats its source's text.
        chain.dedup();
        Failure { kind, chain, detail: None }
    }

    /// A failure in words.
    pub fn text(kind: Kind, text: impl Into<String>) -> Self {
        Failure { kind, chain: vec![text.into()], detail: None }
    }

    /// Adds what the guest said last.
    pub fn with_detail(mut self, detail: Option<String>) -> Self {
        self.detail = self.detail.or(detail.filter(|text| !text.trim().is_empty()));
        self
    }

    /// As it may be shown when whoever told it may be in a guest's hands: without what a terminal would obey, and a sentence has one line.
    #[must_use]
    pub fn printable(mut self) -> Self {
        self.chain.iter_mut().for_each(|text| text.retain(|c| !c.is_control()));
        self.detail = self.detail.map(|detail| console::printable(detail.as_bytes()));
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What another process told in the form of [`to_json`](Self::to_json), or something like it.
    pub fn from_json(told: &serde_json::Value) -> Self {
        let error = told.get("error").unwrap_or(told);
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let kind = error.get("kind").cloned().unwrap_or_default();
        let message =
            error.get("message").and_then(text).unwrap_or_else(|| "The daemon refused it".to_owned());
        let causes = error.get("causes").and_then(serde_json::Value::as_array).into_iter().flatten();
        Failure {
            kind: match kind.as_str() {
                Some("request") => Kind::Usage,
                Some("overloaded") => Kind::HostCannot,
                _ => serde_json::from_value(kind).unwrap_or(Kind::Internal),
            },
            chain: std::iter::once(message).chain(causes.filter_map(text)).collect(),
            detail: error.get("detail").and_then(text),
        }
    }

    /// As `--json` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        let message = self.chain.first().cloned().unwrap_or_default();
        serde_json::json!({ "error": {
            "kind": self.kind,
            "exit_code": self.kind.code(),
            "message": message,
            "causes": self.chain.get(1..).unwrap_or_default(),
            "detail": self.detail,
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.chain.join(": "))?;
        match &self.detail {
            Some(detail) => write!(f, "\n--- last output of the guest ---\n{}", detail.trim_end()),
            None => Ok(()),
        }
    }
}

/// Turns an operation's error into a failure; each error type says its kind here and nowhere else (`kinds.rs`).
pub trait ToFailure: Error + Sized + 'static {
    /// What kind of failure this is.
    fn kind(&self) -> Kind;
}

impl<E: ToFailure> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(error.kind(), &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_is_printed_once_with_its_causes() {
        let error = Outer(std::io::Error::other("inner"));
        let failure = Failure::new(Kind::BadBundle, &error).with_detail(Some("panic".into()));
        assert_eq!(failure.to_string(), "Outer: inner\n--- last output of the guest ---\npanic");
        assert_eq!(failure.to_json()["error"]["exit_code"], 121);
        assert_eq!(Failure::from_json(&failure.to_json()).to_json(), failure.to_json());
    }

    #[test]
    fn codes_and_kinds_name_each_other() {
        for code in 120..=126 {
            assert_eq!(Kind::from_code(code).map(Kind::code), Some(code));
        }
        assert_eq!(Kind::from_code(1), None);
    }
}
