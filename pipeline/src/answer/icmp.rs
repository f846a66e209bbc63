//! ICMP that the switch says itself: echo replies, and errors about packets that go no further.

use packet::checksum;
use packet::header::{Fragment, Header, IcmpHeader, icmp4, icmp6, protocol};
use packet::{Address, Frame, MacAddr};

use super::ip::{Envelope, HOPS, address, head, header_len, room, seal, stations};
use crate::headers::Headers;

/// The longest ICMP error: what every host takes (RFC 1812, 4.3.2.3).
const ERROR_LEN_V4: usize = 576;
/// The longest ICMPv6 error: what every link takes (RFC 4443, 2.4 c).
const ERROR_LEN_V6: usize = 1280;
/// Internetwork control, the precedence of errors (RFC 1812, 4.3.2.5); CS6 of today.
const ERROR_TOS: u8 = 0xc0;

/// Why a packet goes no further, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It has no hops left.
    TimeExceeded,
    /// There is no route.
    NetUnreachable,
    /// Nobody answers at its destination.
    HostUnreachable,
    /// Nobody listens at its port.
    PortUnreachable,
    /// A rule forbids it.
    AdminProhibited,
    /// It does not fit the next link: "fragmentation needed" (RFC 1191) or "packet too big" (RFC 4443).
    TooBig {
        /// The longest IP packet that fits.
        mtu: u32,
    },
    /// Something in its header is wrong.
    Parameter {
        /// Where, from the start of the IP header.
        pointer: u32,
    },
}

impl Problem {
    /// Returns type and code, and the four bytes that follow the checksum.
    fn message(self, v6: bool) -> (u8, u8, [u8; 4]) {
        if v6 {
            match self {
                Self::TimeExceeded => (icmp6::TIME_EXCEEDED, 0, [0; 4]),
                Self::NetUnreachable => (icmp6::UNREACHABLE, 0, [0; 4]),
                Self::HostUnreachable => (icmp6::UNREACHABLE, 3, [0; 4]),
                Self::PortUnreachable => (icmp6::UNREACHABLE, 4, [0; 4]),
                Self::AdminProhibited => (icmp6::UNREACHABLE, 1, [0; 4]),
                Self::TooBig { mtu } => (icmp6::TOO_BIG, 0, mtu.to_be_bytes()),
                Self::Parameter { pointer } => (icmp6::PARAMETER_PROBLEM, 0, pointer.to_be_bytes()),
            }
        } else {
            match self {
                Self::TimeExceeded => (icmp4::TIME_EXCEEDED, 0, [0; 4]),
                Self::NetUnreachable => (icmp4::UNREACHABLE, 0, [0; 4]),
                Self::HostUnreachable => (icmp4::UNREACHABLE, 1, [0; 4]),
                Self::PortUnreachable => (icmp4::UNREACHABLE, 3, [0; 4]),
                Self::AdminProhibited => (icmp4::UNREACHABLE, 13, [0; 4]),
                Self::TooBig { mtu } => (icmp4::UNREACHABLE, 4, mtu.min(0xffff).to_be_bytes()),
                Self::Parameter { pointer } => {
                    let [.., pointer] = pointer.to_be_bytes();
                    (icmp4::PARAMETER_PROBLEM, 0, [pointer, 0, 0, 0])
                }
            }
        }
    }
}

/// Says whether the sender of a packet may be told that it goes no further (RFC 1812, 4.3.2.7; RFC 4443, 2.4 e): never
/// about an ICMP error or redirect, never about what went to a group, a later fragment, or whose sender is nobody.
pub fn may_report(headers: &Headers, destination_mac: MacAddr) -> bool {
    let redirect = headers.v6 && headers.icmp.is_some_and(|(kind, _)| kind == icmp6::REDIRECT);
    let later = headers.fragment == Fragment::Later;
    !headers.is_icmp_error() && !redirect && !later && is_personal(headers, destination_mac)
}

/// Says whether the packet goes from one host to one host.
pub(super) fn is_personal(headers: &Headers, destination_mac: MacAddr) -> bool {
    let (source, destination) = (headers.tuple.source.ip(), headers.tuple.destination.ip());
    let broadcast = headers.tuple.destination == Address::v4([255; 4]);
    !source.is_unspecified() && !destination.is_multicast() && !broadcast && !destination_mac.is_multicast()
}

/// Makes an echo request its reply.
pub(super) fn echo(frame: &mut Frame, mac: MacAddr) -> Option<()> {
    let headers = Headers::of(frame.bytes()).ok()??;
    let (sender, asked) = stations(frame)?;
    let (request, reply, protocol) = match headers.v6 {
        false => (icmp4::ECHO_REQUEST, icmp4::ECHO_REPLY, protocol::ICMP),
        true => (icmp6::ECHO_REQUEST, icmp6::ECHO_REPLY, protocol::ICMPV6),
    };
    // No device makes a large frame of echoes.
    let whole = headers.fragment == Fragment::No && !frame.is_gso();
    if headers.icmp != Some((request, 0)) || !whole || !is_personal(&headers, asked) {
        return None;
    }
    head(frame, &headers)?;
    // The reply is summed anew, which must not heal what was broken on the way.
    if checksum::is_valid(frame.bytes()) != Some(true) {
        return None;
    }
    let (l3, l4, end) = (usize::from(headers.l3), usize::from(headers.l4), headers.end as usize);
    frame.bytes_mut().copy_within(l4..end, l3 + header_len(headers.v6));
    let (source, destination) = (headers.tuple.destination, headers.tuple.source);
    let envelope = Envelope { source, destination, protocol, hops: HOPS, tos: headers.tos };
    envelope.write(frame, l3, end - l4)?;
    IcmpHeader::at_mut(frame.bytes_mut(), l3 + header_len(headers.v6))?.kind = reply;
    seal(frame)?;
    address(frame, mac, sender)
}

/// Makes a packet the ICMP error about it, from the gateway at `from` and `mac` to its sender.
pub(super) fn report(frame: &mut Frame, problem: Problem, from: Address, mac: MacAddr) -> Option<()> {
    let headers = Headers::of(frame.bytes()).ok()??;
    let (sender, asked) = stations(frame)?;
    if !may_report(&headers, asked) || from.is_v4() == headers.v6 {
        return None;
    }
    head(frame, &headers)?;
    let headers = Headers::of(frame.bytes()).ok()??;
    let (l3, most) = (usize::from(headers.l3), if headers.v6 { ERROR_LEN_V6 } else { ERROR_LEN_V4 });
    let before = header_len(headers.v6) + IcmpHeader::LEN;
    let quoted = (headers.end as usize - l3).min(most - before);
    room(frame, l3 + before + quoted)?;
    frame.bytes_mut().copy_within(l3..l3 + quoted, l3 + before);

    let protocol = if headers.v6 { protocol::ICMPV6 } else { protocol::ICMP };
    let destination = headers.tuple.source;
    let envelope = Envelope { source: from, destination, protocol, hops: HOPS, tos: ERROR_TOS };
    envelope.write(frame, l3, IcmpHeader::LEN + quoted)?;
    let (kind, code, [a, b, c, d]) = problem.message(headers.v6);
    let icmp = frame.bytes_mut().get_mut(l3 + header_len(headers.v6)..)?;
    icmp[..8].copy_from_slice(&[kind, code, 0, 0, a, b, c, d]);
    seal(frame)?;
    address(frame, mac, sender)
}
