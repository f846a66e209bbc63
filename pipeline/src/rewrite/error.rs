//! ICMP errors on their way through NAT (RFC 5508, REQ-3 to REQ-7; RFC 7857).
//!
//! An error carries the front of the packet that caused it, as the reporter saw it: with the addresses of the
//! reporter's side. [`embedded`] reads its 5-tuple, by which the connection is found, and [`translate_error`] turns
//! both packets over to the other side. Checksums follow by what changed: that of the embedded IPv4 header, that of
//! its transport header as far as it is quoted, and that of the error, which covers all of it.
//!
//! What follows the quotation (RFC 4884 extensions) is not touched. SCTP's checksum in a quotation stays: nobody can
//! check it there.

use packet::checksum::{self, Delta};
use packet::header::{
    Fragment, Header, Icmp, IcmpHeader, Ipv4Header, Ipv6Fragment, Ipv6Header, icmp4, icmp6, protocol,
    walk_extensions,
};
use packet::{Address, Frame, Tuple};

use super::{changed, checksum_at, compile, rewrite_v4, rewrite_v6, set_ports};
use crate::headers::{Headers, has_ports, is_query, ports};

/// The packet that an ICMP error carries. Offsets count from the first byte of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Who spoke to whom, as the embedded packet says; no ports in a later fragment.
    pub tuple: Tuple,
    /// Where its IP header is.
    pub at: usize,
    /// Where its transport header is: at least the ports are there, but for a later fragment.
    pub l4: usize,
    /// Where it ends, or is cut off.
    pub end: usize,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Finds the packet inside the ICMP error in the frame `bytes`. `None` when it is no error that carries one, the
/// error's checksum or the embedded IPv4 header's is wrong (RFC 5508, REQ-3), there are no ports in what is quoted, or the
/// embedded packet is itself an error.
pub fn embedded(bytes: &[u8], headers: &Headers) -> Option<Embedded> {
    let carries = match headers.icmp? {
        (icmp6::UNREACHABLE..=icmp6::PARAMETER_PROBLEM, _) if headers.v6 => true,
        (icmp4::UNREACHABLE | 4 | icmp4::TIME_EXCEEDED | icmp4::PARAMETER_PROBLEM, _) => !headers.v6,
        _ => false,
    };
    if !carries || headers.fragment != Fragment::No || checksum::is_valid(bytes) != Some(true) {
        return None;
    }
    let at = usize::from(headers.l4) + IcmpHeader::LEN;
    let message = bytes.get(usize::from(headers.l4)..headers.end as usize)?;
    let end = at + quoted_len(headers.v6, &Icmp::new(message)?);
    if headers.v6 { embedded_v6(bytes, at, end) } else { embedded_v4(bytes, at, end) }
}

/// Returns what an ICMP error says about the longest packet that the next hop takes: of "fragmentation needed" (RFC 1191, 4) and
/// "packet too big" (RFC 4443, 3.2). `None` for other errors, and for routers that do not say.
pub fn next_hop_mtu(bytes: &[u8], headers: &Headers) -> Option<u32> {
    let icmp = Icmp::new(bytes.get(usize::from(headers.l4)..headers.end as usize)?)?;
    let (high, low) = (u32::from(icmp.header.id.get()), u32::from(icmp.header.seq.get()));
    let mtu = match (icmp.header.kind, icmp.header.code) {
        (icmp6::TOO_BIG, 0) if headers.v6 => high << 16 | low,
        (icmp4::UNREACHABLE, 4) if !headers.v6 => low,
        _ => return None,
    };
    (mtu != 0).then_some(mtu)
}

/// Returns the bytes of the quotation: all there is, or what the length field says when extensions follow (RFC 4884,
/// 3: in words of four bytes for IPv4, of eight for IPv6).
fn quoted_len(v6: bool, icmp: &Icmp<'_>) -> usize {
    let [first, second] = icmp.header.id.to_bytes();
    let len = match icmp.header.kind {
        icmp6::UNREACHABLE | icmp6::TIME_EXCEEDED if v6 => usize::from(first) * 8,
        icmp4::UNREACHABLE | icmp4::TIME_EXCEEDED | icmp4::PARAMETER_PROBLEM if !v6 => {
            usize::from(second) * 4
        }
        _ => 0,
    };
    if len == 0 { icmp.payload.len() } else { len.min(icmp.payload.len()) }
}

fn embedded_v4(bytes: &[u8], at: usize, end: usize) -> Option<Embedded> {
    let header = Ipv4Header::at(bytes.get(..end)?, at)?;
    let header_len = header.header_len();
    let whole = header.version_ihl >> 4 == 4 && header_len >= Ipv4Header::LEN;
    let sum = checksum::Sum::new().bytes(bytes.get(at..at + header_len).filter(|_| at + header_len <= end)?);
    if !whole || sum.fold() != 0xffff {
        return None;
    }
    let fragment = match (header.fragment_offset(), header.more_fragments()) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    let tuple = Tuple {
        source: Address::v4(header.src),
        destination: Address::v4(header.dst),
        protocol: header.protocol,
        ..Tuple::default()
    };
    // A length beyond the quotation is usual; behind a packet that ends before, some pad to 128 bytes without saying so.
    let end = end.min(at + usize::from(header.total_len.get()).max(header_len));
    Embedded { tuple, at, l4: at + header_len, end, fragment }.with_ports(bytes)
}

fn embedded_v6(bytes: &[u8], at: usize, end: usize) -> Option<Embedded> {
    let quoted = bytes.get(..end)?;
    let header = Ipv6Header::at(quoted, at)?;
    if header.version_flow.to_bytes()[0] >> 4 != 6 {
        return None;
    }
    let (source, destination) = (Address::v6(header.src), Address::v6(header.dst));
    if source.is_v4() || destination.is_v4() {
        return None;
    }
    let start = at + Ipv6Header::LEN;
    let end = end.min(start + usize::from(header.payload_len.get()));
    let rest = bytes.get(start..end)?;
    let walk = walk_extensions(rest, header.next_header)?;
    let fragment = match walk.fragment.and_then(|at| Ipv6Fragment::at(rest, at)) {
        None => Fragment::No,
        Some(fragment) => match (fragment.offset(), fragment.more()) {
            (0, false) => Fragment::No,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        },
    };
    let tuple = Tuple { source, destination, protocol: walk.protocol, ..Tuple::default() };
    Embedded { tuple, at, l4: start + walk.len, end, fragment }.with_ports(bytes)
}

impl Embedded {
    fn is_v6(&self) -> bool {
        !self.tuple.source.is_v4()
    }

    /// Reads the ports. `None` when the protocol has them and they are not quoted, or it is ICMP and no query.
    fn with_ports(mut self, bytes: &[u8]) -> Option<Self> {
        if self.fragment == Fragment::Later {
            return Some(self);
        }
        let (v6, number) = (self.is_v6(), self.tuple.protocol);
        let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
        match ports(v6, number, bytes.get(self.l4..self.end)?) {
            Some((source, destination)) => {
                self.tuple.source_port = source;
                self.tuple.destination_port = destination;
                Some(self)
            }
            None => (!has_ports(number) && number != icmp).then_some(self),
        }
    }
}

/// Turns the ICMP error in `frame` over to the other side: it then comes from `outer_to.0`, goes to `outer_to.1`, and
/// is about a packet of `inner_to` (in the direction of the embedded packet, so source and destination are as in
/// [`Embedded::tuple`]). `headers` and `embedded` are those of the frame.
pub fn translate_error(
    frame: &mut Frame,
    headers: &Headers,
    embedded: &Embedded,
    outer_to: (Address, Address),
    inner_to: &Tuple,
) {
    // OK to ignore: `embedded` has seen both headers, so nothing can be missing.
    let _ = translate(frame.bytes_mut(), headers, embedded, outer_to, inner_to);
    checksum::resolve(frame);
}

fn translate(
    bytes: &mut [u8],
    headers: &Headers,
    embedded: &Embedded,
    (source, destination): (Address, Address),
    inner_to: &Tuple,
) -> Option<()> {
    let mut delta = Quotation { bytes, delta: Delta::new() };
    delta.translate(embedded, inner_to)?;
    let Quotation { bytes, mut delta } = delta;

    let to = Tuple { source, destination, ..headers.tuple };
    let deltas = compile(&headers.tuple, &to, false);
    if headers.v6 {
        rewrite_v6(bytes, usize::from(headers.l3), &to, false)?;
        delta = delta.and(Delta::from_folded(deltas.pseudo));
    } else {
        rewrite_v4(bytes, usize::from(headers.l3), &to, deltas, false)?;
    }
    let icmp = IcmpHeader::at_mut(bytes, usize::from(headers.l4))?;
    icmp.checksum.set(delta.apply(icmp.checksum.get()));
    Some(())
}

/// The bytes of the error, and how what was rewritten of them changes its checksum.
struct Quotation<'a> {
    bytes: &'a mut [u8],
    delta: Delta,
}

impl Quotation<'_> {
    fn translate(&mut self, embedded: &Embedded, to: &Tuple) -> Option<()> {
        let (v6, from) = (embedded.is_v6(), &embedded.tuple);
        let mut to = *to;
        let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
        let l4 = self.bytes.get(embedded.l4..embedded.end)?;
        let has_identifier = from.protocol == icmp && l4.first().is_some_and(|kind| is_query(v6, *kind));
        if embedded.fragment == Fragment::Later || !(has_ports(from.protocol) || has_identifier) {
            (to.source_port, to.destination_port) = (from.source_port, from.destination_port);
        }
        let deltas = compile(from, &to, false);
        let (at, header_len) = (embedded.at, if v6 { Ipv6Header::LEN } else { Ipv4Header::LEN });
        self.change(at..at + header_len, |header| {
            if v6 { rewrite_v6(header, 0, &to, false) } else { rewrite_v4(header, 0, &to, deltas, false) }
        })?;
        if embedded.fragment == Fragment::Later {
            return Some(());
        }
        // RFC 792 promises eight bytes of the transport header: the checksum of TCP is seldom among them.
        if let Some(at) = checksum_at(v6, from.protocol)
            && embedded.l4 + at + 2 <= embedded.end
        {
            let at = embedded.l4 + at;
            self.change(at..at + 2, |field| {
                let old = u16::from_be_bytes([field[0], field[1]]);
                let new = changed(Delta::from_folded(deltas.l4), from.protocol, old);
                field.copy_from_slice(&new.to_be_bytes());
                Some(())
            })?;
        }
        let quoted = (embedded.end - embedded.l4).min(IcmpHeader::LEN);
        if has_identifier || has_ports(from.protocol) {
            self.change(embedded.l4..embedded.l4 + quoted, |l4| set_ports(l4, v6, &to))?;
        }
        Some(())
    }

    /// Changes bytes that begin at an even distance from the message's, and notes the change of their sum.
    fn change(
        &mut self,
        range: std::ops::Range<usize>,
        by: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Option<()> {
        let bytes = self.bytes.get_mut(range)?;
        let old = checksum::Sum::new().bytes(bytes).fold();
        by(bytes)?;
        let new = checksum::Sum::new().bytes(bytes).fold();
        if old != new {
            self.delta = self.delta.u16(old, new);
        }
        Some(())
    }
}
