//! Congestion marks of packets in tunnels (RFC 6040, "normal mode").
//!
//! The outer header starts with the inner packet's marks, so that routers on the way may mark instead of drop. At the end
//! of the tunnel a mark that was made on the way goes into the packet; where the packet's ends do not understand
//! marks, the packet is dropped, which they do understand.

use crate::checksum::Delta;
use crate::header::{EthernetHeader, Header, Ipv4Header, Ipv6Header, ethertype};

/// The two bits of congestion notification in a type of service or traffic class (RFC 3168, 5).
pub const MASK: u8 = 0b11;
/// The ends do not understand marks.
pub const NOT_ECT: u8 = 0b00;
/// They do (the codepoint that L4S uses, RFC 9331).
pub const ECT1: u8 = 0b01;
/// They do.
pub const ECT0: u8 = 0b10;
/// Congestion was met.
pub const CE: u8 = 0b11;

/// Returns what the inner packet's type of service becomes when an outer header with `outer` is removed; `None` when the
/// packet has to be dropped (RFC 6040, figure 4).
#[inline]
pub const fn decapsulated(inner: u8, outer: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT | CE, _) | (_, NOT_ECT | ECT0) => Some(inner),
        // ECT(1) and CE are each a stronger mark than what is inside, or the same.
        (_, mark) => Some(inner & !MASK | mark),
    }
}

/// Returns the type of service or traffic class of the IP packet in an untagged frame; `None` when it carries none.
#[inline]
pub fn tos(frame: &[u8]) -> Option<u8> {
    let head = frame.first_chunk::<16>()?;
    match u16::from_be_bytes([head[12], head[13]]) {
        ethertype::IPV4 => Some(head[15]),
        ethertype::IPV6 => Some(head[14] << 4 | head[15] >> 4),
        _ => None,
    }
}

/// Sets the type of service or traffic class of the IP packet in an untagged frame, and keeps its header's checksum right.
/// A frame that carries none stays as it is.
pub fn set_tos(frame: &mut [u8], tos: u8) {
    let Some(head) = frame.first_chunk::<16>() else { return };
    let l3 = EthernetHeader::LEN;
    match u16::from_be_bytes([head[12], head[13]]) {
        ethertype::IPV4 => {
            if let Some(header) = Ipv4Header::at_mut(frame, l3) {
                let change = Delta::new().u16(u16::from(header.tos), u16::from(tos));
                header.tos = tos;
                header.checksum.set(change.apply(header.checksum.get()));
            }
        }
        ethertype::IPV6 if frame.len() >= l3 + Ipv6Header::LEN => {
            frame[l3] = frame[l3] & 0xf0 | tos >> 4;
            frame[l3 + 1] = frame[l3 + 1] & 0x0f | tos << 4;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MacAddr;
    use crate::build::eth;
    use crate::checksum::Sum;

    #[test]
    fn marks_combine_as_rfc_6040_has_it() {
        // Figure 4: rows are the arriving inner header, columns the outer one: Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT0, [Some(ECT0), Some(ECT0), Some(ECT1), Some(CE)]),
            (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT0, ECT1, CE].into_iter().zip(row) {
                // The rest of the byte is the inner packet's.
                let (inner, outer) = (inner | 0b1011_1000, outer | 0b0101_0000);
                let expected = expected.map(|mark| mark | 0b1011_1000);
                assert_eq!(decapsulated(inner, outer), expected, "inner {inner:08b}, outer {outer:08b}");
            }
        }
    }

    #[test]
    fn the_byte_is_read_and_set_in_both_families() {
        let (a, b) = (MacAddr::local(1), MacAddr::local(2));
        let mut v4 = eth(a, b).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tos(0xb9).udp(1, 2).data(b"x").bytes();
        let mut v6 = eth(a, b)
            .ipv6([1u16, 0, 0, 0, 0, 0, 0, 1], [1u16, 0, 0, 0, 0, 0, 0, 2])
            .tos(0xb9)
            .udp(1, 2)
            .bytes();
        for frame in [&mut v4, &mut v6] {
            assert_eq!(tos(frame), Some(0xb9));
            set_tos(frame, 0x47);
            assert_eq!(tos(frame), Some(0x47));
        }
        assert_eq!(Sum::new().bytes(&v4[14..34]).fold(), 0xffff);
        assert_eq!((v6[14], v6[15], &v6[16..18]), (0x64, 0x70, &[0, 0][..]));
        assert_eq!(tos(&eth(a, b).arp_request([10, 0, 0, 1], [10, 0, 0, 2]).bytes()), None);
    }
}
