//! Rewrites a packet from one 5-tuple to another: all that NAT and routing change above the Ethernet header.
//!
//! Checksums follow by what changed (RFC 1624, eqn. 3) and the payload is never read. The change depends on the two
//! tuples only, so [`compile`] makes it once for a flow and [`apply_compiled`] costs two folds a packet:
//!
//! | what | takes |
//! |---|---|
//! | IPv4 header | [`Deltas::ip`]: addresses and one hop |
//! | complete checksum of TCP, UDP, UDP-Lite, DCCP, ICMP, ICMPv6 | [`Deltas::l4`]: addresses, and ports or identifier |
//! | partial checksum, where only the pseudo header was summed | [`Deltas::pseudo`]: addresses |
//! | SCTP's CRC32c | the ports, by its linearity; no addresses are in it |
//!
//! A checksum that was wrong stays wrong, so the receiver sees what a link before us did. A large frame is rewritten
//! as it is, and cut later. A first fragment's checksum is that of the whole packet and follows like any other; later
//! fragments have an IP header only.
//!
//! Limits: the first fragment of an SCTP packet keeps its CRC, which after a change of ports is wrong, because the
//! change depends on the length of the whole. Both tuples are of the packet's own family. IPv6 routing headers, by
//! which the pseudo header has another destination, are not followed.

mod error;

pub use error::{Embedded, embedded, next_hop_mtu, translate_error};

use packet::checksum::{self, Delta, Sum};
use packet::header::{Fragment, Header, Ipv4Header, Ipv6Header, protocol};
use packet::{Checksum, Frame, Tuple};

use crate::headers::{Headers, has_ports, is_query};

/// What one hop less changes in the sum of an IPv4 header: the word of TTL and protocol loses 0x100.
const HOP: Delta = Delta::new().u16(0x100, 0);

/// How checksums change between two tuples, folded for a table entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    /// For the IPv4 header; 0 for IPv6.
    pub ip: u16,
    /// For a complete transport checksum.
    pub l4: u16,
    /// For a partial one.
    pub pseudo: u16,
}

/// Returns how checksums change when packets of `from` become packets of `to`; with `hop`, when they lose a hop too.
/// Both tuples are of one family and protocol.
pub fn compile(from: &Tuple, to: &Tuple, hop: bool) -> Deltas {
    let v4 = from.source.is_v4();
    let mut addresses = Delta::new();
    for (old, new) in [(from.source, to.source), (from.destination, to.destination)] {
        // What stays is left out: "no change" must be 0, since 0xffff would turn a zero checksum over.
        if old != new && v4 {
            addresses = addresses.ipv4(old.octets_v4(), new.octets_v4());
        } else if old != new {
            addresses = addresses.and(Delta::new().ipv6(&old.octets(), &new.octets()));
        }
    }
    let mut ports = Delta::new();
    if has_ports(from.protocol) {
        ports = word(ports, from.source_port, to.source_port);
        ports = word(ports, from.destination_port, to.destination_port);
    } else {
        ports = word(ports, from.source_port, identifier(from.source_port, to));
    }
    let has_pseudo = !(v4 && from.protocol == protocol::ICMP);
    let pseudo = if has_pseudo { addresses } else { Delta::new() };
    let header = if hop { addresses.and(HOP) } else { addresses };
    Deltas {
        ip: if v4 { header.folded() } else { 0 },
        l4: pseudo.and(ports).folded(),
        pseudo: pseudo.folded(),
    }
}

fn word(delta: Delta, old: u16, new: u16) -> Delta {
    if old == new { delta } else { delta.u16(old, new) }
}

/// Returns the identifier that an ICMP query with identifier `old` gets: that of the two ports which is another.
fn identifier(old: u16, to: &Tuple) -> u16 {
    if to.source_port == old { to.destination_port } else { to.source_port }
}

/// Makes the packet one of `to`: addresses, ports or ICMP identifier, and with `ttl_decrement` one hop less (the
/// caller has seen that there is one to lose). `headers` are those of the frame; later fragments have no ports to
/// change, and an ICMP error is [`translate_error`]'s. A checksum that is unknown is known afterwards.
pub fn apply(frame: &mut Frame, headers: &Headers, to: &Tuple, ttl_decrement: bool) {
    let (to, deltas) = prepare(headers, to, ttl_decrement);
    apply_compiled(frame, headers, &to, deltas, ttl_decrement);
}

/// Returns what [`apply`] makes of the packet, and how its checksums change: what [`apply_compiled`] takes.
pub fn prepare(headers: &Headers, to: &Tuple, ttl_decrement: bool) -> (Tuple, Deltas) {
    let mut to = *to;
    if headers.icmp.is_some_and(|(kind, _)| !is_query(headers.v6, kind)) {
        (to.source_port, to.destination_port) = (0, 0);
    }
    (to, compile(&headers.tuple, &to, ttl_decrement))
}

/// Does what [`apply`] does, with what [`compile`] made of the same tuples.
pub fn apply_compiled(frame: &mut Frame, headers: &Headers, to: &Tuple, deltas: Deltas, ttl_decrement: bool) {
    debug_assert_eq!((headers.v6, headers.protocol), (!to.source.is_v4(), to.protocol));
    checksum::resolve(frame);
    // Another start is inside a tunnel: the outer checksum is complete then, or there is none.
    let partial = matches!(frame.checksum(), Checksum::Partial { start, .. } if start == headers.l4);
    let bytes = frame.bytes_mut();
    let done = if headers.v6 {
        rewrite_v6(bytes, usize::from(headers.l3), to, ttl_decrement)
    } else {
        rewrite_v4(bytes, usize::from(headers.l3), to, deltas, ttl_decrement)
    };
    let l4 = bytes.get_mut(usize::from(headers.l4)..headers.end as usize);
    if let (Some(()), Some(l4), true) = (done, l4, headers.fragment != Fragment::Later) {
        rewrite_l4(l4, headers.v6, to, deltas, partial);
    }
}

/// Takes one hop off a packet that is routed and otherwise stays as it is, or is an error that [`translate_error`]
/// rewrites.
pub fn decrement_ttl(frame: &mut Frame, headers: &Headers) {
    let (bytes, l3) = (frame.bytes_mut(), usize::from(headers.l3));
    if headers.v6 {
        Ipv6Header::at_mut(bytes, l3).map(Ipv6Header::decrement_hop_limit);
    } else {
        Ipv4Header::at_mut(bytes, l3).map(Ipv4Header::decrement_ttl);
    }
}

/// Rewrites the IPv4 header at `l3`. `None`, and nothing changed, when it is not all there or has no hop left.
#[inline]
pub fn rewrite_v4(bytes: &mut [u8], l3: usize, to: &Tuple, deltas: Deltas, hop: bool) -> Option<()> {
    let header = Ipv4Header::at_mut(bytes, l3)?;
    header.ttl = header.ttl.checked_sub(u8::from(hop))?;
    header.src = to.source.octets_v4();
    header.dst = to.destination.octets_v4();
    header.checksum.set(Delta::from_folded(deltas.ip).apply(header.checksum.get()));
    Some(())
}

/// Rewrites the IPv6 header at `l3`. `None`, and nothing changed, when it is not all there or has no hop left.
#[inline]
pub fn rewrite_v6(bytes: &mut [u8], l3: usize, to: &Tuple, hop: bool) -> Option<()> {
    let header = Ipv6Header::at_mut(bytes, l3)?;
    header.hop_limit = header.hop_limit.checked_sub(u8::from(hop))?;
    header.src = to.source.octets();
    header.dst = to.destination.octets();
    Some(())
}

/// Rewrites the transport header at the front of `l4`, which ends with the packet. `None` when its checksum is not
/// there, or the protocol is none that we know: then only addresses can change.
#[inline]
pub fn rewrite_l4(l4: &mut [u8], v6: bool, to: &Tuple, deltas: Deltas, partial: bool) -> Option<()> {
    if to.protocol == protocol::SCTP {
        return rewrite_sctp(l4, to, partial);
    }
    let at = checksum_at(v6, to.protocol)?;
    let field: [u8; 2] = l4.get(at..at + 2)?.try_into().ok()?;
    let old = u16::from_be_bytes(field);
    let new = if partial {
        Delta::from_folded(deltas.pseudo).apply_partial(old)
    } else {
        changed(Delta::from_folded(deltas.l4), to.protocol, old)
    };
    l4[at..at + 2].copy_from_slice(&new.to_be_bytes());
    set_ports(l4, v6, to)?;
    if new == 0 && to.protocol == protocol::ICMP && !partial {
        settle_zero(l4);
    }
    Some(())
}

/// Returns a complete checksum after a change.
pub(crate) fn changed(delta: Delta, protocol: u8, old: u16) -> u16 {
    match protocol {
        protocol::UDP => delta.apply_udp(old),
        // There is no "none" here (RFC 3828, 3.1).
        protocol::UDP_LITE => match delta.apply(old) {
            0 => 0xffff,
            new => new,
        },
        _ => delta.apply(old),
    }
}

/// Returns where the Internet checksum is in a transport header.
pub(crate) fn checksum_at(v6: bool, protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => Some(6),
        protocol::ICMP if !v6 => Some(2),
        protocol::ICMPV6 if v6 => Some(2),
        _ => None,
    }
}

/// Writes the ports, or the identifier when it is an ICMP query.
pub(crate) fn set_ports(l4: &mut [u8], v6: bool, to: &Tuple) -> Option<()> {
    if has_ports(to.protocol) {
        let ports = u32::from(to.source_port) << 16 | u32::from(to.destination_port);
        l4.get_mut(..4)?.copy_from_slice(&ports.to_be_bytes());
        return Some(());
    }
    // Not by `IcmpHeader`: a quotation may end behind the identifier.
    if is_query(v6, *l4.first()?) {
        let field: [u8; 2] = l4.get(4..6)?.try_into().ok()?;
        let id = identifier(u16::from_be_bytes(field), to);
        l4[4..6].copy_from_slice(&id.to_be_bytes());
    }
    Some(())
}

/// Tells the two zeros of ones' complement apart where no pseudo header does: a message of nothing but zeros (an
/// echo reply with identifier and sequence 0) has the checksum 0xffff, any other 0.
#[cold]
pub(crate) fn settle_zero(icmp: &mut [u8]) {
    if Sum::new().bytes(icmp).fold() == 0 {
        icmp[2..4].fill(0xff);
    }
}

fn rewrite_sctp(l4: &mut [u8], to: &Tuple, partial: bool) -> Option<()> {
    let old: [u8; 4] = l4.get(..4)?.try_into().ok()?;
    set_ports(l4, false, to)?;
    let new: [u8; 4] = l4.get(..4)?.try_into().ok()?;
    let at = usize::from(checksum::SCTP_CHECKSUM_AT);
    let crc: [u8; 4] = l4.get(at..at + 4)?.try_into().ok()?;
    if new != old && !partial {
        let crc = checksum::sctp_ports_changed(crc, old, new, l4.len());
        l4[at..at + 4].copy_from_slice(&crc);
    }
    Some(())
}

#[cfg(test)]
mod tests;
