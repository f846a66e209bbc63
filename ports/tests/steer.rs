//! Steering with the real kernel: an outside namespace, a host with a device and a tap, and this test as the switch.

mod common;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use common::{Namespace, eventually, run, transfer};
use packet::build::eth;
use packet::{Address, FramePool, FrameQueue, MacAddr};
use ports::afxdp::{Attach, Options, Steer};
use ports::steer::{Classifier, Pair, Reason, Rules, Steering};
use ports::{Kind, Port};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
const FLOATING: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 77);

struct NoClassifier;

impl Classifier for NoClassifier {
    fn attach(&mut self, _: u32, _: BorrowedFd<'_>) -> io::Result<()> {
        panic!("this kernel has tcx");
    }

    fn detach(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
}

/// A host with a device `d0` towards the outside, and a bpffs.
struct Site {
    host: Namespace,
    outside: Namespace,
    bpffs: PathBuf,
    area: std::sync::Arc<packet::Area>,
}

impl Site {
    fn new() -> Self {
        let (host, outside) = (Namespace::new("host"), Namespace::new("out"));
        host.ip(&format!("link add d0 type veth peer name o0 netns {}", outside.name));
        for (space, device, address) in [(&host, "d0", HOST), (&outside, "o0", OUTSIDE)] {
            space.ip(&format!("addr add {address}/24 dev {device}"));
            space.ip(&format!("link set {device} up"));
        }
        let bpffs = std::env::temp_dir().join(&host.name);
        std::fs::create_dir(&bpffs).expect("a new directory");
        run(&format!("mount -t bpf none {}", bpffs.display()));
        Self { host, outside, bpffs, area: common::area() }
    }

    fn tap(&self) -> Port {
        let kind = Kind::Tap { device: "vsw-up-d0".to_owned(), queues: 1, persist: true };
        let opened = self.host.open(kind, &self.area);
        self.host.run("sysctl -qw net.ipv6.conf.vsw-up-d0.disable_ipv6=1");
        self.host.ip("link set vsw-up-d0 arp off up");
        opened.queues.into_iter().next().expect("one queue")
    }

    fn pair(&self) -> Pair {
        let read = |device: &str, what: &str| {
            let path = format!("/sys/class/net/{device}/{what}");
            let output = std::process::Command::new("ip")
                .args(["netns", "exec", &self.host.name, "cat", &path])
                .output()
                .expect("cat runs");
            String::from_utf8(output.stdout).expect("text").trim().to_owned()
        };
        let index = |device| read(device, "ifindex").parse().expect("a number");
        Pair {
            device: index("d0"),
            mac: read("d0", "address").parse().expect("a MAC"),
            tap: index("vsw-up-d0"),
        }
    }

    fn steering(&self) -> Steering {
        Steering::open(&self.bpffs.join("sw")).expect("root may")
    }

    fn attach(&self, mut steering: Steering) -> Steering {
        let pair = self.pair();
        self.host.enter(move || {
            steering.attach(pair, &mut NoClassifier).expect("attaches");
            steering
        })
    }

    fn outside_mac(&self) -> MacAddr {
        let output = std::process::Command::new("ip")
            .args(["netns", "exec", &self.outside.name, "cat", "/sys/class/net/o0/address"])
            .output()
            .expect("cat runs");
        String::from_utf8(output.stdout).expect("text").trim().parse().expect("a MAC")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        run(&format!("umount {}", self.bpffs.display()));
        std::fs::remove_dir(&self.bpffs).expect("it is empty");
    }
}

fn rules() -> Rules {
    let host = Address::from(IpAddr::V4(HOST));
    Rules {
        floating: vec![Address::from(IpAddr::V4(FLOATING))],
        published: vec![(host, 6, 8080..=8080)],
        snat: vec![(host, 20000..=65535)],
        ..Rules::default()
    }
}

fn count(steering: &Steering, reason: Reason) -> u64 {
    steering.counters().expect("readable").into_iter().find(|(of, _)| *of == reason).expect("all").1
}

/// Receives what waits at the port.
fn receive(port: &mut Port, pool: &mut FramePool) -> Vec<packet::Frame> {
    let mut frames = Vec::new();
    common::wait(std::slice::from_ref(port), Duration::from_millis(100));
    port.receive(pool, 64, |frame| frames.push(frame));
    frames
}

/// What [`Rules`] do not name stays with the host; what they name crosses the tap, in both directions.
#[test]
fn a_device_is_shared() {
    let site = Site::new();
    let mut pool = FramePool::new(site.area.clone());
    let mut tap = site.tap();
    let pair = site.pair();
    let mut steering = site.attach(site.steering());
    assert_eq!(steering.set_rules(&rules()).expect("fits"), 6);

    // The host's own service is not disturbed.
    let listener = site.host.enter(|| TcpListener::bind((HOST, 22)).expect("free"));
    site.outside.enter(|| TcpStream::connect((HOST, 22)).expect("the host answers"));
    drop(listener);
    assert!(receive(&mut tap, &mut pool).is_empty());

    // A floating address: asked for by ARP, answered by us, and then sent to.
    let outside = site.outside.enter(|| UdpSocket::bind((OUTSIDE, 7)).expect("free"));
    outside.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
    outside.send_to(b"to the floating one", (FLOATING, 9)).expect("sends");
    let mut queue = FrameQueue::new(16);
    let mut heard = false;
    eventually("the datagram arrives", || {
        for frame in receive(&mut tap, &mut pool) {
            let bytes = frame.bytes();
            if bytes[12..14] == [8, 6] {
                let reply = eth(pair.mac, site.outside_mac()).arp_reply(FLOATING, OUTSIDE);
                queue.push(reply.frame(&mut pool).expect("room")).expect("room");
                tap.transmit(&mut queue, &mut pool);
            } else {
                heard |= bytes.ends_with(b"to the floating one");
            }
            pool.free(frame);
        }
        heard
    });
    let answer = eth(pair.mac, site.outside_mac()).ipv4(FLOATING, OUTSIDE).udp(9, 7).data(b"from it");
    queue.push(answer.frame(&mut pool).expect("room")).expect("room");
    tap.transmit(&mut queue, &mut pool);
    let mut buffer = [0; 64];
    let (len, from) = outside.recv_from(&mut buffer).expect("the answer arrives");
    assert_eq!((&buffer[..len], from), (&b"from it"[..], SocketAddr::from((FLOATING, 9))));
    assert_eq!(count(&steering, Reason::Sent), 2);
    assert!(count(&steering, Reason::Arp) >= 1 && count(&steering, Reason::Floating) == 1);

    // A published port is ours, and the host says nothing about it.
    let stream = site.outside.spawn(|| {
        TcpStream::connect_timeout(&SocketAddr::from((HOST, 8080)), Duration::from_millis(1500))
            .expect_err("nobody answers")
            .kind()
    });
    assert_eq!(stream.join().expect("no panic"), io::ErrorKind::TimedOut);
    assert!(receive(&mut tap, &mut pool).into_iter().map(|frame| pool.free(frame)).count() >= 1);
    let pairs: Vec<_> = steering.attached().collect();
    assert_eq!(pairs, [pair]);
    tap.close(&mut pool);
}

/// A connection of the host in the SNAT range: all that arrives goes through the switch, which hands it back.
#[test]
fn what_is_handed_back_arrives_whole() {
    let site = Site::new();
    let mut pool = FramePool::new(site.area.clone());
    let mut tap = site.tap();
    let mut steering = site.attach(site.steering());
    steering.set_rules(&rules()).expect("fits");

    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let switch = std::thread::spawn(move || {
        let mut queue = FrameQueue::new(256);
        let mut largest = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            common::wait(std::slice::from_ref(&tap), Duration::from_millis(1));
            tap.receive(&mut pool, queue.room(), |frame| {
                largest = largest.max(frame.len());
                queue.push(frame).expect("room was asked for");
            });
            tap.transmit(&mut queue, &mut pool);
        }
        tap.close(&mut pool);
        largest
    });
    // Ephemeral ports are in the range: both ways.
    transfer(&site.outside, &site.host, HOST.into(), 20 << 20);
    transfer(&site.host, &site.outside, OUTSIDE.into(), 4 << 20);
    // The last acknowledgements may still wait in the tap.
    let counts =
        || [Reason::Port, Reason::HandedBack, Reason::Returned].map(|reason| count(&steering, reason));
    eventually("all is handed back", || {
        let [seen, back, returned] = counts();
        back > 300 && seen == back && back == returned
    });
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let largest = switch.join().expect("no panic");
    assert!(largest > 30_000, "large frames cross whole, the largest had {largest}");
    assert_eq!(site.host.checksum_errors() + site.outside.checksum_errors(), 0);
}

/// The programs go on without the daemon, and the host does not answer for it.
#[test]
fn steering_outlives_who_made_it() {
    let site = Site::new();
    let mut pool = FramePool::new(site.area.clone());
    let tap = site.tap();
    let mut steering = site.attach(site.steering());
    steering.set_rules(&rules()).expect("fits");
    drop(steering);
    tap.close(&mut pool);

    let try_it = || {
        site.outside.enter(|| {
            let address = SocketAddr::from((HOST, 8080));
            TcpStream::connect_timeout(&address, Duration::from_millis(300))
                .expect_err("nobody listens")
                .kind()
        })
    };
    assert_eq!(try_it(), io::ErrorKind::TimedOut, "silence, and no RST");

    let tap = site.tap();
    let mut steering = site.attach(site.steering());
    assert_eq!(steering.set_rules(&rules()).expect("fits"), 0, "the tables are what they were");
    assert!(count(&steering, Reason::Port) >= 1);
    let links = || std::fs::read_dir(site.bpffs.join("sw")).expect("there").count();
    assert_eq!(links(), 8, "six maps and two links");
    assert_eq!(try_it(), io::ErrorKind::TimedOut);

    let pair = site.pair();
    let steering = site.host.enter(move || {
        steering.detach(pair.device, Some(pair.tap), &mut NoClassifier).expect("detaches");
        steering
    });
    assert_eq!(links(), 6);
    assert_eq!(try_it(), io::ErrorKind::ConnectionRefused, "it is the host's again");
    drop(steering);
    let pins = site.bpffs.join("sw");
    Steering::remove(&pins).expect("removable");
    Steering::remove(&pins).expect("one that has gone is fine");
    tap.close(&mut pool);
}

/// AF_XDP takes what is the switch's, the tap hands back, and the program stays when the port is closed.
#[test]
fn xdp_steers_as_well() {
    let site = Site::new();
    let mut pool = FramePool::new(site.area.clone());
    let mut tap = site.tap();
    let pair = site.pair();
    let open = |dedicated| {
        let steer = Some(Steer { pins: site.bpffs.join("sw"), mac: pair.mac, dedicated });
        // What arrives by a veth has an unfinished checksum, and so it would be handed back.
        let options = Options { steer, attach: Attach::Native, ..Options::default() };
        let opened = site.host.open(Kind::Afxdp { device: "d0".to_owned(), options }, &site.area);
        let mut port = opened.queues.into_iter().next().expect("one queue");
        // The first look gives the kernel chunks to receive into.
        assert_eq!(port.receive(&mut FramePool::new(site.area.clone()), 64, |_| panic!("too early")), 0);
        port
    };
    site.outside.run("ethtool -K o0 tx off");
    let mut steering = site.steering();
    steering.set_rules(&rules()).expect("fits");
    let mut steering = site.host.enter(move || {
        steering.attach_out(pair, &mut NoClassifier).expect("attaches");
        steering
    });
    let mut port = open(false);

    // The host's own service.
    let listener = site.host.enter(|| TcpListener::bind((HOST, 22)).expect("free"));
    site.outside.enter(|| TcpStream::connect((HOST, 22)).expect("the host answers"));
    drop(listener);

    // A published port is ours: refused by nobody.
    let try_it = || {
        site.outside.enter(|| {
            let address = SocketAddr::from((HOST, 8080));
            TcpStream::connect_timeout(&address, Duration::from_millis(300))
                .expect_err("nobody listens")
                .kind()
        })
    };
    assert_eq!(try_it(), io::ErrorKind::TimedOut);
    let frames = receive(&mut port, &mut pool);
    assert!(frames.iter().any(|frame| frame.bytes()[36..38] == 8080_u16.to_be_bytes()));
    frames.into_iter().for_each(|frame| pool.free(frame));

    // A datagram in the SNAT range that is the host's: handed back by the tap.
    let socket = site.host.enter(|| UdpSocket::bind((HOST, 30000)).expect("free"));
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
    let sender = site.outside.enter(|| UdpSocket::bind((OUTSIDE, 0)).expect("free"));
    sender.send_to(b"for the host", (HOST, 30000)).expect("sends");
    let mut queue = FrameQueue::new(64);
    eventually("the datagram comes", || {
        for frame in receive(&mut port, &mut pool) {
            queue.push(frame).expect("room");
        }
        !queue.is_empty()
    });
    tap.transmit(&mut queue, &mut pool);
    let mut buffer = [0; 64];
    assert_eq!(socket.recv(&mut buffer).expect("handed back"), 12);

    // Nobody has the port open: silence, and the rest is the host's as before.
    port.close(&mut pool);
    assert_eq!(try_it(), io::ErrorKind::TimedOut);
    site.outside.enter(|| TcpStream::connect((HOST, 22)).expect_err("nobody listens").kind());
    let mut port = open(false);
    assert_eq!(try_it(), io::ErrorKind::TimedOut);
    assert!(
        !receive(&mut port, &mut pool)
            .into_iter()
            .map(|frame| pool.free(frame))
            .collect::<Vec<_>>()
            .is_empty()
    );
    port.close(&mut pool);

    // The device is the switch's alone.
    let mut port = open(true);
    sender.send_to(b"for nobody else", (HOST, 7)).expect("sends");
    eventually("all is taken", || {
        let frames = receive(&mut port, &mut pool);
        let found = frames.iter().any(|frame| frame.bytes().ends_with(b"for nobody else"));
        frames.into_iter().for_each(|frame| pool.free(frame));
        found
    });
    assert!(count(&steering, Reason::Dedicated) >= 1);
    port.close(&mut pool);

    let steering = site.host.enter(move || {
        steering.detach(pair.device, Some(pair.tap), &mut NoClassifier).expect("detaches");
        steering
    });
    assert_eq!(try_it(), io::ErrorKind::ConnectionRefused, "it is the host's again");
    drop(steering);
    Steering::remove(&site.bpffs.join("sw")).expect("removable");
    tap.close(&mut pool);
}

/// A container that has a floating address, and in this test the device's hardware address, behind a copy loop: large
/// frames and fragments cross in both directions and both families.
#[test]
fn a_floating_address_is_reached_by_large_frames_and_fragments() {
    let site = Site::new();
    let container = Namespace::new("box");
    let tap = site.tap();
    let pair = site.pair();
    let mut steering = site.attach(site.steering());
    let floating6: IpAddr = "fd08::77".parse().expect("an address");
    let mut rules = rules();
    rules.floating.push(Address::from(floating6));
    steering.set_rules(&rules).expect("fits");

    let kind = Kind::Tap { device: "eth0".to_owned(), queues: 1, persist: false };
    let inside = container.open(kind, &site.area).queues.into_iter().next().expect("one queue");
    site.outside.ip("addr add fd08::2/64 dev o0 nodad");
    container.ip(&format!("link set eth0 address {} up", pair.mac));
    container.ip(&format!("addr add {FLOATING}/24 dev eth0"));
    container.ip(&format!("addr add {floating6}/64 dev eth0 nodad"));
    let forwarder = common::Forwarder::new(vec![tap, inside], &site.area);

    for (container_address, outside_address) in
        [(IpAddr::V4(FLOATING), IpAddr::V4(OUTSIDE)), (floating6, "fd08::2".parse().expect("an address"))]
    {
        transfer(&site.outside, &container, container_address, 8 << 20);
        transfer(&container, &site.outside, outside_address, 8 << 20);

        let server = container.enter(move || UdpSocket::bind((container_address, 53)).expect("free"));
        let client = site.outside.enter(move || UdpSocket::bind((outside_address, 0)).expect("free"));
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
        }
        let data: Vec<u8> = (0..8000_u32).map(|n| n.to_le_bytes()[0]).collect();
        client.send_to(&data, (container_address, 53)).expect("sends");
        let mut buffer = vec![0; 9000];
        let (len, from) = server.recv_from(&mut buffer).expect("all fragments arrive");
        assert_eq!(&buffer[..len], data);
        server.send_to(&data, from).expect("sends");
        assert_eq!(client.recv(&mut buffer).expect("all fragments arrive"), 8000);
    }
    assert_eq!(container.checksum_errors() + site.outside.checksum_errors(), 0);
    let (ports, mut pool) = forwarder.stop();
    let totals = common::totals(&ports);
    assert!(totals.rx_bytes / totals.rx_frames > 5000, "large frames cross whole: {totals:?}");
    assert_eq!(totals.tx_segmented, 0);
    ports.into_iter().for_each(|port| port.close(&mut pool));
    assert_eq!(count(&steering, Reason::HandedBack), 0);
}
