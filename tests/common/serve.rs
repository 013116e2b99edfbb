//! A daemon and a plain client of it, which shares no code with the product.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::processes::alive_in_group;
use super::{Ended, api, ember, end_of, start, wait_until};

/// A running `ember serve`. Killed with everything it began when it is dropped.
pub struct Daemon {
    child: Option<Child>,
    pub socket: PathBuf,
}

/// What the daemon answered.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// It is this answer.
    #[track_caller]
    pub fn answers(&self, answer: &str) {
        assert_eq!((self.status, self.text()), (200, answer), "{self:?}");
    }

    /// It is a failure of this status and kind of fault, in words.
    #[track_caller]
    pub fn fails(&self, status: u16, whose: &str, words: &str) {
        assert_eq!((self.status, self.header("ember-error")), (status, Some(whose)), "{self:?}");
        assert!(self.text().contains(words), "{words:?} is not said: {self:?}");
    }
}

/// `ember serve` at a socket, two shells for each shape.
pub fn serve_command(socket: &Path) -> Command {
    let mut command = ember(["serve", "--shells", "2", "--socket"]);
    command.arg(socket);
    command
}

/// This command within a limit of the shell's `ulimit`.
pub fn within(serve: &Command, limit: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$@\""), "sh"]);
    command.arg(serve.get_program()).args(serve.get_args());
    command
}

impl Daemon {
    /// Starts one in a folder.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let socket = folder.join("socket");
        Self::run(&mut serve_command(&socket), socket)
    }

    /// Starts one in a folder with more flags.
    #[track_caller]
    pub fn start_with(folder: &Path, flags: &[&str]) -> Self {
        let socket = folder.join("socket");
        Self::run(serve_command(&socket).args(flags), socket)
    }

    /// Starts this command with at most so many open files, listening at `socket`.
    #[track_caller]
    pub fn run_with_descriptors(serve: &Command, count: u32, socket: PathBuf) -> Self {
        Self::run_within(serve, &format!("-n {count}"), socket)
    }

    /// Starts this command within a limit of the shell's `ulimit`, listening at `socket`.
    #[track_caller]
    pub fn run_within(serve: &Command, limit: &str, socket: PathBuf) -> Self {
        Self::run(&mut within(serve, limit), socket)
    }

    /// Starts this command, which listens at `socket`.
    #[track_caller]
    pub fn run(command: &mut Command, socket: PathBuf) -> Self {
        let daemon = Daemon { child: Some(start(command)), socket };
        wait_until("the daemon listens", || UnixStream::connect(&daemon.socket).is_ok());
        daemon
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Everything it has begun that lives, without itself.
    pub fn children(&self) -> Vec<i32> {
        let own = i32::try_from(self.id()).unwrap();
        alive_in_group(self.id()).into_iter().filter(|pid| *pid != own).collect()
    }

    /// The processes of its shells: they have a thread for their vCPU.
    pub fn shells(&self) -> Vec<i32> {
        let threads = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        self.children().into_iter().filter(|pid| threads(pid) > 1).collect()
    }

    /// Waits until so many shells wait.
    #[track_caller]
    pub fn await_shells(&self, count: u64) {
        wait_until("the shells wait", || self.get("/health").json()["shells_ready"] == count);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        end_of(self.child.take().unwrap())
    }

    /// Sends a request whose answer is read later.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// The answer to a request, which is one of those that docs/openapi.yaml describes.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Response {
        let response = receive(self.send(method, path, headers, body));
        api::describes(method, path, &response);
        response
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], &[])
    }

    /// Registers a bundle with these settings.
    #[track_caller]
    pub fn register_with(&self, name: &str, bundle: &Path, mut settings: Value) {
        settings["bundle"] = json!(bundle);
        let path = format!("/functions/{name}");
        let response = self.request("PUT", &path, &[], settings.to_string().as_bytes());
        assert!([200, 201].contains(&response.status), "{response:?}");
    }

    #[track_caller]
    pub fn register(&self, name: &str, bundle: &Path) {
        self.register_with(name, bundle, json!({}));
    }

    /// Begins an event.
    #[track_caller]
    pub fn begin(&self, name: &str, event: &str) -> UnixStream {
        self.send("POST", &format!("/functions/{name}/invoke"), &[], event.as_bytes())
    }

    #[track_caller]
    pub fn invoke(&self, name: &str, event: &str) -> Response {
        self.request("POST", &format!("/functions/{name}/invoke"), &[], event.as_bytes())
    }

    /// The value of a line of the metrics.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let response = self.get("/metrics");
        let line = response.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {}", response.text())).parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// What a user of this host does. Only root can be another.
pub fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
    let uid = rustix::fs::Uid::from_raw(uid);
    std::thread::scope(|scope| {
        // The kernel's users belong to threads.
        let thread = scope.spawn(move || {
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

/// Kills a process that may be about to end by itself.
pub fn kill(process: i32) {
    rustix::process::kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).ok();
}

/// Reads an answer to its end.
#[track_caller]
pub fn receive(mut stream: UnixStream) -> Response {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

#[track_caller]
fn parse(bytes: &[u8]) -> Response {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    };
    Response { status, headers: lines.map(header).collect(), body: bytes[end + 4..].to_vec() }
}
