//! The dull twin of every rewrite: the packet built anew, with its checksums summed in full.

use packet::build::eth;
use packet::header::Layout;
use packet::{Address, MacAddr};
use proptest::prelude::*;

use super::*;
use crate::random::{GATEWAY, Kind, Random, STATION, address, is_right, leave_partial, pool, random};

/// How the frame's checksum comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Complete,
    Partial,
    /// Partial, and the port could not tell.
    UnknownPartial,
    UnknownComplete,
}

/// What the packet is rewritten to.
#[derive(Clone, Debug)]
struct To {
    source: Option<[u8; 16]>,
    destination: Option<[u8; 16]>,
    ports: (Option<u16>, Option<u16>),
    hop: bool,
}

fn to() -> impl Strategy<Value = To> {
    let port = || prop::option::of(any::<u16>());
    (any::<Option<[u8; 16]>>(), any::<Option<[u8; 16]>>(), (port(), port()), any::<bool>())
        .prop_map(|(source, destination, ports, hop)| To { source, destination, ports, hop })
}

fn state() -> impl Strategy<Value = State> {
    prop::sample::select(&[State::Complete, State::Partial, State::UnknownPartial, State::UnknownComplete])
}

impl To {
    /// Returns the packet as it shall be afterwards.
    fn of(&self, packet: &Random) -> Random {
        let mut new = packet.clone();
        new.source = self.source.unwrap_or(packet.source);
        new.destination = self.destination.unwrap_or(packet.destination);
        let first = self.ports.0.unwrap_or(packet.ports.0);
        let second = if packet.kind == Kind::Echo { first } else { self.ports.1.unwrap_or(packet.ports.1) };
        new.ports = (first, second);
        new.ttl -= u8::from(self.hop);
        new
    }
}

fn headers_of(bytes: &[u8]) -> Headers {
    Headers::of(bytes).expect("well-formed").expect("IP")
}

/// Returns the packet's frame with its checksum in `state`, or `None` when that state cannot be of this packet.
fn frame(packet: &Random, state: State, pool: &mut packet::FramePool) -> Option<Frame> {
    let bytes = packet.bytes();
    let layout = Layout::of(&bytes).expect("well-formed");
    let offset = match packet.kind {
        Kind::Tcp => 16,
        Kind::Udp => 6,
        Kind::Sctp => 8,
        _ if state == State::Complete || state == State::UnknownComplete => 0,
        _ => return None,
    };
    let mut frame = pool.alloc_from(&bytes).expect("a chunk");
    match state {
        State::Complete => {}
        State::UnknownComplete => {
            frame.set_checksum(Checksum::Unknown);
            checksum::resolve(&mut frame);
            if frame.checksum() != Checksum::Complete {
                // Once in 65536 packets.
                pool.free(frame);
                return None;
            }
            frame.set_checksum(Checksum::Unknown);
        }
        State::Partial | State::UnknownPartial => {
            if packet.kind == Kind::Sctp {
                let at = usize::from(layout.l4) + 8;
                frame.bytes_mut()[at..at + 4].fill(0);
                frame.set_checksum(Checksum::Partial { start: layout.l4, offset });
            } else {
                leave_partial(&mut frame, &layout, offset);
            }
            if state == State::UnknownPartial {
                frame.set_checksum(Checksum::Unknown);
            }
        }
    }
    Some(frame)
}

/// Returns the bytes with a zero where the checksum is all ones: the same number, but for UDP.
fn canonical(bytes: &[u8]) -> Vec<u8> {
    let layout = Layout::of(bytes).expect("well-formed");
    let mut bytes = bytes.to_vec();
    if let Some(at) = checksum_at(layout.ethertype == 0x86dd, layout.protocol)
        && layout.protocol != protocol::UDP
    {
        let at = usize::from(layout.l4) + at;
        if bytes[at..at + 2] == [0xff; 2] {
            bytes[at..at + 2].fill(0);
        }
    }
    bytes
}

proptest! {
    #[test]
    fn rewritten_is_as_if_built_anew(packet in random(), to in to(), state in state()) {
        let mut pool = pool();
        let Some(mut frame) = frame(&packet, state, &mut pool) else { return Ok(()) };
        let (headers, new) = (headers_of(frame.bytes()), to.of(&packet));
        apply(&mut frame, &headers, &new.tuple(), to.hop);
        checksum::complete(&mut frame).expect("well-formed");
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        prop_assert!(is_right(&bytes));
        prop_assert_eq!(headers_of(&bytes).tuple, new.tuple());
        prop_assert_eq!(canonical(&bytes), canonical(&new.bytes()));
    }

    #[test]
    fn there_and_back_is_the_identity(packet in random(), to in to(), state in state()) {
        let mut pool = pool();
        let Some(mut frame) = frame(&packet, state, &mut pool) else { return Ok(()) };
        checksum::resolve(&mut frame);
        let (before, known) = (frame.bytes().to_vec(), frame.checksum());
        let headers = headers_of(&before);
        apply(&mut frame, &headers, &to.of(&packet).tuple(), false);
        let headers = headers_of(frame.bytes());
        apply(&mut frame, &headers, &packet.tuple(), false);
        let (bytes, state) = (frame.bytes().to_vec(), frame.checksum());
        pool.free(frame);
        prop_assert_eq!(canonical(&bytes), canonical(&before));
        prop_assert_eq!(state, known);
    }

    #[test]
    fn a_checksum_that_is_wrong_stays_wrong(packet in random(), to in to(), flip in 1u8..) {
        // An Internet checksum cannot tell 0 from 0xffff, so flip some bits only.
        let mut bytes = packet.bytes();
        if packet.kind == Kind::Bare || flip == 0xff || packet.data.is_empty() {
            return Ok(());
        }
        *bytes.last_mut().expect("data") ^= flip;
        let mut pool = pool();
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        let headers = headers_of(&bytes);
        apply(&mut frame, &headers, &to.of(&packet).tuple(), to.hop);
        let right = is_right(frame.bytes());
        pool.free(frame);
        prop_assert!(!right);
    }

    #[test]
    fn fragments_are_rewritten_like_the_whole(packet in random(), to in to(), offset in 0u16..3) {
        let whole = packet.bytes();
        let (headers, new) = (headers_of(&whole), to.of(&packet));
        let l4 = &whole[usize::from(headers.l4)..];
        if packet.kind == Kind::Sctp && new.ports != packet.ports {
            return Ok(());
        }
        let offset = offset * 1480;
        let fragment = |packet: &Random, l4: &[u8]| {
            let (source, destination) = (packet.tuple().source.ip(), packet.tuple().destination.ip());
            let (start, number) = (eth(STATION, GATEWAY), packet.tuple().protocol);
            match (source, destination) {
                (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
                    start.ipv4(source, destination).ttl(packet.ttl).fragment(77, offset, true).raw(number, l4)
                }
                (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
                    start.ipv6(source, destination).ttl(packet.ttl).fragment(77, offset, true).raw(number, l4)
                }
                _ => unreachable!("one family"),
            }
        };
        let mut pool = pool();
        let mut frame = fragment(&packet, l4).frame(&mut pool).expect("a chunk");
        let headers = headers_of(frame.bytes());
        prop_assert!(headers.fragment != Fragment::No);
        apply(&mut frame, &headers, &new.tuple(), to.hop);
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        let whole = new.bytes();
        let rewritten = &whole[usize::from(headers_of(&whole).l4)..];
        // What a later fragment carries is no transport header, and stays.
        let expected = fragment(&new, if offset == 0 { rewritten } else { l4 });
        prop_assert_eq!(&bytes[..], expected.as_slice());
    }

    #[test]
    fn compiled_once_is_right_for_every_packet_of_the_flow(
        packet in random(), to in to(), payload in prop::collection::vec(any::<u8>(), 0..50), ttl in 2u8..,
    ) {
        let deltas = compile(&packet.tuple(), &to.of(&packet).tuple(), to.hop);
        let packet = Random { data: payload, ttl, tos: 0, ..packet };
        let mut pool = pool();
        let mut frame = pool.alloc_from(&packet.bytes()).expect("a chunk");
        let headers = headers_of(frame.bytes());
        let new = to.of(&packet);
        apply_compiled(&mut frame, &headers, &new.tuple(), deltas, to.hop);
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        prop_assert_eq!(canonical(&bytes), canonical(&new.bytes()));
    }
}

#[test]
fn a_hop_is_taken_off() {
    let mut pool = pool();
    let v4 = |ttl| eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).ttl(ttl).udp(1, 2).build();
    let v6 = |ttl| eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).ttl(ttl).udp(1, 2).build();
    for (before, after) in [(v4(9), v4(8)), (v6(9), v6(8))] {
        let mut frame = before.frame(&mut pool).expect("a chunk");
        let headers = headers_of(frame.bytes());
        decrement_ttl(&mut frame, &headers);
        assert_eq!(frame.bytes(), after.as_slice());
        pool.free(frame);
    }
}

#[test]
fn the_two_zeros_of_icmp_are_told_apart() {
    let mut pool = pool();
    let reply =
        |id| eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).icmp_echo_reply(id, 0).data(&[0; 8]);
    for (from, to) in [(7, 0), (0, 7), (0, 0)] {
        let mut frame = reply(from).frame(&mut pool).expect("a chunk");
        let headers = headers_of(frame.bytes());
        let tuple = Tuple { source_port: to, destination_port: to, ..headers.tuple };
        apply(&mut frame, &headers, &tuple, false);
        assert_eq!(frame.bytes(), reply(to).as_slice());
        assert_eq!(checksum::is_valid(frame.bytes()), Some(true));
        pool.free(frame);
    }
}

#[test]
fn a_large_frame_stays_whole() {
    let mut pool = pool();
    let packet = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1000, 80).data(&[5; 20_000]);
    let mut frame = packet.frame(&mut pool).expect("a chunk");
    let layout = Layout::of(frame.bytes()).expect("well-formed");
    leave_partial(&mut frame, &layout, 16);
    let gso =
        packet::Gso { kind: packet::GsoKind::Tcp4, size: 1448, header_len: 54, ecn: false, tunnel: None };
    frame.set_gso(Some(gso));
    let headers = headers_of(frame.bytes());
    let to = Tuple { source: Address::v4([192, 0, 2, 1]), source_port: 50_000, ..headers.tuple };
    apply(&mut frame, &headers, &to, true);
    assert_eq!(frame.gso(), Some(gso));
    assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 16 });
    let mut seen = 0;
    let finish = packet::segment::Finish::Now;
    let mut back = Vec::new();
    packet::segment::segment(frame, &mut pool, finish, |segment| back.push(segment)).expect("well-formed");
    for segment in back {
        assert!(is_right(segment.bytes()));
        assert_eq!(headers_of(segment.bytes()).tuple, to);
        seen += segment.len() - 54;
        pool.free(segment);
    }
    assert_eq!(seen, 20_000);
}

/// An error about `inner` (without Ethernet header) from `from` to `to`, with `extension` behind.
fn error(v6: bool, from: [u8; 16], to: [u8; 16], inner: &[u8], extension: bool) -> Vec<u8> {
    let unit = if v6 { 8 } else { 4 };
    let mut quoted = inner.to_vec();
    let mut length = [0; 4];
    if extension {
        quoted.resize(128.max(inner.len().next_multiple_of(unit)), 0);
        length[usize::from(!v6)] = u8::try_from(quoted.len() / unit).expect("short");
        quoted.extend([0x20, 0, 0xab, 0xcd, 0, 4, 1, 1]);
    }
    let kind: u8 = if v6 { 1 } else { 3 };
    let message = [&[kind, 0, 0, 0], &length[..], &quoted].concat();
    match (address(v6, from).ip(), address(v6, to).ip()) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            eth(STATION, GATEWAY).ipv4(from, to).raw(protocol::ICMP, &message).bytes()
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            eth(STATION, GATEWAY).ipv6(from, to).raw(protocol::ICMPV6, &message).bytes()
        }
        _ => unreachable!("one family"),
    }
}

proptest! {
    #[test]
    fn translated_error_is_as_if_built_anew(
        packet in random(), to in to(), cut in any::<prop::sample::Index>(),
        from in any::<[u8; 16]>(), at in any::<[u8; 16]>(), new_from in any::<[u8; 16]>(), new_at in any::<[u8; 16]>(),
        extension in any::<bool>(),
    ) {
        let packet = Random { tagged: false, ..packet };
        let new = Random { ttl: packet.ttl, ..to.of(&packet) };
        let inner = packet.bytes();
        let l4 = usize::from(headers_of(&inner).l4);
        let most = if packet.kind == Kind::Sctp { l4 + 8 } else { inner.len().min(14 + 480) };
        let mut cut = (l4 + 8) + cut.index(most - (l4 + 8) + 1);
        if checksum_at(packet.v6, packet.tuple().protocol).is_some_and(|at| cut == l4 + at + 1) {
            // Half a checksum is not changed.
            cut -= 1;
        }
        let extension = extension && packet.kind != Kind::Sctp;
        if extension {
            // With extensions, a packet is quoted whole or to 128 bytes at least, in whole words.
            cut = if inner.len() < 14 + 128 { inner.len() } else { 14 + (cut - 14).max(128) / 8 * 8 };
        }
        let question = error(packet.v6, from, at, &inner[14..cut], extension);
        let mut pool = pool();
        let mut frame = pool.alloc_from(&question).expect("a chunk");
        let headers = headers_of(&question);
        let found = embedded(&question, &headers);
        let expected_tuple = packet.tuple();
        prop_assert_eq!(found.map(|embedded| embedded.tuple), Some(expected_tuple));
        let outer_to = (address(packet.v6, new_from), address(packet.v6, new_at));
        translate_error(&mut frame, &headers, &found.expect("just seen"), outer_to, &new.tuple());
        let bytes = frame.bytes().to_vec();
        pool.free(frame);
        let expected = error(packet.v6, new_from, new_at, &new.bytes()[14..cut], extension);
        prop_assert!(is_right(&bytes));
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn any_error_is_translated_without_panic(
        v6 in any::<bool>(), kind in 0u8..14, inner in prop::collection::vec(any::<u8>(), 0..90), sane in any::<bool>(),
        length in any::<[u8; 4]>(),
    ) {
        let mut inner = inner;
        if sane && inner.len() > 44 {
            inner[0] = if v6 { 0x60 } else { 0x45 };
            if !v6 {
                inner[6..8].fill(0);
                Ipv4Header::fill_checksum(&mut inner).expect("long enough");
            }
        }
        let message = [&[kind, 0, 0, 0], &length[..], &inner].concat();
        let bytes = if v6 {
            eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfe; 16]).raw(protocol::ICMPV6, &message)
        } else {
            eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).raw(protocol::ICMP, &message)
        };
        let mut pool = pool();
        let mut frame = bytes.frame(&mut pool).expect("a chunk");
        let Ok(Some(headers)) = Headers::of(frame.bytes()) else { pool.free(frame); return Ok(()) };
        if let Some(embedded) = embedded(bytes.as_slice(), &headers) {
            let to = Tuple { source_port: 1, destination_port: 2, ..embedded.tuple.inverted() };
            let outer_to = (headers.tuple.destination, headers.tuple.source);
            translate_error(&mut frame, &headers, &embedded, outer_to, &to);
            // An odd quotation ends in the middle of a word, and IPv6 has extensions that are not there.
            prop_assert!(is_right(frame.bytes()));
        }
        pool.free(frame);
    }
}

#[test]
fn errors_that_are_wrong_or_about_errors_carry_nothing() {
    let inner = eth(GATEWAY, STATION).ipv4([10, 0, 0, 2], [10, 0, 0, 1]).udp(1, 2).bytes();
    let from = [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let good = error(false, from, from, &inner[14..], false);
    assert!(embedded(&good, &headers_of(&good)).is_some());
    let mut bad = good.clone();
    *bad.last_mut().expect("data") ^= 1;
    assert_eq!(embedded(&bad, &headers_of(&bad)), None, "the error's checksum");
    let mut bad = inner.clone();
    bad[14 + 8] ^= 1;
    let bad = error(false, from, from, &bad[14..], false);
    assert_eq!(embedded(&bad, &headers_of(&bad)), None, "the embedded header's checksum");
    let nested = error(false, from, from, &good[14..], false);
    assert_eq!(embedded(&nested, &headers_of(&nested)), None, "an error about an error");
    let echo = eth(STATION, MacAddr::local(3)).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).icmp_echo(1, 2).bytes();
    assert_eq!(embedded(&echo, &headers_of(&echo)), None);
    let short = error(false, from, from, &inner[14..14 + 22], false);
    assert_eq!(embedded(&short, &headers_of(&short)), None, "half of the ports");
}

#[test]
fn what_follows_the_quoted_packet_is_not_touched() {
    // The front of a TCP header is the whole packet here, and zeros follow where its checksum would be.
    let inner = eth(GATEWAY, STATION)
        .ipv4([10, 0, 0, 2], [10, 0, 0, 1])
        .raw(protocol::TCP, &[0, 1, 0, 2, 0, 0, 0, 3]);
    let padded = [&inner.as_slice()[14..], &[0; 100]].concat();
    let from = [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut pool = pool();
    let mut frame = pool.alloc_from(&error(false, from, from, &padded, false)).expect("a chunk");
    let headers = headers_of(frame.bytes());
    let found = embedded(frame.bytes(), &headers).expect("a packet");
    let to = Tuple { source: Address::v4([192, 0, 2, 1]), destination_port: 7, ..found.tuple };
    let outer_to = (headers.tuple.source, headers.tuple.destination);
    translate_error(&mut frame, &headers, &found, outer_to, &to);
    assert!(is_right(frame.bytes()));
    let again = embedded(frame.bytes(), &headers).expect("a packet");
    assert_eq!(again.tuple, to);
    assert_eq!(frame.bytes()[again.l4 + 8..], [0; 100]);
    pool.free(frame);
}
