//! The dull twin of every function: one 16-bit word at a time.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::build::eth;
use crate::{Area, FramePool, MacAddr};

fn dull_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded each time")
}

fn pool() -> FramePool {
    FramePool::new(Area::new(64, 2).expect("a small area"))
}

/// A TCP packet over IPv4 or IPv6 with a right checksum, built by etherparse.
fn tcp(v6: bool, data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder =
        if v6 { builder.ipv6([1; 16], [2; 16], 9) } else { builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9) };
    let mut bytes = Vec::new();
    builder.tcp(1000, 2000, 77, 4000).write(&mut bytes, data).expect("a vector");
    bytes
}

proptest! {
    #[test]
    fn full_sum_is_that_of_the_dull_loop(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let sum = Sum::new().bytes(&bytes).fold();
        // 0 and 0xffff are the same number; only all-zero input gives 0.
        prop_assert_eq!(sum, dull_sum(&bytes));
    }

    #[test]
    fn sum_of_even_pieces_is_the_sum(
        bytes in proptest::collection::vec(any::<u8>(), 2..200), at in any::<prop::sample::Index>()
    ) {
        let at = at.index(bytes.len()) & !1;
        let pieces = Sum::new().bytes(&bytes[..at]).bytes(&bytes[at..]);
        prop_assert_eq!(pieces.fold(), dull_sum(&bytes));
    }

    #[test]
    fn incremental_change_equals_the_full_sum(
        mut bytes in proptest::collection::vec(any::<u8>(), 60..100),
        new16 in any::<u16>(), new32 in any::<u32>(), new4 in any::<[u8; 4]>(), new16b in any::<[u8; 16]>(),
    ) {
        bytes[0] |= 1; // an all-zero packet has no canonical checksum
        let before = Sum::new().bytes(&bytes).checksum();
        let partial = Sum::new().bytes(&bytes).fold();
        let old16 = u16::from_be_bytes([bytes[2], bytes[3]]);
        let old32 = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let old4: [u8; 4] = bytes[8..12].try_into().expect("4");
        let old16b: [u8; 16] = bytes[12..28].try_into().expect("16");
        bytes[2..4].copy_from_slice(&new16.to_be_bytes());
        bytes[4..8].copy_from_slice(&new32.to_be_bytes());
        bytes[8..12].copy_from_slice(&new4);
        bytes[12..28].copy_from_slice(&new16b);
        let delta = Delta::new().u16(old16, new16).u32(old32, new32).ipv4(old4, new4).ipv6(&old16b, &new16b);
        let after = Sum::new().bytes(&bytes);
        prop_assert_eq!(delta.apply(before), after.checksum());
        prop_assert_eq!(Delta::from_folded(delta.folded()).apply(before), after.checksum());
        prop_assert_eq!(delta.apply_udp(if before == 0 { 0xffff } else { before }), after.udp_checksum());
        prop_assert_eq!(delta.apply_partial(partial), after.fold());
        prop_assert_eq!(delta.apply_udp(0), 0);
    }

    #[test]
    fn any_bytes_and_any_state_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), start in any::<u16>(), offset in any::<u16>(),
        partial in any::<bool>(),
    ) {
        let mut pool = pool();
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        frame.set_checksum(if partial { Checksum::Partial { start, offset } } else { Checksum::Unknown });
        let field = if offset == SCTP_CHECKSUM_AT { 4 } else { 2 };
        let fits = usize::from(start) + usize::from(offset) + field <= bytes.len();
        let result = complete(&mut frame);
        prop_assert_eq!(result.is_ok(), fits || !partial);
        if result.is_err() {
            prop_assert_eq!(frame.bytes(), &bytes[..]);
        } else {
            prop_assert_eq!(frame.checksum(), Checksum::Complete);
        }
        let _ = is_valid(frame.bytes());
        pool.free(frame);
    }
}

#[test]
fn pseudo_headers_agree_with_etherparse() {
    for v6 in [false, true] {
        assert_eq!(is_valid(&tcp(v6, b"some data, odd")), Some(true));
        let mut bad = tcp(v6, b"some data, odd");
        *bad.last_mut().expect("data") ^= 1;
        assert_eq!(is_valid(&bad), Some(false));
    }
}

/// What a sender with checksum offload leaves: the folded pseudo-header sum in the field.
fn leave_partial(bytes: &mut [u8]) -> Checksum {
    let layout = Layout::of(bytes).expect("well-formed");
    let offset = layout.checksum_at().expect("TCP or UDP");
    let sum = pseudo(bytes, &layout).expect("IP").fold();
    let at = usize::from(layout.l4 + offset);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Checksum::Partial { start: layout.l4, offset }
}

#[test]
fn unknown_is_resolved_to_partial_and_completed() {
    let mut pool = pool();
    for v6 in [false, true] {
        let whole = tcp(v6, b"hello");
        let mut left = whole.clone();
        let state = leave_partial(&mut left);
        let mut frame = pool.alloc_from(&left).expect("a chunk");
        frame.set_checksum(Checksum::Unknown);
        resolve(&mut frame);
        assert_eq!(frame.checksum(), state);
        complete(&mut frame).expect("well-formed");
        assert_eq!(frame.bytes(), whole);
        pool.free(frame);
    }
}

#[test]
fn unknown_with_a_right_checksum_is_resolved_to_complete() {
    let mut pool = pool();
    let mut frame = pool.alloc_from(&tcp(false, b"hello")).expect("a chunk");
    frame.set_checksum(Checksum::Unknown);
    resolve(&mut frame);
    assert_eq!(frame.checksum(), Checksum::Complete);
    pool.free(frame);
}

#[test]
fn fragments_and_udp_without_checksum_are_left_alone() {
    let mut pool = pool();
    let mut fragment = tcp(false, b"hello");
    leave_partial(&mut fragment);
    fragment[20] |= 0x20; // more fragments
    let mut plain = Vec::new();
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .udp(1, 2)
        .write(&mut plain, b"x")
        .expect("a vector");
    plain[40..42].fill(0);
    for bytes in [fragment, plain] {
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        frame.set_checksum(Checksum::Unknown);
        complete(&mut frame).expect("nothing to do");
        assert_eq!(frame.checksum(), Checksum::Complete);
        assert_eq!(frame.bytes(), bytes);
        pool.free(frame);
    }
}

#[test]
fn partial_checksum_inside_vxlan_is_found() {
    let mut pool = pool();
    let mut inner = tcp(true, b"hello");
    let whole = inner.clone();
    leave_partial(&mut inner);
    let tunnel = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat();
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        .udp(5555, 4789)
        .write(&mut bytes, &tunnel)
        .expect("a vector");
    bytes[40..42].fill(0);
    let mut frame = pool.alloc_from(&bytes).expect("a chunk");
    frame.set_checksum(Checksum::Unknown);
    resolve(&mut frame);
    assert_eq!(frame.checksum(), Checksum::Partial { start: 50 + 54, offset: 16 });
    complete(&mut frame).expect("well-formed");
    assert_eq!(frame.bytes()[50..], whole);
    pool.free(frame);
}

#[test]
fn udp_sum_of_zero_becomes_all_ones() {
    let mut pool = pool();
    let mut frame = pool.alloc_from(&[0xff, 0xff, 0, 0]).expect("a chunk");
    frame.set_checksum(Checksum::Partial { start: 0, offset: 2 });
    complete(&mut frame).expect("fits");
    assert_eq!(frame.bytes(), [0xff, 0xff, 0xff, 0xff]);
    pool.free(frame);
}

#[test]
fn addresses_and_ttl_change_with_their_checksums() {
    use crate::header::{Ipv4Header, Ipv6Header, TcpHeader};
    let mut bytes = tcp(false, b"data");
    let (src, dst) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 9));
    let header = Ipv4Header::at_mut(&mut bytes, 14).expect("there");
    header.decrement_ttl();
    let delta = header.set_src(src).and(header.set_dst(dst));
    assert_eq!((header.ttl, header.src(), header.dst()), (8, src, dst));
    let tcp_header = TcpHeader::at_mut(&mut bytes, 34).expect("there");
    tcp_header.checksum.set(delta.apply(tcp_header.checksum.get()));
    assert_eq!(is_valid(&bytes), Some(true));
    assert!(crate::header::Ipv4::new(&bytes[14..]).expect("well-formed").checksum_is_valid());

    let mut bytes = tcp(true, b"data");
    let header = Ipv6Header::at_mut(&mut bytes, 14).expect("there");
    header.decrement_hop_limit();
    let delta =
        header.set_src(Ipv6Addr::LOCALHOST).and(header.set_dst("fd00::7".parse().expect("an address")));
    let tcp_header = TcpHeader::at_mut(&mut bytes, 54).expect("there");
    tcp_header.checksum.set(delta.apply(tcp_header.checksum.get()));
    assert_eq!(is_valid(&bytes), Some(true));
}

#[test]
fn sctp_left_to_the_device_gets_its_crc() {
    let mut pool = pool();
    let sctp = [&[0x0b, 0xb8, 0x0b, 0xb9, 1, 2, 3, 4, 0, 0, 0, 0][..], b"chunks"].concat();
    let bytes = eth(MacAddr::local(1), MacAddr::local(2)).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).raw(132, &sctp);
    let mut frame = bytes.frame(&mut pool).expect("a chunk");
    frame.set_checksum(Checksum::Unknown);
    resolve(&mut frame);
    assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 8 });
    complete(&mut frame).expect("inside");
    let crc = crc32c::crc32c(&[&sctp]).to_le_bytes();
    assert_eq!(frame.bytes()[42..46], crc);
    frame.set_checksum(Checksum::Unknown);
    resolve(&mut frame);
    assert_eq!(frame.checksum(), Checksum::Complete);
    pool.free(frame);
}

/// Run with `cargo test --release -p packet -- --ignored --nocapture checksum_speed`.
#[test]
#[ignore = "a measurement, for an optimized build"]
fn checksum_speed() {
    let bytes = vec![0x5a; 65536];
    let mut to = vec![0; 65536];
    let rounds = 100_000u32;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(Sum::new().bytes(std::hint::black_box(&bytes)).fold());
    }
    let sum = start.elapsed() / rounds;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        to.copy_from_slice(std::hint::black_box(&bytes));
        std::hint::black_box(&mut to);
    }
    println!("64 KiB: sum {sum:?}, copy {:?}", start.elapsed() / rounds);
}
