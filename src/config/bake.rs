//! What a bake was asked for means, with nothing left open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use snapshot_format::manifest::{FunctionContract, HttpContract, Interface, LambdaContract};

use super::asked::{Asked, AskedFunction, AskedHttp, AskedLambda};
use super::event::EventText;
use super::units::Size;

/// Least memory of a guest that runs Linux, bytes.
pub const LINUX_MEMORY_MIN: u64 = 128 << 20;
/// Least memory of a small guest, bytes.
const SMALL_MEMORY_MIN: u64 = 2 << 20;
/// Most memory of a guest, bytes.
pub const MEMORY_MAX: u64 = 8 << 30;
/// Memory comes in steps of this many bytes: one entry of the guest's page tables.
const MEMORY_STEP: u64 = 2 << 20;
/// Most vCPUs of a guest.
pub const VCPUS_MAX: u32 = 8;
/// Most drives besides the root: virtio-mmio windows minus root, vsock and rng.
const DRIVES_MAX: usize = 8;
const DEFAULT_MEMORY: u64 = 256 << 20;
const DEFAULT_BOOT: Duration = Duration::from_secs(120);
const DEFAULT_READY_MS: u64 = 120_000;
const DEFAULT_EVENT_MS: u64 = 30_000;

/// Why what was asked for cannot be baked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidError {
    /// Something that has no default is missing.
    #[error("No {what} is given: name it with {flag} or in ember.toml")]
    Missing {
        /// What.
        what: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// A number out of its range.
    #[error("{what} is {found}, it must be {expected}")]
    Range {
        /// What.
        what: &'static str,
        /// As asked.
        found: String,
        /// What is possible.
        expected: String,
    },
    /// A part that only another interface has.
    #[error("{what} belongs to the {owner} interface, the function has {interface}")]
    Foreign {
        /// What.
        what: &'static str,
        /// Whose it is.
        owner: &'static str,
        /// What was asked for.
        interface: &'static str,
    },
    /// A name that cannot be used.
    #[error("{name:?} cannot be the id of a drive: use up to 16 of a-z, 0-9 and -, and not `root`")]
    DriveId {
        /// As asked.
        name: String,
    },
    /// An environment variable that no program could read.
    #[error("{name:?} cannot be an environment variable")]
    Env {
        /// As asked.
        name: String,
    },
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootSource {
    /// Directory, image, OCI layout or archive.
    pub path: PathBuf,
    /// Which image of a layout.
    pub reference: Option<String>,
}

/// A drive besides the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveFile {
    /// Its symbolic id.
    pub id: String,
    /// Its image.
    pub path: PathBuf,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

/// What an OCI image says about how it is run; flags and `ember.toml` win over it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Entrypoint and Cmd.
    pub command: Vec<String>,
    /// Env.
    pub env: BTreeMap<String, String>,
    /// WorkingDir.
    pub workdir: Option<String>,
    /// User.
    pub user: Option<String>,
}

/// A bake.
#[derive(Debug, Clone, PartialEq)]
pub struct Bake {
    /// Kernel, or the ELF of a small guest.
    pub kernel: PathBuf,
    /// Folder with the kernel's modules; beside the kernel when absent.
    pub modules: Option<PathBuf>,
    /// Words added to the kernel's command line.
    pub kernel_args: String,
    /// The agent's binary; beside `ember` when absent.
    pub agent: Option<PathBuf>,
    /// Root file system; `None` for the `port` interface only.
    pub root: Option<RootSource>,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Whether the guest's kernel may lack a driver for the VM Generation ID.
    pub allow_stale_rng: bool,
    /// Whether the monotonic clocks of clones go on by the time since the freeze.
    pub advance_clock: bool,
    /// Drives besides the root, by id.
    pub drives: Vec<DriveFile>,
    /// Events before the freeze.
    pub warm_up: Vec<EventText>,
    /// Longest wait for the agent's greeting.
    pub boot_timeout: Duration,
    interface: Interface,
    function: AskedFunction,
    ready_timeout_ms: u64,
    event_timeout_ms: u64,
}

impl Bake {
    /// Checks what was asked.
    ///
    /// # Errors
    /// See [`InvalidError`].
    pub fn new(asked: Asked) -> Result<Self, InvalidError> {
        let interface = asked.function.interface.unwrap_or(Interface::Exec);
        let kernel = asked.kernel.ok_or(InvalidError::Missing { what: "kernel", flag: "--kernel" })?;
        check_foreign(interface, &asked.function)?;
        check_env(&asked.function.env)?;
        let drives = asked.drives.into_iter().map(|(id, drive)| {
            check_drive_id(&id)?;
            Ok(DriveFile { id, path: drive.path, read_only: drive.read_only })
        });
        let drives = drives.collect::<Result<Vec<_>, _>>()?;
        check_range("The number of drives", drives.len(), 0, DRIVES_MAX)?;
        let root = asked.root.path.map(|path| RootSource { path, reference: asked.root.reference });
        let milliseconds =
            |span: Option<super::Span>, default| span.map_or(default, super::Span::milliseconds);
        Ok(Bake {
            kernel,
            modules: asked.modules,
            kernel_args: asked.kernel_args.unwrap_or_default(),
            agent: asked.agent,
            root: check_root(interface, root)?,
            memory_bytes: check_memory(interface, asked.machine.memory)?,
            vcpus: check_range("The number of vCPUs", asked.machine.vcpus.unwrap_or(1), 1, VCPUS_MAX)?,
            allow_stale_rng: asked.machine.allow_stale_rng.unwrap_or(false),
            advance_clock: asked.machine.advance_clock.unwrap_or(false),
            drives,
            warm_up: asked.warm_up,
            boot_timeout: asked.timeouts.boot.map_or(DEFAULT_BOOT, |span| span.0),
            interface,
            function: asked.function,
            ready_timeout_ms: milliseconds(asked.timeouts.ready, DEFAULT_READY_MS),
            event_timeout_ms: milliseconds(asked.timeouts.event, DEFAULT_EVENT_MS),
        })
    }

    /// How events reach the function.
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// Longest time of one event.
    pub fn event_timeout(&self) -> Duration {
        Duration::from_millis(self.event_timeout_ms)
    }

    /// The contract with the function, with what its image says filled in.
    ///
    /// # Errors
    /// Neither the user nor the image names a command, or an interface lacks what it needs.
    pub fn contract(&self, image: &ImageDefaults) -> Result<FunctionContract, InvalidError> {
        let asked = &self.function;
        let command = if asked.command.is_empty() { &image.command } else { &asked.command };
        if command.is_empty() && self.interface != Interface::Port {
            return Err(InvalidError::Missing { what: "command of the function", flag: "-- COMMAND" });
        }
        let env = image.env.clone().into_iter().chain(asked.env.clone()).collect();
        check_env(&env)?;
        Ok(FunctionContract {
            interface: self.interface,
            command: command.clone(),
            env,
            workdir: asked.workdir.clone().or(image.workdir.clone()).unwrap_or("/".to_owned()),
            user: asked.user.clone().or(image.user.clone()).filter(|user| !user.is_empty()),
            resident: asked.resident.unwrap_or(false),
            http: (self.interface == Interface::Http).then(|| http(asked.http.as_ref())).transpose()?,
            lambda: (self.interface == Interface::Lambda)
                .then(|| lambda(asked.lambda.as_ref()))
                .transpose()?,
            ready_timeout_ms: self.ready_timeout_ms,
            event_timeout_ms: self.event_timeout_ms,
        })
    }
}

fn http(asked: Option<&AskedHttp>) -> Result<HttpContract, InvalidError> {
    let missing = InvalidError::Missing { what: "TCP port of the function", flag: "--port" };
    let port = asked.and_then(|http| http.port).filter(|port| *port > 0).ok_or(missing)?;
    let ready_path = asked.and_then(|http| http.ready_path.clone()).unwrap_or("/".to_owned());
    Ok(HttpContract { port, ready_path })
}

fn lambda(asked: Option<&AskedLambda>) -> Result<LambdaContract, InvalidError> {
    let missing = InvalidError::Missing { what: "handler of the function", flag: "--handler" };
    let handler = asked.and_then(|lambda| lambda.handler.clone()).ok_or(missing)?;
    Ok(LambdaContract {
        handler,
        function_name: asked.and_then(|lambda| lambda.function_name.clone()).unwrap_or("function".to_owned()),
        snap_start: asked.and_then(|lambda| lambda.snap_start).unwrap_or(true),
    })
}

fn check_foreign(interface: Interface, asked: &AskedFunction) -> Result<(), InvalidError> {
    let parts = [
        (asked.http.is_some(), "A TCP port or readiness path", Interface::Http),
        (asked.lambda.is_some(), "A handler", Interface::Lambda),
        (asked.resident == Some(true), "`resident`", Interface::Exec),
    ];
    match parts.into_iter().find(|(asked, _, owner)| *asked && *owner != interface) {
        Some((_, what, owner)) => {
            Err(InvalidError::Foreign { what, owner: owner.name(), interface: interface.name() })
        }
        None => Ok(()),
    }
}

fn check_root(interface: Interface, root: Option<RootSource>) -> Result<Option<RootSource>, InvalidError> {
    match (interface, root) {
        (Interface::Port, None) => Ok(None),
        (Interface::Port, Some(_)) => Err(InvalidError::Foreign {
            what: "A root file system",
            owner: "exec, http or lambda",
            interface: "port",
        }),
        (_, None) => Err(InvalidError::Missing { what: "root file system", flag: "--root" }),
        (_, root) => Ok(root),
    }
}

fn check_memory(interface: Interface, asked: Option<Size>) -> Result<u64, InvalidError> {
    let least = if interface == Interface::Port { SMALL_MEMORY_MIN } else { LINUX_MEMORY_MIN };
    let bytes = asked.map_or(DEFAULT_MEMORY, |size| size.0);
    if !(least..=MEMORY_MAX).contains(&bytes) || !bytes.is_multiple_of(MEMORY_STEP) {
        return Err(InvalidError::Range {
            what: "The guest's memory",
            found: Size(bytes).to_string(),
            expected: format!("{} to {} in steps of {}", Size(least), Size(MEMORY_MAX), Size(MEMORY_STEP)),
        });
    }
    Ok(bytes)
}

fn check_range<T: PartialOrd + ToString>(
    what: &'static str,
    found: T,
    least: T,
    most: T,
) -> Result<T, InvalidError> {
    if found < least || found > most {
        let expected = format!("{} to {}", least.to_string(), most.to_string());
        return Err(InvalidError::Range { what, found: found.to_string(), expected });
    }
    Ok(found)
}

fn check_drive_id(id: &str) -> Result<(), InvalidError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.len() > 16 || !id.bytes().all(plain) || id == "root" {
        return Err(InvalidError::DriveId { name: id.to_owned() });
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), InvalidError> {
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(bad) {
        Some((name, _)) => Err(InvalidError::Env { name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Asked {
        toml::from_str(text).unwrap()
    }

    const EXEC: &str = "kernel = 'k'\nroot.path = 'r'\nfunction.command = ['/bin/cat']\n";

    #[test]
    fn a_short_file_has_defaults_for_the_rest() {
        let bake = Bake::new(asked(EXEC)).unwrap();
        assert_eq!((bake.memory_bytes, bake.vcpus), (256 << 20, 1));
        let contract = bake.contract(&ImageDefaults::default()).unwrap();
        assert_eq!(contract.interface, Interface::Exec);
        assert_eq!((contract.workdir.as_str(), contract.resident), ("/", false));
    }

    #[test]
    fn what_an_image_says_is_used_where_nobody_says_otherwise() {
        let image = ImageDefaults {
            command: vec!["image".into()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            workdir: Some("/app".into()),
            user: None,
        };
        let bake = Bake::new(asked("kernel = 'k'\nroot.path = 'r'\nfunction.env.A = '2'")).unwrap();
        let contract = bake.contract(&image).unwrap();
        assert_eq!((contract.command, contract.workdir.as_str()), (vec!["image".to_owned()], "/app"));
        assert_eq!(contract.env["A"], "2");
        assert!(bake.contract(&ImageDefaults::default()).is_err(), "nobody names a command");
    }

    #[test]
    fn memory_and_vcpus_have_bounds_that_are_told() {
        for text in ["64MiB", "9GiB", "129MiB"] {
            let error = Bake::new(asked(&format!("{EXEC}machine.memory = '{text}'"))).unwrap_err();
            assert!(error.to_string().contains("128 MiB to 8 GiB"), "{error}");
        }
        assert!(Bake::new(asked(&format!("{EXEC}machine.vcpus = 9"))).is_err());
        let small = "kernel = 'k'\nfunction.interface = 'port'\nmachine.memory = '2MiB'";
        assert_eq!(Bake::new(asked(small)).unwrap().memory_bytes, 2 << 20);
    }

    #[test]
    fn parts_of_another_interface_are_refused() {
        assert!(Bake::new(asked(&format!("{EXEC}function.http.port = 80"))).is_err());
        let port = "kernel = 'k'\nroot.path = 'r'\nfunction.interface = 'port'";
        assert!(Bake::new(asked(port)).is_err());
        let http = "kernel = 'k'\nroot.path = 'r'\nfunction.command = ['s']\nfunction.interface = 'http'";
        let bake = Bake::new(asked(http)).unwrap();
        assert!(bake.contract(&ImageDefaults::default()).unwrap_err().to_string().contains("--port"));
    }

    #[test]
    fn drive_ids_are_plain_and_not_root() {
        for id in ["root", "A", "a/b", "", "a-very-long-drive-id"] {
            let text = format!("{EXEC}[drives.'{id}']\npath = 'd'");
            assert!(Bake::new(asked(&text)).is_err(), "{id:?}");
        }
    }
}
