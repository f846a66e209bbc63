//! Chooses the UDP port that an outer packet comes from (RFC 7348, 5): the same for all packets of an inner flow, so that
//! they take one way and keep their order, and different for others, so that they share ways and queues out.

use packet::header::{Header, Ipv6Header, ethertype, protocol};

/// What outer headers take from the inner frame.
#[derive(Clone, Copy)]
pub(crate) struct Summary {
    /// A hash of the flow: addresses, protocol and ports; without the ports for fragments and other protocols; both MACs when
    /// it is not IP.
    pub(super) hash: u16,
    /// The type of service or traffic class, 0 when it is not IP.
    pub(super) tos: u8,
}

/// Reads what outer headers take from a frame.
#[inline(always)]
pub(super) fn summary(frame: &[u8]) -> Summary {
    let Some(head) = frame.first_chunk::<38>() else {
        return Summary { hash: 0, tos: packet::ecn::tos(frame).unwrap_or(0) };
    };
    match u16::from_be_bytes([head[12], head[13]]) {
        ethertype::IPV4 => {
            let is_fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff != 0;
            let has_ports = has_ports(head[23]) && head[14] == 0x45 && !is_fragment;
            let ports = if has_ports { word32(head, 34) } else { 0 };
            let hash = fold(word64(head, 26), u64::from(ports) << 8 | u64::from(head[23]));
            Summary { hash, tos: head[15] }
        }
        ethertype::IPV6 => Summary { hash: v6(frame), tos: head[14] << 4 | head[15] >> 4 },
        _ => Summary { hash: fold(word64(head, 0), u64::from(word32(head, 8))), tos: 0 },
    }
}

#[inline]
fn v6(frame: &[u8]) -> u16 {
    let Some(head) = frame.first_chunk::<{ 14 + Ipv6Header::LEN }>() else { return 0 };
    let ports = match frame.get(54..58) {
        Some(ports) if has_ports(head[20]) => u32::from_le_bytes([ports[0], ports[1], ports[2], ports[3]]),
        _ => 0,
    };
    // A fragment's next header is none with ports; the flow label is the sender's own hash.
    let source = word64(head, 22) ^ word64(head, 30).rotate_left(17);
    let destination = word64(head, 38) ^ word64(head, 46).rotate_left(31);
    fold(source ^ destination.rotate_left(7), u64::from(ports) << 8 | u64::from(head[20]))
}

#[inline]
fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Spreads, and keeps no secret: who sends the inner packet may know the way it takes.
#[inline]
fn fold(a: u64, b: u64) -> u16 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    ((a.wrapping_mul(MIX) ^ b).wrapping_mul(MIX) >> 48) as u16
}

#[inline]
fn word64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline]
fn word32<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use packet::MacAddr;
    use packet::build::eth;

    use super::*;

    fn flow(frame: &[u8]) -> u16 {
        summary(frame).hash
    }

    #[test]
    fn flows_spread_and_each_keeps_its_hash() {
        let (a, b) = (MacAddr::local(1), MacAddr::local(2));
        let v4 =
            |port, data: &[u8]| eth(a, b).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(port, 80).data(data).bytes();
        let address = |n: u16| [0xfd00, 0, 0, 0, 0, 0, 0, n];
        let v6 = |port, data: &[u8]| eth(a, b).ipv6(address(1), address(2)).tcp(port, 80).data(data).bytes();
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        for port in 0..1000 {
            seen[0].insert(flow(&v4(port, b"x")));
            seen[1].insert(flow(&v6(port, b"x")));
            assert_eq!(flow(&v4(port, b"x")), flow(&v4(port, b"yy")));
            assert_eq!(flow(&v6(port, b"x")), flow(&v6(port, b"yy")));
        }
        // A thousand of 65536 by chance: about eight collide.
        assert!(seen.iter().all(|seen| seen.len() > 970), "{} {}", seen[0].len(), seen[1].len());
    }

    #[test]
    fn fragments_of_a_packet_stay_together() {
        let (a, b) = (MacAddr::local(1), MacAddr::local(2));
        let fragment = |offset, more, data: &[u8]| {
            flow(
                &eth(a, b).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).fragment(7, offset, more).raw(17, data).bytes(),
            )
        };
        assert_eq!(fragment(0, true, &[1; 64]), fragment(64, false, &[2; 64]));
    }

    #[test]
    fn anything_has_a_hash() {
        for len in 0..80 {
            for kind in [[8, 0], [0x86, 0xdd], [8, 6]] {
                let mut bytes = vec![0x45; len];
                if len > 14 {
                    bytes[12..14].copy_from_slice(&kind);
                }
                let _ = flow(&bytes);
            }
        }
    }
}
