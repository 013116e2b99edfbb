//! Linux guests: bundles that are baked once and kept, and clones that are alive at the same time.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes helpers of tests for the product"
)]

use std::collections::hash_map::DefaultHasher;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{Ended, ember, end_of, finish, program, start};

/// The clone did not become unique (docs/exit-codes.md).
pub const NOT_UNIQUE: i32 = 125;

/// Seconds that a bake may take; in the emulated host on a busy machine it is half a minute.
const BAKE_LIMIT: &str = "200";

/// How long clones that are to be alive at once stay after the first has written. The second only has to start in it.
pub const ALIVE_SECONDS: u64 = 8;

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set: run this by `cargo xtask test`"))
        .into()
}

/// The root with python and busybox, an ext4 image.
pub fn python_root() -> PathBuf {
    variable("EMBER_ROOT_PYTHON")
}

/// The kernel.
pub fn kernel() -> PathBuf {
    variable("EMBER_KERNEL")
}

/// The kernel's modules.
pub fn modules() -> PathBuf {
    variable("EMBER_MODULES")
}

/// The guest agent.
pub fn agent() -> PathBuf {
    variable("EMBER_AGENT")
}

/// An example's `ember.toml`.
pub fn example(name: &str) -> PathBuf {
    variable("EMBER_EXAMPLES").join(name).join("ember.toml")
}

/// Where bundles are kept between runs.
pub fn kept() -> PathBuf {
    let kept = variable("EMBER_BUNDLES");
    fs::create_dir_all(&kept).unwrap();
    kept
}

/// A folder whose content can be a root: busybox, its shell and a few names, users, a place to work in.
pub fn busybox_root(at: &Path) -> PathBuf {
    for folder in ["bin", "etc", "tmp", "run", "proc", "sys", "dev", "work"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::copy(variable("EMBER_BUSYBOX"), at.join("bin/busybox")).unwrap();
    for name in [
        "sh",
        "cat",
        "id",
        "date",
        "kill",
        "sleep",
        "poweroff",
        "reboot",
        "sync",
        "grep",
        "nproc",
        "sha256sum",
    ] {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1234::/work:/bin/sh\n")
        .unwrap();
    fs::write(at.join("etc/group"), "root:x:0:\nworker:x:1234:\n").unwrap();
    at.to_owned()
}

/// The files of a bundle, each with the digest of its content.
pub fn digests(bundle: &Path) -> Vec<(String, String)> {
    let digest = |name: String| {
        let summed = Command::new("sha256sum").arg(bundle.join(&name)).output().unwrap();
        (name, String::from_utf8_lossy(&summed.stdout).chars().take(64).collect())
    };
    crate::common::names(bundle).into_iter().map(digest).collect()
}

/// `ember bake` of a Linux guest to `bundle`. Kernel, modules and agent come from the environment.
pub fn bake_command<S: AsRef<OsStr>>(bundle: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", BAKE_LIMIT]).arg(program()).arg("bake").arg(bundle).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Bakes to the end, whatever that is.
#[track_caller]
pub fn bake<S: AsRef<OsStr>>(bundle: &Path, arguments: impl IntoIterator<Item = S>) -> Ended {
    let output = start(&mut bake_command(bundle, arguments)).wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { status: output.status, output: output.stdout, errors }
}

/// A bundle that is baked when it is not there: another test, or an earlier run, may have done it. `arguments` prepares in the
/// folder it is given what the bake needs.
///
/// It is named after its `content`; program, kernel, agent, examples and the python root are in the name of the folder already.
#[track_caller]
pub fn bundle(name: &str, content: &[&str], arguments: impl FnOnce(&Path) -> Vec<OsString>) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let path = kept().join(format!("{name}-{:016x}", hasher.finish()));
    let lock = File::create(kept().join(format!(".{name}.lock"))).unwrap();
    lock.lock().unwrap();
    // What was said of it is written after it: who was killed in between leaves one alone.
    if !path.exists() || !path.with_extension("json").exists() {
        fs::remove_dir_all(&path).ok();
        let place = tempfile::tempdir().unwrap();
        // In front: the last argument is the function's.
        let all = std::iter::once("--json".into()).chain(arguments(place.path()));
        let ended = bake(&path, all);
        fs::write(path.with_extension("json"), &ended.succeeds().output).unwrap();
    }
    path
}

/// Arguments with a root in front.
pub fn with_root(root: &Path, arguments: &[&str]) -> Vec<OsString> {
    ["--root".into(), root.into()].into_iter().chain(arguments.iter().map(OsString::from)).collect()
}

/// What `ember bake --json` said of a bundle.
pub fn baked(bundle: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(bundle.with_extension("json")).unwrap()).unwrap()
}

/// An example's bundle, with the python root.
pub fn example_bundle(name: &str) -> PathBuf {
    bundle(name, &[], |_| with_root(&python_root(), &["--config", example(name).to_str().unwrap()]))
}

/// A shell that reads its script as the event; nothing of it runs before that. Little memory, a root made of a folder.
pub fn shell() -> PathBuf {
    let arguments = ["--memory", "128MiB", "--warm-up", "echo", "--", "/bin/sh"];
    bundle("shell", &arguments, |place| with_root(&busybox_root(&place.join("root")), &arguments))
}

/// An interpreter that was started before the freeze and reads its program as the event. What `setup` puts into the dictionary
/// `state` is in its memory from before.
pub fn python(name: &str, setup: &str, more: &[&str]) -> PathBuf {
    let program =
        format!("import sys\nstate = {{}}\n{setup}\nexec(compile(sys.stdin.read(), 'event', 'exec'))\n");
    let arguments = [more, &["--resident", "--", "/usr/bin/python3", "-c", &program]].concat();
    bundle(name, &arguments, |_| with_root(&python_root(), &arguments))
}

/// awslambdaric with `source` as the handler's module, in a folder with an `ember.toml` to which `settings` are added.
pub fn lambda(name: &str, source: &str, settings: &str) -> PathBuf {
    bundle(name, &[source, settings], |place| lambda_arguments(place, source, settings))
}

/// What `ember bake` needs for it.
pub fn lambda_arguments(place: &Path, source: &str, settings: &str) -> Vec<OsString> {
    let config = place.join("ember.toml");
    fs::create_dir(place.join("function")).unwrap();
    fs::write(place.join("function/app.py"), source).unwrap();
    fs::write(&config, format!("{LAMBDA}{settings}\n")).unwrap();
    with_root(&python_root(), &["--config", config.to_str().unwrap()])
}

const LAMBDA: &str = r#"
machine.memory = "512MiB"
drives.function = { path = "function", read_only = true }

[function]
interface = "lambda"
command = ["/usr/bin/python3", "-m", "awslambdaric", "app.handler"]
workdir = "/mnt/function"

[function.lambda]
handler = "app.handler"
function_name = "probe"
"#;

/// `ember run` of a bundle with this event.
pub fn run_command(bundle: &Path, event: &str) -> Command {
    let mut command = ember(["run", "--event-text", event]);
    command.arg(bundle);
    command
}

/// The same, to its end.
#[track_caller]
pub fn run(bundle: &Path, event: &str) -> Ended {
    finish(&mut run_command(bundle, event))
}

/// A clone whose output is read while it lives.
pub struct Alive {
    child: Child,
    lines: Receiver<String>,
    readers: Vec<JoinHandle<()>>,
}

impl Alive {
    /// Starts `ember run`.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = start(command);
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers = streams.map(|stream| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    // Nobody may want the rest.
                    sender.send(line.unwrap()).ok();
                }
            })
        });
        Alive { child, lines, readers: readers.into() }
    }

    /// Waits for a line of either output that has `words` in it.
    #[track_caller]
    pub fn await_line(&self, words: &str) {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(100)) {
            if line.contains(words) {
                return;
            }
            seen.push(line);
        }
        panic!("{words:?} did not come, but {seen:?}");
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; gives its exit code and the lines that nobody has waited for.
    pub fn finish(self) -> (Option<i32>, Vec<String>) {
        let status = end_of(self.child).status;
        self.readers.into_iter().for_each(|reader| reader.join().unwrap());
        (status.code(), self.lines.try_iter().collect())
    }
}

/// Two clones at once, each of which writes its own word to memory and to a file, says "written", and after a while says
/// "memory WORD" and "file WORD"; then a third that only reads and says the same of the `original`. `event` gives the command for
/// a word, or for reading.
#[track_caller]
pub fn clones_do_not_see_each_other(original: &str, event: impl Fn(Option<&str>) -> Command) {
    let words = ["first", "second"];
    let mut clones: Vec<Alive> = words.iter().map(|word| Alive::start(&mut event(Some(word)))).collect();
    clones.iter().for_each(|clone| clone.await_line("written"));
    assert!(clones.iter_mut().all(Alive::is_alive), "they were not alive at the same time");
    let third = Alive::start(&mut event(None));
    for (clone, word) in clones.into_iter().chain([third]).zip(words.into_iter().chain([original])) {
        let (code, lines) = clone.finish();
        assert_eq!(code, Some(0), "{lines:?}");
        for place in ["memory", "file"] {
            let expected = format!("{place} {word}");
            assert!(lines.iter().any(|line| line.contains(&expected)), "{expected:?} is not in {lines:?}");
        }
    }
}

/// What a bundle's manifest says of all its files, once that was found to be true.
#[track_caller]
pub fn verified(bundle: &Path) -> String {
    finish(ember(["verify"]).arg(bundle)).succeeds();
    fs::read_to_string(bundle.join("manifest.json")).unwrap()
}
