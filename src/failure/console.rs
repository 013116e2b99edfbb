//! Where the guest's serial console goes: to standard error when asked for, and its last part is kept for error messages.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Size;

use super::limits::Cut;

/// How much of the console is kept, bytes.
const TAIL_MAX: usize = 16 << 10;
/// How many lines of it a message shows.
const LINES_MAX: usize = 25;

/// How Linux begins the line about its end.
const PANIC: &str = "Kernel panic";

/// The guest's console.
#[derive(Debug, Clone)]
pub struct Console {
    show: bool,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    tail: VecDeque<u8>,
    /// Of what is shown.
    cut: Cut,
}

impl Console {
    /// A console that is also shown on standard error if `show`, as much of it as `max`.
    pub fn new(show: bool, max: Option<Size>) -> Self {
        let cut = Cut::new("the guest's console", "--console-max", max);
        Console { show, kept: Arc::new(Mutex::new(Kept { tail: VecDeque::new(), cut })) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the serial port writes to. Where it is shown it may block.
    pub fn writer(&self) -> Box<dyn Write + Send> {
        Box::new(self.clone())
    }

    /// Whether it is shown.
    pub fn is_shown(&self) -> bool {
        self.show
    }

    /// The last lines, for a message; `None` when they were shown already or there are none.
    pub fn tail(&self) -> Option<String> {
        let mut kept = self.kept();
        if self.show && !kept.cut.has_cut() {
            return None;
        }
        let text = printable(kept.tail.make_contiguous());
        let lines: Vec<&str> = text.lines().collect();
        let (before, last) = lines.split_at(lines.len().saturating_sub(LINES_MAX));
        // The line that says why comes in front of a trace that may be longer than what is shown.
        let reason = before.iter().rfind(|line| line.contains(PANIC)).into_iter();
        let shown: Vec<&str> = reason.chain(last).copied().collect();
        (!shown.is_empty()).then(|| shown.join("\n"))
    }
}

/// What a guest writes may hold anything: control characters must not reach a terminal.
pub(super) fn printable(bytes: &[u8]) -> String {
    let clean = |c: &char| *c == '\n' || *c == '\t' || !c.is_control();
    String::from_utf8_lossy(bytes).chars().filter(clean).collect()
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept();
        let tail = &mut kept.tail;
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL_MAX);
        tail.drain(..surplus);
        if self.show {
            let passed = kept.cut.pass(bytes);
            // Not under the lock: whoever wants the tail must not wait for a terminal.
            drop(kept);
            io::stderr().write_all(passed.bytes)?;
            io::stderr().write_all(passed.note.unwrap_or_default().as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_and_nothing_a_terminal_would_obey() {
        let mut console = Console::new(false, None);
        for n in 0..5000 {
            writeln!(console, "line {n}\x1b[2J\r").unwrap();
        }
        let tail = console.tail().unwrap();
        assert_eq!(tail.lines().count(), LINES_MAX);
        assert!(tail.ends_with("line 4999[2J"));
        assert!(console.kept().tail.len() <= TAIL_MAX);
    }

    #[test]
    fn the_reason_of_a_panic_is_shown_in_front_of_a_long_trace() {
        let mut console = Console::new(false, None);
        writeln!(console, "booting\nKernel panic - not syncing: out of patience").unwrap();
        for n in 0..50 {
            writeln!(console, "trace {n}").unwrap();
        }
        let tail = console.tail().unwrap();
        assert!(tail.starts_with("Kernel panic - not syncing: out of patience\ntrace 25\n"), "{tail}");
    }

    #[test]
    fn a_silent_guest_has_no_tail() {
        assert_eq!(Console::new(false, None).tail(), None);
    }
}
