//! Translated connections live through the end of the daemon, by request or by force, and ten seconds without it.
//!
//! Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tests::Net;
use tests::net::{Ears, Space, wait_for};

const CONFIG: &str = r#"
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
    name = "fip"
    network = "front"
    netns = "@fip"
    addresses = ["10.1.0.11"]
    [[port]]
    name = "db"
    network = "back"
    netns = "@db"
    addresses = ["10.2.0.10"]
    [[publish]]
    listen = "8080/tcp"
    to = "web:80"
    [[floating_ip]]
    address = "203.0.113.10"
    port = "fip"
    [[policy]]
    from = "front"
    to = "back"
    allow = ["tcp/514"]
"#;

/// A switch whose host has a device that leads outside. Its files in /run go with it.
struct Outside(Net);

impl Outside {
    fn new() -> Self {
        let net = Net::new();
        let (host, there) = (net.host(), net.space("there"));
        there.run(&format!("ip link add eth1 type veth peer name eth1 netns {}", host.name()));
        for (space, address) in [(&*host, "203.0.113.2/24"), (&*there, "203.0.113.1/24")] {
            space.run(&format!("ip addr add {address} dev eth1"));
            space.run("ip link set eth1 up");
        }
        there.run("ip link set lo up");
        there.run("ip addr add 198.51.100.7/32 dev lo");
        host.run("ip route add default via 203.0.113.1");
        net.write_config(CONFIG);
        let mut outside = Self(net);
        outside.0.start();
        outside.0.ready();
        outside
    }

    fn file(&self) -> String {
        format!("/run/vswitch/{}.connections", self.0.tag())
    }

    fn event(&self, kind: &str) -> Option<String> {
        let log = self.0.log();
        log.lines().find(|line| line.contains(&format!("kind=\"{kind}\""))).map(str::to_owned)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let file = self.file();
        for path in [format!("{file}.new"), file] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A TCP connection of which both ends are here.
struct Pair {
    name: String,
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    /// Connects `from` to `target`, which leads to `listen` in `to`.
    fn open(name: &str, from: &Space, target: &str, to: &Space, listen: &str) -> Self {
        let address: SocketAddr = listen.parse().expect("an address");
        let target: SocketAddr = target.parse().expect("an address");
        let listener = to.inside(|| TcpListener::bind(address)).expect("a free port");
        let mut client = None;
        wait_for(&format!("{name} connects"), || {
            client = from.inside(|| TcpStream::connect_timeout(&target, Duration::from_secs(1))).ok();
            client.is_some()
        });
        let client = client.expect("it is there");
        let port = client.local_addr().expect("it is bound").port();
        loop {
            let (server, peer) = listener.accept().expect("the client waits");
            // Masquerading may change the port; of several tries the last counts.
            if peer.port() == port || !name.starts_with("published") {
                return Self { name: name.to_owned(), client, server };
            }
        }
    }

    /// Has the client's kernel ask every second whether the server is still there.
    fn keep_alive(self) -> Self {
        setsockopt(&self.client, sockopt::KeepAlive, &true).expect("settable");
        setsockopt(&self.client, sockopt::TcpKeepIdle, &1).expect("settable");
        setsockopt(&self.client, sockopt::TcpKeepInterval, &1).expect("settable");
        setsockopt(&self.client, sockopt::TcpKeepCount, &60).expect("settable");
        self
    }

    /// Sends a word each way, the server's first.
    fn talk(&mut self) {
        let patience = Some(Duration::from_secs(30));
        for end in [&self.client, &self.server] {
            end.set_read_timeout(patience).expect("not zero");
        }
        let mut word = [0; 4];
        let talked = self.server.write_all(b"here").and_then(|()| self.client.read_exact(&mut word));
        assert!(
            talked.is_ok() && &word == b"here",
            "the connection {} does not go on: {talked:?}",
            self.name
        );
        let talked = self.client.write_all(b"back").and_then(|()| self.server.read_exact(&mut word));
        assert!(
            talked.is_ok() && &word == b"back",
            "the connection {} does not go on: {talked:?}",
            self.name
        );
    }
}

/// A connection that is never quiet: pieces go there and back, one after the other.
struct Busy {
    name: String,
    beats: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Busy {
    fn start(pair: Pair) -> Self {
        let Pair { name, mut client, mut server } = pair;
        let (beats, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ends) = (Arc::clone(&beats), Arc::clone(&stop));
        let here = thread::spawn(move || {
            let (mut piece, mut n) = ([0; 4096], 0_u8);
            while !ends.load(Ordering::Relaxed) {
                n = n.wrapping_add(1);
                client.write_all(&[n; 4096]).map_err(|e| e.to_string())?;
                client.read_exact(&mut piece).map_err(|e| e.to_string())?;
                if piece != [n; 4096] {
                    return Err(format!("piece {n} is wrong"));
                }
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        let there = thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                match server.read_exact(&mut piece) {
                    Ok(()) => server.write_all(&piece).map_err(|e| e.to_string())?,
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error.to_string()),
                }
            }
        });
        Self { name, beats, stop, threads: vec![here, there] }
    }

    fn beat(&self) {
        let before = self.beats.load(Ordering::Relaxed);
        wait_for(&format!("the busy connection {} goes on", self.name), || {
            self.beats.load(Ordering::Relaxed) > before + 20
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let end = thread.join().expect("it does not panic");
            assert_eq!(end, Ok(()), "{}", self.name);
        }
    }
}

fn pairs(net: &Net, round: u16) -> Vec<Pair> {
    let (web, fip, there) = (net.space("web"), net.space("fip"), net.space("there"));
    let server = format!("198.51.100.7:{}", 7000 + round);
    let floating = (format!("203.0.113.10:{}", 90 + round), format!("10.1.0.11:{}", 90 + round));
    vec![
        Pair::open("masqueraded", &web, &server, &there, &server),
        Pair::open("published", &there, "203.0.113.2:8080", &web, "10.1.0.10:80"),
        Pair::open("floating", &there, &floating.0, &fip, &floating.1),
    ]
}

fn connections_live_on(end: fn(&mut Net)) {
    let mut outside = Outside::new();
    let net = &outside.0;
    let mut idle = pairs(net, 0);
    idle.iter_mut().for_each(Pair::talk);
    let busy: Vec<_> = pairs(net, 1).into_iter().map(Busy::start).collect();
    busy.iter().for_each(Busy::beat);
    let resets = "tcp[tcpflags] & tcp-rst != 0";
    let mut ears = Ears::listen(&net.space("there"), "eth1", resets, &net.path(""));
    // What is decided by now is in the file, whatever happens.
    thread::sleep(Duration::from_millis(100));
    end(&mut outside.0);
    thread::sleep(Duration::from_secs(10));
    outside.0.start();
    println!("{:?}", outside.event("connections"));
    busy.iter().for_each(Busy::beat);
    idle.iter_mut().for_each(Pair::talk);
    let told = outside.event("connections").unwrap_or_default();
    assert!(told.contains("connections go on") && !told.contains("could not"), "{told}");
    busy.into_iter().for_each(Busy::end);
    assert_eq!(ears.heard(), [""; 0], "nobody was told that a connection has ended");
    outside.0.balance();
}

#[test]
fn translated_connections_live_through_a_kill() {
    connections_live_on(Net::kill);
}

#[test]
fn translated_connections_live_through_a_stop() {
    connections_live_on(Net::stop);
}

#[test]
fn without_a_file_what_is_not_translated_is_picked_up() {
    let mut outside = Outside::new();
    let (web, db) = (outside.0.space("web"), outside.0.space("db"));
    let mut idle = Pair::open("plain", &web, "10.2.0.10:514", &db, "10.2.0.10:514");
    idle.talk();
    // Only the client may begin, and where the last answer was lost it has nothing to say but this.
    let busy = Busy::start(Pair::open("plain", &web, "10.2.0.10:514", &db, "10.2.0.10:514").keep_alive());
    busy.beat();
    outside.0.kill();
    for path in [outside.file(), format!("{}.new", outside.file())] {
        let _ = std::fs::remove_file(path);
    }
    std::fs::write(outside.file(), [0x55; 1000]).expect("the daemon has made the directory");
    outside.0.start();
    assert!(outside.event("connections_lost").is_some_and(|told| told.contains("is not used")));
    busy.beat();
    // The side that may begin has to speak first: that is what picks it up.
    idle.client.write_all(b"x").expect("it goes on");
    idle.server.read_exact(&mut [0]).expect("it goes on");
    idle.talk();
    busy.end();
}
