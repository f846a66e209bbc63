//! All ways between containers, the host and the outside, as tests of the host and of uplinks want them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::outside::{HOST, ROUTER, SERVER};
use super::{Call, Net, Proto, Service, Space, at};

/// Two ports, one of them published and one with floating IPs.
pub const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24", "fd00:1::/64"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10", "fd00:1::10"]
    [[port]]
    name = "web2"
    network = "front"
    netns = "@web2"
    addresses = ["10.1.0.11", "fd00:1::11"]
    [[publish]]
    listen = "8080/tcp"
    to = "web:80"
    [[publish]]
    listen = "8080/udp"
    to = "web:80"
    [[floating_ip]]
    address = "203.0.113.10"
    port = "web2"
    [[floating_ip]]
    address = "2001:db8:1::10"
    port = "web2"
"#;

/// Addresses of the port `web`.
pub const WEB: [&str; 2] = ["10.1.0.10", "fd00:1::10"];
/// Addresses of the port `web2`.
pub const WEB2: [&str; 2] = ["10.1.0.11", "fd00:1::11"];
/// Floating IPs of `web2`.
pub const FLOATING: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];

/// Makes a host with an outside, where services are; no daemon runs yet. Its file has `more` beside [`SITE`].
pub fn site(more: &str) -> (Net, Vec<Service>) {
    let net = Net::new();
    net.make_outside();
    net.write_config(&format!("{more}\n{SITE}"));
    let services = net.serve("x", SERVER, &[80]);
    (net, services)
}

/// Expects that all ways work: masquerade, published ports from all sides, floating IPs, and the host's own.
pub fn all_ways(net: &Net) {
    let (x, web, web2, host) = (net.space("x"), net.space("web"), net.space("web2"), net.host());
    for family in [0, 1] {
        for protocol in Proto::ALL {
            let seen = |from: &Space, target: String| net.seen(from, protocol, &target).to_string();
            assert_eq!(seen(&web, at(SERVER[family], 80)), HOST[family]);
            assert_eq!(seen(&web2, at(SERVER[family], 80)), FLOATING[family]);
            assert_eq!(seen(&x, at(HOST[family], 8080)), ROUTER[family]);
            assert_eq!(seen(&x, at(FLOATING[family], 80)), ROUTER[family]);
            assert_eq!(seen(&web2, at(HOST[family], 8080)), WEB2[family]);
            seen(&host, at(HOST[family], 8080));
            seen(&host, at(["127.0.0.1", "::1"][family], 8080));
            seen(&host, at(WEB[family], 80));
            seen(&web, at(HOST[family], 8080));
        }
    }
}

/// A connection that is used all the time, by hand of a thread, until it is ended.
#[derive(Debug)]
pub struct Busy {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<u32, String>>,
    name: &'static str,
}

impl Busy {
    /// Starts to do `turn` again and again.
    pub fn start(name: &'static str, mut turn: impl FnMut() -> io::Result<()> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut turns = 0;
            while !ended.load(Ordering::Relaxed) {
                turn().map_err(|error| format!("{name} after {turns} turns: {error}"))?;
                turns += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(turns)
        });
        Self { stop, thread, name }
    }

    /// Ends, and expects that no turn has failed.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let turns = result.unwrap_or_else(|error| panic!("{error}"));
        println!("{}: {turns} turns, none failed", self.name);
        assert!(turns > 10, "{}: {turns} turns", self.name);
    }
}

fn local_ports(host: &Space, range: &str) {
    host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)).expect("root may");
}

/// Connects from the host, by an L4 port of the range that masquerading takes.
pub fn connect_from_our_range(net: &Net, target: &str) -> Call {
    let host = net.host();
    local_ports(&host, "50000 50100");
    let call = Call::connect(&host, target).expect("a connection");
    local_ports(&host, "32768 60999");
    assert!((50000..=50100).contains(&call.local().port()), "{}", call.local());
    call
}
