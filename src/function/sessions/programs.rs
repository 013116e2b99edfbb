//! The functions of these tests: the test binary once more, so that the machine needs nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Tells [`program`] what to be; without it there is nothing to do.
pub(super) const PROGRAM: &str = "EMBER_TEST_PROGRAM";
/// Where the server listens.
pub(super) const PORT: &str = "EMBER_TEST_PORT";

/// Arguments that make the test binary run [`program`] alone.
pub(super) const ARGUMENTS: [&str; 4] =
    ["--exact", "function::sessions::programs::program", "--nocapture", "--test-threads=1"];

#[test]
fn program() {
    if std::env::var_os(PROGRAM).is_some() {
        std::thread::spawn(end_with_parent);
    }
    match std::env::var(PROGRAM).as_deref() {
        Ok("server") => server(),
        Ok("client") => client(),
        Ok("sleeper") => {
            eprintln!("busy");
            std::thread::sleep(Duration::from_secs(60));
        }
        _ => {}
    }
}

/// In a guest everything ends with the agent; here nobody else would end what a test has left running.
fn end_with_parent() {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        std::thread::sleep(Duration::from_millis(100));
    }
    std::process::exit(0);
}

/// Method, path, headers and body of one message; `None` when the connection is at its end.
fn read_message(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<String>, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let length = |line: &String| line.strip_prefix("Content-Length: ").map(|len| len.parse().unwrap());
    let mut body = vec![0; lines.iter().find_map(length).unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    Some((lines.remove(0), lines, body))
}

fn server() {
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    for connection in listener.incoming() {
        std::thread::spawn(|| answer(connection.unwrap()));
    }
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some((line, _, body)) = read_message(&mut reader) else { return };
    eprintln!("{line}");
    let path = line.split(' ').nth(1).unwrap();
    let response = match path {
        "/crash" => std::process::exit(9),
        "/hold" => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld".to_vec(),
        "/chunks" => {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n".to_vec()
        }
        "/none" => b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno".to_vec(),
        "/echo" => [b"HTTP/1.0 200 OK\r\n\r\n".to_vec(), body].concat(),
        path => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).into_bytes(),
    };
    stream.write_all(&response).unwrap();
    if path == "/hold" {
        let end = reader.read(&mut [0]).unwrap();
        assert_eq!(end, 0);
    }
}

/// Enough of a Runtime API client to be one.
fn client() {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap();
    let base = "/2018-06-01/runtime";
    let connect = || BufReader::new(TcpStream::connect(&api).unwrap());
    let ask = |connection: &mut BufReader<TcpStream>, line: String, body: &[u8]| {
        let head = format!("{line} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
        read_message(connection).unwrap()
    };
    if std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").as_deref() == Ok("snap-start") {
        let (status, ..) = ask(&mut connect(), format!("GET {base}/restore/next"), b"");
        assert_eq!(status, "HTTP/1.1 200 OK");
        println!("restored");
    }
    let mut kept = connect();
    loop {
        let (_, headers, event) = ask(&mut kept, format!("GET {base}/invocation/next"), b"");
        let id =
            headers.iter().find_map(|line| line.strip_prefix("Lambda-Runtime-Aws-Request-Id: ")).unwrap();
        println!("event {}", event.len());
        let what = if event == b"fail" { "error" } else { "response" };
        let (status, ..) = ask(&mut kept, format!("POST {base}/invocation/{id}/{what}"), &event);
        assert_eq!(status, "HTTP/1.1 202 Accepted");
    }
}
