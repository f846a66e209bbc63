//! Tunnels on real devices: pipeline, uplink tap and steering against the kernel's own VXLAN, and against themselves.
//!
//! Without a daemon: the configuration is the cluster's of the in-memory tests, the devices are real. What this is about
//! is what a device, the kernel or the switch leave undone in a packet, and who finishes it: every byte of every
//! transfer is looked at, and the kernel must not have found one wrong checksum. Needs root and ethtool.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use packet::{Area, Batch, FramePool, FrameQueue, Instant, PortId};
use pipeline::{Outputs, Pipeline};
use ports::steer::{Classifier, Pair, Rules, Steering};
use ports::{Kind, Opened, Port, Spec, Stats};
use tests::cluster::*;
use tests::net::{Space, need, transfer};

/// Bytes each way: some hundred large frames.
const BYTES: u64 = 6 << 20;
/// What a stack does for its device, or its device for it.
const OFFLOADS: [&str; 7] = ["tx", "rx", "sg", "tso", "gso", "gro", "tx-udp-segmentation"];

/// How a station of the switch is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Veth,
    Tap,
}

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// The switch, with a station.
    Switch(Way),
    /// The same, but its uplink is a packet socket, which has no word for a large frame in a tunnel.
    Cutting(Way),
    /// A kernel with a VXLAN device, which is the station as well.
    Kernel,
}

/// Two hosts and a wire between them.
struct Site {
    plan: Plan,
    hosts: [Space; 2],
    stations: [Space; 2],
    members: [Member; 2],
    bpffs: PathBuf,
    area: Arc<Area>,
    stop: Arc<AtomicBool>,
    switches: Vec<JoinHandle<Vec<Stats>>>,
}

struct NoClassifier;

impl Classifier for NoClassifier {
    fn attach(&mut self, _: u32, _: BorrowedFd<'_>) -> io::Result<()> {
        panic!("this kernel has tcx");
    }

    fn detach(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }
}

impl Site {
    fn new(plan: Plan, members: [Member; 2]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces and needs root");
        let tag = format!("vsu{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let spaces = |kind: &str| [0, 1].map(|n| Space::new(&format!("{tag}-{kind}{n}")));
        let (hosts, stations) = (spaces("host"), spaces("station"));
        let bpffs = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&bpffs).expect("a new directory");
        command(&format!("mount -t bpf none {}", bpffs.display()));
        hosts[0].run(&format!("ip link add up0 type veth peer name up0 netns {}", hosts[1].name()));
        for (n, host) in (0..).zip(&hosts) {
            host.run(&format!("ip link set up0 address {} mtu {} up", device(n), plan.mtu));
            for v6 in [false, true] {
                let options = if v6 { "/64 nodad" } else { "/24" };
                // A kernel beside a packet socket would answer that nobody listens.
                if !matches!(members[usize::from(n)], Member::Cutting(_)) {
                    host.run(&format!("ip addr add {}{options} dev up0", endpoint(n, v6)));
                }
                let (other, mac) = (endpoint(1 - n, v6), device(1 - n));
                host.run(&format!("ip neigh add {other} lladdr {mac} dev up0 nud permanent"));
            }
        }
        let mut site = Self {
            plan,
            hosts,
            stations,
            members,
            bpffs,
            area: Area::new(8192, 1024).expect("an area"),
            stop: Arc::default(),
            switches: Vec::new(),
        };
        for n in 0..2 {
            match members[usize::from(n)] {
                Member::Switch(way) | Member::Cutting(way) => site.start_switch(n, way),
                Member::Kernel => site.make_kernel_tunnel(n),
            }
        }
        site
    }

    fn mtu(&self) -> u32 {
        pipeline::mtu_within(self.plan.mtu, self.plan.v6)
    }

    /// Where the address of a host's station is.
    fn space(&self, n: usize) -> &Space {
        if self.members[n] == Member::Kernel { &self.hosts[n] } else { &self.stations[n] }
    }

    fn address_station(&self, n: u8, interface: &str) {
        let space = self.space(n.into());
        let mtu = self.mtu();
        space.run(&format!("ip link set {interface} address {} mtu {mtu} up", mac(1, n)));
        space.run(&format!("ip addr add {}/24 dev {interface}", ip(1, n)));
        if mtu >= 1280 {
            space.run(&format!("ip addr add {}/64 dev {interface} nodad", ip6(1, n)));
        }
    }

    fn make_kernel_tunnel(&self, n: u8) {
        let (local, remote) = (endpoint(n, self.plan.v6), endpoint(1 - n, self.plan.v6));
        let mut overlay = pipeline::OverlayInfo::new(packet::NetworkId(0), Vec::new());
        (self.plan.overlay)(&mut overlay);
        let checksum = match (self.plan.v6, overlay.checksum_v4, overlay.checksum_v6) {
            (false, true, _) => "udpcsum",
            (false, false, _) => "noudpcsum",
            (true, _, true) => "",
            (true, _, false) => "udp6zerocsumtx udp6zerocsumrx",
        };
        self.hosts[usize::from(n)].run(&format!(
            "ip link add eth0 type vxlan id 101 dstport {} dev up0 local {local} remote {remote} {checksum}",
            self.plan.udp_port
        ));
        self.address_station(n, "eth0");
    }

    fn open(&self, space: &Space, kind: Kind) -> Opened {
        let area = Arc::clone(&self.area);
        space.inside(move || Port::open(Spec { name: "test".to_owned(), kind }, &area)).expect("opens")
    }

    fn start_switch(&mut self, n: u8, way: Way) {
        let host = &self.hosts[usize::from(n)];
        let tap = |device: &str| Kind::Tap { device: device.to_owned(), queues: 1, persist: false };
        let station = match way {
            Way::Tap => self.open(&self.stations[usize::from(n)], tap("eth0")),
            Way::Veth => {
                let name = self.stations[usize::from(n)].name();
                host.run(&format!("ip link add st0 type veth peer name eth0 netns {name}"));
                host.run(&format!("ip link set st0 mtu {} up", self.mtu()));
                self.open(host, Kind::Veth { device: "st0".to_owned() })
            }
        };
        self.address_station(n, "eth0");
        let (outside, steering) = match self.members[usize::from(n)] {
            Member::Cutting(_) => (self.open(host, Kind::Veth { device: "up0".to_owned() }), None),
            _ => {
                let outside = self.open(host, tap("vst0"));
                assert_eq!(outside.notes, [""; 0], "this kernel has everything");
                host.run("ip link set vst0 mtu 65521 arp off up");
                (outside, Some(self.steer(n)))
            }
        };

        let mut cluster = Cluster::with(2, Plan { known: true, ..self.plan.clone() });
        let lab = &mut cluster.hosts[usize::from(n)];
        let ports: Vec<_> = [("a", station), ("out", outside)]
            .into_iter()
            .map(|(name, opened)| (lab.id(name), opened.queues.into_iter().next().expect("one queue")))
            .collect();
        let pipeline = Pipeline::new(Arc::clone(&lab.tables), lab.config.build(), 0);
        let (area, stop) = (Arc::clone(&self.area), Arc::clone(&self.stop));
        self.switches.push(std::thread::spawn(move || {
            let _steering = steering;
            serve(pipeline, ports, FramePool::new(area), &stop)
        }));
    }

    /// Steers what is the overlay's into the tap.
    fn steer(&self, n: u8) -> Steering {
        let host = &self.hosts[usize::from(n)];
        let index = |name: &str| {
            let line = host.run(&format!("ip -o link show dev {name}"));
            line.split(':').next().and_then(|index| index.parse().ok()).expect("it begins with the number")
        };
        let pair = Pair { device: index("up0"), mac: device(n), tap: index("vst0") };
        let mut steering = Steering::open(&self.bpffs.join(format!("host{n}"))).expect("root may");
        let local = endpoint(n, self.plan.v6);
        let tunnels = vec![(local, self.plan.udp_port, 101), (local, self.plan.udp_port, 102)];
        steering.set_rules(&Rules { tunnels, ..Rules::default() }).expect("fits");
        host.inside(move || {
            steering.attach(pair, &mut NoClassifier).expect("attaches");
            steering
        })
    }

    /// Turns the offloads of both stations, and of the wire, on or off.
    fn set_offloads(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        let mut devices = vec![(&self.hosts[0], "up0"), (&self.hosts[1], "up0")];
        devices.extend([0, 1].map(|n| (self.space(n), "eth0")));
        for (space, device) in devices {
            for offload in OFFLOADS {
                space.output(&format!("ethtool -K {device} {offload} {word}"));
            }
            let features = space.run(&format!("ethtool -k {device}"));
            for feature in ["tcp-segmentation-offload", "tx-checksumming"] {
                assert!(features.contains(&format!("{feature}: {word}")), "{device} {word}: {features}");
            }
        }
    }

    /// Transfers both ways over both families.
    #[track_caller]
    fn check(&self, what: &str) {
        let mut addresses = vec![IpAddr::from(ip(1, 1))];
        if self.mtu() >= 1280 {
            addresses.push(ip6(1, 1).into());
        }
        for address in addresses {
            let took = transfer(self.space(0), self.space(1), address, BYTES);
            assert!(took.is_ok(), "{what}, {address}: {took:?}");
        }
        for space in self.hosts.iter().chain(&self.stations) {
            for group in ["Tcp", "Udp"] {
                assert_eq!(space.snmp(group, "InCsumErrors"), 0, "{what}: {} {group}", space.name());
            }
        }
    }

    /// Stops the switches, and returns what the station's and the uplink's port of each have counted.
    fn stop(&mut self) -> Vec<Vec<Stats>> {
        self.stop.store(true, Ordering::Relaxed);
        self.switches.drain(..).map(|switch| switch.join().expect("no panic")).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for switch in self.switches.drain(..) {
            let _ = switch.join();
        }
        command(&format!("umount -l {}", self.bpffs.display()));
        let _ = std::fs::remove_dir(&self.bpffs);
    }
}

fn command(line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    let status = std::process::Command::new(words[0]).args(&words[1..]).status().expect("it is installed");
    assert!(status.success() || std::thread::panicking(), "{line}");
}

/// Turns, until told to stop.
fn serve(
    mut pipeline: Pipeline,
    mut ports: Vec<(PortId, Port)>,
    mut pool: FramePool,
    stop: &AtomicBool,
) -> Vec<Stats> {
    let mut outputs = Outputs::new(16);
    for (id, _) in &ports {
        outputs.insert(*id, FrameQueue::new(512));
    }
    let mut batch = Batch::new();
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<_> = ports
            .iter()
            .filter_map(|(_, port)| port.as_fd())
            .map(|fd| nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN))
            .collect();
        let _ = nix::poll::poll(&mut fds, 1_u16);
        for (id, port) in &mut ports {
            port.receive(&mut pool, batch.room(), |frame| batch.push(frame, *id));
            pipeline.run(&mut batch, &mut outputs, &mut pool, Instant::now());
        }
        pipeline.tick(&mut outputs, &mut pool, Instant::now());
        outputs.clear_touched(pipeline.tables().counters(0));
        for (id, port) in &mut ports {
            port.transmit(outputs.queue(*id).expect("made above"), &mut pool);
        }
    }
    for (id, _) in &ports {
        let queue = outputs.queue(*id).expect("made above");
        while let Some(frame) = queue.pop() {
            pool.free(frame);
        }
    }
    let stats = ports.iter().map(|(_, port)| port.stats()).collect();
    ports.into_iter().for_each(|(_, port)| port.close(&mut pool));
    stats
}

fn plans() -> [(&'static str, Plan); 4] {
    [
        ("IPv4 without checksum", Plan::default()),
        ("IPv4 with checksum", Plan { overlay: |overlay| overlay.checksum_v4 = true, ..Plan::default() }),
        ("IPv6 with checksum", Plan { v6: true, ..Plan::default() }),
        (
            "IPv6 without",
            Plan { v6: true, overlay: |overlay| overlay.checksum_v6 = false, ..Plan::default() },
        ),
    ]
}

#[test]
fn the_kernels_tunnel_is_met_with_offloads_on_and_off() {
    need(&["ethtool"]);
    for way in [Way::Veth, Way::Tap] {
        for (name, plan) in plans() {
            let mut site = Site::new(plan, [Member::Switch(way), Member::Kernel]);
            for on in [true, false, true] {
                site.set_offloads(on);
                site.check(&format!("{way:?}, {name}, offloads {on}"));
            }
            let ports = site.stop().remove(0);
            for port in &ports {
                assert_eq!((port.rx_errors, port.tx_errors, port.tx_segmented), (0, 0, 0), "{port:?}");
            }
            assert!(ports[0].tx_joined > 500, "what came cut is put together again: {:?}", ports[0]);
        }
    }
}

#[test]
fn large_frames_cross_a_tunnel_whole() {
    need(&["ethtool"]);
    for members in [
        [Member::Switch(Way::Tap), Member::Kernel],
        [Member::Switch(Way::Veth), Member::Kernel],
        [Member::Switch(Way::Veth), Member::Switch(Way::Tap)],
    ] {
        for (name, plan) in plans() {
            let mut site = Site::new(plan, members);
            site.check(&format!("{members:?}, {name}"));
            for stats in site.stop() {
                for port in stats {
                    assert_eq!((port.rx_errors, port.tx_errors), (0, 0), "{members:?}, {name}: {port:?}");
                    assert_eq!(port.tx_segmented, 0, "{members:?}, {name}: {port:?}");
                    assert!(port.rx_bytes > 8000 * port.rx_frames, "{members:?}, {name}: {port:?}");
                }
            }
        }
    }
}

#[test]
fn a_port_that_cannot_cut_inside_a_tunnel_gets_frames_that_are_cut() {
    need(&["ethtool"]);
    for peer in [Member::Kernel, Member::Switch(Way::Tap)] {
        for (name, plan) in plans() {
            let mut site = Site::new(plan, [Member::Cutting(Way::Veth), peer]);
            for on in [true, false] {
                site.set_offloads(on);
                site.check(&format!("{peer:?}, {name}, offloads {on}"));
            }
            let [_, outside] = site.stop().remove(0)[..] else { panic!("two ports") };
            assert_eq!((outside.rx_errors, outside.tx_errors), (0, 0), "{peer:?}, {name}: {outside:?}");
            assert!(outside.tx_segmented > 50, "{peer:?}, {name}: {outside:?}");
        }
    }
}
