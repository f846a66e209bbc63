//! Replies that go on: captures, dropped frames, events.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::host::Host;

fn pair() -> (Host, String, String) {
    let mut host = Host::new();
    let (a, b) = (host.container("a"), host.container("b"));
    host.write_config(&format!(
        r#"
[[network]]
name = "front"
subnets = ["10.1.0.0/24"]
[[port]]
name = "a"
network = "front"
netns = "{a}"
addresses = ["10.1.0.10"]
[[port]]
name = "b"
network = "front"
netns = "{b}"
addresses = ["10.1.0.11"]
"#
    ));
    host.start();
    (host, a, b)
}

/// Reads until `enough`, with the marks of chunked encoding in between.
fn read_until(stream: &mut UnixStream, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut got, start) = (Vec::new(), Instant::now());
    while !enough(&got) {
        assert!(start.elapsed() < Duration::from_secs(5), "{}", String::from_utf8_lossy(&got));
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).expect("more");
        got.extend_from_slice(&buffer[..n]);
    }
    got
}

fn contains(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

#[test]
fn a_capture_shows_both_directions_and_ends_with_its_reader() {
    let (host, a, _) = pair();
    let mut capture = host.stream("/v1/capture?port=a&snaplen=128");
    assert_eq!(host.ping(&a, "10.1.0.11", 3), 3);
    // Every echo request and every reply has the addresses in this order.
    let (there, back) = ([10, 1, 0, 10, 10, 1, 0, 11], [10, 1, 0, 11, 10, 1, 0, 10]);
    let seen = read_until(&mut capture, |got| contains(got, &there) >= 3 && contains(got, &back) >= 3);
    assert_eq!(contains(&seen, &0x0a0d_0d0a_u32.to_le_bytes()), 1, "one section");
    drop(capture);
    let (status, reply) = host.request("GET", "/v1/capture?port=nobody", "");
    assert_eq!(status, 404, "{reply}");
    assert_eq!(host.request("GET", "/v1/capture?port=a&direction=up", "").0, 400);
    // The worker goes on without its reader.
    sleep(Duration::from_millis(100));
    assert_eq!(host.ping(&a, "10.1.0.11", 3), 3);
}

#[test]
fn dropped_frames_are_told_with_their_reason() {
    let (host, a, _) = pair();
    let mut drops = host.stream("/v1/drops/follow");
    sleep(Duration::from_millis(300));
    // An address that the port does not have.
    super::host::run(&format!("ip -n {a} addr add 10.1.0.99/32 dev eth0"));
    let _ = std::process::Command::new("ip")
        .args([
            "netns",
            "exec",
            &a,
            "ping",
            "-c",
            "2",
            "-i",
            "0.1",
            "-W",
            "1",
            "-I",
            "10.1.0.99",
            "10.1.0.11",
        ])
        .output();
    let seen = read_until(&mut drops, |got| contains(got, b"\"spoof\"") > 0);
    assert!(contains(&seen, b"\"port\":\"a\"") > 0, "{}", String::from_utf8_lossy(&seen));
    assert!(host.get("/v1/drops").to_string().contains("\"spoof\""));
    host.check_ledger();
}

#[test]
fn events_are_told_as_they_happen() {
    let (host, _, _) = pair();
    let mut events = host.stream("/v1/events");
    host.post("/v1/networks", &json!({"name": "later"}));
    let seen = read_until(&mut events, |got| contains(got, b"\n") > 1);
    assert!(contains(&seen, b"network later") > 0, "{}", String::from_utf8_lossy(&seen));
    let log = host.get("/v1/log?limit=1");
    assert_eq!(log.as_array().map(Vec::len), Some(1), "{log}");
}
