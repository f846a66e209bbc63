//! An outside host and the host with its device `d0`, for one test.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use packet::{Area, Frame, FramePool, FrameQueue, MacAddr};
use ports::{Kind, Port, Spec};
use vswitch::devices::Namespace;
use vswitch::uplink::Uplink;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome = Result<(), Failure>;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

/// Two namespaces with a veth pair between them: `d0` (10.8.0.1, fd08::1) in the host, `o0` (.2) outside. All goes when it
/// is dropped.
pub(crate) struct Lab {
    pub(crate) name: String,
    pub(crate) runtime: tokio::runtime::Runtime,
    area: Arc<Area>,
}

impl Lab {
    pub(crate) fn new() -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("u{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lab = Self { name, runtime, area: Area::new(512, 64)? };
        for space in ["host", "out"] {
            Namespace::open_or_create(&lab.space(space)).map_err(|e| format!("this test needs root: {e}"))?;
            lab.sh(space, "ip link set lo up");
        }
        lab.sh("host", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.ip_forward=0");
        let out = lab.space("out");
        lab.sh("host", &format!("ip link add d0 type veth peer name o0 netns {out}"));
        for (space, device, last) in [("host", "d0", 1), ("out", "o0", 2)] {
            lab.sh(space, &format!("ip addr add 10.8.0.{last}/24 dev {device}"));
            lab.sh(space, &format!("ip addr add fd08::{last}/64 dev {device} nodad"));
            lab.sh(space, &format!("ip link set {device} up"));
        }
        Ok(lab)
    }

    pub(crate) fn space(&self, space: &str) -> String {
        format!("{}-{space}", self.name)
    }

    /// Runs a command line in a namespace, expects success, and returns what it prints.
    pub(crate) fn sh(&self, space: &str, line: &str) -> String {
        let netns = format!("--net=/run/netns/{}", self.space(space));
        let output = Command::new("nsenter").args([&netns, "sh", "-c", line]).output().expect("nsenter runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs `action` in a namespace, on a thread of its own.
    pub(crate) fn within<T: Send>(&self, space: &str, action: impl FnOnce() -> T + Send) -> T {
        Namespace::resolve(&self.space(space)).and_then(|space| space.run(action)).expect("it is there")
    }

    pub(crate) fn start(&self) -> Result<Uplink, Failure> {
        Ok(self.within("host", || Uplink::start(&self.name))?)
    }

    /// Opens a persistent tap in the host's namespace.
    pub(crate) fn open(&self, uplink: &Uplink, device: &str) -> Result<Tap, Failure> {
        let kind = Kind::Tap { device: device.to_owned(), queues: 1, persist: true };
        let area = Arc::clone(&self.area);
        let open = uplink.run(move || Port::open(Spec { name: "tap".to_owned(), kind }, &area));
        let port = self.runtime.block_on(open)??.queues.remove(0);
        Ok(Tap { port: Some(port), pool: FramePool::new(Arc::clone(&self.area)), queue: FrameQueue::new(64) })
    }

    pub(crate) fn mac(&self, space: &str, device: &str) -> MacAddr {
        let text = self.sh(space, &format!("ip -br link show dev {device}"));
        text.split_whitespace().nth(2).and_then(|word| word.parse().ok()).expect("a hardware address")
    }

    pub(crate) fn index(&self, space: &str, device: &str) -> u32 {
        let text = self.sh(space, &format!("ip -o link show dev {device}"));
        text.split(':').next().and_then(|word| word.parse().ok()).expect("a number")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Ok(uplink) = self.start() {
            let _ = self.runtime.block_on(uplink.remove_all());
        }
        for space in ["host", "out"] {
            let _ = Namespace::remove(&self.space(space));
        }
    }
}

/// A tap, read and written as the switch would.
pub(crate) struct Tap {
    port: Option<Port>,
    pool: FramePool,
    queue: FrameQueue,
}

impl Tap {
    /// Returns what has arrived, waiting a moment for it.
    pub(crate) fn receive(&mut self) -> Vec<Vec<u8>> {
        let port = self.port.as_mut().expect("open");
        let mut fds = [nix::poll::PollFd::new(port.as_fd().expect("a tap"), nix::poll::PollFlags::POLLIN)];
        let _ = nix::poll::poll(&mut fds, 20_u16);
        let mut frames: Vec<Frame> = Vec::new();
        port.receive(&mut self.pool, 64, |frame| frames.push(frame));
        frames
            .into_iter()
            .map(|frame| {
                let bytes = frame.bytes().to_vec();
                self.pool.free(frame);
                bytes
            })
            .collect()
    }

    /// Waits for a frame that `wanted` says yes to; passes over others.
    pub(crate) fn expect(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(found) = self.receive().into_iter().find(|frame| wanted(frame)) {
                return found;
            }
            assert!(Instant::now() < end, "no frame: {what}");
        }
    }

    pub(crate) fn send(&mut self, packet: &packet::build::Packet) {
        let frame = packet.frame(&mut self.pool).expect("a chunk");
        self.queue.push(frame).expect("room");
        self.port.as_mut().expect("open").transmit(&mut self.queue, &mut self.pool);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(port) = self.port.take() {
            port.close(&mut self.pool);
        }
    }
}

/// Asks until the answer is yes.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < end, "it did not come true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says whether `frame` is UDP over IPv4 to `to`, and ends with `data`.
pub(crate) fn is_udp(frame: &[u8], to: IpAddr, data: &[u8]) -> bool {
    let IpAddr::V4(to) = to else { return false };
    frame.len() > 42 && frame[12..14] == [8, 0] && frame[30..34] == to.octets() && frame.ends_with(data)
}
