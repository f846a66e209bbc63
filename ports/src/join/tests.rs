use packet::build::{Packet as Built, eth};
use packet::header::Layout;
use packet::segment::{Finish, segment};
use packet::{Area, FramePool, Gso, MacAddr, VlanId};
use proptest::prelude::*;

use super::*;

const ALL: Can =
    Can { checksum: true, tso4: true, tso6: true, uso: false, tunnel: false, tunnel_checksum: false };
const SIZE: usize = 1000;
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

fn pool() -> FramePool {
    FramePool::new(Area::new(512, 8).expect("a small area"))
}

fn large(v6: bool, options: &[u8], flags: u8, len: usize) -> Built {
    let data: Vec<u8> = (0..=250).cycle().take(len).collect();
    let start = eth(MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    let tcp = if v6 {
        let address = |n: u16| [0xfd00, 0, 0, 0, 0, 0, 0, n];
        start.ipv6(address(1), address(2)).tos(2).tcp(1000, 2000)
    } else {
        start.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tos(2).tcp(1000, 2000)
    };
    // The sequence number wraps.
    tcp.flags(flags).seq(u32::MAX - 5000).ack(77).window(500).options(options).data(&data)
}

/// Cuts a packet as its sender's device does.
fn cut(pool: &mut FramePool, packet: Built) -> Vec<Frame> {
    let mut frame = packet.frame(pool).expect("chunks");
    let layout = Layout::of(frame.bytes()).expect("good");
    let sum = checksum::pseudo(frame.bytes(), &layout).expect("IP").fold();
    let l4 = usize::from(layout.l4);
    frame.bytes_mut()[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    frame.set_checksum(Checksum::Partial { start: layout.l4, offset: 16 });
    let header_len = layout.l4 + u16::from(frame.bytes()[l4 + 12] >> 4) * 4;
    let kind = if l4 == IPV4 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
    let size = u16::try_from(SIZE).expect("small");
    frame.set_gso(Some(Gso { kind, size, header_len, ecn: false, tunnel: None }));
    pieces(pool, frame)
}

fn pieces(pool: &mut FramePool, frame: Frame) -> Vec<Frame> {
    let mut pieces = Vec::new();
    segment(frame, pool, Finish::Now, |piece| pieces.push(piece)).expect("a good frame");
    pieces
}

/// Returns what the device gets of the packets in front, as a frame.
fn join(pool: &mut FramePool, frames: &[Frame], vnet: usize) -> Frame {
    let mut head = Head::default();
    head.start(vnet, &frames[0]);
    let payloads: Vec<_> = frames.iter().map(|frame| &frame.bytes()[head.add(frame)..]).collect();
    let payload = payloads.concat();
    let bytes = head.finish();
    let mut frame = pool.alloc_from(&[&bytes[vnet..], &payload].concat()).expect("a chunk");
    vnet::decode(&bytes[..vnet], &mut frame).expect("a good header");
    frame
}

fn free(pool: &mut FramePool, frames: Vec<Frame>) {
    frames.into_iter().for_each(|frame| pool.free(frame));
}

/// Writes checksums that are right.
fn correct(frame: &mut Frame) {
    if frame.bytes()[12] == 0x08 {
        packet::header::Ipv4Header::fill_checksum(&mut frame.bytes_mut()[14..]);
    }
    let bytes = frame.bytes_mut();
    let Ok(layout) = Layout::of(bytes) else { return };
    let (Some(pseudo), Some(offset)) = (checksum::pseudo(bytes, &layout), layout.checksum_at()) else {
        return;
    };
    let (l4, end) = (usize::from(layout.l4), layout.end as usize);
    let at = l4 + usize::from(offset);
    if at + 2 <= end {
        bytes[at..at + 2].fill(0);
        let sum = pseudo.bytes(&bytes[l4..end]).checksum();
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn what_is_joined_and_cut_again_is_what_it_was() {
    let mut pool = pool();
    for v6 in [false, true] {
        for options in [&[][..], &TIMESTAMPS] {
            for (len, flags) in [(10 * SIZE, 0x10), (9 * SIZE + 1, 0x18), (2 * SIZE - 1, 0x58)] {
                let frames = cut(&mut pool, large(v6, options, flags, len));
                assert_eq!(count(&ALL, frames.iter()), frames.len());
                for vnet in [vnet::LEN, vnet::TUNNEL_LEN] {
                    let whole = join(&mut pool, &frames, vnet);
                    let gso = whole.gso().expect("it is large");
                    assert_eq!((usize::from(gso.size), gso.tunnel), (SIZE, None));
                    assert_eq!(usize::from(gso.header_len), whole.len() - len);
                    let again = pieces(&mut pool, whole);
                    assert_eq!(again.len(), frames.len());
                    for (is, was) in again.iter().zip(&frames) {
                        assert_eq!(is.bytes(), was.bytes());
                    }
                    free(&mut pool, again);
                }
                free(&mut pool, frames);
            }
        }
    }
}

#[test]
fn a_checksum_that_is_left_to_us_needs_not_be_right() {
    let mut pool = pool();
    let mut frames = cut(&mut pool, large(false, &[], 0x10, 4 * SIZE));
    for frame in &mut frames[..3] {
        frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
        frame.bytes_mut()[50..52].copy_from_slice(&[1, 2]);
    }
    assert_eq!(count(&ALL, frames.iter()), 4);
    // Of another header, or not known: not ours to say.
    for state in [Checksum::Partial { start: 20, offset: 16 }, Checksum::Unknown] {
        frames[2].set_checksum(state);
        assert_eq!(count(&ALL, frames.iter()), 2);
    }
    free(&mut pool, frames);
}

#[test]
fn what_is_damaged_stays_alone() {
    let mut pool = pool();
    for at in [14 + 11, 34 + 17, 100, 34 + 20 + SIZE - 1] {
        for victim in 0..3 {
            let mut frames = cut(&mut pool, large(false, &[], 0x10, 3 * SIZE));
            frames[victim].bytes_mut()[at] ^= 0x10;
            assert_eq!(count(&ALL, frames.iter()), victim.max(1), "byte {at} of {victim}");
            free(&mut pool, frames);
        }
    }
}

#[test]
fn only_whole_rows_of_one_connection_are_joined() {
    let mut pool = pool();
    let mut expect = |packets: Vec<Built>, joined: usize| {
        let frames: Vec<_> = packets.iter().map(|packet| packet.frame(&mut pool).expect("chunks")).collect();
        assert_eq!(count(&ALL, frames.iter()), joined);
        free(&mut pool, frames);
    };
    let us = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
    let ip = || eth(us[0], us[1]).ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
    let tcp = |n: u32, len: usize| ip().tcp(1, 2).flags(0x10).seq(n * 100).data(&vec![7; len]);
    expect(vec![tcp(0, 100), tcp(1, 100), tcp(2, 100)], 3);
    expect(vec![tcp(0, 100)], 1);
    // The short one is the last, and an empty one is none.
    expect(vec![tcp(0, 100), tcp(1, 99), tcp(2, 100)], 2);
    expect(vec![tcp(0, 100), tcp(1, 101)], 1);
    expect(vec![tcp(0, 100), tcp(1, 0)], 1);
    expect(vec![tcp(0, 0), tcp(0, 100)], 1);
    // Out of order, twice, something between.
    expect(vec![tcp(0, 100), tcp(2, 100)], 1);
    expect(vec![tcp(0, 100), tcp(0, 100)], 1);
    expect(vec![tcp(0, 100), ip().udp(1, 2).data(&[7; 100]), tcp(1, 100)], 1);
    let flags = |flags: u8| ip().tcp(1, 2).flags(flags).seq(100).data(&[7; 100]);
    for other in [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0x00] {
        expect(vec![tcp(0, 100), flags(other)], 1);
    }
    expect(vec![tcp(0, 100), flags(0x18), tcp(2, 100)], 2);
    // Padded, and tagged.
    expect(vec![tcp(0, 1), ip().tcp(1, 2).flags(0x10).seq(1).data(&[7]).padded()], 1);
    let tagged = |n| {
        let ip = eth(us[0], us[1]).vlan(VlanId(5)).ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
        ip.tcp(1, 2).flags(0x10).seq(n).data(&[7; 100])
    };
    expect(vec![tagged(0), tagged(100)], 1);
    // Fragments, and options.
    let fragment = |n: u32| ip().fragment(1, 0, true).tcp(1, 2).flags(0x10).seq(n).data(&[7; 100]);
    expect(vec![fragment(0), fragment(100)], 1);
    let optional = |n: u32| ip().options(&[1; 4]).tcp(1, 2).flags(0x10).seq(n).data(&[7; 100]);
    expect(vec![optional(0), optional(100)], 1);
}

#[test]
fn a_row_ends_where_an_ip_packet_does() {
    let mut pool = FramePool::new(Area::new(256, 64).expect("an area"));
    let start = || eth(MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    let tcp = |n: u32| {
        let tcp = start().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1, 2).flags(0x10);
        tcp.seq(n * 8000).data(&[7; 8000])
    };
    let frames: Vec<_> = (0..20).map(|n| tcp(n).frame(&mut pool).expect("chunks")).collect();
    assert_eq!(count(&ALL, frames.iter()), 8);
    free(&mut pool, frames);
    let frames: Vec<_> = (0..100)
        .map(|n| {
            let tcp = start().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1, 2).flags(0x10);
            tcp.seq(n).data(&[7]).frame(&mut pool).expect("chunks")
        })
        .collect();
    assert_eq!(count(&ALL, frames.iter()), MOST);
    free(&mut pool, frames);
}

#[test]
fn a_device_that_cannot_cut_gets_them_as_they_are() {
    let mut pool = pool();
    for (v6, can) in [
        (false, Can { tso4: false, ..ALL }),
        (true, Can { tso6: false, ..ALL }),
        (false, Can { checksum: false, ..ALL }),
    ] {
        let frames = cut(&mut pool, large(v6, &[], 0x10, 5 * SIZE));
        assert_eq!(count(&ALL, frames.iter()), 5);
        assert_eq!(count(&can, frames.iter()), 1);
        free(&mut pool, frames);
    }
}

proptest! {
    /// Whatever is changed of a header: what is joined all the same comes out again as it went in.
    #[test]
    fn nothing_is_lost_by_joining(
        v6: bool,
        timestamps: bool,
        victim in 0..4_usize,
        at in 0..90_usize,
        value: u8,
        fix in prop::bool::weighted(0.9),
    ) {
        let mut pool = pool();
        let options = if timestamps { &TIMESTAMPS[..] } else { &[] };
        let mut frames = cut(&mut pool, large(v6, options, 0x10, 4 * SIZE));
        frames[victim].bytes_mut()[at] = value;
        if fix {
            correct(&mut frames[victim]);
        }
        let joined = count(&ALL, frames.iter());
        prop_assert!((1..=4).contains(&joined));
        if joined > 1 {
            let whole = join(&mut pool, &frames[..joined], vnet::LEN);
            let again = pieces(&mut pool, whole);
            prop_assert_eq!(again.len(), joined);
            // An identification says nothing of a packet that must not be cut (RFC 6864, 4).
            let same = |one: &[u8], other: &[u8]| {
                let free = one[12] == 0x08 && one[20] & 0x40 != 0;
                one.iter().zip(other).enumerate().all(|(n, (a, b))| {
                    a == b || free && matches!(n, 18 | 19 | 24 | 25)
                })
            };
            for (is, was) in again.iter().zip(&frames) {
                prop_assert!(is.len() == was.len() && same(is.bytes(), was.bytes()), "{:02x?} {:02x?}", is, was);
            }
            free(&mut pool, again);
        }
        free(&mut pool, frames);
    }
}
