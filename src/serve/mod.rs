//! `ember serve`: a daemon that answers events through a pool of shells.
//!
//! A shell is a sealed process with an empty VM. A small process, the zygote, makes them ahead of need; an invocation sends one
//! the open files of a bundle and an event, and gets its answer.

mod api;
mod budget;
mod client;
mod daemon;
mod frame;
pub mod fuzz_entry;
mod gate;
mod http;
mod invoke;
mod job;
mod metrics;
mod pool;
mod registry;
mod shell;
mod token;
mod zygote;

pub use client::Client;
pub use daemon::{Asked, Tcp, serve};
pub use frame::{Done, Frame};
pub use token::Token;
