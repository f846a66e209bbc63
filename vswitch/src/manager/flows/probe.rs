//! A packet to be traced, as bytes.

use std::net::IpAddr;

use config::L4Protocol;
use config::probe::{Probe, ProbeKind, TcpFlags};
use packet::MacAddr;
use packet::build::{Packet, eth};
use packet::header::tcp_flags;

/// The source L4 port of a packet that says none: high, and no server's.
pub(super) const SOURCE_PORT: u16 = 40_000;

/// Returns the packet with everything said that was left out; `source` is where it comes from.
pub(super) fn complete(probe: Probe, source: IpAddr) -> Probe {
    let mut probe = Probe { from: Some(source), ..probe };
    if let ProbeKind::L4 { from, .. } = &mut probe.what {
        from.get_or_insert(SOURCE_PORT);
    }
    probe
}

/// Returns the frame of a complete packet, from one MAC to another.
pub(super) fn frame(probe: &Probe, source: MacAddr, destination: MacAddr) -> Vec<u8> {
    let from = probe.from.expect("the packet is complete");
    let l4 = l4(probe);
    let mut bytes = match (from, probe.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            carry(eth(source, destination).ipv4(from, to).ttl(probe.ttl).raw(probe.protocol(), &l4))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            carry(eth(source, destination).ipv6(from, to).ttl(probe.ttl).raw(probe.protocol(), &l4))
        }
        // The parser and the choice of a source see to one family.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    };
    if from.is_ipv4() && bytes.len() >= IPV4_AT + 20 {
        set_df(&mut bytes[IPV4_AT..IPV4_AT + 20], probe.df);
    }
    bytes
}

const IPV4_AT: usize = 14;

fn carry(packet: Packet) -> Vec<u8> {
    packet.bytes()
}

/// Sets or clears "don't fragment" in an IPv4 header, and its checksum (RFC 791, 3.1).
fn set_df(header: &mut [u8], df: bool) {
    header[6] = header[6] & !0x40 | u8::from(df) << 6;
    header[10..12].fill(0);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16));
    #[expect(clippy::cast_possible_truncation, reason = "the carries are folded in")]
    header[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
}

/// Returns what the IP header carries, checksums zero: the builder fills them in.
fn l4(probe: &Probe) -> Vec<u8> {
    let mut bytes = match probe.what {
        ProbeKind::L4 { protocol, from, to, flags } => {
            let ports = [from.unwrap_or(SOURCE_PORT).to_be_bytes(), to.to_be_bytes()].concat();
            match protocol {
                L4Protocol::Tcp => {
                    [ports, vec![0; 8], vec![5 << 4, bits(flags), 0xff, 0xff], vec![0; 4]].concat()
                }
                L4Protocol::Udp => [ports, vec![0; 4]].concat(),
                L4Protocol::Sctp => [ports, vec![0; 8]].concat(),
            }
        }
        // The identifier is a number that a station would hardly choose.
        ProbeKind::Icmp(kind) => vec![kind.kind, kind.code.unwrap_or(0), 0, 0, 0x56, 0x53, 0, 1],
        ProbeKind::Other(_) => Vec::new(),
    };
    let ip = if probe.to.is_ipv4() { 20 } else { 40 };
    if let Some(len) = probe.len {
        bytes.resize(usize::from(len).saturating_sub(ip).max(bytes.len()), 0);
    }
    if let ProbeKind::L4 { protocol: L4Protocol::Udp, .. } = probe.what {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
    }
    bytes
}

fn bits(flags: TcpFlags) -> u8 {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    bit(flags.syn, tcp_flags::SYN)
        | bit(flags.ack, tcp_flags::ACK)
        | bit(flags.fin, tcp_flags::FIN)
        | bit(flags.rst, tcp_flags::RST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str, source: &str) -> Vec<u8> {
        let probe = complete(text.parse().expect(text), source.parse().expect("an address"));
        frame(&probe, MacAddr::local(1), MacAddr::local(2))
    }

    #[test]
    fn frames_are_what_the_text_says() {
        for (text, source, len, protocol) in [
            ("tcp 10.0.0.2:80", "10.0.0.9", 14 + 40, 6),
            ("udp 10.0.0.2:53 len 100", "10.0.0.9", 14 + 100, 17),
            ("icmp 10.0.0.2 ttl 1 df", "10.0.0.9", 14 + 28, 1),
            ("sctp 10.0.0.2:7", "10.0.0.9", 14 + 32, 132),
            ("protocol/47 10.0.0.2", "10.0.0.9", 14 + 20, 47),
        ] {
            let bytes = bytes(text, source);
            assert_eq!((bytes.len(), bytes[23]), (len, protocol), "{text}");
            let sum: u32 = bytes[14..34].chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{text}: the checksum is right");
            assert_eq!(bytes[20] & 0x40 != 0, text.ends_with("df"));
        }
        let bytes = bytes("tcp [fd00::2]:80 syn ack from [fd00::9]:4000", "fd00::9");
        assert_eq!((bytes.len(), bytes[20]), (14 + 60, 6));
        assert_eq!(bytes[54..58], [0x0f, 0xa0, 0, 80]);
        assert_eq!(bytes[54 + 13], tcp_flags::SYN | tcp_flags::ACK);
    }

    #[test]
    fn what_was_left_out_is_said() {
        let said = |text: &str, source: &str| {
            complete(text.parse().expect(text), source.parse().expect("an address")).to_string()
        };
        assert_eq!(said("tcp 10.0.0.2:80", "10.0.0.9"), "tcp 10.0.0.2:80 syn from 10.0.0.9:40000");
        assert_eq!(said("icmp fd00::2", "fd00::9"), "icmp fd00::2 echo-request from fd00::9");
    }
}
