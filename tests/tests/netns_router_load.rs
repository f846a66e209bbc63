//! The router under load and under change on the real kernel: who asks is answered, whatever others do.
//!
//! Needs root.

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::Net;
use tests::net::outside::{HOST, SERVER};
use tests::net::{Caller, Proto, Running, Service, Space, at, binary, wait_for};

const SITE: &str = r#"
    [[network]]
    name = "front"
    subnets = ["10.1.0.0/24"]
    [[network]]
    name = "back"
    subnets = ["10.2.0.0/24"]
    [[port]]
    name = "web"
    network = "front"
    netns = "@web"
    addresses = ["10.1.0.10"]
    [[port]]
    name = "web2"
    network = "front"
    netns = "@web2"
    addresses = ["10.1.0.11"]
    [[port]]
    name = "other"
    network = "front"
    netns = "@other"
    addresses = ["10.1.0.12"]
    [[port]]
    name = "spare"
    network = "front"
    netns = "@spare"
    addresses = ["10.1.0.13"]
    [[port]]
    name = "db"
    network = "back"
    netns = "@db"
    addresses = ["10.2.0.10"]
    [[publish]]
    listen = "8080/udp"
    to = "web:80"
    [[floating_ip]]
    address = "203.0.113.10"
    port = "web2"
    [[policy]]
    from = "front"
    to = "back"
    allow = ["udp/514"]
"#;

/// A floating IP that goes from port to port.
const MOVES: &str = "203.0.113.11";

/// Long enough for a machine that has other things to do: a packet that is not answered by then is lost.
const LOST: Duration = Duration::from_secs(20);

/// Somebody who asks a service by UDP, one question after the other, by the connection that he has and by new ones. No
/// question is repeated, so that none may be lost.
struct Asker {
    name: &'static str,
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Asker {
    fn start(net: &Net, name: &'static str, from: &str, target: String) -> Self {
        let space = net.space(from);
        net.seen(&space, Proto::Udp, &target);
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ends) = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let asks = |caller: &Caller, n: u64| -> Result<SocketAddr, String> {
                let seen = caller.ask(&n.to_be_bytes(), LOST);
                seen.map_err(|error| format!("question {n} is lost: {error}"))
            };
            let known = Caller::new(&space, &target).map_err(|error| error.to_string())?;
            let first = asks(&known, 0)?;
            // Not more in all than the tables have room for, however long the changes take.
            let (mut new, mut last) = (0, Instant::now());
            for n in 1.. {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                let seen = asks(&known, n)?;
                if seen != first {
                    return Err(format!("seen as {first} before, as {seen} by question {n}"));
                }
                if new < 1000 && last.elapsed() > Duration::from_millis(20) {
                    (new, last) = (new + 1, Instant::now());
                    let new = Caller::new(&space, &target).map_err(|error| error.to_string())?;
                    asks(&new, n)?;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { name, answered, stop, thread }
    }

    fn end(self, net: &Net) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let end = self.thread.join().expect("it does not panic");
        assert_eq!(end, Ok(()), "{}\n{}", self.name, net.circumstances());
        self.answered.load(Ordering::Relaxed)
    }
}

/// Makes change number `n` of the configuration: a policy, a route or a published port comes or goes, or a floating IP moves.
fn change(net: &Net, n: usize, names: &mut [Option<String>; 3]) {
    let comes = (n / 4).is_multiple_of(2);
    let api = |method, path: &str, body: Option<&Value>| {
        net.api(method, path, body).unwrap_or_else(|refused| panic!("change {n}: {refused}"))
    };
    let (path, body) = match n % 4 {
        0 => {
            let allow = format!("tcp/{}", 1000 + n);
            ("policies", json!({ "name": "changes", "from": "back", "to": "front", "allow": [allow] }))
        }
        1 => {
            let to = format!("192.0.2.{}/32", n % 256);
            ("routes", json!({ "network": "front", "to": to, "kind": "blackhole" }))
        }
        2 => ("publishes", json!({ "listen": format!("{}/udp", 20_000 + n), "to": "web:81" })),
        _ => {
            let port = json!({ "port": if comes { "spare" } else { "other" } });
            api("PATCH", &format!("/v1/floating_ips/{MOVES}"), Some(&port));
            return;
        }
    };
    let name = &mut names[n % 4];
    if comes {
        let made = api("POST", &format!("/v1/{path}"), Some(&body));
        *name = Some(made["name"].as_str().expect("it has a name").replace('/', "%2F"));
    } else if let Some(name) = name.take() {
        api("DELETE", &format!("/v1/{path}/{name}"), None);
    }
}

#[test]
fn a_thousand_changes_lose_no_packet_of_translated_and_routed_flows() {
    let net = Net::with_outside(SITE);
    let moves = json!({ "address": MOVES, "port": "other" });
    net.api("POST", "/v1/floating_ips", Some(&moves)).expect("an address that nobody has");
    let service =
        |space: &str, address: &str, port| Service::start(&net.space(space), Proto::Udp, &at(address, port));
    let _services = [
        service("x", SERVER[0], 53),
        service("web", "10.1.0.10", 80),
        service("web2", "10.1.0.11", 90),
        service("db", "10.2.0.10", 514),
    ];
    let askers = [
        Asker::start(&net, "masqueraded", "web", at(SERVER[0], 53)),
        Asker::start(&net, "masqueraded, of the other network", "db", at(SERVER[0], 53)),
        Asker::start(&net, "by a floating IP, to the outside", "web2", at(SERVER[0], 53)),
        Asker::start(&net, "by a floating IP, from outside", "x", at("203.0.113.10", 90)),
        Asker::start(&net, "by a published port", "x", at(HOST[0], 8080)),
        Asker::start(&net, "by a policy", "web", at("10.2.0.10", 514)),
    ];
    let answered = || askers.iter().map(|asker| asker.answered.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let start = Instant::now();
    let mut names = [const { None }; 3];
    (0..1000).for_each(|n| change(&net, n, &mut names));
    let took = start.elapsed();
    println!("1000 changes in {took:?}; meanwhile answered: {:?}", answered());
    // All go on after the last change, too.
    let before = answered();
    wait_for("everybody is answered once more", || {
        answered().iter().zip(&before).all(|(now, before)| now > before)
            || askers.iter().any(|asker| asker.thread.is_finished())
    });
    for asker in askers {
        let name = asker.name;
        assert!(asker.end(&net) > 20, "{name}");
    }
    net.balance();
}

/// Returns the MAC of a namespace's gateway.
fn gateway(space: &Space, address: &str) -> String {
    space.run(&format!("ping -n -c 1 -w 20 {address}"));
    let neighbor = space.run(&format!("ip neigh show {address}"));
    let mac = neighbor.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    mac.unwrap_or_else(|| panic!("no MAC of {address}: {neighbor}")).to_owned()
}

/// Connects to a service and hears its first line. With [`LOST`] for its patience, since a SYN may be sent again.
fn greeted(space: &Space, target: &str) -> io::Result<String> {
    let target: SocketAddr = target.parse().expect("an address with an L4 port");
    let stream = space.inside(|| TcpStream::connect_timeout(&target, LOST))?;
    stream.set_read_timeout(Some(LOST))?;
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

#[test]
fn a_million_half_open_connections_fail_none_of_somebody_elses() {
    let net = Net::with_outside(SITE);
    let _service = Service::start(&net.space("x"), Proto::Tcp, &at(SERVER[0], 443));
    let (bad, web) = (net.space("other"), net.space("web"));
    let target = at(SERVER[0], 443);
    net.seen(&web, Proto::Tcp, &target);
    // One packet each, to another address each time: nobody answers.
    let line = format!(
        "{} send packet:eth0 --flows 4000000 --vary dst-ip --src-ip 10.1.0.12 --dst-ip 11.0.0.0 --dst-mac {} --rate 150k",
        binary("vspktgen").display(),
        gateway(&bad, "10.1.0.1"),
    );
    let words: Vec<_> = line.split_whitespace().collect();
    let seen = || net.counter("other", "rx_frames");
    let before = seen();
    let mut flood = Running::start(bad.command(&words), "flood", &net.path("flood.log"));
    wait_for("the quota is reached", || net.dropped("other", "half_open") > 0);
    let (start, mut opened, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while seen() - before < 1_000_000 {
        assert!(flood.is_alive(), "{}", flood.log());
        let began = Instant::now();
        let greeted = greeted(&web, &target);
        assert!(
            greeted.is_ok(),
            "connection {opened} beside the flood: {greeted:?}\n{}",
            net.circumstances()
        );
        slowest = slowest.max(began.elapsed());
        opened += 1;
    }
    println!(
        "{} half-open connections and {opened} others in {:?}, the slowest took {slowest:?}",
        seen() - before,
        start.elapsed()
    );
    flood.end(Signal::SIGINT);
    assert!(opened >= 20, "only {opened} connections beside the flood");
    let refused = net.dropped("other", "half_open");
    assert!(refused > 900_000, "{refused} were refused by name");
    net.balance();
}
