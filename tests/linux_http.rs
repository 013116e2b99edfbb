//! The `http` interface with python's own server, unmodified, and with a server that does what that one does not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy takes helpers of tests for the product")]

mod common;
#[path = "common/linux.rs"]
mod linux;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Ended, GUEST_FAILED, Place, USAGE, ember, finish};
use linux::{ALIVE_SECONDS, bundle, clones_do_not_see_each_other, example_bundle, python_root, with_root};

/// What python's server does not do: read a body, answer in chunks, fail in every way.
const SERVER: &str = r#"
import hashlib, http.server, os, time, urllib.parse

memory = bytearray(b"original")
with open("/var/tmp/file", "w") as file:
    file.write("original")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = f"{len(body)} {hashlib.sha256(body).hexdigest()} {self.headers['X-Word']}\n"
        self.answer(201, told.encode(), ("X-Answer", "yes"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"))

    def do_GET(self):
        path, _, query = self.path.partition("?")
        getattr(self, "get_" + path[1:])(urllib.parse.unquote(query))

    def get_ready(self, query):
        self.answer(200, b"ready\n")

    def get_status(self, query):
        self.answer(int(query), b"as asked\n")

    def get_chunks(self, query):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = bytes(range(256)) * 256
        for _ in range(int(query) // len(piece)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def get_env(self, query):
        with open("/run/ember/env", "rb") as file:
            self.answer(200, file.read().replace(b"\0", b"\n"))

    def get_write(self, query):
        memory[:] = query.encode()
        with open("/var/tmp/file", "w") as file:
            file.write(query)
        print("written", flush=True)
        time.sleep(ALIVE_SECONDS)
        self.get_read(query)

    def get_read(self, query):
        with open("/var/tmp/file") as file:
            self.answer(200, f"memory {memory.decode()}\nfile {file.read()}\n".encode())

    def get_exit(self, query):
        print("going", flush=True)
        os._exit(9)

    def get_cut(self, query):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"too little")
        self.close_connection = True

    def get_nonsense(self, query):
        self.wfile.write(b"hello\r\n\r\n")
        self.close_connection = True

http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"#;

fn server() -> PathBuf {
    let program = SERVER.replace("ALIVE_SECONDS", &ALIVE_SECONDS.to_string());
    let arguments = [
        "--interface",
        "http",
        "--port",
        "8080",
        "--ready-path",
        "/ready",
        "--",
        "/usr/bin/python3",
        "-c",
        &program,
    ];
    bundle("server", &arguments, |_| with_root(&python_root(), &arguments))
}

fn get_command(bundle: &Path, path: &str) -> Command {
    let mut command = ember(["run", "--path", path]);
    command.arg(bundle);
    command
}

fn get(bundle: &Path, path: &str) -> Ended {
    finish(&mut get_command(bundle, path))
}

fn headers<'a>(told: &'a serde_json::Value, name: &str) -> Vec<&'a str> {
    let pairs = told["answer"]["headers"].as_array().unwrap().iter();
    let wanted = pairs.filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name));
    wanted.map(|pair| pair[1].as_str().unwrap()).collect()
}

#[test]
fn a_file_is_served_byte_for_byte() {
    let site = linux::example("http").with_file_name("site");
    let bundle = example_bundle("http");
    for path in ["index.html", "files/hello.txt"] {
        get(&bundle, &format!("/{path}")).answers(&std::fs::read_to_string(site.join(path)).unwrap());
    }
    // With nothing said it is GET /.
    finish(ember(["run"]).arg(&bundle)).answers(&std::fs::read_to_string(site.join("index.html")).unwrap());
}

#[test]
fn a_directory_is_listed() {
    let ended = get(&example_bundle("http"), "/files/");
    assert!(ended.succeeds().text().contains(r#"<a href="hello.txt">hello.txt</a>"#), "{ended:?}");
}

#[test]
fn a_page_that_is_not_there_is_an_answer_and_an_exit_code() {
    let ended = get(&example_bundle("http"), "/nowhere");
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.text().contains("File not found"), "{ended:?}");
}

#[test]
fn status_and_headers_are_shown_when_asked_for() {
    let bundle = example_bundle("http");
    let ended = finish(get_command(&bundle, "/files/hello.txt").arg("--include"));
    let (head, body) = ended.succeeds().text().split_once("\n\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200\n") && head.contains("\nContent-type: text/plain"), "{ended:?}");
    assert_eq!(body, "Hello from a clone.\n");
    let told = finish(get_command(&bundle, "/files/hello.txt").arg("--json")).json();
    assert_eq!(
        (&told["answer"]["status"], &told["answer"]["output"]),
        (&200.into(), &"Hello from a clone.\n".into())
    );
    assert_eq!(headers(&told, "content-length"), ["20"]);
    let told = finish(get_command(&bundle, "/nowhere").arg("--json")).json();
    assert_eq!((&told["answer"]["status"], &told["exit_code"]), (&404.into(), &1.into()));
}

#[test]
fn the_servers_log_goes_to_standard_error() {
    let ended = get(&example_bundle("http"), "/index.html");
    assert!(ended.errors.contains("\"GET /index.html HTTP/1.1\" 200"), "{ended:?}");
}

#[test]
fn a_head_request_has_headers_and_no_body() {
    let mut command = get_command(&example_bundle("http"), "/files/hello.txt");
    let told = finish(command.args(["--method", "HEAD", "--json"])).json();
    assert_eq!((&told["answer"]["status"], &told["answer"]["output"]), (&200.into(), &"".into()));
    assert_eq!(headers(&told, "content-length"), ["20"]);
}

#[test]
fn twenty_clones_in_a_row_and_one_clone_asked_again_answer_alike() {
    let bundle = example_bundle("http");
    let mut command = get_command(&bundle, "/files/hello.txt");
    assert_eq!(finish(command.args(["--count", "20"])).text(), "Hello from a clone.\n".repeat(20));
    let mut command = get_command(&bundle, "/files/hello.txt");
    assert_eq!(finish(command.args(["--repeat", "3"])).text(), "Hello from a clone.\n".repeat(3));
}

#[test]
fn a_request_with_a_body_is_a_post_with_its_headers() {
    let mut command =
        ember(["run", "--event-text", "hello", "--header", "X-Word: spoken", "--path", "/", "--json"]);
    let ended = finish(command.arg(server()));
    let told = ended.succeeds().json();
    let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(told["answer"]["output"], format!("5 {digest} spoken\n"));
    assert_eq!((&told["answer"]["status"], headers(&told, "x-answer")), (&201.into(), vec!["yes"]));
    assert_eq!(headers(&told, "set-cookie"), ["a=1", "b=2"]);
}

#[test]
fn bodies_of_32_mib_pass_in_both_directions() {
    let place = Place::new();
    std::fs::write(place.join("body"), vec![b'x'; 32 << 20]).unwrap();
    let ended = finish(ember(["run", "--event"]).arg(place.join("body")).arg(server()));
    let digest = "05f052c8f6da8ee5228ec291820b559c4be183773b9e97a6b82e30dacff85dd3";
    ended.answers(&format!("33554432 {digest} None\n"));
    let ended = get(&server(), "/chunks?33554432");
    assert_eq!((ended.succeeds().output.len(), ended.errors.contains("/chunks")), (32 << 20, true));
    let expected: Vec<u8> = (0..=255).collect();
    assert!(ended.output.chunks(256).all(|piece| piece == expected), "the answer is not what was sent");
}

#[test]
fn a_status_of_400_and_more_is_exit_code_1() {
    for (status, code) in [(204, 0), (302, 0), (400, 1), (503, 1)] {
        let ended = finish(get_command(&server(), &format!("/status?{status}")).arg("--json"));
        assert_eq!((ended.code(), &ended.json()["answer"]["status"]), (code, &status.into()), "{ended:?}");
    }
}

#[test]
fn values_given_to_run_are_in_a_file_of_the_guest() {
    let ended = finish(get_command(&server(), "/env").args(["--env", "A=1", "--env", "B=two words"]));
    ended.answers("A=1\nB=two words\n");
}

#[test]
fn clones_alive_at_once_share_no_memory_and_no_file() {
    clones_do_not_see_each_other("original", |word| {
        get_command(&server(), &word.map_or("/read".to_owned(), |word| format!("/write?{word}")))
    });
}

#[test]
fn a_server_that_exits_is_told_with_its_last_output() {
    let ended = get(&server(), "/exit");
    ended.fails(GUEST_FAILED, "ended with exit code 9");
    assert!(ended.errors.contains("going"), "{ended:?}");
}

#[test]
fn an_answer_that_is_cut_off_or_none_is_a_failure() {
    let ended = get(&server(), "/nonsense");
    ended.fails(GUEST_FAILED, "not an HTTP response");
    let ended = get(&server(), "/cut");
    assert_eq!(ended.code(), GUEST_FAILED, "{ended:?}");
    assert!(ended.errors.contains("cut off"), "{ended:?}");
}

#[test]
fn a_request_that_cannot_be_sent_is_refused() {
    finish(&mut get_command(&server(), "no-slash")).fails(USAGE, "does not begin with /");
    finish(get_command(&server(), "/").args(["--header", "Content-Length: 3"]))
        .fails(USAGE, "Ember sets it itself");
    finish(get_command(&server(), "/").args(["--header", "nonsense"])).fails(USAGE, "is no header");
}
