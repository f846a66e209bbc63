//! Two containers on veth pairs, in namespaces of the test's own, and a loop that forwards between their ports.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use packet::area::ChunkKind;
use packet::{Area, FramePool, FrameQueue};
use ports::afxdp::Options;
use ports::{Health, Kind, Opened, Port, Spec, Stats};

/// Says whether namespaces can be made; tells loudly when not. A skip fails where skipping is forbidden
/// (`VSWITCH_NO_SKIP`).
pub(crate) fn can_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("VSWITCH_NO_SKIP").is_none(), "these tests need root");
    eprintln!("SKIP: needs root (CAP_NET_ADMIN, CAP_BPF)");
    false
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn run(line: &str) -> String {
    let output = try_run(line);
    assert!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command.
pub(crate) fn try_run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command");
    Command::new(program).args(words).stdin(Stdio::null()).output().expect("the program is installed")
}

/// Three namespaces: the switch's with `sw0` and `sw1`, and the containers' `eth0` at the far ends.
pub(crate) struct Lab {
    prefix: String,
}

/// What the veth pairs are like.
#[derive(Clone, Copy)]
pub(crate) struct Pairs {
    pub(crate) mtu: u32,
    pub(crate) queues: u32,
    pub(crate) offloads: bool,
}

impl Default for Pairs {
    fn default() -> Self {
        Self { mtu: 1500, queues: 1, offloads: true }
    }
}

impl Lab {
    pub(crate) fn new(pairs: Pairs) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("vsx{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { prefix };
        for end in ["s", "0", "1"] {
            run(&format!("ip netns add {}", lab.namespace(end)));
        }
        for n in 0..2 {
            lab.pair(n, pairs);
        }
        lab
    }

    pub(crate) fn namespace(&self, end: &str) -> String {
        format!("{}{end}", self.prefix)
    }

    /// Makes veth pair `n` and its container's addresses.
    pub(crate) fn pair(&self, n: u32, Pairs { mtu, queues, offloads }: Pairs) {
        let (switch, container) = (self.namespace("s"), self.namespace(&n.to_string()));
        run(&format!(
            "ip -n {switch} link add sw{n} mtu {mtu} numrxqueues {queues} numtxqueues {queues} type veth \
             peer name eth0 netns {container} mtu {mtu} numrxqueues {queues} numtxqueues {queues}"
        ));
        // Below 1280 bytes there is no IPv6 anyway, and no such file.
        if mtu >= 1280 {
            run(&format!("ip netns exec {switch} sysctl -qw net.ipv6.conf.sw{n}.disable_ipv6=1"));
            run(&format!("ip -n {container} addr add fd09::{}/64 dev eth0 nodad", n + 1));
        }
        run(&format!("ip -n {switch} link set sw{n} up"));
        run(&format!("ip -n {container} link set lo up"));
        run(&format!("ip -n {container} link set eth0 up"));
        run(&format!("ip -n {container} addr add 10.9.0.{}/24 dev eth0", n + 1));
        if !offloads {
            run(&format!("ip netns exec {container} ethtool -K eth0 tx off"));
        }
    }

    pub(crate) fn exec(&self, end: &str, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.namespace(end)))
    }

    pub(crate) fn try_exec(&self, end: &str, line: &str) -> Output {
        try_run(&format!("ip netns exec {} {line}", self.namespace(end)))
    }

    /// Starts a command in a namespace; it ends with the returned guard.
    pub(crate) fn start(&self, end: &str, line: &str) -> Running {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(end)])
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program is installed");
        Running(child)
    }

    /// Takes the calling thread into a namespace.
    pub(crate) fn enter(&self, end: &str) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.namespace(end))).expect("the namespace");
        setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter");
    }

    /// Sends `len` bytes from container 0 to container 1 by TCP and checks that they arrive as they were.
    pub(crate) fn transfer(&self, to: IpAddr, len: usize) {
        let byte = |i: usize| (i % 251).to_le_bytes()[0] ^ (i >> 9).to_le_bytes()[0];
        let pattern = |n: usize| (0..n).map(byte).collect::<Vec<_>>();
        let patience = Some(Duration::from_secs(20));
        std::thread::scope(|scope| {
            let (ready, listening) = mpsc::channel();
            let receiver = scope.spawn(move || {
                self.enter("1");
                let listener = TcpListener::bind((to, 5201)).expect("the port is free");
                ready.send(()).expect("the sender waits");
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.set_read_timeout(patience).expect("a timeout");
                let mut bytes = Vec::with_capacity(len);
                stream.read_to_end(&mut bytes).expect("all bytes in time");
                stream.write_all(b"done").expect("the way back works");
                bytes
            });
            scope.spawn(move || {
                self.enter("0");
                listening.recv().expect("the receiver listens");
                let mut stream = TcpStream::connect_timeout(&(to, 5201).into(), Duration::from_secs(10))
                    .expect("it connects");
                stream.set_write_timeout(patience).expect("a timeout");
                stream.set_read_timeout(patience).expect("a timeout");
                stream.write_all(&pattern(len)).expect("all bytes leave in time");
                stream.shutdown(Shutdown::Write).expect("an open stream");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).expect("an answer in time");
                assert_eq!(answer, "done");
            });
            let bytes = receiver.join().expect("the receiver ends");
            assert!(bytes == pattern(len), "{} of {len} bytes, or other bytes, arrived", bytes.len());
        });
    }

    /// Sends one TCP stream from container 0 to container 1 with iperf3, and returns Gbit/s.
    pub(crate) fn tcp(&self, to: IpAddr, seconds: u32) -> f64 {
        let _server = self.start("1", "iperf3 -s -1 -f g");
        std::thread::sleep(Duration::from_millis(300));
        let out = self.exec("0", &format!("timeout {} iperf3 -c {to} -t {seconds} -f g", seconds + 15));
        let line = out.lines().find(|l| l.contains("receiver")).expect("a summary");
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "Gbits/sec").expect("a rate");
        words[at - 1].parse().expect("a number")
    }
}

/// Container 1's addresses.
pub(crate) const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
pub(crate) const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));

impl Drop for Lab {
    fn drop(&mut self) {
        for end in ["s", "0", "1"] {
            let _ = try_run(&format!("ip netns del {}", self.namespace(end)));
        }
    }
}

/// A child process that is killed at the end.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An area of the size a small switch has.
pub(crate) fn area() -> Arc<Area> {
    Area::new(8192, 64).expect("an area")
}

/// Asserts that no chunk of `area` is in anybody's hands.
pub(crate) fn all_home(area: &Area) {
    for kind in [ChunkKind::Small, ChunkKind::Large] {
        assert_eq!(area.free(kind), area.total(kind), "{kind:?} chunks at home");
    }
}

/// Opens `sw{n}` in the calling thread's namespace.
pub(crate) fn open(n: u32, options: Options, area: &Arc<Area>) -> Result<Opened, ports::Error> {
    let device = format!("sw{n}");
    Port::open(Spec { name: format!("port{n}"), kind: Kind::Afxdp { device, options } }, area)
}

/// What a forwarding loop leaves behind.
pub(crate) struct Done {
    pub(crate) stats: [Stats; 2],
    pub(crate) health: [Health; 2],
}

/// A thread that forwards between `sw0` and `sw1` until it is told to stop.
pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
    thread: JoinHandle<Done>,
    pub(crate) modes: [String; 2],
    pub(crate) notes: Vec<String>,
}

impl Forwarder {
    pub(crate) fn start(lab: &Lab, options: &Options, area: &Arc<Area>) -> Self {
        Self::start_each(lab, [options.clone(), options.clone()], area)
    }

    pub(crate) fn start_each(lab: &Lab, options: [Options; 2], area: &Arc<Area>) -> Self {
        let (stop, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (report, opened) = mpsc::channel();
        let namespace = std::fs::File::open(format!("/run/netns/{}", lab.namespace("s"))).expect("namespace");
        let namespace = OwnedFd::from(namespace);
        let thread = {
            let (stop, gone, area) = (Arc::clone(&stop), Arc::clone(&gone), Arc::clone(area));
            std::thread::spawn(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter");
                let [a, b] = options;
                let ports = [(0, a), (1, b)].map(|(n, o)| open(n, o, &area).expect("the port opens"));
                let modes = ports.each_ref().map(|p| p.mode.clone());
                let notes = ports.iter().flat_map(|p| p.notes.clone()).collect::<Vec<_>>();
                report.send((modes, notes)).expect("the test waits");
                forward(ports.map(|p| p.queues), &area, &stop, &gone)
            })
        };
        let (modes, notes) = opened.recv().expect("the ports open");
        Self { stop, gone, thread, modes, notes }
    }

    /// Waits until one of the ports says that its device is gone.
    pub(crate) fn wait_gone(&self, limit: Duration) {
        let start = Instant::now();
        while !self.gone.load(Ordering::Relaxed) {
            assert!(start.elapsed() < limit, "no port noticed that its device is gone");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the loop ends")
    }
}

/// Forwards every queue of one side to the same queue of the other, until told to stop; then closes the ports.
fn forward(mut sides: [Vec<Port>; 2], area: &Arc<Area>, stop: &AtomicBool, gone: &AtomicBool) -> Done {
    let mut pool = FramePool::new(Arc::clone(area));
    let queues = sides[0].len();
    let mut towards: [Vec<FrameQueue>; 2] =
        [0, 1].map(|_| (0..queues).map(|_| FrameQueue::new(1024)).collect());
    while !stop.load(Ordering::Relaxed) {
        for side in 0..2 {
            for queue in 0..queues {
                let out = &mut towards[1 - side][queue];
                // What does not fit is dropped, as a switch would.
                let mut full = Vec::new();
                sides[side][queue].receive(&mut pool, 64, |frame| {
                    if let Err(frame) = out.push(frame) {
                        full.push(frame);
                    }
                });
                full.into_iter().for_each(|frame| pool.free(frame));
                sides[1 - side][queue].transmit(&mut towards[1 - side][queue], &mut pool);
            }
        }
        if sides.iter().flatten().any(|port| port.health() == Health::Gone) {
            gone.store(true, Ordering::Relaxed);
        }
    }
    let sum = |ports: &Vec<Port>| {
        ports.iter().map(Port::stats).fold(Stats::default(), |mut sum, s| {
            sum.rx_frames += s.rx_frames;
            sum.rx_bytes += s.rx_bytes;
            sum.rx_errors += s.rx_errors;
            sum.rx_kernel_drops += s.rx_kernel_drops;
            sum.rx_no_memory += s.rx_no_memory;
            sum.tx_frames += s.tx_frames;
            sum.tx_bytes += s.tx_bytes;
            sum.tx_errors += s.tx_errors;
            sum.tx_segmented += s.tx_segmented;
            sum.tx_checksummed += s.tx_checksummed;
            sum.syscalls += s.syscalls;
            sum.lent_chunks += s.lent_chunks;
            sum
        })
    };
    let stats = [sum(&sides[0]), sum(&sides[1])];
    let health = [sides[0][0].health(), sides[1][0].health()];
    for port in sides.into_iter().flatten() {
        port.close(&mut pool);
    }
    for queue in towards.iter_mut().flatten() {
        while let Some(frame) = queue.pop() {
            pool.free(frame);
        }
    }
    Done { stats, health }
}
