//! What was typed: the content of an `ember.toml`, or the flags of a command line, which look the same from here.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use snapshot_format::manifest::Interface;

use super::event::EventText;
use super::units::{Size, Span};

/// Longest `ember.toml`, bytes; warm-up events that are larger belong into files of their own.
const FILE_MAX: u64 = 1 << 20;

/// Why an `ember.toml` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is longer than any such file.
    #[error("{} is longer than {FILE_MAX} bytes; this is no ember.toml", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is no TOML, or names something that does not exist.
    #[error("{} is not a valid ember.toml", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: TomlError,
    },
}

/// What is wrong with a TOML text, in one line: the crate's own words show the text around it in several.
#[derive(Debug, thiserror::Error)]
#[error("Line {line}: {reason}")]
pub struct TomlError {
    line: usize,
    reason: String,
}

impl TomlError {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let words: Vec<&str> = error.message().split_whitespace().collect();
        TomlError { line: 1 + before.matches('\n').count(), reason: words.join(" ") }
    }
}

/// Everything that can be asked of a bake. What is `None` is taken from the layer below, or has a default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    /// bzImage or ELF kernel; a small guest's ELF for the `port` interface.
    pub kernel: Option<PathBuf>,
    /// Folder with the kernel's modules (`lib/modules/VERSION`).
    pub modules: Option<PathBuf>,
    /// Words added to the kernel's command line.
    pub kernel_args: Option<String>,
    /// The guest agent's binary; found beside `ember` when absent.
    pub agent: Option<PathBuf>,
    /// `[root]`.
    pub root: AskedRoot,
    /// `[machine]`.
    pub machine: AskedMachine,
    /// `[function]`.
    pub function: AskedFunction,
    /// `[[warm_up]]`: events that are run before the freeze, in order.
    pub warm_up: Vec<EventText>,
    /// `[drives.ID]`.
    pub drives: BTreeMap<String, AskedDrive>,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
}

/// `[root]`: where the guest's root file system comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedRoot {
    /// Directory, ext4 image, OCI image layout, OCI or docker archive.
    pub path: Option<PathBuf>,
    /// Which image of an OCI layout.
    pub reference: Option<String>,
}

/// `[machine]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedMachine {
    /// Guest RAM.
    pub memory: Option<Size>,
    /// vCPUs.
    pub vcpus: Option<u32>,
    /// Whether the guest's kernel may lack a driver for the VM Generation ID.
    pub allow_stale_rng: Option<bool>,
    /// Whether the monotonic clocks of clones go on by the time since the freeze.
    pub advance_clock: Option<bool>,
}

/// `[function]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedFunction {
    /// How events reach it.
    pub interface: Option<Interface>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `uid[:gid]` or a name.
    pub user: Option<String>,
    /// exec: start the next event's process before the freeze.
    pub resident: Option<bool>,
    /// `[function.http]`.
    pub http: Option<AskedHttp>,
    /// `[function.lambda]`.
    pub lambda: Option<AskedLambda>,
}

/// `[function.http]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedHttp {
    /// TCP port on the guest's loopback.
    pub port: Option<u16>,
    /// Path of the readiness request.
    pub ready_path: Option<String>,
}

/// `[function.lambda]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskedLambda {
    /// `module.function`.
    pub handler: Option<String>,
    /// AWS_LAMBDA_FUNCTION_NAME.
    pub function_name: Option<String>,
    /// Whether the client is told that it is a SnapStart function.
    pub snap_start: Option<bool>,
}

/// `[drives.ID]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedDrive {
    /// Image file; it is copied into the bundle and never written. For a read-only drive also a directory, of which an image is
    /// made.
    pub path: PathBuf,
    /// Whether the guest may not write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// `[timeouts]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From power-on to the agent's greeting.
    pub boot: Option<Span>,
    /// From the function's start to its warm point.
    pub ready: Option<Span>,
    /// One event.
    pub event: Option<Span>,
}

impl Asked {
    /// Reads an `ember.toml`; paths in it are relative to the folder it lies in.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let len = std::fs::metadata(path).map_err(failed)?.len();
        if len > FILE_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let asked: Asked = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), source: TomlError::new(&text, &e) })?;
        Ok(asked.relative_to(path.parent().unwrap_or(Path::new("."))))
    }

    fn relative_to(mut self, folder: &Path) -> Self {
        let place = |path: &mut PathBuf| *path = folder.join(&*path);
        let paths = [&mut self.kernel, &mut self.modules, &mut self.agent, &mut self.root.path];
        paths.into_iter().flatten().for_each(place);
        self.drives.values_mut().for_each(|drive| place(&mut drive.path));
        self.warm_up.iter_mut().filter_map(|event| event.file.as_mut()).for_each(place);
        self
    }

    /// This layer over `below`: what this one names wins; lists and maps replace, environments join.
    pub fn over(self, below: Asked) -> Asked {
        Asked {
            kernel: self.kernel.or(below.kernel),
            modules: self.modules.or(below.modules),
            kernel_args: self.kernel_args.or(below.kernel_args),
            agent: self.agent.or(below.agent),
            root: AskedRoot {
                reference: self.root.reference.or(below.root.reference),
                path: self.root.path.or(below.root.path),
            },
            machine: AskedMachine {
                memory: self.machine.memory.or(below.machine.memory),
                vcpus: self.machine.vcpus.or(below.machine.vcpus),
                allow_stale_rng: self.machine.allow_stale_rng.or(below.machine.allow_stale_rng),
                advance_clock: self.machine.advance_clock.or(below.machine.advance_clock),
            },
            function: self.function.over(below.function),
            warm_up: if self.warm_up.is_empty() { below.warm_up } else { self.warm_up },
            drives: below.drives.into_iter().chain(self.drives).collect(),
            timeouts: Timeouts {
                boot: self.timeouts.boot.or(below.timeouts.boot),
                ready: self.timeouts.ready.or(below.timeouts.ready),
                event: self.timeouts.event.or(below.timeouts.event),
            },
        }
    }
}

impl AskedFunction {
    fn over(self, below: AskedFunction) -> AskedFunction {
        let http = join(self.http, below.http, |top, low| AskedHttp {
            port: top.port.or(low.port),
            ready_path: top.ready_path.or(low.ready_path),
        });
        let lambda = join(self.lambda, below.lambda, |top, low| AskedLambda {
            handler: top.handler.or(low.handler),
            function_name: top.function_name.or(low.function_name),
            snap_start: top.snap_start.or(low.snap_start),
        });
        AskedFunction {
            interface: self.interface.or(below.interface),
            command: if self.command.is_empty() { below.command } else { self.command },
            env: below.env.into_iter().chain(self.env).collect(),
            workdir: self.workdir.or(below.workdir),
            user: self.user.or(below.user),
            resident: self.resident.or(below.resident),
            http,
            lambda,
        }
    }
}

fn join<T>(top: Option<T>, low: Option<T>, both: impl Fn(T, T) -> T) -> Option<T> {
    match (top, low) {
        (Some(top), Some(low)) => Some(both(top, low)),
        (top, low) => top.or(low),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_environments_join() {
        let file: Asked = toml::from_str(
            r#"
            kernel = "vmlinuz"
            [machine]
            memory = "256MiB"
            [function]
            interface = "http"
            command = ["server"]
            env = { A = "1", B = "2" }
            [function.http]
            port = 80
            "#,
        )
        .unwrap();
        let mut flags = Asked::default();
        flags.machine.vcpus = Some(2);
        flags.function.env.insert("B".to_owned(), "3".to_owned());
        flags.function.http = Some(AskedHttp { port: Some(8080), ready_path: None });
        let both = flags.over(file);
        assert_eq!(
            both.machine,
            AskedMachine { memory: Some(Size(256 << 20)), vcpus: Some(2), ..Default::default() }
        );
        assert_eq!(both.function.env["A"], "1");
        assert_eq!(both.function.env["B"], "3");
        assert_eq!(both.function.http.unwrap().port, Some(8080));
        assert_eq!(both.function.command, ["server"]);
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(toml::from_str::<Asked>("memroy = \"1GiB\"").is_err());
        assert!(toml::from_str::<Asked>("[machine]\nmemory = 256").is_err());
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let asked: Asked =
            toml::from_str("kernel = \"k\"\n[root]\npath = \"/r\"\n[drives.d]\npath = \"i\"").unwrap();
        let asked = asked.relative_to(Path::new("/x"));
        assert_eq!(asked.kernel, Some("/x/k".into()));
        assert_eq!(asked.root.path, Some("/r".into()));
        assert_eq!(asked.drives["d"].path, PathBuf::from("/x/i"));
    }
}
