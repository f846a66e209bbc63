//! A frame in one line, for `vsctl capture` and `vsctl drops -f`.
//!
//! It is what a person needs to recognise a frame: addresses, protocol, ports. Who needs more writes
//! pcapng and takes Wireshark. A frame may be cut anywhere: what is not there is not shown.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use packet::addr::MacAddr;

/// Returns what `frame` is, as `02:..:01 > 02:..:02 IPv4 10.1.0.10 > 10.1.0.11 ICMP`.
pub(crate) fn summary(frame: &[u8]) -> String {
    let (Some(to), Some(from)) = (mac(frame, 0), mac(frame, 6)) else {
        return format!("{} B, too short for Ethernet", frame.len());
    };
    let mut text = format!("{from} > {to}");
    let mut at = 12;
    let mut kind = short(frame, at);
    // 802.1Q and 802.1ad tags; more than two are noise.
    for _ in 0..2 {
        if let (Some(0x8100 | 0x88a8), Some(tag)) = (kind, short(frame, at + 2)) {
            let _ = write!(text, " vlan {}", tag & 0x0fff);
            at += 4;
            kind = short(frame, at);
        }
    }
    let rest = frame.get(at + 2..).unwrap_or_default();
    match kind {
        None => {}
        Some(0x0800) => ipv4(&mut text, rest),
        Some(0x86dd) => ipv6(&mut text, rest),
        Some(0x0806) => arp(&mut text, rest),
        Some(length @ 0..=1500) => {
            let _ = write!(text, " 802.3 length {length}");
        }
        Some(kind) => {
            let _ = write!(text, " ethertype {kind:#06x}");
        }
    }
    text
}

fn arp(text: &mut String, arp: &[u8]) {
    let (Some(operation), Some(from), Some(to)) = (short(arp, 6), address4(arp, 14), address4(arp, 24))
    else {
        text.push_str(" ARP, cut");
        return;
    };
    let _ = match operation {
        1 if from == to => write!(text, " ARP announces {from}"),
        1 => write!(text, " ARP who has {to}? tell {from}"),
        2 => write!(text, " ARP {from} is here"),
        other => write!(text, " ARP operation {other}"),
    };
}

fn ipv4(text: &mut String, ip: &[u8]) {
    let (Some(head), Some(from), Some(to)) = (ip.first(), address4(ip, 12), address4(ip, 16)) else {
        text.push_str(" IPv4, cut");
        return;
    };
    let protocol = ip[9];
    let fragment = short(ip, 6).unwrap_or(0) & 0x1fff;
    if fragment != 0 {
        let _ = write!(text, " IPv4 {from} > {to} fragment at {}", u32::from(fragment) * 8);
        return;
    }
    let payload = ip.get(usize::from(head & 0x0f) * 4..).unwrap_or_default();
    transport(text, "IPv4", &from.to_string(), &to.to_string(), protocol, payload);
}

fn ipv6(text: &mut String, ip: &[u8]) {
    let (Some(from), Some(to)) = (address6(ip, 8), address6(ip, 24)) else {
        text.push_str(" IPv6, cut");
        return;
    };
    let payload = ip.get(40..).unwrap_or_default();
    transport(text, "IPv6", &from.to_string(), &to.to_string(), ip[6], payload);
}

fn transport(text: &mut String, version: &str, from: &str, to: &str, protocol: u8, payload: &[u8]) {
    let name = match protocol {
        1 => "ICMP",
        6 => "TCP",
        17 => "UDP",
        58 => "ICMPv6",
        132 => "SCTP",
        _ => "",
    };
    if let (6 | 17 | 132, Some(source), Some(destination)) = (protocol, short(payload, 0), short(payload, 2))
    {
        let _ = write!(text, " {version} {from}:{source} > {to}:{destination} {name}");
    } else if name.is_empty() {
        let _ = write!(text, " {version} {from} > {to} protocol {protocol}");
    } else {
        let _ = write!(text, " {version} {from} > {to} {name}");
    }
    match (protocol, payload.first()) {
        (1, Some(8)) | (58, Some(128)) => text.push_str(" echo request"),
        (1, Some(0)) | (58, Some(129)) => text.push_str(" echo reply"),
        (58, Some(135)) => text.push_str(" neighbour solicitation"),
        (58, Some(136)) => text.push_str(" neighbour advertisement"),
        (1 | 58, Some(kind)) => {
            let _ = write!(text, " type {kind}");
        }
        _ => {}
    }
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    take(bytes, at).map(u16::from_be_bytes)
}

fn mac(bytes: &[u8], at: usize) -> Option<MacAddr> {
    take(bytes, at).map(MacAddr)
}

fn address4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    take::<4>(bytes, at).map(Ipv4Addr::from)
}

fn address6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    take::<16>(bytes, at).map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: &[u8], rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        bytes.extend(kind);
        rest.iter().for_each(|part| bytes.extend(*part));
        bytes
    }

    const MACS: &str = "02:00:00:00:00:01 > 02:00:00:00:00:02";

    #[test]
    fn tcp_over_ipv4_shows_ports() {
        let ip = [&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 10][..], &[10, 1, 0, 11]].concat();
        let shown = summary(&frame(&[8, 0], &[&ip, &[0x9c, 0x40, 0, 80]]));
        assert_eq!(shown, format!("{MACS} IPv4 10.1.0.10:40000 > 10.1.0.11:80 TCP"));
    }

    #[test]
    fn tagged_icmpv6_shows_vlan_and_type() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
        ip.extend("fd00::1".parse::<Ipv6Addr>().expect("good").octets());
        ip.extend("fd00::2".parse::<Ipv6Addr>().expect("good").octets());
        let shown = summary(&frame(&[0x81, 0, 0, 42, 0x86, 0xdd], &[&ip, &[135, 0]]));
        assert_eq!(shown, format!("{MACS} vlan 42 IPv6 fd00::1 > fd00::2 ICMPv6 neighbour solicitation"));
    }

    #[test]
    fn arp_shows_who_asks_for_whom() {
        let arp =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2, 0, 0, 0, 0, 1, 10, 1, 0, 10], &[0; 6], &[10, 1, 0, 11]];
        assert_eq!(summary(&frame(&[8, 6], &arp)), format!("{MACS} ARP who has 10.1.0.11? tell 10.1.0.10"));
    }

    #[test]
    fn frame_may_be_cut_anywhere() {
        let ip = [0x4f, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 10, 10, 1, 0, 11, 0, 53];
        let long = frame(&[0x81, 0, 0, 1, 0x88, 0xa8, 0, 2, 8, 0], &[&ip]);
        for len in 0..=long.len() {
            assert!(!summary(&long[..len]).is_empty());
        }
        assert_eq!(summary(&long[..10]), "10 B, too short for Ethernet");
        let bytes: Vec<u8> = (0..=255).collect();
        for start in 0..200 {
            summary(&bytes[start..]);
        }
    }
}
