//! `manifest.json`: what a bundle is, readable by a person.

mod check;
mod json;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::{
    COMMAND_LINE_MAX, DRIVES_MAX, FILES_MAX, MEMORY_MIN, TIMEOUT_MAX_MS, VCPUS_MAX, is_id, is_plain_name,
};
pub(crate) use json::reseal;
pub use json::{MANIFEST_MAX, Parsed};

use crate::state::FormatVersion;

/// Names of the files that have one meaning in every bundle.
pub mod names {
    pub const MANIFEST: &str = "manifest.json";
    pub const STATE: &str = "state";
    pub const MEMORY: &str = "memory";
    pub const INDEX: &str = "memory.index";
    pub const WORKING_SET: &str = "working-set";
    pub const ROOT: &str = "root.img";
    pub const KERNEL: &str = "kernel";
    pub const INITRAMFS: &str = "initramfs";
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("The manifest is {len} bytes long, more than the limit of {MANIFEST_MAX}")]
    TooLong { len: usize },
    #[error(
        "The manifest does not end with its checksum: it is cut off, damaged or was edited; bake or fetch it again"
    )]
    Unsealed,
    #[error("The manifest does not match its checksum: it is damaged or was edited; bake or fetch it again")]
    Checksum,
    #[error(
        "The bundle has format {version}, written by {creator}, and this release reads {}: \
         use the release that wrote it or a newer one, or bake again",
        FormatVersion::readable_range()
    )]
    Version { version: FormatVersion, creator: String },
    #[error("The manifest cannot be read: {detail}")]
    Json { detail: String },
    #[error("The manifest's {field} is refused: {detail}")]
    Value { field: &'static str, detail: String },
}

impl ManifestError {
    fn json(error: &serde_json::Error) -> Self {
        ManifestError::Json { detail: brief(&error.to_string()) }
    }
}

/// A text from outside, short and printable enough for a message.
fn brief(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

/// The manifest of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of the bundle's files, `major.minor`.
    pub format: String,
    /// Program and version that wrote the bundle, `ember 0.1.0`.
    pub creator: String,
    /// When it was baked, milliseconds since the epoch.
    pub created_unix_ms: u64,
    pub machine: MachineShape,
    pub function: FunctionContract,
    /// Version of the guest protocol that the frozen agent speaks; 0 for a small guest.
    #[serde(default)]
    pub agent_protocol: u16,
    pub cpu: CpuRequirements,
    /// Drives in the order of their virtio-mmio slots.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The bundle this one was baked from, when it was baked from a running clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Length and digest of every other file except `memory`, whose chunks the index covers; of `memory` the length.
    pub files: BTreeMap<String, FileEntry>,
}

/// The machine that was baked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineShape {
    pub memory_bytes: u64,
    pub vcpus: u32,
    pub kernel_cmdline: String,
    /// The guest kernel has no driver for the VM Generation ID: only the agent reseeds a clone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stale_rng: bool,
    /// The monotonic clocks of clones go on by the time since the freeze, where they otherwise go on from the freeze.
    #[serde(default, skip_serializing_if = "is_false")]
    pub advance_clock: bool,
}

/// What the host's CPU must offer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuRequirements {
    /// `x86_64`.
    pub arch: String,
    /// CPUID vendor string.
    pub vendor: String,
    /// Guest TSC frequency, kHz.
    pub tsc_khz: u32,
}

/// A drive of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Symbolic id: `root`, or what the user called it (`[a-z0-9-]{1,16}`).
    pub id: String,
    /// File in the bundle that backs it.
    pub file: String,
    pub read_only: bool,
}

/// A bundle this one was baked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// sha256 of the parent's manifest, lower-case hex.
    pub manifest_sha256: String,
}

/// One file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length in bytes.
    pub len: u64,
    /// sha256, lower-case hex; absent for `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// How events reach the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// A command: stdin in; stdout, stderr and exit code out.
    Exec,
    /// A program that listens on a TCP port.
    Http,
    /// A client of the AWS Lambda Runtime API.
    Lambda,
    /// A small guest without Linux (docs/port-interface.md).
    Port,
}

impl Interface {
    /// As in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Interface::Exec => "exec",
            Interface::Http => "http",
            Interface::Lambda => "lambda",
            Interface::Port => "port",
        }
    }
}

/// What the function is and how the agent starts it. It travels to the agent as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionContract {
    pub interface: Interface,
    /// Program and arguments; empty for `port`.
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default = "root_dir")]
    pub workdir: String,
    /// `uid[:gid]` or a name in the guest's /etc/passwd; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// exec: the process of the next event is started before the freeze and waits for its standard input.
    #[serde(default)]
    pub resident: bool,
    /// http: where the function listens and what tells that it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpContract>,
    /// lambda: what the runtime client is told about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lambda: Option<LambdaContract>,
    /// How long the function may take to reach its warm point, milliseconds.
    #[serde(default = "ready_timeout")]
    pub ready_timeout_ms: u64,
    /// How long one event may take, milliseconds.
    #[serde(default = "event_timeout")]
    pub event_timeout_ms: u64,
}

/// The `http` interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpContract {
    /// TCP port on the guest's loopback.
    pub port: u16,
    /// Path of the readiness request; any answer below 500 means ready.
    #[serde(default = "root_dir")]
    pub ready_path: String,
}

/// The `lambda` interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LambdaContract {
    /// `_HANDLER` and AWS_LAMBDA_FUNCTION_NAME's source: `module.function`.
    pub handler: String,
    #[serde(default = "function_name")]
    pub function_name: String,
    /// Whether the client is told that it is a SnapStart function (`AWS_LAMBDA_INITIALIZATION_TYPE=snap-start`).
    #[serde(default = "yes")]
    pub snap_start: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}
fn root_dir() -> String {
    "/".to_owned()
}
fn ready_timeout() -> u64 {
    120_000
}
fn event_timeout() -> u64 {
    30_000
}
fn function_name() -> String {
    "function".to_owned()
}
fn yes() -> bool {
    true
}
