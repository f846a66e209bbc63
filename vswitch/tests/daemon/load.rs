//! Many ports, many changes, and hostile ones, beside traffic that must not notice.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde_json::json;

use super::host::{Host, run, wait_for};

/// A steady stream of numbered datagrams between two namespaces.
struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    /// Starts sending `rate` datagrams a second.
    fn start(host: &Host, from: &str, to: &str, address: &str, rate: u32) -> Self {
        let server = host.inside(to, || UdpSocket::bind((address, 7001))).expect("a port");
        server.set_read_timeout(Some(Duration::from_secs(3))).expect("set");
        // The receiver may wait for a CPU longer than the usual buffer lasts.
        setsockopt(&server, RcvBufForce, &(64 << 20)).expect("set");
        let client = host.inside(from, || UdpSocket::bind("0.0.0.0:0")).expect("a port");
        client.connect((address, 7001)).expect("connected");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || {
            let (start, mut sent) = (Instant::now(), 0_u64);
            while !stopped.load(Ordering::Relaxed) {
                let due = start.elapsed().as_micros() * u128::from(rate) / 1_000_000;
                while u128::from(sent) < due {
                    sent += u64::from(client.send(&sent.to_le_bytes()).is_ok());
                }
                thread::sleep(Duration::from_millis(1));
            }
            // The end, a few times: it may be lost like any other.
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(100));
                let _ = client.send(&u64::MAX.to_le_bytes());
            }
            sent
        });
        let receiver = thread::spawn(move || {
            let (mut received, mut buffer) = (0, [0; 64]);
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while server.recv(&mut buffer).is_ok() && buffer[..8] != u64::MAX.to_le_bytes() {
                received += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            println!("{received} datagrams, the longest pause was {longest:?}");
            received
        });
        thread::sleep(Duration::from_millis(200));
        Self { stop, sender, receiver }
    }

    /// Ends the stream; returns how many were sent and how many arrived.
    fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        (self.sender.join().expect("sent"), self.receiver.join().expect("received"))
    }
}

fn pair(workers: &str) -> (Host, String, String) {
    let mut host = Host::alone();
    let (a, b) = (host.container("a"), host.container("b"));
    host.write_config(&format!(
        r#"
[workers]
cpus = {workers}
[[network]]
name = "front"
subnets = ["10.1.0.0/16"]
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
    assert_eq!(host.ping(&a, "10.1.0.11", 1), 1);
    (host, a, b)
}

#[test]
fn ports_come_and_go_without_a_loss_between_others() {
    let (mut host, a, b) = pair("\"auto\"");
    let crowd = host.container("crowd");
    let stream = Stream::start(&host, &a, &b, "10.1.0.11", 5000);
    for round in 0..500 {
        let kind = ["veth", "veth", "tap", "veth", "afxdp"][round % 5];
        let body = json!({"name": "guest", "network": "front", "netns": crowd, "ifname": "g0", "kind": kind});
        host.post("/v1/ports", &body);
        assert_eq!(host.request("DELETE", "/v1/ports/guest", "").0, 200);
    }
    let (sent, received) = stream.stop();
    assert_eq!(received, sent, "lost between ports that nobody touched: {}", host.get("/v1/drops"));
    host.check_ledger();
    let memory = host.get("/v1/status")["memory"].clone();
    let held = |total: &str, free: &str| {
        memory[total].as_u64().expect("a count") - memory[free].as_u64().expect("a count")
    };
    // A worker's pool keeps three magazines and a bit of each kind.
    assert!(held("small_chunks", "small_free") <= 1024, "chunks came home: {memory}");
}

#[test]
fn two_hundred_ports_fit_and_talk() {
    let (mut host, a, _) = pair("\"auto\"");
    let crowd: Vec<String> = (0..198).map(|n| host.container(&format!("p{n}"))).collect();
    let start = Instant::now();
    for (n, netns) in crowd.iter().enumerate() {
        let address = format!("10.1.{}.{}", 1 + n / 100, 1 + n % 100);
        let body =
            json!({"target": netns, "network": "front", "name": format!("p{n}"), "addresses": [address]});
        host.post("/v1/attach", &body);
    }
    println!("198 ports were added in {:?}", start.elapsed());
    assert_eq!(host.get("/v1/status")["counts"]["ports_up"], 200);
    assert_eq!(host.ping(&a, "10.1.2.50", 3), 3);
    assert_eq!(host.ping(&crowd[7], "10.1.2.98", 3), 3);
    let rss = host.get("/v1/status")["memory"]["rss_bytes"].as_u64().expect("bytes");
    println!("resident with 200 ports: {} MiB", rss >> 20);
    host.check_ledger();
}

#[test]
fn a_namespace_deleted_in_full_flood_costs_others_nothing() {
    let (mut host, a, b) = pair("\"auto\"");
    for kind in ["veth", "tap", "afxdp"] {
        let c = host.container("c");
        let body =
            json!({"name": "c", "network": "front", "netns": c, "kind": kind, "addresses": ["10.1.0.12"]});
        host.post("/v1/ports", &body);
        let stream = Stream::start(&host, &a, &b, "10.1.0.11", 2000);
        // Both ways: it is flooded, and it floods.
        let flood = host.inside(&a, || UdpSocket::bind("0.0.0.0:0")).expect("a port");
        let back = host.inside(&c, || UdpSocket::bind("10.1.0.12:0")).expect("a port");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let flooder = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..50 {
                    let _ = flood.send_to(&[0; 1000], "10.1.0.12:9");
                    let _ = back.send_to(&[0; 1000], "10.1.0.10:9");
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        thread::sleep(Duration::from_millis(300));
        run(&format!("ip netns del {c}"));
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        // The socket inside kept the namespace alive until here.
        flooder.join().expect("flooded");
        wait_for(kind, Duration::from_secs(10), || host.state("c") == "gone");
        let (sent, received) = stream.stop();
        assert_eq!(received, sent, "{kind}: {}", host.get("/v1/drops"));
        assert_eq!(host.request("DELETE", "/v1/ports/c", "").0, 200);
        host.delete_container_record(&c);
        host.check_ledger();
    }
}

#[test]
fn a_loop_outside_is_found_and_its_port_disabled() {
    let (mut host, a, b) = pair("\"auto\"");
    let c = host.container("c");
    for n in 0..2 {
        let body =
            json!({"name": format!("l{n}"), "network": "front", "netns": c, "ifname": format!("l{n}")});
        host.post("/v1/ports", &body);
    }
    run(&format!(
        "ip -n {c} link add br0 type bridge && ip -n {c} link set br0 up && \
         ip -n {c} link set l0 master br0 && ip -n {c} link set l1 master br0"
    ));
    // A station that is not known to be behind one port only, and a broadcast of it, start the storm.
    run(&format!(
        "ip -n {c} link set br0 address 02:00:00:00:00:99 && ip -n {c} addr add 10.1.5.5/16 dev br0"
    ));
    host.ping(&c, "10.1.3.3", 3);
    let disabled = || {
        let ports = host.get("/v1/ports").to_string();
        ports.contains("loop: what port")
    };
    wait_for("the loop is found", Duration::from_secs(10), disabled);
    let ports = host.get("/v1/ports");
    let down = ports.as_array().expect("a list").iter().filter(|p| p["state"] == "down").count();
    assert_eq!(down, 1, "one port is enough: {ports}");
    wait_for("others go on", Duration::from_secs(5), || host.ping(&a, "10.1.0.11", 3) == 3);
    assert_eq!(host.ping(&b, "10.1.0.10", 3), 3);
}

#[test]
fn an_idle_switch_sleeps() {
    let (host, _, _) = pair("\"auto\"");
    let pid = host.get("/v1/status")["pid"].as_u64().expect("a pid");
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let fields: Vec<u64> =
            stat.rsplit(')').next().expect("fields").split(' ').filter_map(|f| f.parse().ok()).collect();
        // utime and stime are fields 14 and 15; the state after the name is no number.
        fields[10] + fields[11]
    };
    thread::sleep(Duration::from_secs(3));
    let before = ticks();
    thread::sleep(Duration::from_secs(5));
    let used = ticks() - before;
    assert!(used <= 5, "{used} ticks of 10 ms in 5 s");
    let rss = host.get("/v1/status")["memory"]["rss_bytes"].as_u64().expect("bytes");
    assert!(rss < 64 << 20, "{rss} bytes are resident");
}
