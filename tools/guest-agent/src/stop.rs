//! Why the agent ends.

use std::error::Error;
use std::fmt::Display;
use std::io;

use guest_protocol::{Cause, FrameError, PayloadError};

/// Why a session ends. None goes on: what the host knows about a guest must be true.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The host cannot be heard or reached.
    #[error("The control stream broke")]
    Control(#[source] io::Error),
    /// The host must know.
    #[error("{text}")]
    Failed {
        /// The kind of failure.
        cause: Cause,
        /// Exit code or signal.
        status: i32,
        /// For the host.
        text: String,
    },
}

impl Stop {
    /// A failure that is told by `text`.
    pub fn failed(cause: Cause, text: impl Display) -> Self {
        Stop::Failed { cause, status: 0, text: text.to_string() }
    }

    /// A failure that is told by `error` and what lies beneath it.
    pub fn chain(cause: Cause, error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        Stop::failed(cause, text)
    }
}

impl From<FrameError> for Stop {
    fn from(error: FrameError) -> Self {
        Stop::failed(Cause::Protocol, error)
    }
}

impl From<PayloadError> for Stop {
    fn from(error: PayloadError) -> Self {
        Stop::failed(Cause::Protocol, error)
    }
}
