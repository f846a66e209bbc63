//! A client of the API in as few lines as it takes: HTTP/1.1 over the unix socket, one connection a request.
//!
//! `vsctl` is the client that users have, and tests use it; this one is for the thousands of requests that would
//! take a process each, and it shows that nothing but HTTP is needed.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// The daemon did not do it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The status of the answer; 0 when there was none.
    pub status: u16,
    /// What was said.
    pub body: Value,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { status: 0, body: Value::String(error.to_string()) }
    }
}

/// Sends a request and returns the answer, null when it is empty.
pub(super) fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Refused> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: vswitch\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {answer}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse::<u16>().ok()).ok_or_else(broken)?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    if (200..300).contains(&status) { Ok(body) } else { Err(Refused { status, body }) }
}
