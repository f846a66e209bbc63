//! `vsctl` as a program: exit codes, what goes to stdout and what to stderr, files.
//!
//! Each test has a server of its own that gives the answers it is told to, one a connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A switch that answers what it is told to, and remembers what it was asked.
struct Switch {
    directory: PathBuf,
    asked: Option<JoinHandle<Vec<String>>>,
}

impl Switch {
    fn new(name: &str, answers: &[String]) -> Self {
        let directory = std::env::temp_dir().join(format!("vsctl-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the temporary directory can be written");
        let listener = UnixListener::bind(directory.join("socket")).expect("a fresh path");
        let answers = answers.to_vec();
        let asked = thread::spawn(move || {
            let answer = |answer: String| {
                let (mut stream, _) = listener.accept().expect("the command connects");
                stream.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(len @ 1..) = stream.read(&mut piece) {
                    request.extend_from_slice(&piece[..len]);
                }
                // The command may have what it wants and be gone.
                let _ = stream.write_all(answer.as_bytes());
                String::from_utf8_lossy(&request).into_owned()
            };
            answers.into_iter().map(answer).collect()
        });
        Self { directory, asked: Some(asked) }
    }

    fn vsctl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vsctl"))
            .args(arguments)
            .env("VSWITCH_SOCKET", self.directory.join("socket"))
            .env_remove("TERM")
            .stdin(Stdio::null())
            .output()
            .expect("vsctl runs")
    }

    fn asked(mut self) -> Vec<String> {
        self.asked.take().expect("asked once").join().expect("the server ran")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn done_is_0_and_says_what_was_done() {
    let switch = Switch::new("done", &[http("201 Created", "{}")]);
    let output = switch.vsctl(&["network", "add", "front", "--subnet", "10.1.0.0/24", "--isolated"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "network front added\n");
    let asked = switch.asked().remove(0);
    assert!(asked.starts_with("POST /v1/networks HTTP/1.1\r\n"), "{asked}");
    assert!(asked.ends_with(r#"{"isolated":true,"name":"front","subnets":["10.1.0.0/24"]}"#), "{asked}");
}

#[test]
fn objects_are_asked_for_by_name_and_say_what_they_wait_for() {
    let pending = r#"{"name":"8080/tcp","config":{"listen":"8080/tcp","to":"web:80"},"owner":"cli",
        "state":"pending","reason":"there is no port 'web' yet"}"#;
    let policy = r#"{"name":"front->mgmt","config":{"from":"front","to":"mgmt","deny":["any"]},"owner":"cli",
        "state":"active"}"#;
    let answers = [
        http("200 OK", pending),
        http("200 OK", policy),
        http("200 OK", "{}"),
        http("200 OK", "{}"),
        http("200 OK", "{}"),
    ];
    let switch = Switch::new("objects", &answers);
    let output = switch.vsctl(&["publish", "add", "8080", "web:80", "--allow-from", "192.0.2.0/24"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        "published port 8080/tcp added, and waits: there is no port 'web' yet\n"
    );
    let output = switch.vsctl(&["policy", "set", "front->mgmt", "--deny", "any"]);
    assert_eq!(text(&output.stdout), "policy front->mgmt changed\n");
    for (arguments, done) in [
        (&["fip", "rm", "2001:DB8::10"][..], "floating IP 2001:db8::10 removed\n"),
        (&["route", "rm", "front", "10.9.0.0/16"], "route front/10.9.0.0/16 removed\n"),
        (&["egress", "rm", "mail"], "egress address of port mail removed\n"),
    ] {
        assert_eq!(text(&switch.vsctl(arguments).stdout), done);
    }
    let asked = switch.asked();
    let body = r#"{"allow_from":["192.0.2.0/24"],"listen":"8080/tcp","to":"web:80"}"#;
    assert!(asked[0].starts_with("POST /v1/publishes ") && asked[0].ends_with(body), "{}", asked[0]);
    let body = r#"{"allow":null,"deny":["any"],"reject":null}"#;
    assert!(
        asked[1].starts_with("PATCH /v1/policies/front-%3Emgmt ") && asked[1].ends_with(body),
        "{}",
        asked[1]
    );
    assert!(asked[2].starts_with("DELETE /v1/floating_ips/2001%3Adb8%3A%3A10 "), "{}", asked[2]);
    assert!(asked[3].starts_with("DELETE /v1/routes/front%2F10.9.0.0%2F16 "), "{}", asked[3]);
    assert!(asked[4].starts_with("DELETE /v1/egresses/mail "), "{}", asked[4]);
}

#[test]
fn refused_is_1_with_the_reason_on_stderr() {
    let body = r#"{"error":{"message":"no port 'web'; there are: a, b"}}"#;
    let answers = [http("404 Not Found", body), http("404 Not Found", body)];
    let switch = Switch::new("refused", &answers);
    let output = switch.vsctl(&["port", "rm", "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "vsctl: no port 'web'; there are: a, b\n");
    assert_eq!(text(&output.stdout), "");
    let output = switch.vsctl(&["port", "rm", "web", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("an error is an object");
    assert_eq!(error["error"]["message"], "no port 'web'; there are: a, b");
}

#[test]
fn wrong_usage_is_2_and_asks_nobody() {
    for arguments in [
        &["port", "add", "web"][..],
        &["port", "set", "web"],
        &["port", "add", "web", "--network", "n", "--mac", "5"],
        &["apply", "x.toml", "--confirm", "soon"],
        &["policy", "add", "front", "mgmt"],
        &["policy", "add", "front", "mgmt", "--allow", "tcp/80", "--deny", "any"],
        &["policy", "add", "front", "mgmt", "--allow", "tpc/80"],
        &["publish", "add", "web:80", "8080"],
        &["route", "set", "front", "default"],
        &["egress", "add", "web"],
        &["frobnicate"],
        &[],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_vsctl"))
            .args(arguments)
            .env("VSWITCH_SOCKET", "/nonexistent")
            .output()
            .expect("vsctl runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn no_daemon_is_1_and_says_where_it_was_looked_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_vsctl"))
        .args(["status", "--socket", "/nonexistent/socket"])
        .output()
        .expect("vsctl runs");
    assert_eq!(output.status.code(), Some(1));
    let expected =
        "vsctl: cannot reach the switch at /nonexistent/socket: no such file; is vswitchd running?";
    assert!(text(&output.stderr).starts_with(expected), "{}", text(&output.stderr));
}

#[test]
fn json_is_the_answer_as_it_is() {
    let switch = Switch::new("json", &[http("200 OK", r#"[{"name":"a","news":[1]}]"#)]);
    let output = switch.vsctl(&["doctor", "--json"]);
    // A check needs `ok`: what cannot be read is said, instead of being taken for good.
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("missing field `ok`"), "{}", text(&output.stderr));
    let switch = Switch::new("json2", &[http("200 OK", r#"[{"anything":[1]}]"#)]);
    let output = switch.vsctl(&["port", "list", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer, serde_json::json!([{"anything": [1]}]));
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let line = "{\"time_ms\":1,\"kind\":\"port_up\"}\n";
    let body = line.repeat(20_000);
    let switch = Switch::new("pipe", &[http("200 OK", &body)]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_vsctl"))
        .args(["watch", "--socket"])
        .arg(switch.directory.join("socket"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vsctl runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("vsctl ends");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn refused_capture_leaves_no_file() {
    let switch = Switch::new("capture", &[http("404 Not Found", r#"{"error":{"message":"no port 'x'"}}"#)]);
    let file = switch.directory.join("x.pcapng");
    let output = switch.vsctl(&["capture", "x", "-w", file.to_str().expect("plain")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "vsctl: no port 'x'\n");
    assert!(!file.exists());
}

#[test]
fn top_once_ends_and_draws_no_escapes() {
    let answers = [http("200 OK", "{}"), http("200 OK", "[]"), http("200 OK", "[]")];
    let switch = Switch::new("top", &answers);
    let output = switch.vsctl(&["top", "--once"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.contains("No ports.") && !shown.contains('\x1b'), "{shown}");
}
