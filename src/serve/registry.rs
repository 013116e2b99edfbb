//! Functions by name. A bundle is opened once, when it is registered, and served from those handles whatever becomes of its path.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::failure::{Failure, Kind};
use crate::vm::Shape;

use super::gate::Gate;
use super::metrics::Counters;
use super::pool::Shell;

/// How a function is served; the body of a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Most events at once.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Most events that wait for their turn.
    #[serde(default = "queue")]
    pub queue: usize,
    /// Longest time they wait, milliseconds.
    #[serde(default = "queue_timeout_ms")]
    pub queue_timeout_ms: u64,
    /// Events that one clone serves, one after the other, before it is thrown away.
    #[serde(default = "reuse")]
    pub reuse: u32,
    /// Longest time that a clone waits for its next event, milliseconds.
    #[serde(default = "keep_ms")]
    pub keep_ms: u64,
    /// Longest time of an event, milliseconds; the bundle's own when not given.
    #[serde(default)]
    pub event_timeout_ms: Option<u64>,
    /// Shells that wait for this function's machine; the daemon's default when not given.
    #[serde(default)]
    pub shells: Option<usize>,
    /// Longest answer, bytes; the clone ends at the first byte beyond it. Without it an answer with its log may have 256 MiB.
    #[serde(default)]
    pub answer_max_bytes: Option<u64>,
    /// Most bytes of an event's log and errors that are passed on; the rest is left out.
    #[serde(default)]
    pub log_max_bytes: Option<u64>,
}

fn concurrency() -> usize {
    64
}

fn queue() -> usize {
    1024
}

fn queue_timeout_ms() -> u64 {
    10_000
}

fn reuse() -> u32 {
    1
}

fn keep_ms() -> u64 {
    60_000
}

/// Most shells that wait for one shape.
pub const SHELLS_MAX: usize = 4096;

/// A registered function.
#[derive(Debug)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The open bundle.
    pub bundle: Bundle,
    /// How it is served.
    pub settings: Settings,
    /// Its machine.
    pub shape: Shape,
    /// Longest time of an event.
    pub limit: Duration,
    /// Who may in.
    pub gate: Arc<Gate>,
    /// What has become of its events.
    pub counters: Counters,
    /// Clones that may serve further events.
    kept: Mutex<Vec<Kept>>,
}

/// A clone that waits for its next event.
#[derive(Debug)]
struct Kept {
    shell: Shell,
    /// Events that it may serve.
    left: u32,
    since: Instant,
}

impl Function {
    /// Opens a bundle as `name`.
    ///
    /// # Errors
    /// The name or a number is not allowed, or the bundle cannot be used.
    pub fn open(name: &str, settings: Settings) -> Result<Self, Failure> {
        check(name, &settings)?;
        let bundle = Bundle::open(&settings.bundle)?;
        let shape = Shape::of(&bundle);
        let own = bundle.manifest().function.event_timeout_ms;
        let limit = Duration::from_millis(settings.event_timeout_ms.unwrap_or(own));
        let gate = Arc::new(Gate::new(settings.concurrency, settings.queue));
        let (counters, kept) = (Counters::default(), Mutex::default());
        Ok(Function { name: name.to_owned(), bundle, settings, shape, limit, gate, counters, kept })
    }

    /// A clone that has served events already and may serve another.
    pub fn take_kept(&self) -> Option<(Shell, u32)> {
        let Kept { shell, left, .. } = self.kept().pop()?;
        Some((shell, left))
    }

    /// Keeps a clone for `left` further events, unless as many wait as can ever be needed at once.
    pub fn keep(&self, shell: Shell, left: u32) {
        let mut kept = self.kept();
        if kept.len() < self.settings.concurrency {
            kept.push(Kept { shell, left, since: Instant::now() });
        }
    }

    /// Ends the clones that have waited too long: one rush of events would hold their memory for ever.
    pub fn end_unused(&self) {
        let longest = Duration::from_millis(self.settings.keep_ms);
        let unused: Vec<Kept> = self.kept().extract_if(.., |kept| kept.since.elapsed() >= longest).collect();
        // Not while others wait to take or keep one.
        drop(unused);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(name: &str, settings: &Settings) -> Result<(), Failure> {
    let refuse = |text: &str| Err(Failure::text(Kind::Usage, text));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
        return refuse("A function's name has 1 to 128 letters, digits, dashes, dots and underscores");
    }
    if !settings.bundle.is_absolute() {
        return refuse("The path of a bundle must be absolute: the daemon has a directory of its own");
    }
    if settings.concurrency == 0 || settings.reuse == 0 || settings.event_timeout_ms == Some(0) {
        return refuse("concurrency, reuse and event_timeout_ms are 1 or more");
    }
    if settings.shells.is_some_and(|shells| shells > SHELLS_MAX) {
        return refuse("No more than 4096 shells wait");
    }
    Ok(())
}

/// All functions.
#[derive(Debug, Default)]
pub struct Registry {
    functions: RwLock<BTreeMap<String, Arc<Function>>>,
    /// The gate of every name that events of are served or wait, whether or not there is still a function of it.
    gates: Mutex<BTreeMap<String, Weak<Gate>>>,
}

impl Registry {
    /// Adds a function, or puts it in the place of the one of its name, whose events go on to their end. Whether it is new.
    ///
    /// Those events count among the new one's: whoever registers a function again and again has no more of them served at once.
    pub fn put(&self, mut function: Function) -> bool {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| gate.strong_count() > 0);
        if let Some(gate) = gates.get(&function.name).and_then(Weak::upgrade) {
            gate.set(function.settings.concurrency, function.settings.queue);
            function.gate = gate;
        }
        gates.insert(function.name.clone(), Arc::downgrade(&function.gate));
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.insert(function.name.clone(), Arc::new(function)).is_none()
    }

    /// Takes a function out; whether it was there.
    pub fn remove(&self, name: &str) -> bool {
        self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// The function of this name.
    pub fn get(&self, name: &str) -> Option<Arc<Function>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Function>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How many shells of each shape are to wait: as many as the function that wants most.
    pub fn wanted(&self, default: usize) -> BTreeMap<Shape, usize> {
        let mut wanted = BTreeMap::new();
        for function in self.all() {
            let most = wanted.entry(function.shape).or_insert(0);
            *most = function.settings.shells.unwrap_or(default).max(*most);
        }
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_checked_before_anything_is_opened() {
        let settings = |text: &str| serde_json::from_str::<Settings>(text).unwrap();
        let good = settings(r#"{"bundle": "/nowhere"}"#);
        assert_eq!((good.concurrency, good.reuse, good.queue_timeout_ms), (64, 1, 10_000));
        assert_eq!(good.keep_ms, 60_000);
        assert!(check("a-b_c.1", &good).is_ok());
        for name in ["", "a/b", "a b", "ü", &"a".repeat(129)] {
            assert_eq!(check(name, &good).unwrap_err().kind(), Kind::Usage, "{name}");
        }
        for bad in [
            r#"{"bundle": "here"}"#,
            r#"{"bundle": "/x", "reuse": 0}"#,
            r#"{"bundle": "/x", "shells": 5000}"#,
        ] {
            assert_eq!(check("a", &settings(bad)).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }
}
