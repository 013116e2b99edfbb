//! What can go wrong between host and guest.

use std::fmt;

use guest_protocol::{FrameError, PayloadError};

use super::response::ResponseError;

/// Why a conversation with a guest failed, or something may not be said now.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// An event is longer than any may be.
    #[error(
        "The event is {len} bytes long, more than the limit of {limit}: pass a reference to the data instead"
    )]
    TooLarge {
        /// Its length, bytes.
        len: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// An event is of another interface than the function.
    #[error("The function has the interface {function} and this is an event for {event}")]
    WrongInterface {
        /// Of the function.
        function: &'static str,
        /// Of the event.
        event: &'static str,
    },
    /// An HTTP request cannot be written down.
    #[error("The request's {what} cannot be sent: {reason}")]
    Request {
        /// Which part.
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// A variable cannot be put into an environment.
    #[error("The environment variable {key:?} cannot be passed: {reason}")]
    Env {
        /// Its name.
        key: String,
        /// Why.
        reason: &'static str,
    },
    /// The contract is longer than one may be, or incomplete.
    #[error("The function's contract cannot be sent: {reason}")]
    Contract {
        /// Why.
        reason: String,
    },
    /// Something is said too early or too late.
    #[error("{what} cannot be given {when}")]
    Order {
        /// What.
        what: &'static str,
        /// When.
        when: &'static str,
    },
    /// The agent speaks a version that this release does not.
    #[error(
        "The guest agent speaks version {found} of the guest protocol and this release speaks 1 to {}: \
         use the release that baked the bundle or a newer one",
        guest_protocol::VERSION
    )]
    Version {
        /// The agent's.
        found: u16,
    },
    /// The agent's bytes are no frames.
    #[error("The guest agent does not keep to the guest protocol")]
    Frame(#[from] FrameError),
    /// A frame of the agent cannot be read.
    #[error("The guest agent does not keep to the guest protocol")]
    Payload(#[from] PayloadError),
    /// A frame of the agent has no place here.
    #[error("The guest agent sent a frame of kind {frame} while {waiting_for} was awaited")]
    Unexpected {
        /// The frame.
        frame: &'static str,
        /// What the host waited for.
        waiting_for: &'static str,
    },
    /// The guest itself failed.
    #[error("The guest failed: {text}")]
    Guest {
        /// The agent's words.
        text: String,
    },
    /// The function failed.
    #[error("The function {what}{last_output}")]
    Function {
        /// What it did.
        what: String,
        /// What it wrote last.
        last_output: LastOutput,
    },
    /// The function answered with what is no HTTP response.
    #[error("The function's answer is not an HTTP response{last_output}")]
    Response {
        /// What the function wrote last to its log.
        last_output: LastOutput,
        /// What is wrong.
        #[source]
        source: ResponseError,
    },
    /// A clone did not become unique; it must not serve.
    #[error("The clone did not become unique and serves nothing: {reason}{last_output}")]
    NotUnique {
        /// Why.
        reason: String,
        /// What hooks and the function wrote last.
        last_output: LastOutput,
    },
    /// A host name that no host can have.
    #[error(
        "{name:?} is no host name: write 1 to 64 letters, digits, - and ., with a letter or digit at both ends"
    )]
    HostName {
        /// The name.
        name: String,
    },
    /// A deadline passed.
    #[error("The time limit passed while {waiting_for} was awaited{last_output}")]
    TimedOut {
        /// What the host waited for.
        waiting_for: &'static str,
        /// What the function wrote last.
        last_output: LastOutput,
    },
}

/// The last kilobytes that a function wrote, for messages; nothing when it wrote nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastOutput(pub String);

impl fmt::Display for LastOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.trim_end() {
            "" => Ok(()),
            text => write!(f, "; its last output:\n{text}"),
        }
    }
}
