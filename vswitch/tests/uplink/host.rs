//! The host's own way to the networks, and the ports that are kept for the switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use packet::MacAddr;
use packet::build::eth;
use vswitch::devices::host::HostRoute;
use vswitch::uplink::{HOST_TAP, relay_addresses};

use crate::lab::{HOST, Lab, Outcome, Tap, eventually, is_udp};

const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x99]);
const CONTAINER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);

/// Answers for all that the host asks, until `wanted` comes.
fn serve(tap: &mut Tap, host: MacAddr, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let frame = tap.expect("what the host sends", |frame| {
            wanted(frame) || frame[12..14] == [8, 6] || frame[12..14] == [0x86, 0xdd] && frame[54] == 135
        });
        if wanted(&frame) {
            return frame;
        }
        if frame[12..14] == [8, 6] {
            let octets = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).expect("four");
            tap.send(&eth(GATEWAY, host).arp_reply(octets(38), octets(28)));
        } else {
            let octets =
                |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen"));
            tap.send(&eth(GATEWAY, host).ipv6(octets(62), octets(22)).neighbor_advert(
                octets(62),
                GATEWAY,
                0x60,
            ));
        }
    }
}

fn routes(subnets: &[&str]) -> Vec<HostRoute> {
    subnets.iter().map(|to| HostRoute { to: to.parse().expect("a subnet"), source: None }).collect()
}

#[test]
fn the_host_reaches_the_networks_and_they_it() -> Outcome {
    let lab = Lab::new()?;
    let uplink = lab.start()?;
    let mut tap = lab.open(&uplink, HOST_TAP)?;
    let link = lab.runtime.block_on(uplink.set_up_host_tap(Some(9000)))?;
    assert_eq!(link.mtu, 9000);
    lab.runtime.block_on(uplink.set_host_routes(routes(&["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"])))?;
    lab.runtime.block_on(uplink.set_host_routes(routes(&["10.1.0.0/24", "fd00:1::/64", "10.8.0.77/32"])))?;
    let shown = lab.sh("host", "ip route show dev vsw-host; ip -6 route show dev vsw-host proto 245");
    assert!(shown.contains("10.1.0.0/24 proto 245 scope link"), "{shown}");
    assert!(
        shown.contains("10.8.0.77 ") && shown.contains("fd00:1::/64") && !shown.contains("10.2.0.0"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 3, "{shown}");

    // The host shows its own address, not the relay's, and is answered, with strict reverse path filtering.
    for (container, host) in
        [(IpAddr::V4(CONTAINER), IpAddr::V4(HOST)), ("fd00:1::5".parse()?, "fd08::1".parse()?)]
    {
        let any: IpAddr = if host.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = lab.within("host", || UdpSocket::bind((any, 5000)))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        eventually("there is a source address", || socket.send_to(b"question", (container, 9)).is_ok());
        let frame = serve(&mut tap, link.mac, |frame| frame.ends_with(b"question"));
        let shown = match host {
            IpAddr::V4(host) => frame[26..30] == host.octets(),
            IpAddr::V6(host) => frame[22..38] == host.octets(),
        };
        assert!(shown, "{frame:02x?}");
        let answer = match (container, host) {
            (IpAddr::V4(c), IpAddr::V4(h)) => eth(GATEWAY, link.mac).ipv4(c, h).udp(9, 5000).data(b"answer"),
            (IpAddr::V6(c), IpAddr::V6(h)) => eth(GATEWAY, link.mac).ipv6(c, h).udp(9, 5000).data(b"answer"),
            _ => unreachable!("of one family"),
        };
        tap.send(&answer);
        let mut buffer = [0; 32];
        let (len, from) = socket.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..len], from), (&b"answer"[..], SocketAddr::new(container, 9)));
    }

    // The relay's addresses are there for who asks for them.
    let (v4, v6) = relay_addresses(&lab.name);
    for (relay, container) in [(IpAddr::V4(v4), IpAddr::V4(CONTAINER)), (v6.into(), "fd00:1::6".parse()?)] {
        let socket = lab.within("host", || UdpSocket::bind((relay, 0)))?;
        socket.send_to(b"relayed", (container, 9))?;
        let frame = serve(&mut tap, link.mac, |frame| frame.ends_with(b"relayed"));
        if relay.is_ipv4() {
            assert!(is_udp(&frame, container, b"relayed") && frame[26..30] == v4.octets());
        }
    }

    // Another start finds all as it is; the end takes everything back.
    drop((tap, uplink));
    let uplink = lab.start()?;
    let _tap = lab.open(&uplink, HOST_TAP)?;
    let again = lab.runtime.block_on(uplink.set_up_host_tap(None))?;
    assert_eq!((again.index, again.mtu), (link.index, 9000));
    lab.runtime.block_on(uplink.remove_host_tap())?;
    lab.runtime.block_on(uplink.remove_host_tap())?;
    assert!(!lab.sh("host", "ip route; ip -6 route; ip addr").contains("vsw-host"));
    assert_eq!(lab.sh("host", "cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    Ok(())
}

#[test]
fn reserved_ports_are_added_and_taken_back() -> Outcome {
    let lab = Lab::new()?;
    let list = || lab.sh("host", "cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned();
    lab.sh("host", "sysctl -qw net.ipv4.ip_local_reserved_ports=8080,50000");
    let uplink = lab.start()?;
    let reserve = |ports: Vec<_>| lab.runtime.block_on(uplink.reserve(ports));
    reserve(vec![49152..=65535, 8080..=8081])?;
    assert_eq!(list(), "8080-8081,49152-65535");
    // The administrator adds one meanwhile.
    lab.sh("host", "sysctl -qw net.ipv4.ip_local_reserved_ports=22,8080-8081,49152-65535");
    reserve(vec![60000..=65535])?;
    assert_eq!(list(), "22,8080,50000,60000-65535");
    // Another start knows what was ours.
    drop(uplink);
    let uplink = lab.start()?;
    lab.runtime.block_on(uplink.reserve(Vec::new()))?;
    assert_eq!(list(), "22,8080,50000");
    lab.runtime.block_on(uplink.reserve(vec![1..=2]))?;
    lab.runtime.block_on(uplink.remove_all())?;
    assert_eq!(list(), "22,8080,50000");
    Ok(())
}
