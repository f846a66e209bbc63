//! How fast the ports are, next to a bare copy loop over the same kind of device and to the kernel's bridge,
//! in turn on the same machine. Ignored: it takes a quiet machine and a minute.
//!
//! `cargo test --release -p ports --test speed -- --ignored --nocapture`; `ROUNDS` (3), `SECONDS_EACH` (2),
//! `ONLY` (part of a path), and `BUSY=0` for loops that wait, whose processor time means something on a machine that is not quiet.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Lab, Way, forward};
use packet::{FramePool, FrameQueue, MacAddr, build};
use ports::bare::{self, Totals, Wait};
use ports::{Kind, Port};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Bridge,
    BareVeth,
    Veth,
    VethBypass,
    BareTap,
    Tap,
}

const PATHS: [Path; 6] =
    [Path::Bridge, Path::BareVeth, Path::Veth, Path::VethBypass, Path::BareTap, Path::Tap];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn pin(cpu: usize) {
    let _ = nix::sys::prctl::set_name(if cpu == 1 { c"forward" } else { c"end" });
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).expect("a processor");
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}

/// Processor time of the forwarding thread a frame, and a KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    frame: f64,
    kib: f64,
}

impl Cost {
    fn of(frames: u64, bytes: u64) -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one `timespec`.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
        let nanos = time.tv_sec as f64 * 1e9 + time.tv_nsec as f64;
        Self { frame: nanos / frames.max(1) as f64, kib: nanos * 1024.0 / bytes.max(1) as f64 }
    }
}

/// Builds the path, runs `measure` over it, and takes it down.
fn over<T>(path: Path, measure: impl FnOnce(&Lab) -> T) -> (T, Cost) {
    let busy = setting("BUSY", 1) == 1;
    let wait = if busy { Wait::Busy } else { Wait::Poll };
    let lab = Lab::new();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let area = Arc::clone(&lab.area);
    let way = if matches!(path, Path::BareTap | Path::Tap) { Way::Tap } else { Way::Veth };
    let thread = match path {
        Path::Bridge => {
            lab.switch.ip("link add br0 type bridge");
            lab.switch.ip("link set br0 up");
            for n in 0..2 {
                drop(lab.attach(n, Way::Veth));
                lab.switch.ip(&format!("link set p{n} master br0"));
            }
            None
        }
        Path::BareVeth => {
            (0..2).for_each(|n| drop(lab.attach(n, Way::Veth)));
            Some(lab.switch.spawn(move || {
                pin(1);
                let mut totals = Totals::default();
                bare::packet::forward(["p0", "p1"], wait, &stopped, &mut totals).expect("runs");
                Cost::of(totals.frames, totals.bytes)
            }))
        }
        Path::BareTap => {
            let (to_ready, ready) = std::sync::mpsc::channel();
            let thread = lab.switch.spawn(move || {
                pin(1);
                let mut totals = Totals::default();
                let ready = || to_ready.send(()).expect("waited for");
                bare::tap::forward(["t0", "t1"], wait, &stopped, &mut totals, ready).expect("runs");
                Cost::of(totals.frames, totals.bytes)
            });
            ready.recv().expect("made");
            for (n, end) in lab.ends.iter().enumerate() {
                lab.switch.ip(&format!("link set t{n} netns {} name eth0", end.name));
            }
            Some(thread)
        }
        Path::Veth | Path::VethBypass | Path::Tap => {
            let mut ports = vec![lab.attach(0, way), lab.attach(1, way)];
            if path == Path::VethBypass {
                for port in &ports {
                    let fd = port.as_fd().expect("a socket").as_raw_fd();
                    let on = 1_i32;
                    // SAFETY: the option is four bytes at a valid address.
                    let result = unsafe {
                        libc::setsockopt(
                            fd,
                            libc::SOL_PACKET,
                            libc::PACKET_QDISC_BYPASS,
                            (&raw const on).cast(),
                            4,
                        )
                    };
                    assert_eq!(result, 0);
                }
            }
            Some(std::thread::spawn(move || {
                pin(1);
                let mut pool = FramePool::new(area);
                forward(&mut ports, &mut pool, &stopped, busy);
                let stats = common::totals(&ports);
                if stats.rx_kernel_drops + stats.tx_errors > 0 {
                    println!("    {stats:?}");
                }
                ports.into_iter().for_each(|port| port.close(&mut pool));
                Cost::of(stats.rx_frames, stats.rx_bytes)
            }))
        }
    };
    lab.configure(1500, [way; 2]);
    let result = measure(&lab);
    stop.store(true, Ordering::Relaxed);
    (result, thread.map(|thread| thread.join().expect("no panic")).unwrap_or_default())
}

/// Returns Gbit/s of one TCP flow between the ends.
fn tcp(lab: &Lab) -> f64 {
    let time = Duration::from_secs(setting("SECONDS_EACH", 2));
    let listener = lab.ends[1].enter(|| TcpListener::bind("10.9.0.2:0").expect("binds"));
    let address = listener.local_addr().expect("bound");
    let receiver = lab.ends[1].spawn(move || {
        pin(0);
        let (mut stream, _) = listener.accept().expect("connects");
        let (mut buffer, mut sum) = (vec![0; 256 << 10], 0_u64);
        let start = Instant::now();
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            sum += count as u64;
        }
        (sum * 8) as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    let sender = lab.ends[0].spawn(move || {
        pin(0);
        let mut stream = TcpStream::connect(address).expect("connects");
        let data = vec![7; 128 << 10];
        let start = Instant::now();
        while start.elapsed() < time {
            stream.write_all(&data).expect("sends");
        }
    });
    sender.join().expect("sends");
    receiver.join().expect("receives")
}

/// Returns offered and delivered thousands of frames of 64 bytes a second.
fn small(lab: &Lab) -> (f64, f64) {
    let time = Duration::from_secs(setting("SECONDS_EACH", 2));
    let mac = |ns: &common::Namespace| -> MacAddr {
        let text = ns.enter(|| {
            // sysfs shows the namespace of who mounted it, so the answer comes from an ioctl-free place.
            std::process::Command::new("ip")
                .args(["-br", "link", "show", "eth0"])
                .output()
                .expect("ip")
                .stdout
        });
        let text = String::from_utf8(text).expect("text");
        text.split_whitespace().nth(2).expect("a MAC").parse().expect("a MAC")
    };
    let packet = build::eth(mac(&lab.ends[0]), mac(&lab.ends[1]))
        .ipv4(Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2))
        .udp(9, 9)
        .data(&[0; 22]);
    let received = |lab: &Lab| {
        lab.ends[1].enter(|| {
            let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("procfs");
            let line = text.lines().find_map(|l| l.trim().strip_prefix("eth0:").map(str::to_owned));
            line.expect("eth0").split_whitespace().nth(1).expect("packets").parse::<u64>().expect("number")
        })
    };
    // A closed socket would answer each with an ICMP error.
    let _sink =
        lab.ends[1].enter(|| std::net::UdpSocket::bind(SocketAddr::from(([10, 9, 0, 2], 9))).expect("binds"));
    let before = received(lab);
    let area = Arc::clone(&lab.area);
    let (sent, elapsed) = lab.ends[0].enter(move || {
        pin(0);
        let socket = Kind::Veth { device: "eth0".to_owned() };
        let spec = ports::Spec { name: "generator".to_owned(), kind: socket };
        let mut port = Port::open(spec, &area).expect("opens").queues.remove(0);
        let mut pool = FramePool::new(area);
        let mut queue = FrameQueue::new(64);
        let start = Instant::now();
        while start.elapsed() < time {
            while let Some(frame) = packet.frame(&mut pool) {
                if let Err(frame) = queue.push(frame) {
                    pool.free(frame);
                    break;
                }
            }
            port.transmit(&mut queue, &mut pool);
        }
        let elapsed = start.elapsed().as_secs_f64();
        while let Some(frame) = queue.pop() {
            pool.free(frame);
        }
        let sent = port.stats().tx_frames;
        port.close(&mut pool);
        (sent, elapsed)
    });
    std::thread::sleep(Duration::from_millis(20));
    let delivered = received(lab) - before;
    (sent as f64 / elapsed / 1e3, delivered as f64 / elapsed / 1e3)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[test]
#[ignore = "a measurement: wants a quiet machine"]
fn tcp_and_small_frames_side_by_side() {
    let rounds = setting("ROUNDS", 3);
    let mut rows = vec![[const { Vec::new() }; 4]; PATHS.len()];
    for _ in 0..rounds {
        for (row, path) in rows.iter_mut().zip(PATHS) {
            if std::env::var("ONLY").is_ok_and(|only| !format!("{path:?}").contains(&only)) {
                continue;
            }
            let (gbit, bulk) = over(path, tcp);
            let ((offered, delivered), each) = over(path, small);
            println!("{path:?}: {gbit:.2} Gbit/s, {offered:.0} k offered, {delivered:.0} k delivered");
            for (column, value) in row.iter_mut().zip([gbit, bulk.kib, delivered, each.frame]) {
                column.push(value);
            }
        }
    }
    println!("\nmedians of {rounds}, least times; in brackets the ratio to the kernel's bridge");
    let base = [0, 2].map(|column| median(&mut rows[0][column]));
    for (row, path) in rows.iter_mut().zip(PATHS) {
        // Other processes only ever make it slower: the least time is the truest.
        let least = |column: &[f64]| column.iter().copied().fold(f64::INFINITY, f64::min);
        let (kib, frame) = (least(&row[1]), least(&row[3]));
        let (gbit, rate) = (median(&mut row[0]), median(&mut row[2]));
        println!(
            "{path:10?} TCP {gbit:6.2} Gbit/s ({:.2}) {kib:5.0} ns/KiB   64 B {rate:5.0} k/s ({:.2}) {frame:5.0} ns/frame",
            gbit / base[0],
            rate / base[1],
        );
    }
}
