//! The reset that a TCP segment gets which nobody wants (RFC 9293, 3.10.7.1).

use packet::header::{Fragment, Header, TcpHeader, protocol, tcp_flags};
use packet::{Frame, MacAddr};

use super::icmp::is_personal;
use super::ip::{Envelope, HOPS, address, header_len, seal, stations};
use crate::headers::{Headers, Segment};

/// Makes a segment the reset that its receiver would send. A reset gets none.
pub(super) fn reset(frame: &mut Frame, mac: MacAddr) -> Option<()> {
    let headers = Headers::of(frame.bytes()).ok()??;
    let (sender, asked) = stations(frame)?;
    let segment = Segment::of(frame.bytes(), &headers)?;
    let whole = headers.fragment == Fragment::No;
    if segment.flags & tcp_flags::RST != 0 || !whole || !is_personal(&headers, asked) {
        return None;
    }
    // SYN and FIN have a number each.
    let control = [tcp_flags::SYN, tcp_flags::FIN].map(|flag| u32::from(segment.flags & flag != 0));
    let len = segment.payload_len.wrapping_add(control[0] + control[1]);
    let (sequence, acknowledgment, flags) = if segment.flags & tcp_flags::ACK != 0 {
        (segment.acknowledgment, 0, tcp_flags::RST)
    } else {
        (0, segment.sequence.wrapping_add(len), tcp_flags::RST | tcp_flags::ACK)
    };

    let l3 = usize::from(headers.l3);
    let tuple = headers.tuple.inverted();
    let (source, destination) = (tuple.source, tuple.destination);
    let envelope = Envelope { source, destination, protocol: protocol::TCP, hops: HOPS, tos: 0 };
    envelope.write(frame, l3, TcpHeader::LEN)?;
    *TcpHeader::at_mut(frame.bytes_mut(), l3 + header_len(headers.v6))? = TcpHeader {
        src_port: tuple.source_port.into(),
        dst_port: tuple.destination_port.into(),
        seq: sequence.into(),
        ack: acknowledgment.into(),
        offset_reserved: 5 << 4,
        flags,
        ..TcpHeader::default()
    };
    seal(frame)?;
    address(frame, mac, sender)
}
