//! What the namespace tests share: namespaces that go away with the test, a thread that copies frames between
//! two ports, and a TCP transfer whose content is checked.
//!
//! Needs root, `ip` and `ethtool`. Without root every test here fails with a sentence that says so.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use packet::{Area, Batch, FramePool, FrameQueue};
use ports::{Kind, Opened, Port, Spec, Stats};

/// How long a test waits for what is to happen soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a command and panics with its output when it fails.
pub fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
}

/// A network namespace of its own; deleted, with all devices in it, when dropped.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(label: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root (network namespaces)");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vsp-{}-{n}-{label}", std::process::id());
        run(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.name));
    }

    /// Runs any command in the namespace.
    pub fn run(&self, command: &str) {
        run(&format!("ip netns exec {} {command}", self.name));
    }

    /// Runs `work` on a thread of its own in the namespace.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/run/netns/{}", self.name);
        std::thread::spawn(move || {
            let file = std::fs::File::open(path).expect("the namespace exists");
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter it");
            work()
        })
    }

    /// As [`Namespace::spawn`], and waits.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().expect("no panic")
    }

    /// Opens a port. Another test's child, before it becomes `ip`, has for a moment all that this process has open: a
    /// device that was closed just now may still be busy.
    pub fn open(&self, kind: Kind, area: &Arc<Area>) -> Opened {
        let until = Instant::now() + PATIENCE;
        loop {
            let (area, kind) = (Arc::clone(area), kind.clone());
            match self.enter(move || Port::open(Spec { name: "test".to_owned(), kind }, &area)) {
                Err(error) if error.source.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                result => return result.expect("opens"),
            }
        }
    }

    /// Returns the TCP and UDP segments with a wrong checksum that the namespace has seen.
    pub fn checksum_errors(&self) -> u64 {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").expect("procfs"));
        let mut errors = 0;
        for protocol in ["Tcp:", "Udp:"] {
            let mut lines = text.lines().filter(|line| line.starts_with(protocol));
            let names: Vec<_> = lines.next().expect("names").split(' ').collect();
            let values: Vec<_> = lines.next().expect("values").split(' ').collect();
            let at = names.iter().position(|name| *name == "InCsumErrors").expect("since Linux 3.10");
            errors += values[at].parse::<u64>().expect("a number");
        }
        errors
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A thread that copies frames between two ports until it is dropped or stopped.
pub struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Vec<Port>, FramePool)>>,
}

impl Forwarder {
    pub fn new(ports: Vec<Port>, area: &Arc<Area>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, area) = (Arc::clone(&stop), Arc::clone(area));
        let thread = std::thread::spawn(move || {
            let mut pool = FramePool::new(area);
            let mut ports = ports;
            forward(&mut ports, &mut pool, &stopped, false);
            (ports, pool)
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops and returns the ports with the pool that their chunks came from.
    pub fn stop(mut self) -> (Vec<Port>, FramePool) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("not stopped yet").join().expect("no panic")
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok((ports, mut pool)) = thread.join()
        {
            ports.into_iter().for_each(|port| port.close(&mut pool));
        }
    }
}

/// Copies frames from each of two ports to the other until told to stop. Waits when idle, unless `busy`.
pub fn forward(ports: &mut [Port], pool: &mut FramePool, stop: &AtomicBool, busy: bool) {
    let mut queues = [FrameQueue::new(1024), FrameQueue::new(1024)];
    while !stop.load(Ordering::Relaxed) {
        let mut received = 0;
        for from in 0..2 {
            let to = &mut queues[1 - from];
            let budget = to.room().min(Batch::CAPACITY);
            received += ports[from].receive(pool, budget, |frame| {
                if let Err(frame) = to.push(frame) {
                    unreachable!("room was asked for: {frame:?}");
                }
            });
            ports[1 - from].transmit(to, pool);
        }
        if received == 0 && !busy {
            wait(ports, Duration::from_millis(1));
        }
    }
    for queue in &mut queues {
        while let Some(frame) = queue.pop() {
            pool.free(frame);
        }
    }
}

/// Waits until one of the ports is readable, or for `time`.
pub fn wait(ports: &[Port], time: Duration) {
    let mut fds: Vec<_> = ports
        .iter()
        .filter_map(|port| port.as_fd())
        .map(|fd| nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN))
        .collect();
    let millis = u16::try_from(time.as_millis()).expect("short");
    let _ = nix::poll::poll(&mut fds, millis);
}

/// Sends `len` bytes by TCP from one namespace to an address in another, and checks what arrives.
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, len: usize) -> Duration {
    let listener = to.enter(move || {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            // An IPv6 address is tentative for a moment.
            match TcpListener::bind(SocketAddr::new(address, 0)) {
                Ok(listener) => return listener,
                Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let address = listener.local_addr().expect("bound");
    let pattern = |n: usize| -> u8 { u8::try_from((n * 7 + n / 251) % 256).expect("a byte") };
    let receiver = to.spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        let (mut buffer, mut at) = (vec![0; 1 << 16], 0);
        while at < len {
            let count = stream.read(&mut buffer).expect("more data");
            assert!(count > 0, "closed after {at} of {len} bytes");
            for (n, byte) in buffer[..count].iter().enumerate() {
                assert_eq!(*byte, pattern(at + n), "byte {}", at + n);
            }
            at += count;
        }
        stream.write_all(b"done").expect("the way back is open");
    });
    let start = Instant::now();
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).expect("connects");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("settable");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        let data: Vec<u8> = (0..len).map(pattern).collect();
        stream.write_all(&data).expect("sends");
        let mut done = [0; 4];
        stream.read_exact(&mut done).expect("an answer");
    });
    sender.join().expect("sender");
    receiver.join().expect("receiver");
    start.elapsed()
}

/// Waits until `condition` holds; panics after twenty seconds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes an area for a test.
pub fn area() -> Arc<Area> {
    Area::new(4096, 512).expect("an area")
}

/// Two ends of a network with a switch between them, each with a device `eth0`.
pub struct Lab {
    pub switch: Namespace,
    pub ends: [Namespace; 2],
    pub area: Arc<Area>,
}

/// How an end is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Veth,
    Tap,
}

impl Lab {
    pub fn new() -> Self {
        let lab = Self {
            switch: Namespace::new("sw"),
            ends: [Namespace::new("a"), Namespace::new("b")],
            area: area(),
        };
        lab.switch.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        lab
    }

    /// Makes the device of one end and opens the port for it.
    pub fn attach(&self, end: usize, way: Way) -> Port {
        let ns = &self.ends[end];
        let opened = match way {
            Way::Veth => {
                self.switch.ip(&format!("link add p{end} type veth peer name eth0 netns {}", ns.name));
                self.switch.ip(&format!("link set p{end} up"));
                self.switch.open(Kind::Veth { device: format!("p{end}") }, &self.area)
            }
            Way::Tap => {
                let kind = Kind::Tap { device: "eth0".to_owned(), queues: 1, persist: false };
                ns.open(kind, &self.area)
            }
        };
        opened.queues.into_iter().next().expect("one queue")
    }

    /// Gives both ends addresses (10.9.0.N, fd09::N) and an MTU, and brings them up.
    pub fn configure(&self, mtu: u32, ways: [Way; 2]) {
        for (n, ns) in self.ends.iter().enumerate() {
            if ways[n] == Way::Veth {
                self.switch.ip(&format!("link set p{n} mtu {mtu}"));
            }
            ns.ip(&format!("link set eth0 mtu {mtu} up"));
            ns.ip(&format!("addr add 10.9.0.{}/24 dev eth0", n + 1));
            if mtu >= 1280 {
                ns.ip(&format!("addr add fd09::{}/64 dev eth0 nodad", n + 1));
            }
        }
    }

    /// Transfers both ways over IPv4 or IPv6 and checks that no checksum was wrong.
    pub fn check(&self, v6: bool, len: usize) {
        let address = |n: u16| -> IpAddr {
            if v6 { [0xfd09, 0, 0, 0, 0, 0, 0, n].into() } else { [10, 9, 0, n.to_be_bytes()[1]].into() }
        };
        transfer(&self.ends[0], &self.ends[1], address(2), len);
        transfer(&self.ends[1], &self.ends[0], address(1), len);
        for end in &self.ends {
            assert_eq!(end.checksum_errors(), 0, "wrong checksums arrived");
        }
    }
}

/// Sums up what ports have counted.
pub fn totals(ports: &[Port]) -> Stats {
    let mut total = Stats::default();
    for stats in ports.iter().map(Port::stats) {
        total.rx_frames += stats.rx_frames;
        total.rx_bytes += stats.rx_bytes;
        total.rx_errors += stats.rx_errors;
        total.rx_kernel_drops += stats.rx_kernel_drops;
        total.rx_no_memory += stats.rx_no_memory;
        total.tx_frames += stats.tx_frames;
        total.tx_errors += stats.tx_errors;
        total.tx_segmented += stats.tx_segmented;
        total.tx_joined += stats.tx_joined;
        total.tx_checksummed += stats.tx_checksummed;
        total.syscalls += stats.syscalls;
    }
    total
}

/// Returns the raw descriptor, for tests that look at it.
pub fn raw(port: &Port) -> i32 {
    port.as_fd().expect("a descriptor").as_raw_fd()
}

/// Sends UDP as fast as it goes from `from` to `address` while `work` runs.
pub fn flood(from: &Namespace, address: IpAddr, work: impl FnOnce()) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sender = from.spawn(move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        while !stopped.load(Ordering::Relaxed) {
            // Fails when the device is gone, which is what the tests are about.
            let _ = socket.send_to(&[7; 100], SocketAddr::new(address, 9));
        }
    });
    work();
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("no panic");
}
