//! `bcache metrics --http`, as systemd calls it.

use std::io::Write;
use std::process::{Command, Stdio};

use bcache_tests::paths;

/// What is answered, byte by byte: other programs take the usual escapes for text, and HTTP has carriage returns.
#[test]
fn an_answer_is_as_long_as_its_head_says() {
    let mut metrics = Command::new(paths::program("bcache").unwrap());
    let mut child =
        metrics.args(["metrics", "--http"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"GET /elsewhere HTTP/1.1\r\n\r\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{text}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{text}");
}
