//! The switch's devices against the real kernel, in namespaces of this test's own. Needs root.

mod lab;
mod tap;
mod veth;

use std::process::Command;
use std::time::{Duration, Instant};

use vswitch::devices::{LinkEvent, Namespace};

use crate::lab::{Lab, Outcome};

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

#[test]
fn a_namespace_made_among_private_mounts_outlives_them() -> Outcome {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let name = format!("vsp-{}", std::process::id());
    // What `ip netns exec` does before it starts a program.
    let made = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("mounts of its own");
            let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).expect("slave mounts");
            Namespace::open_or_create(&name).map(|namespace| namespace.identity())
        });
        maker.join().expect("no panic")
    })?;
    let found = Namespace::resolve(&name).map(|namespace| namespace.identity());
    Namespace::remove(&name)?;
    assert_eq!(found?, made);
    Ok(())
}
