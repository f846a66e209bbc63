//! The client against a server that answers what it is told to.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// A socket in a directory of its own, removed at the end.
struct Socket(PathBuf);

impl Socket {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("vsctl-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the temporary directory can be written");
        Self(directory.join("socket"))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().expect("made with a parent"));
    }
}

/// Answers one request by `answer` and returns what was asked.
fn answer_once(socket: &Socket, answer: &str) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(&socket.0).expect("a fresh path");
    let answer = answer.to_owned();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("the client connects");
        let mut request = Vec::new();
        let mut piece = [0; 4096];
        // The client may write head and body apart: read until it waits for the answer.
        while let Ok(Ok(len)) = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut piece)).await
        {
            request.extend_from_slice(&piece[..len]);
        }
        stream.write_all(answer.as_bytes()).await.expect("the client reads");
        String::from_utf8_lossy(&request).into_owned()
    })
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn request_and_answer_are_json() {
    let socket = Socket::new("json");
    let server = answer_once(&socket, &http("200 OK", r#"{"a":1}"#));
    let reply = Client::new(&socket.0).post("/v1/x", &json!({"b": 2})).await.expect("a success");
    assert_eq!(reply, json!({"a": 1}));
    let asked = server.await.expect("the server ran");
    assert!(asked.starts_with("POST /v1/x HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with(r#"{"b":2}"#), "{asked}");
}

#[tokio::test]
async fn empty_answer_is_null() {
    let socket = Socket::new("empty");
    let server = answer_once(&socket, &http("204 No Content", ""));
    assert_eq!(Client::new(&socket.0).delete("/v1/x").await.expect("a success"), Value::Null);
    server.await.expect("the server ran");
}

#[tokio::test]
async fn refusal_carries_message_and_details() {
    let socket = Socket::new("refusal");
    let body = r#"{"error":{"message":"2 errors in a.toml","details":["a.toml:3:1: unknown key","x"]}}"#;
    let server = answer_once(&socket, &http("400 Bad Request", body));
    let error = Client::new(&socket.0).get("/v1/x").await.expect_err("a refusal");
    assert_eq!(error.to_string(), "2 errors in a.toml\n  a.toml:3:1: unknown key\n  x");
    server.await.expect("the server ran");
}

#[tokio::test]
async fn refusal_that_is_plain_text_is_shown_with_its_status() {
    let socket = Socket::new("plain");
    let server = answer_once(&socket, &http("405 Method Not Allowed", "no\n"));
    let error = Client::new(&socket.0).get("/v1/x").await.expect_err("a refusal");
    assert_eq!(error.to_string(), "the switch refused the request: 405 Method Not Allowed: no");
    server.await.expect("the server ran");
}

#[tokio::test]
async fn answer_that_is_no_json_is_unexpected() {
    let socket = Socket::new("garbage");
    let server = answer_once(&socket, &http("200 OK", "<html>"));
    let error = Client::new(&socket.0).get("/v1/x").await.expect_err("no JSON");
    assert!(error.to_string().contains("GET /v1/x is not understood"), "{error}");
    server.await.expect("the server ran");
}

#[tokio::test]
async fn answer_that_is_cut_short_is_a_broken_connection() {
    let socket = Socket::new("cut");
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{";
    let server = answer_once(&socket, cut);
    let error = Client::new(&socket.0).get("/v1/x").await.expect_err("cut");
    assert!(error.to_string().contains("before it had answered GET /v1/x"), "{error}");
    server.await.expect("the server ran");
}

#[tokio::test]
async fn missing_socket_says_what_to_do() {
    let error = Client::new(Path::new("/nonexistent/socket")).get("/v1/x").await.expect_err("nobody there");
    assert_eq!(
        error.to_string(),
        "cannot reach the switch at /nonexistent/socket: no such file; is vswitchd running? (--socket or \
         VSWITCH_SOCKET names another one)"
    );
}

#[tokio::test]
async fn deserted_socket_says_that_nobody_listens() {
    let socket = Socket::new("deserted");
    drop(UnixListener::bind(&socket.0).expect("a fresh path"));
    let error = Client::new(&socket.0).get("/v1/x").await.expect_err("nobody there");
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[tokio::test]
async fn lines_are_put_together_across_chunks() {
    let socket = Socket::new("lines");
    let chunks = ["{\"a\":", "1}\n\n{\"a\":2", "}\n"];
    let body: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
    let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n");
    let server = answer_once(&socket, &answer);
    let mut stream = Client::new(&socket.0).stream("/v1/x").await.expect("a success");
    assert_eq!(stream.object().await.expect("a line"), Some(json!({"a": 1})));
    assert_eq!(stream.object().await.expect("a line"), Some(json!({"a": 2})));
    assert_eq!(stream.object().await.expect("the end"), None);
    server.await.expect("the server ran");
}

#[test]
fn names_are_escaped_in_paths_and_queries() {
    assert_eq!(escape("web-1.a_b~"), "web-1.a_b~");
    assert_eq!(escape("a/b c%ü"), "a%2Fb%20c%25%C3%BC");
    let pairs = [("network", Some("front".to_owned())), ("port", None), ("mac", Some("02:00".to_owned()))];
    assert_eq!(with_query("/v1/fdb", &pairs), "/v1/fdb?network=front&mac=02%3A00");
    assert_eq!(with_query("/v1/fdb", &[("port", None)]), "/v1/fdb");
}
