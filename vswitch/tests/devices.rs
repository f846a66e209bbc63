//! The switch's devices against the real kernel, in namespaces of this test's own. Needs root.

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use packet::{Area, MacAddr};
use ports::{Health, Kind, Opened, Port, Spec};
use vswitch::devices::{Device, Devices, FarEnd, LinkEvent, Namespace, TapSpec, VethSpec};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

/// A switch with its own namespace, and namespaces for its ports. All go when it is dropped.
struct Lab {
    name: String,
    devices: Devices,
    spaces: Vec<String>,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(ports: &[&str]) -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let runtime = runtime()?;
        let devices = Devices::start(&name).map_err(|error| format!("this test needs root: {error}"))?;
        let mut lab = Self { name, devices, spaces: Vec::new(), runtime };
        for port in ports {
            let space = lab.space(port);
            lab.spaces.push(space.clone());
            Namespace::open_or_create(&space)?;
        }
        Ok(lab)
    }

    fn space(&self, port: &str) -> String {
        format!("{}-{port}", self.name)
    }

    fn create(&self, spec: VethSpec) -> Result<Device, vswitch::devices::Error> {
        self.runtime.block_on(self.devices.create_veth(spec))
    }

    fn remove(&self, device: Device) -> Result<(), vswitch::devices::Error> {
        self.runtime.block_on(self.devices.remove(device))
    }

    fn veth(&self, port: &str, number: u8) -> VethSpec {
        VethSpec {
            port: port.to_owned(),
            netns: self.space(port),
            near_mac: MacAddr::local(0x100 + u64::from(number)),
            queues: 1,
            drop_ingress: true,
            far: far(number),
            previous: None,
        }
    }

    fn tap(&self, port: &str, number: u8) -> TapSpec {
        TapSpec { port: port.to_owned(), netns: self.space(port), far: far(number), previous: None }
    }

    fn create_tap(&self, spec: TapSpec) -> Result<(Device, Opened), Failure> {
        self.runtime.block_on(self.devices.create_tap(spec, |device| {
            let kind = Kind::Tap { device: device.to_owned(), queues: 1, persist: true };
            let area = Area::new(64, 1)?;
            Port::open(Spec { name: "tap".to_owned(), kind }, &area).map_err(Failure::from)
        }))
    }

    /// Runs a command inside the namespace of `port` (or of the switch), and returns what it prints.
    fn inside(&self, space: &str, command: &str) -> String {
        let space = if space == "switch" { format!("vswitch-{}", self.name) } else { self.space(space) };
        let mut words = command.split(' ');
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{space}"))
            .arg(words.next().unwrap_or_default())
            .args(words)
            .output();
        output.map_or_else(
            |error| error.to_string(),
            |output| {
                String::from_utf8_lossy(&output.stdout).into_owned()
                    + &String::from_utf8_lossy(&output.stderr)
            },
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.devices.remove_all()) {
            eprintln!("{error}");
        }
        for space in &self.spaces {
            let _ = Namespace::remove(space);
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn far(number: u8) -> FarEnd {
    FarEnd {
        ifname: "eth0".to_owned(),
        mac: MacAddr::local(u64::from(number)),
        mtu: 1400,
        addresses: [format!("10.1.0.{number}/24"), format!("fd00:1::{number}/64")]
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect(),
        gateways: ["10.1.0.1", "fd00:1::1"].iter().filter_map(|text| text.parse::<IpAddr>().ok()).collect(),
        routes: vec![],
        accept_ra: false,
    }
}

#[test]
fn veth_is_made_with_both_macs_addresses_and_routes_and_removed_again() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let device = lab.create(lab.veth("web", 10))?;
    assert!(!device.adopted && device.notes.is_empty(), "{device:?}");

    let near = lab.inside("switch", "ip -d link show dev web");
    for word in ["02:00:00:00:01:0a", "NOARP", ",UP", "LOWER_UP", "mtu 1400", "numtxqueues 1 "] {
        assert!(near.contains(word), "{word} is not in {near}");
    }
    let link = lab.inside("web", "ip -d link show dev eth0");
    for word in ["02:00:00:00:00:0a", "LOWER_UP", "mtu 1400"] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    let addresses = lab.inside("web", "ip addr show dev eth0");
    assert!(addresses.contains("10.1.0.10/24 brd 10.1.0.255"), "{addresses}");
    assert!(addresses.contains("fd00:1::10/64 scope global nodad"), "{addresses}");
    let routes = lab.inside("web", "ip route") + &lab.inside("web", "ip -6 route");
    assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("default via fd00:1::1 dev eth0"), "{routes}");
    assert_eq!(lab.inside("web", "cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
    let addresses = lab.inside("switch", "ip addr show dev web");
    assert!(!addresses.contains("inet"), "our end has an address: {addresses}");

    lab.remove(device.clone())?;
    assert!(lab.inside("switch", "ip link show dev web").contains("does not exist"));
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_deleted_namespace_is_told_within_a_second() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.create(lab.veth("web", 10))?;
    let took = lab.runtime.block_on(async {
        let mut watch = lab.devices.watch().await?;
        let start = Instant::now();
        Namespace::remove(&lab.space("web"))?;
        let gone = async {
            loop {
                match watch.next().await {
                    Ok(LinkEvent::Gone(link)) if link.name == "web" => return Ok(start.elapsed()),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("an event within five seconds")
    })?;
    eprintln!("told after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    Ok(())
}

#[test]
fn a_pair_that_is_there_is_adopted_and_only_differences_are_repaired() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let first = lab.create(lab.veth("web", 10))?;
    // What a container's owner may do.
    lab.inside("web", "ip addr add 10.9.9.9/32 dev eth0");
    lab.inside("web", "ip neigh add 10.1.0.77 lladdr 02:00:00:00:00:4d dev eth0 nud permanent");
    let before =
        lab.inside("web", "ip -s addr") + &lab.inside("web", "ip route") + &lab.inside("web", "ip neigh");

    // The daemon starts again: same switch, new threads and sockets.
    let again = Lab {
        devices: Devices::start(&lab.name)?,
        name: lab.name.clone(),
        spaces: vec![],
        runtime: runtime()?,
    };
    let second = again.create(lab.veth("web", 10))?;
    assert!(second.adopted);
    assert_eq!((first.near_index, first.far_index), (second.near_index, second.far_index));
    let after =
        lab.inside("web", "ip -s addr") + &lab.inside("web", "ip route") + &lab.inside("web", "ip neigh");
    assert_eq!(without_counters(&before), without_counters(&after));

    let mut other = lab.veth("web", 10);
    other.previous = Some(other.far.clone());
    other.far.mac = MacAddr::local(0x999);
    other.far.mtu = 1280;
    other.far.addresses = vec!["10.1.0.20/24".parse()?, "fd00:1::10/64".parse()?];
    other.drop_ingress = false;
    let third = again.create(other)?;
    assert_eq!((first.near_index, first.far_index), (third.near_index, third.far_index));
    let now = lab.inside("web", "ip addr show dev eth0");
    for word in ["02:00:00:00:09:99", "mtu 1280", "10.1.0.20/24", "fd00:1::10/64", "10.9.9.9/32"] {
        assert!(now.contains(word), "{word} is not in {now}");
    }
    assert!(!now.contains("10.1.0.10/24"), "{now}");
    assert!(lab.inside("switch", "ip link show dev web").contains("mtu 1280"));
    assert!(!lab.inside("switch", "tc qdisc show dev web").contains("clsact"));

    // Renamed inside: still the pair, and said so.
    lab.inside("web", "ip link set eth0 down");
    lab.inside("web", "ip link set eth0 name lan0");
    let renamed = lab.create(lab.veth("web", 10))?;
    assert_eq!((renamed.ifname.as_str(), renamed.far_index), ("lan0", first.far_index));
    assert_eq!(renamed.notes.len(), 1, "{renamed:?}");
    Ok(())
}

fn without_counters(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim().chars().all(|c| c.is_ascii_digit() || c == ' ')).collect()
}

#[test]
fn a_pair_for_another_place_is_replaced() -> Outcome {
    let lab = Lab::new(&["web", "db"])?;
    lab.create(lab.veth("web", 10))?;
    let mut moved = lab.veth("web", 10);
    moved.netns = lab.space("db");
    let device = lab.create(moved)?;
    assert!(!device.adopted);
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    assert!(lab.inside("db", "ip addr show dev eth0").contains("10.1.0.10/24"));
    // More queues make another device too.
    let mut wide = lab.veth("web", 10);
    wide.netns = lab.space("db");
    wide.queues = 2;
    assert!(!lab.create(wide.clone())?.adopted);
    assert!(lab.inside("switch", "ip -d link show dev web").contains("numtxqueues 2 numrxqueues 2"));
    assert!(lab.create(wide)?.adopted);
    Ok(())
}

#[test]
fn a_tap_is_made_moved_and_removed() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (device, opened) = lab.create_tap(lab.tap("web", 10))?;
    assert!(!device.adopted && opened.queues.len() == 1);
    let link = lab.inside("web", "ip -d addr show dev eth0") + &lab.inside("web", "ip route");
    for word in [
        "02:00:00:00:00:0a",
        "mtu 1400",
        "LOWER_UP",
        "persist on",
        "10.1.0.10/24",
        "fd00:1::10/64",
        "default via 10.1.0.1",
    ] {
        assert!(link.contains(word), "{word} is not in {link}");
    }
    assert_eq!(lab.inside("switch", "ip -o link").lines().count(), 1, "something is left at home");
    assert_eq!(opened.queues[0].health(), Health::Up);

    lab.remove(device.clone())?;
    assert!(lab.inside("web", "ip link show dev eth0").contains("does not exist"));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_tap_goes_with_its_namespace_though_it_is_open() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (device, mut opened) = lab.create_tap(lab.tap("web", 10))?;
    let mut pool = packet::FramePool::new(Area::new(64, 1)?);
    Namespace::remove(&lab.space("web"))?;
    let start = Instant::now();
    let port = &mut opened.queues[0];
    while port.health() != Health::Gone && start.elapsed() < Duration::from_secs(5) {
        let mut frames = Vec::new();
        port.receive(&mut pool, 8, |frame| frames.push(frame));
        frames.into_iter().for_each(|frame| pool.free(frame));
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("told after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(1));
    lab.remove(device)?;
    Ok(())
}

#[test]
fn a_tap_is_found_again_after_a_restart() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let (first, opened) = lab.create_tap(lab.tap("web", 10))?;
    lab.inside("web", "ip addr add 10.9.9.9/32 dev eth0");
    // Without what the carrier and duplicate address detection change in their own time.
    let look = || {
        let text = lab.inside("web", "ip -o addr")
            + &lab.inside("web", "ip route")
            + &lab.inside("web", "ip -6 route");
        [" tentative", " linkdown"].iter().fold(text, |text, word| text.replace(word, ""))
    };
    let before = look();
    drop(opened);
    assert!(lab.inside("web", "ip link show dev eth0").contains("NO-CARRIER"));

    let (second, opened) = lab.create_tap(lab.tap("web", 10))?;
    assert!(second.adopted);
    assert_eq!((first.far_index, first.namespace), (second.far_index, second.namespace));
    assert_eq!(before, look());

    // Opened inside, it holds the namespace; what tells is that nobody else is there.
    let live = || lab.runtime.block_on(lab.devices.live_namespaces());
    assert!(live()?.contains(&second.namespace));
    Namespace::remove(&lab.space("web"))?;
    assert!(!live()?.contains(&second.namespace));
    lab.remove(second)?;
    drop(opened);
    Ok(())
}

#[test]
fn a_tap_of_somebody_else_is_left_alone() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.inside("web", "ip tuntap add dev eth0 mode tap");
    let error = lab.create_tap(lab.tap("web", 10)).expect_err("the name is taken").to_string();
    assert!(error.contains("'eth0' exists already"), "{error}");
    // Another port's tap, of the same switch, is somebody else's too.
    let mut spec = lab.tap("web", 10);
    spec.far.ifname = "eth1".to_owned();
    let (device, _opened) = lab.create_tap(spec.clone())?;
    spec.port = "db".to_owned();
    assert!(lab.create_tap(spec).is_err());

    let mut bad = lab.tap("web", 10);
    bad.port = "bad".to_owned();
    bad.far.ifname = "eth2".to_owned();
    bad.far.routes = vec![("10.9.0.0/16".parse()?, Some("0.0.0.0".parse()?))];
    assert!(lab.create_tap(bad).is_err());
    assert!(lab.inside("web", "ip link show dev eth2").contains("does not exist"));

    let left = lab.runtime.block_on(lab.devices.leftovers())?;
    assert_eq!(left.iter().map(|left| left.link.index).collect::<Vec<_>>(), [device.far_index], "{left:?}");
    lab.runtime.block_on(lab.devices.remove_all())?;
    assert!(lab.inside("web", "ip link show dev eth1").contains("does not exist"));
    assert!(lab.inside("web", "ip link show dev eth0").contains("eth0:"));
    Ok(())
}

#[test]
fn offloads_of_the_far_end_are_read_and_switched() -> Outcome {
    use ports::ethtool::Offload;
    let lab = Lab::new(&["web"])?;
    let device = lab.create(lab.veth("web", 10))?;
    let offloads = || lab.runtime.block_on(lab.devices.offloads(device.clone()));
    assert!(offloads()?.contains(&(Offload::TxChecksum, true)));
    lab.runtime.block_on(lab.devices.set_offload(device.clone(), Offload::TxChecksum, false))?;
    assert!(offloads()?.contains(&(Offload::TxChecksum, false)));
    assert!(offloads()?.contains(&(Offload::Tso, false)), "TSO goes with the checksums");
    Namespace::remove(&lab.space("web"))?;
    assert!(offloads().is_err());
    Ok(())
}

#[test]
fn namespaces_are_found_by_name_path_and_process() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let by_name = Namespace::resolve(&lab.space("web"))?;
    let by_path = Namespace::resolve(&format!("/run/netns/{}", lab.space("web")))?;
    assert_eq!(by_name.identity(), by_path.identity());
    let mut process = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.space("web")))
        .args(["sleep", "60"])
        .spawn()?;
    let pid = process.id();
    // Until nsenter has entered, the process is in our namespace.
    let deadline = Instant::now() + Duration::from_secs(5);
    while Namespace::resolve(&format!("pid:{pid}"))?.identity() != by_name.identity()
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let found = [
        Namespace::resolve(&format!("pid:{pid}"))?.identity(),
        Namespace::resolve(&pid.to_string())?.identity(),
    ];
    let live = lab.runtime.block_on(lab.devices.live_namespaces())?;
    process.kill()?;
    process.wait()?;
    assert_eq!(found, [by_name.identity(); 2]);
    assert!(live.contains(&by_name.identity()));
    Ok(())
}

#[test]
fn refusals_name_the_object_and_leave_nothing() -> Outcome {
    let lab = Lab::new(&["web"])?;
    let refused = |change: &dyn Fn(&mut VethSpec)| {
        let mut spec = lab.veth("web", 10);
        change(&mut spec);
        lab.create(spec).expect_err("a refusal").to_string()
    };
    let gone = refused(&|spec| spec.netns = "no-such-netns".to_owned());
    assert!(
        gone.contains("'no-such-netns' not found") && gone.contains("/run/netns/no-such-netns (No such file"),
        "{gone}"
    );
    let gone = refused(&|spec| spec.netns = "pid:4194305".to_owned());
    assert!(gone.contains("/proc/4194305/ns/net"), "{gone}");
    let file = refused(&|spec| spec.netns = "/etc/passwd".to_owned());
    assert_eq!(file, "'/etc/passwd' is no network namespace");
    for bad in ["", "../etc", "pid:x"] {
        let text = refused(&|spec| spec.netns = bad.to_owned());
        assert!(text.contains("is allowed"), "{text}");
    }
    let long = refused(&|spec| spec.far.ifname = "sixteen--letters".to_owned());
    assert!(long.contains("longer than 15"), "{long}");

    lab.inside("web", "ip link add name eth0 type veth peer name other");
    let taken = refused(&|_| {});
    assert_eq!(taken, format!("interface 'eth0' exists already in namespace '{}'", lab.space("web")));

    // A refusal half-way: the pair is made, and the address is not one.
    let half = refused(&|spec| {
        spec.far.ifname = "eth1".to_owned();
        spec.far.addresses.extend("224.0.0.1/24".parse::<ipnet::IpNet>());
        spec.far.gateways = vec!["0.0.0.0".parse().expect("an address")];
    });
    eprintln!("{half}");
    assert!(lab.inside("web", "ip link show dev eth1").contains("does not exist"));
    let left = lab.runtime.block_on(lab.devices.leftovers())?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_default_route_of_others_is_kept() -> Outcome {
    let lab = Lab::new(&["web"])?;
    lab.inside("web", "ip link add name wan type veth peer name other");
    lab.inside("web", "ip addr add 192.0.2.2/24 dev wan");
    lab.inside("web", "ip link set wan up");
    lab.inside("web", "ip route add default via 192.0.2.1 metric 50");
    let mut spec = lab.veth("web", 10);
    spec.far.routes = vec![
        ("10.2.0.0/16".parse()?, Some("10.1.0.1".parse()?)),
        ("10.3.0.0/16".parse()?, None),
        ("10.4.0.0/16".parse()?, Some("169.254.1.1".parse()?)),
    ];
    lab.create(spec.clone())?;
    let routes = lab.inside("web", "ip route");
    assert!(!routes.contains("default via 10.1.0.1"), "{routes}");
    for route in
        ["10.2.0.0/16 via 10.1.0.1 dev eth0", "10.3.0.0/16 dev eth0", "10.4.0.0/16 via 169.254.1.1 dev eth0"]
    {
        assert!(routes.contains(route), "{route} is not in {routes}");
    }
    assert!(lab.inside("web", "ip -6 route").contains("default via fd00:1::1 dev eth0"));
    spec.previous = Some(spec.far.clone());
    spec.far.routes.truncate(1);
    lab.create(spec)?;
    let routes = lab.inside("web", "ip route");
    assert!(
        routes.contains("10.2.0.0/16") && !routes.contains("10.3.0.0/16") && !routes.contains("10.4.0.0/16"),
        "{routes}"
    );
    Ok(())
}

#[test]
fn the_switch_has_its_own_sysctls_and_the_host_keeps_its() -> Outcome {
    let host = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/arp_ignore");
    let before = host()?;
    let lab = Lab::new(&[])?;
    for (key, value) in
        [("ipv4/ip_forward", "0"), ("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/conf/all/arp_ignore", "8")]
    {
        assert_eq!(lab.inside("switch", &format!("cat /proc/sys/net/{key}")).trim(), value, "{key}");
    }
    assert_eq!(host()?, before);
    assert!(Command::new("ip").args(["netns", "list"]).output().is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).contains(&format!("vswitch-{}", lab.name))
    }));
    Ok(())
}

/// A namespace plays the host: it forwards and has addresses. The container's frames are seen by a packet socket
/// on our end, and by no IP stack: neither the host's nor the one of the switch's namespace.
#[test]
fn a_containers_frames_reach_packet_sockets_and_no_ip_input() -> Outcome {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
    };
    use nix::sys::time::TimeVal;
    use std::os::fd::AsRawFd;

    let lab = Lab::new(&["web", "host"])?;
    lab.inside("host", "sysctl -qw net.ipv4.ip_forward=1");
    lab.inside("host", "ip link set lo up");
    lab.inside("host", "ip addr add 10.1.0.1/24 dev lo");
    let uevents = Namespace::resolve(&lab.space("host"))?.run(|| {
        let mut socket = rtnetlink::sys::Socket::new(rtnetlink::sys::protocols::NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&rtnetlink::sys::SocketAddr::new(0, 1))?;
        socket.set_non_blocking(true)?;
        Ok::<_, std::io::Error>(socket)
    })??;
    let spec = lab.veth("web", 10);
    let (near_mac, gateway) = (spec.near_mac, "10.1.0.1");
    lab.create(spec)?;
    let mut buffer = Vec::with_capacity(4096);
    let heard = uevents.recv(&mut buffer, 0);
    assert!(heard.is_err(), "udev on the host hears of our devices: {}", String::from_utf8_lossy(&buffer));

    let packets = lab.runtime.block_on(lab.devices.run(|| {
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok::<_, nix::Error>(socket)
    }))??;
    let received = |space: &str| {
        let text = lab.inside(space, "grep ^Ip: /proc/net/snmp");
        let mut lines = text.lines().map(str::split_whitespace);
        let (names, values) = (lines.next()?, lines.next()?);
        names.zip(values).find(|(name, _)| *name == "InReceives")?.1.parse::<u64>().ok()
    };
    let before = (received("host"), received("switch"));
    assert!(before.0.is_some() && before.1.is_some(), "{before:?}");
    // To our end's own address, as a hostile container may: the best chance of an IP input.
    lab.inside("web", &format!("ip neigh replace {gateway} lladdr {near_mac} dev eth0 nud permanent"));
    lab.inside("web", "ping -c 3 -i 0.01 -W 1 10.1.0.1");
    let mut seen = 0;
    let mut frame = [0; 2048];
    while let Ok(len) = recv(packets.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty()) {
        seen += u32::from(frame.get(..len).is_some_and(|frame| frame.starts_with(&near_mac.0)));
        if seen == 3 {
            break;
        }
    }
    assert_eq!(seen, 3, "the packet socket sees every frame");
    assert_eq!(before, (received("host"), received("switch")), "IP InReceives moved");
    // Without the drop they would: the test can tell.
    let mut open = lab.veth("web", 10);
    open.drop_ingress = false;
    assert!(lab.create(open)?.adopted);
    lab.inside("web", "ping -c 1 -W 1 10.1.0.1");
    assert!(received("switch") > before.1 && received("host") == before.0);
    assert!(lab.create(lab.veth("web", 10))?.adopted);
    // ARP for the host's address gets no answer from any kernel.
    lab.inside("web", &format!("ip neigh del {gateway} dev eth0"));
    let ping = lab.inside("web", "ping -c 1 -W 1 10.1.0.1");
    assert!(ping.contains("100% packet loss"), "{ping}");
    Ok(())
}

#[test]
fn a_thousand_ports_come_and_go_quickly() -> Outcome {
    const COUNT: u32 = 1000;
    let lab = Lab::new(&["web"])?;
    let start = Instant::now();
    let mut devices = Vec::new();
    for n in 0..COUNT {
        let mut spec = lab.veth("web", 10);
        spec.port = format!("p{n}");
        spec.far.ifname = format!("e{n}");
        spec.far.addresses = vec![format!("10.{}.{}.10/24", 2 + n / 256, n % 256).parse()?];
        spec.far.gateways = vec![];
        devices.push(lab.create(spec)?);
    }
    let made = start.elapsed() / COUNT;
    let start = Instant::now();
    let alone = devices.split_off(devices.len() - 20);
    for device in alone {
        lab.remove(device)?;
    }
    let alone = start.elapsed() / 20;
    let start = Instant::now();
    lab.runtime.block_on(futures_util::future::try_join_all(
        devices.into_iter().map(|device| lab.devices.remove(device)),
    ))?;
    let together = start.elapsed() / (COUNT - 20);
    eprintln!("made in {made:?}; removed in {alone:?} one after the other, in {together:?} together");
    assert!(made < Duration::from_millis(20) && together < Duration::from_millis(20));
    assert!(lab.runtime.block_on(lab.devices.leftovers())?.is_empty());
    Ok(())
}
