//! Starts, stops, crashes, and namespaces that come and go.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::host::{Host, run, wait_for};

fn pair(kind: &str) -> (Host, String, String) {
    let mut host = Host::new();
    let (a, b) = (host.container("a"), host.container("b"));
    host.write_config(&two_ports(kind, &a, &b));
    host.start();
    (host, a, b)
}

fn two_ports(kind: &str, a: &str, b: &str) -> String {
    format!(
        r#"
[[network]]
name = "front"
subnets = ["10.1.0.0/24"]
[[port]]
name = "a"
network = "front"
kind = "{kind}"
netns = "{a}"
addresses = ["10.1.0.10"]
[[port]]
name = "b"
network = "front"
kind = "{kind}"
netns = "{b}"
addresses = ["10.1.0.11"]
"#
    )
}

/// A connection between two namespaces, both ends in our hands.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(host: &Host, from: &str, to: &str) -> Self {
        let listener = host.inside(to, || TcpListener::bind("10.1.0.11:7000")).expect("a port");
        let client = host.inside(from, || TcpStream::connect("10.1.0.11:7000")).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            stream.set_nodelay(true).expect("set");
        }
        Self { client, server }
    }

    /// Sends a line each way.
    fn exchange(&mut self, text: &str) {
        let mut buffer = vec![0; text.len()];
        self.client.write_all(text.as_bytes()).expect("sent");
        self.server.read_exact(&mut buffer).expect("received");
        assert_eq!(buffer, text.as_bytes());
        self.server.write_all(text.as_bytes()).expect("sent");
        self.client.read_exact(&mut buffer).expect("received");
        assert_eq!(buffer, text.as_bytes());
    }
}

/// Returns number and MAC of the interface in a container; its carrier may come and go.
fn interface(netns: &str) -> (String, String) {
    let line = run(&format!("ip -n {netns} -o link show eth0"));
    let mac = line.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    (line.split(':').next().unwrap_or_default().to_owned(), mac.unwrap_or_default().to_owned())
}

fn connection_outlives(kind: &str, signal: Signal) {
    let (mut host, a, b) = pair(kind);
    let before = interface(&a);
    let mut connection = Connection::open(&host, &a, &b);
    connection.exchange("before");
    host.stop(signal);
    let start = Instant::now();
    host.spawn();
    connection.exchange("after the restart");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "the connection went on after {took:?}");
    assert_eq!(interface(&a), before, "the container has the interface that it had");
    wait_for("an answer", Duration::from_secs(5), || host.ping(&b, "10.1.0.10", 1) == 1);
    host.check_ledger();
}

#[test]
fn a_connection_outlives_kill_9_over_veth() {
    connection_outlives("veth", Signal::SIGKILL);
}

#[test]
fn a_connection_outlives_kill_9_over_tap() {
    connection_outlives("tap", Signal::SIGKILL);
}

#[test]
fn a_connection_outlives_kill_9_over_afxdp() {
    connection_outlives("afxdp", Signal::SIGKILL);
}

#[test]
fn a_connection_outlives_a_restart() {
    connection_outlives("veth", Signal::SIGTERM);
}

#[test]
fn what_commands_made_is_there_after_a_crash() {
    let (mut host, _, _) = pair("veth");
    let c = host.container("c");
    host.post("/v1/networks", &json!({"name": "extra", "subnets": ["10.9.0.0/24"]}));
    let view = host.post(
        "/v1/attach",
        &json!({"target": c, "network": "front", "addresses": ["10.1.0.12"], "name": "c"}),
    );
    assert_eq!((view["state"].as_str(), view["config"]["ifname"].as_str()), (Some("up"), Some("eth0")));
    host.stop(Signal::SIGKILL);
    host.start();
    assert_eq!(host.state("c"), "up");
    assert_eq!(host.get("/v1/networks/extra")["owner"], "cli");
    assert_eq!(host.ping(&c, "10.1.0.11", 2), 2);
}

#[test]
fn what_left_the_file_while_the_daemon_was_down_is_removed() {
    let (mut host, a, b) = pair("veth");
    host.stop(Signal::SIGKILL);
    host.write_config(
        &two_ports("veth", &a, &b).replace("[[port]]\nname = \"b\"", "[[port]]\nname = \"b2\""),
    );
    host.start();
    assert_eq!(host.request("GET", "/v1/ports/b", "").0, 404);
    assert_eq!(host.state("a"), "up");
    // Its interface was in the way of b2's, which comes up once it is gone.
    wait_for("b2", Duration::from_secs(5), || host.state("b2") == "up");
    assert_eq!(host.ping(&a, "10.1.0.11", 2), 2);
}

#[test]
fn a_namespace_that_goes_and_comes_back_is_attached_again() {
    for kind in ["veth", "tap", "afxdp"] {
        let (mut host, a, b) = pair(kind);
        assert_eq!(host.ping(&a, "10.1.0.11", 1), 1);
        host.delete_container(&b);
        wait_for(kind, Duration::from_secs(10), || host.state("b") == "gone");
        let b = host.container("b");
        wait_for("it is back", Duration::from_secs(5), || host.state("b") == "up");
        wait_for("it answers", Duration::from_secs(5), || host.ping(&a, "10.1.0.11", 1) == 1);
        assert_eq!(host.ping(&b, "10.1.0.10", 2), 2);
        host.check_ledger();
    }
}

#[test]
fn a_port_whose_namespace_comes_later_waits_for_it_at_a_start() {
    let mut host = Host::new();
    let a = host.container("a");
    let late = format!("{}late", host.tag);
    host.write_config(&two_ports("veth", &a, &late));
    host.start();
    let view = host.get("/v1/ports/b");
    assert_eq!(view["state"], "pending");
    assert!(view["reason"].as_str().expect("a reason").contains("not found"), "{view}");
    host.container("late");
    wait_for("it is up", Duration::from_secs(5), || host.state("b") == "up");
    assert_eq!(host.ping(&a, "10.1.0.11", 2), 2);
}

#[test]
fn cleanup_leaves_nothing_and_asks_before_it_cuts_ports_off() {
    let (mut host, a, _) = pair("veth");
    let (status, body) = host.request("POST", "/v1/cleanup", "{}");
    assert_eq!(status, 409, "{body}");
    assert_eq!(host.ping(&a, "10.1.0.11", 1), 1);
    host.post("/v1/cleanup", &json!({"force": true}));
    let switch = format!("vswitch-{}", host.tag);
    assert!(!run("ip netns list").contains(&switch));
    assert!(!run(&format!("ip -n {a} -o link show")).contains("eth0"));
    host.stop(Signal::SIGTERM);
}

#[test]
fn a_second_daemon_is_refused_and_the_socket_of_a_dead_one_is_replaced() {
    let (mut host, a, _) = pair("veth");
    let mut second = Host::second();
    std::fs::copy(host.config(), second.config()).expect("copied");
    second.spawn();
    assert_eq!(second.exit_code(), Some(1));
    assert!(second.log().contains("another vswitchd answers"), "{}", second.log());
    assert_eq!(host.ping(&a, "10.1.0.11", 1), 1, "the first one is not disturbed");
    host.stop(Signal::SIGKILL);
    host.start();
    assert_eq!(host.state("a"), "up");
}
