use packet::build::eth;
use packet::header::{Ipv4, protocol};
use packet::{Area, VlanId};
use proptest::prelude::*;

use super::*;
use crate::random::{GATEWAY, STATION, is_right, pool};

fn headers_of(bytes: &[u8]) -> Headers {
    Headers::of(bytes).expect("well-formed").expect("IP")
}

/// A UDP packet that may be cut, `more` of whose fragment flag and whose offset are as given.
fn packet(data: &[u8], options: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let ip = eth(STATION, GATEWAY).vlan(VlanId(7)).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tos(4);
    let bytes = ip.options(options).fragment(0xabcd, offset, more).raw(protocol::UDP, data).bytes();
    [&bytes[..], &[0xee; 3]].concat()
}

/// Cuts `bytes`, and returns the pieces, or `None` when the frame came back as it was.
fn cut(bytes: &[u8], mtu: usize, pool: &mut FramePool) -> Option<Vec<Vec<u8>>> {
    let frame = pool.alloc_from(bytes).expect("a chunk");
    cut_frame(frame, mtu, pool)
}

fn cut_frame(frame: Frame, mtu: usize, pool: &mut FramePool) -> Option<Vec<Vec<u8>>> {
    let bytes = frame.bytes().to_vec();
    let mut pieces = Vec::new();
    let result = fragment(frame, &headers_of(&bytes), mtu, pool, &mut |frame| pieces.push(frame));
    let copies = pieces.iter().map(|frame| frame.bytes().to_vec()).collect();
    for piece in pieces {
        pool.free(piece);
    }
    match result {
        Ok(()) => Some(copies),
        Err(frame) => {
            assert_eq!(frame.bytes(), bytes);
            pool.free(frame);
            None
        }
    }
}

proptest! {
    #[test]
    fn pieces_fit_and_make_up_the_packet(
        data in prop::collection::vec(any::<u8>(), 64..6000), mtu in 68usize..2000, words in 0usize..10,
        offset in 0u16..1000, more in any::<bool>(), copied in any::<bool>(),
    ) {
        // One option of that many words, copied or not.
        let len = u8::try_from(words * 4).expect("40 at most");
        let mut option = vec![if copied { 0x88 } else { 7 }, len];
        option.resize(words * 4, 9);
        let (offset, option) = (offset * 8, if words == 0 { &[][..] } else { &option });
        // The data of a fragment that is not the last come in units of eight bytes.
        let data = if more { &data[..data.len() / 8 * 8] } else { &data };
        let bytes = packet(data, option, offset, more);
        let whole = bytes.len() - 3 - 18 <= mtu;

        // A piece may be as short as eight bytes.
        let mut pool = FramePool::new(Area::new(1024, 4).expect("an area"));
        let pieces = cut(&bytes, mtu, &mut pool).expect("may be cut");
        if whole {
            prop_assert_eq!(pieces, [bytes]);
            return Ok(());
        }
        let mut rebuilt: Vec<u8> = Vec::new();
        let last = pieces.len() - 1;
        for (index, piece) in pieces.iter().enumerate() {
            prop_assert_eq!(&piece[..18], &bytes[..18], "tag and stations");
            prop_assert!(piece.len() - 18 <= mtu);
            let ip = Ipv4::new(&piece[18..]).expect("well-formed");
            prop_assert!(ip.checksum_is_valid());
            prop_assert_eq!(usize::from(ip.header.total_len.get()), piece.len() - 18);
            prop_assert_eq!((ip.header.id.get(), ip.header.tos, ip.header.ttl), (0xabcd, 4, 64));
            prop_assert_eq!(usize::from(ip.header.fragment_offset()), usize::from(offset) + rebuilt.len());
            prop_assert_eq!(ip.header.more_fragments(), more || index < last);
            prop_assert!(!ip.header.dont_fragment());
            prop_assert_eq!(ip.options, if index == 0 || copied { option } else { &[] });
            prop_assert!(index == last || ip.payload.len().is_multiple_of(8));
            prop_assert!(index == last || piece.len() - 18 > mtu - 8, "as few as can be");
            rebuilt.extend(ip.payload);
        }
        prop_assert_eq!(&rebuilt[..], &bytes[18 + 20 + option.len()..bytes.len() - 3]);
    }

    #[test]
    fn any_options_never_panic(options in prop::collection::vec(any::<u8>(), 0..40), mtu in 0usize..200) {
        let bytes = packet(&[5; 500], &options, 0, false);
        let _ = cut(&bytes, mtu, &mut pool());
    }

    #[test]
    fn options_are_copied_by_their_bit(kinds in prop::collection::vec((2u8.., 2u8..6), 0..7)) {
        let option = |&(kind, len): &(u8, u8)| {
            let mut option = vec![kind, len];
            option.resize(usize::from(len), 9);
            option
        };
        let all: Vec<u8> = kinds.iter().flat_map(option).collect();
        let mut copied: Vec<u8> = kinds.iter().filter(|(kind, _)| kind & 0x80 != 0).flat_map(option).collect();
        copied.resize(copied.len().next_multiple_of(4), 0);
        let pieces = cut(&packet(&[5; 500], &all, 0, false), 300, &mut pool()).expect("may be cut");
        let later = Ipv4::new(&pieces[1][18..]).expect("well-formed");
        prop_assert_eq!(later.options, &copied[..]);
    }
}

#[test]
fn what_must_not_be_cut_comes_back() {
    let mut pool = pool();
    let whole = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(1, 2).data(&[1; 2000]);
    assert_eq!(cut(whole.as_slice(), 1500, &mut pool), None, "don't fragment");
    assert_eq!(cut(whole.as_slice(), 2028, &mut pool), Some(vec![whole.bytes()]), "it fits");
    let v6 = eth(STATION, GATEWAY).ipv6([0xfd; 16], [0xfc; 16]).udp(1, 2).data(&[1; 2000]);
    assert_eq!(cut(v6.as_slice(), 1500, &mut pool), None, "IPv6");
    let may = packet(&[1; 2000], &[], 0, false);
    assert_eq!(cut(&may, 67, &mut pool), None, "no link has that MTU");
    let behind = packet(&[1; 2000], &[], 65_000, false);
    assert_eq!(cut(&behind, 1500, &mut pool), None, "it would end behind 64 KiB");
}

#[test]
fn without_chunks_nothing_is_cut() {
    let mut pool = FramePool::new(Area::new(64, 1).expect("a small area"));
    let bytes = packet(&[1; 3000], &[], 0, false);
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc(60)).collect();
    // One for the frame, and two of the three that it takes.
    for frame in held.split_off(held.len() - 3) {
        pool.free(frame);
    }
    assert_eq!(cut(&bytes, 1500, &mut pool), None);
    for frame in held.split_off(held.len() - 1) {
        pool.free(frame);
    }
    assert_eq!(cut(&bytes, 1500, &mut pool).map(|pieces| pieces.len()), Some(3));
    for frame in held {
        pool.free(frame);
    }
}

#[test]
fn the_checksum_is_finished_first() {
    let mut pool = pool();
    let ip = eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).fragment(1, 0, false);
    let whole = ip.udp(1, 2).data(&[1; 2000]).bytes();
    let mut frame = pool.alloc_from(&whole).expect("a chunk");
    let layout = packet::header::Layout::of(&whole).expect("well-formed");
    crate::random::leave_partial(&mut frame, &layout, 6);
    assert!(is_right(&whole) && frame.bytes() != whole);
    let pieces = cut_frame(frame, 1500, &mut pool).expect("may be cut");
    assert_eq!(pieces[0][34..42], whole[34..42]);
}
