//! Other programs: found, run, and reported with their command line when they fail.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Directories that an ordinary user's PATH lacks on Debian and that hold mke2fs and depmod.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    for dir in SYSTEM_DIRS {
        path.push(":");
        path.push(dir);
    }
    path
}

/// A command that also finds the programs of the system directories.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.env("PATH", search_path());
    command
}

/// The file that a program's name stands for.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A command that is killed after a time, and when its parent ends, however that happens.
pub fn guarded(program: &str, limit: Duration) -> Command {
    let mut guarded = command("setpriv");
    guarded
        .args(["--pdeathsig", "KILL", "timeout", "--foreground", "--signal", "KILL"])
        .arg(limit.as_secs().to_string())
        .args(["setpriv", "--pdeathsig", "KILL", program]);
    guarded
}

/// Runs a command whose output the user sees.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{} ended with {status}", line_of(command));
    }
    Ok(())
}

/// Runs a command whose output the user sees only when it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

/// The standard output of a command.
pub fn read(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?.stdout).into_owned())
}

/// Whether a command runs and succeeds.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}\n{}{}",
            line_of(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Tries again when the network may have been the reason.
pub fn retry<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    const PAUSES: [u64; 3] = [2, 5, 15];
    for seconds in PAUSES {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) => eprintln!("    {what} failed, once more in {seconds} s: {error:#}"),
        }
        sleep(Duration::from_secs(seconds));
    }
    attempt().with_context(|| format!("{what} failed {} times", PAUSES.len() + 1))
}

fn cannot_start(command: &Command) -> String {
    format!("Cannot start {}", command.get_program().to_string_lossy())
}

/// A command as one would type it, for messages.
pub fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// A word as a POSIX shell reads it back unchanged.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_the_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME", "a\nb", "*"] {
            let mut echo = Command::new("sh");
            echo.arg("-c").arg(format!("printf %s {}", quote(word)));
            assert_eq!(read(&mut echo).unwrap(), word);
        }
    }

    #[test]
    fn a_failing_command_is_named_with_its_output() {
        let error = quiet(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("why"), "{error}");
    }
}
