//! Containers talk to one another.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::host::Host;

/// Two containers on one network and one on another with the same address as the second.
fn three(kind: &str, workers: &str) -> (Host, String, String, String) {
    let mut host = Host::new();
    let (a, b, c) = (host.container("a"), host.container("b"), host.container("c"));
    host.write_config(&format!(
        r#"
[workers]
cpus = {workers}
[[network]]
name = "front"
subnets = ["10.1.0.0/24", "fd00:1::/64"]
[[network]]
name = "back"
subnets = ["10.1.0.0/24"]
[[port]]
name = "a"
network = "front"
kind = "{kind}"
netns = "{a}"
addresses = ["10.1.0.10", "fd00:1::10"]
[[port]]
name = "b"
network = "front"
kind = "{kind}"
netns = "{b}"
addresses = ["10.1.0.11", "fd00:1::11"]
[[port]]
name = "c"
network = "back"
kind = "{kind}"
netns = "{c}"
addresses = ["10.1.0.11"]
"#
    ));
    host.start();
    (host, a, b, c)
}

/// Sends `bytes` from one namespace to another by TCP and checks that they arrive as they were.
pub(crate) fn transfer(host: &Host, from: &str, to: &str, address: &str, bytes: usize) {
    let listener = host.inside(to, || TcpListener::bind((address, 0))).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let data: Vec<u8> = (0..bytes).map(|n| ((n * 2_654_435_761_usize) >> 13).to_le_bytes()[0]).collect();
    let sent = data.clone();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("data");
        received
    });
    let mut stream = host.inside(from, || TcpStream::connect((address, port))).expect("connected");
    stream.write_all(&sent).expect("sent");
    drop(stream);
    let received = receiver.join().expect("received");
    assert!(received == data, "{} of {bytes} bytes, or other ones", received.len());
}

fn namespaces_talk(kind: &str, workers: &str) {
    let (host, a, b, c) = three(kind, workers);
    assert_eq!(host.ping(&a, "10.1.0.11", 5), 5, "{}", host.log());
    // Duplicate address detection keeps an IPv6 address quiet for a second or two.
    super::host::wait_for("IPv6", Duration::from_secs(10), || host.ping(&a, "fd00:1::11", 1) == 1);
    transfer(&host, &a, &b, "10.1.0.11", 8 << 20);
    transfer(&host, &b, &a, "10.1.0.10", 8 << 20);
    transfer(&host, &a, &b, "fd00:1::11", 4 << 20);
    assert_eq!(host.ping(&c, "10.1.0.10", 1), 0, "another network is out of reach");
    host.check_ledger();
}

#[test]
fn namespaces_talk_over_veth() {
    namespaces_talk("veth", "\"auto\"");
}

#[test]
fn namespaces_talk_over_tap() {
    namespaces_talk("tap", "\"auto\"");
}

#[test]
fn namespaces_talk_over_afxdp() {
    namespaces_talk("afxdp", "\"auto\"");
}

#[test]
fn frames_cross_between_two_workers() {
    for kind in ["veth", "afxdp"] {
        let (host, a, b, _) = three(kind, "[0, 1]");
        let views = host.get("/v1/workers");
        let owners: Vec<usize> = views
            .as_array()
            .expect("a list")
            .iter()
            .map(|w| w["ports"].as_array().expect("a list").len())
            .collect();
        assert_eq!(owners.iter().sum::<usize>(), 3);
        assert!(owners.iter().all(|ports| *ports > 0), "ports are split: {views}");
        assert_eq!(host.ping(&a, "10.1.0.11", 5), 5);
        transfer(&host, &a, &b, "10.1.0.11", 8 << 20);
        transfer(&host, &b, &a, "10.1.0.10", 8 << 20);
        host.check_ledger();
    }
}

#[test]
fn a_port_with_two_queues_works_on_two_workers() {
    for kind in ["tap", "afxdp"] {
        let mut host = Host::new();
        let (a, b) = (host.container("a"), host.container("b"));
        host.write_config(&format!(
            r#"
[workers]
cpus = [0, 1]
[[network]]
name = "front"
subnets = ["10.1.0.0/24"]
[[port]]
name = "a"
network = "front"
kind = "{kind}"
queues = 2
netns = "{a}"
addresses = ["10.1.0.10"]
[[port]]
name = "b"
network = "front"
kind = "{kind}"
queues = 2
netns = "{b}"
addresses = ["10.1.0.11"]
"#
        ));
        host.start();
        assert_eq!(host.get("/v1/ports/a")["workers"].as_array().map(Vec::len), Some(2));
        assert_eq!(host.ping(&a, "10.1.0.11", 5), 5);
        for _ in 0..4 {
            // Each connection has another hash, and so another queue.
            transfer(&host, &a, &b, "10.1.0.11", 4 << 20);
        }
        assert_eq!(host.request("POST", "/v1/cleanup", r#"{"force":true}"#).0, 200);
    }
}

#[test]
fn the_host_can_be_a_port() {
    let (host, a, _, _) = three("veth", "\"auto\"");
    let body = serde_json::json!({"name": "host", "network": "front", "addresses": ["10.1.0.20"]});
    let view = host.post("/v1/ports", &body);
    assert_eq!(view["peer"], "vsw-host in /proc/self/ns/net", "{view}");
    assert_eq!(host.ping(&a, "10.1.0.20", 3), 3);
    assert_eq!(host.ping(&format!("{}h", host.tag), "10.1.0.10", 3), 3);
}

#[test]
fn every_way_to_wait_passes_traffic() {
    let (host, a, b, _) = three("veth", "\"auto\"");
    let file = std::fs::read_to_string(host.config()).expect("the file");
    for poll in ["busy", "interrupt", "adaptive"] {
        let toml = file.replace("[workers]", &format!("[workers]\npoll = \"{poll}\""));
        host.post("/v1/apply", &serde_json::json!({"toml": toml}));
        assert_eq!(host.get("/v1/workers")[0]["poll"], poll);
        assert_eq!(host.ping(&a, "10.1.0.11", 5), 5, "{poll}");
        transfer(&host, &a, &b, "10.1.0.11", 4 << 20);
    }
}
