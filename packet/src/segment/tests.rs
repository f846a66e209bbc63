//! Segments against etherparse: every one a valid packet, and together the original.

#![expect(clippy::cast_possible_truncation, reason = "test packets are small")]

use etherparse::{
    IpHeaders, Ipv4Extensions, Ipv4Options, Ipv6Extensions, PacketBuilder, SlicedPacket, TransportSlice,
    VlanId,
};
use proptest::prelude::*;

use super::*;
use crate::offload::Tunnel;
use crate::{Area, checksum};

#[derive(Clone, Debug)]
struct Shape {
    v6: bool,
    udp: bool,
    tagged: bool,
    options: bool,
    flags: u8,
    payload: Vec<u8>,
    size: u16,
    finish: Finish,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let payload = (0usize..20_000, any::<u8>())
        .prop_map(|(len, seed)| (0..len).map(|i| (i * 7 + i / 256) as u8 ^ seed).collect::<Vec<_>>());
    let finish = prop::sample::select(vec![Finish::Now, Finish::Later]);
    (any::<[bool; 4]>(), any::<u8>(), payload, 40u16..9000, finish).prop_map(
        |([v6, udp, tagged, options], flags, payload, size, finish)| Shape {
            v6,
            udp,
            tagged,
            options,
            flags: flags | tcp_flags::ACK,
            payload,
            size,
            finish,
        },
    )
}

/// Builds the packet by etherparse, with options or extension headers, and its checksum left partial.
fn build(shape: &Shape) -> (Vec<u8>, Checksum) {
    let protocol = etherparse::IpNumber(if shape.udp { 17 } else { 6 });
    let ip = if shape.v6 {
        let header = etherparse::Ipv6Header {
            next_header: protocol,
            hop_limit: 9,
            source: [1; 16],
            destination: [2; 16],
            ..Default::default()
        };
        let mut extensions = Ipv6Extensions::default();
        if shape.options {
            let raw = etherparse::Ipv6RawExtHeader::new_raw(protocol, &[1, 4, 0, 0, 0, 0]).expect("8 bytes");
            extensions.destination_options = Some(raw);
        }
        IpHeaders::Ipv6(header, extensions)
    } else {
        let mut header =
            etherparse::Ipv4Header::new(0, 9, protocol, [10, 0, 0, 1], [10, 0, 0, 2]).expect("no length yet");
        header.identification = 0xfffe;
        if shape.options {
            header.options = Ipv4Options::from([1, 1, 1, 0]);
        }
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    };
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = if shape.tagged {
        builder.single_vlan(VlanId::try_new(7).expect("12 bits")).ip(ip)
    } else {
        builder.ip(ip)
    };
    let mut bytes = Vec::new();
    if shape.udp {
        builder.udp(1000, 2000).write(&mut bytes, &shape.payload).expect("a vector");
    } else {
        let mut tcp = etherparse::TcpHeader::new(1000, 2000, u32::MAX - 5000, 4000);
        tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).expect("12 bytes");
        builder.tcp_header(tcp).write(&mut bytes, &shape.payload).expect("a vector");
    }
    let layout = Layout::of(&bytes).expect("well-formed");
    if !shape.udp {
        bytes[usize::from(layout.l4) + 13] = shape.flags;
    }
    let offset = layout.checksum_at().expect("TCP or UDP");
    let at = usize::from(layout.l4 + offset);
    let sum = checksum::pseudo(&bytes, &layout).expect("IP").fold();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    (bytes, Checksum::Partial { start: layout.l4, offset })
}

fn gso(shape: &Shape, tunnel: Option<Tunnel>) -> Gso {
    let kind = match (shape.udp, shape.v6) {
        (true, _) => GsoKind::Udp,
        (false, false) => GsoKind::Tcp4,
        (false, true) => GsoKind::Tcp6,
    };
    Gso { kind, size: shape.size, header_len: 0, ecn: false, tunnel }
}

fn pool() -> FramePool {
    FramePool::new(Area::new(2048, 1200).expect("an area"))
}

/// Checks one finished packet and returns the transport payload and (for TCP) sequence number and flags.
fn check(bytes: &[u8]) -> (Vec<u8>, Option<(u32, u8)>) {
    let sliced = SlicedPacket::from_ethernet(bytes).expect("a valid packet");
    assert_eq!(checksum::is_valid(bytes), Some(true));
    if let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    let net = sliced.net.as_ref().expect("IP");
    match sliced.transport.as_ref().expect("TCP or UDP") {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let sum = match net {
                etherparse::NetSlice::Ipv4(ip) => {
                    header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
                }
                _ => panic!("no IP"),
            };
            // 0 and 0xffff are the same number.
            assert_eq!(sum.expect("short enough") % 0xffff, header.checksum % 0xffff);
            let layout = Layout::of(bytes).expect("well-formed");
            let flags = bytes[usize::from(layout.l4) + 13];
            (tcp.payload().to_vec(), Some((header.sequence_number, flags)))
        }
        TransportSlice::Udp(udp) => (udp.payload().to_vec(), None),
        _ => panic!("neither TCP nor UDP"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn segments_are_valid_packets_and_together_the_original(shape in shapes()) {
        let mut pool = pool();
        let (bytes, state) = build(&shape);
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        frame.set_checksum(state);
        frame.set_gso(Some(gso(&shape, None)));
        let mut segments = Vec::new();
        let count = segment(frame, &mut pool, shape.finish, |s| segments.push(s)).expect("well-formed");
        prop_assert_eq!(count, segments.len());
        prop_assert_eq!(count, shape.payload.len().div_ceil(usize::from(shape.size)).max(1));
        let header_len = bytes.len() - shape.payload.len();
        let mut joined = Vec::new();
        for (index, mut segment) in segments.into_iter().enumerate() {
            prop_assert!(segment.len() <= header_len + usize::from(shape.size));
            prop_assert!(!segment.is_gso());
            match shape.finish {
                Finish::Now => prop_assert_eq!(segment.checksum(), Checksum::Complete),
                Finish::Later => {
                    prop_assert_eq!(segment.checksum(), state);
                    checksum::complete(&mut segment).expect("inside");
                }
            }
            let (payload, tcp) = check(segment.bytes());
            if let Some((seq, flags)) = tcp {
                prop_assert_eq!(seq, (u32::MAX - 5000).wrapping_add(joined.len() as u32));
                let mut expected = shape.flags;
                if index > 0 { expected &= !tcp_flags::CWR; }
                if index + 1 < count { expected &= !(tcp_flags::FIN | tcp_flags::PSH); }
                prop_assert_eq!(flags, expected);
            }
            if !shape.v6 {
                let l3 = usize::from(Layout::of(segment.bytes()).expect("well-formed").l3);
                let id = Ipv4Header::at(segment.bytes(), l3).expect("there").id.get();
                prop_assert_eq!(id, 0xfffeu16.wrapping_add(index as u16));
            }
            joined.extend(payload);
            pool.free(segment);
        }
        prop_assert_eq!(joined, shape.payload);
    }

    #[test]
    fn cutting_inside_a_tunnel_fixes_the_outer_headers(
        shape in shapes(), outer_v6 in any::<bool>(), with_checksum in any::<bool>(), plain_inner in any::<bool>(),
    ) {
        let mut pool = pool();
        let (mut inner, state) = build(&shape);
        let layout = Layout::of(&inner).expect("well-formed");
        let plain_inner = plain_inner && shape.udp && !shape.v6;
        if plain_inner {
            let at = usize::from(layout.l4) + 6;
            inner[at..at + 2].fill(0);
        }
        let tunnel = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat();
        let builder = PacketBuilder::ethernet2([4; 6], [6; 6]);
        let mut bytes = Vec::new();
        let builder =
            if outer_v6 { builder.ipv6([3; 16], [4; 16], 64) } else { builder.ipv4([3; 4], [4; 4], 64) };
        builder.udp(50_000, 4789).write(&mut bytes, &tunnel).expect("a vector");
        let outer_l4 = if outer_v6 { 54 } else { 34 };
        if !with_checksum {
            bytes[outer_l4 + 6..outer_l4 + 8].fill(0);
        }
        let before = outer_l4 + 16;
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        let Checksum::Partial { start, offset } = state else { unreachable!("build leaves it partial") };
        let start = start + before as u16;
        if !plain_inner {
            frame.set_checksum(Checksum::Partial { start, offset });
        }
        frame.set_gso(Some(gso(&shape, Some(Tunnel {
            outer_l4: outer_l4 as u16,
            inner_l3: layout.l3 + before as u16,
            outer_checksum: with_checksum,
        }))));
        let mut joined = Vec::new();
        let mut segments = Vec::new();
        segment(frame, &mut pool, shape.finish, |s| segments.push(s)).expect("well-formed");
        for (index, mut segment) in segments.into_iter().enumerate() {
            if shape.finish == Finish::Later && !plain_inner {
                prop_assert_eq!(segment.checksum(), Checksum::Partial { start, offset });
            } else {
                prop_assert_eq!(segment.checksum(), Checksum::Complete);
            }
            checksum::complete(&mut segment).expect("inside");
            let bytes = &segment.bytes().to_vec();
            let outer = SlicedPacket::from_ethernet(bytes).expect("a valid packet");
            let Some(TransportSlice::Udp(udp)) = outer.transport else { panic!("no UDP") };
            prop_assert_eq!(udp.payload().len(), bytes.len() - outer_l4 - 8);
            prop_assert_eq!(checksum::is_valid(bytes), (with_checksum || outer_v6).then_some(with_checksum));
            if !outer_v6 {
                let header = Ipv4Header::at(bytes, 14).expect("there");
                prop_assert_eq!(usize::from(header.id.get()), index);
            }
            if plain_inner {
                let sliced = SlicedPacket::from_ethernet(&bytes[before..]).expect("a valid packet");
                let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
                prop_assert_eq!(udp.checksum(), 0);
                joined.extend_from_slice(udp.payload());
            } else {
                joined.extend(check(&bytes[before..]).0);
            }
            pool.free(segment);
        }
        prop_assert_eq!(joined, shape.payload);
    }

    #[test]
    fn any_bytes_and_any_state_never_panic_and_lose_no_chunk(
        mut shape in shapes(), noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        size in any::<u16>(), kind in 0..3u8, tunnel in any::<Option<(u16, u16, bool)>>(), small in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        shape.payload.truncate(3000);
        let area = Area::new(1200, 1100).expect("an area");
        let mut pool = FramePool::new(area.clone());
        let (mut bytes, state) = build(&shape);
        for (at, value) in noise {
            let at = at.index(bytes.len().min(80));
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        frame.set_checksum(state);
        let kind = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp][usize::from(kind)];
        let tunnel = tunnel.map(|(a, b, outer_checksum)| Tunnel {
            outer_l4: if small { a % 60 } else { a },
            inner_l3: if small { b % 80 } else { b },
            outer_checksum,
        });
        frame.set_gso(Some(Gso { kind, size, header_len: 5, ecn: true, tunnel }));
        let mut segments = Vec::new();
        let result = segment(frame, &mut pool, shape.finish, |s| segments.push(s));
        prop_assert_eq!(result.unwrap_or(0), segments.len());
        for segment in segments {
            pool.free(segment);
        }
        drop(pool);
        prop_assert_eq!(area.free(ChunkKind::Small), 1200);
        prop_assert_eq!(area.free(ChunkKind::Large), 1100);
    }
}

fn shape(len: usize, size: u16) -> Shape {
    Shape {
        v6: false,
        udp: false,
        tagged: false,
        options: false,
        flags: tcp_flags::ACK,
        payload: vec![7; len],
        size,
        finish: Finish::Now,
    }
}

fn frame(pool: &mut FramePool, shape: &Shape) -> Frame {
    let (bytes, state) = build(shape);
    let mut frame = pool.alloc_from(&bytes).expect("a chunk");
    frame.set_checksum(state);
    frame.set_gso(Some(gso(shape, None)));
    frame
}

#[test]
fn a_pool_that_runs_dry_gives_nothing_and_keeps_its_chunks() {
    let area = Area::new(20, 2).expect("an area");
    let mut pool = FramePool::new(area.clone());
    let frame = frame(&mut pool, &shape(30_000, 1448));
    let result = segment(frame, &mut pool, Finish::Now, |_| panic!("a partial result"));
    assert_eq!(result, Err(SegmentError::NoMemory));
    drop(pool);
    assert_eq!((area.free(ChunkKind::Small), area.free(ChunkKind::Large)), (20, 2));
}

#[test]
fn a_tiny_segment_size_is_refused() {
    let mut pool = pool();
    let frame = frame(&mut pool, &shape(30_000, 8));
    assert_eq!(segment(frame, &mut pool, Finish::Now, |_| {}), Err(SegmentError::Size));
}

#[test]
fn an_ordinary_frame_passes_as_it_is() {
    let mut pool = pool();
    let mut frame = frame(&mut pool, &shape(100, 50));
    frame.set_gso(None);
    let address = frame.address();
    let mut same = None;
    assert_eq!(segment(frame, &mut pool, Finish::Now, |frame| same = Some(frame)), Ok(1));
    let same = same.expect("given to the sink");
    assert_eq!(same.address(), address);
    pool.free(same);
}

/// Returns the shortest of many rounds: other work on the machine only ever adds.
fn best(mut work: impl FnMut()) -> std::time::Duration {
    let round = |_| {
        let start = std::time::Instant::now();
        work();
        start.elapsed()
    };
    (0..20_000).map(round).min().expect("many rounds")
}

/// Run with `cargo test --release -p packet -- --ignored --nocapture segment_speed`.
#[test]
#[ignore = "a measurement, for an optimized build"]
fn segment_speed() {
    let mut pool = pool();
    for finish in [Finish::Now, Finish::Later] {
        let mut one = frame(&mut pool, &shape(64_000, 1448));
        let mut segments = Vec::with_capacity(64);
        let both = best(|| {
            let copy = pool.copy(&one).expect("a chunk");
            segment(copy, &mut pool, finish, |s| segments.push(s)).expect("well-formed");
            for segment in segments.drain(..) {
                pool.free(segment);
            }
        });
        let copy = best(|| {
            let copy = pool.copy(std::hint::black_box(&one)).expect("a chunk");
            pool.free(copy);
        });
        println!("64000 bytes by 1448, {finish:?}: cut {:?}, copy {copy:?}", both.saturating_sub(copy));
        one.set_gso(None);
        pool.free(one);
    }
}
