//! Fragments in and out of order, attacks, limits, and that no frame is lost.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::sync::Arc;

use packet::area::ChunkKind;
use packet::{Area, FramePool};
use proptest::prelude::*;

use super::*;

const SEED: [u64; 2] = [0x1234_5678_9abc_def1, 0x0fed_cba9_8765_4321];
const UDP: u8 = 17;
const PORTS: (u16, u16) = (4000, 53);

fn fragments() -> Fragments {
    Fragments::new(1024, SEED)
}

fn key(id: u32) -> FragmentKey {
    FragmentKey {
        network: NetworkId(1),
        source: Address::v4([10, 0, 0, 1]),
        destination: Address::v4([10, 0, 0, 2]),
        protocol: UDP,
        id,
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn piece(offset: u32, len: u32, more: bool) -> Piece {
    Piece { offset, len, more, ports: (offset == 0).then_some(PORTS) }
}

/// Frames, and what became of them. All are home in the end.
struct Frames {
    area: Arc<Area>,
    pool: FramePool,
}

impl Frames {
    fn new() -> Self {
        let area = Area::new(1024, 1).expect("a small area");
        Self { pool: FramePool::new(Arc::clone(&area)), area }
    }

    fn frame(&mut self, mark: u8) -> Frame {
        self.pool.alloc_from(&[mark; 60]).expect("room")
    }

    fn hold(&mut self, fragments: &mut Fragments, key: FragmentKey, mark: u8, from: PortId) -> bool {
        let frame = self.frame(mark);
        let kept = fragments.hold(key, frame, from);
        kept.map_err(|frame| self.pool.free(frame)).is_ok()
    }

    fn release(&mut self, fragments: &mut Fragments, key: FragmentKey) -> Vec<u8> {
        let mut marks = Vec::new();
        while let Some((frame, _)) = fragments.release(key) {
            marks.push(frame.bytes()[0]);
            self.pool.free(frame);
        }
        marks
    }

    fn expire(&mut self, fragments: &mut Fragments, now: Instant) -> usize {
        let mut count = 0;
        fragments.expire(now, &mut |frame, _| {
            count += 1;
            self.pool.free(frame);
        });
        count
    }

    fn finish(mut self, mut fragments: Fragments) {
        fragments.clear(&mut |frame, _| self.pool.free(frame));
        assert_eq!((fragments.held_frames(), fragments.datagrams()), (0, 0));
        let Self { area, pool } = self;
        drop(pool);
        assert_eq!(area.free(ChunkKind::Small), 1024);
    }
}

const PORT: PortId = PortId(1);

#[test]
fn later_fragments_follow_the_first() {
    let mut table = fragments();
    assert_eq!(table.see(key(1), PORT, piece(0, 1480, true), at(1)), Sighting::First { held: 0 });
    assert_eq!(table.see(key(1), PORT, piece(1480, 1480, true), at(1)), Sighting::Follows(PORTS));
    assert_eq!(table.see(key(2), PORT, piece(1480, 1480, true), at(1)), Sighting::Hold);
    let elsewhere = FragmentKey { network: NetworkId(2), ..key(1) };
    assert_eq!(table.see(elsewhere, PORT, piece(1480, 1480, true), at(1)), Sighting::Hold);
    assert_eq!(table.see(key(1), PORT, piece(2960, 100, false), at(1)), Sighting::Follows(PORTS));
}

#[test]
fn fragments_before_the_first_wait_for_it_in_their_order() {
    let (mut table, mut frames) = (fragments(), Frames::new());
    for (mark, piece) in [(3, piece(2960, 100, false)), (2, piece(1480, 1480, true))] {
        assert_eq!(table.see(key(1), PORT, piece, at(1)), Sighting::Hold);
        assert!(frames.hold(&mut table, key(1), mark, PORT));
    }
    assert_eq!(frames.release(&mut table, key(1)), [], "the first is not there");
    assert_eq!(table.see(key(1), PORT, piece(0, 1480, true), at(2)), Sighting::First { held: 2 });
    assert_eq!(frames.release(&mut table, key(1)), [3, 2]);
    assert!(!frames.hold(&mut table, key(1), 4, PORT), "nothing to wait for");
    frames.finish(table);
}

#[test]
fn an_overlap_drops_the_datagram_and_what_is_still_to_come() {
    let overlaps = [piece(0, 16, true), piece(8, 8, true), piece(24, 16, true), piece(40, 8, false)];
    for last in overlaps {
        let (mut table, mut frames) = (fragments(), Frames::new());
        table.see(key(1), PORT, piece(8, 24, true), at(1));
        assert!(frames.hold(&mut table, key(1), 1, PORT));
        table.see(key(1), PORT, piece(40, 16, true), at(1));
        let overlap = Sighting::Drop(FragmentDrop::Overlap);
        assert_eq!(table.see(key(1), PORT, last, at(1)), overlap, "{last:?}");
        assert_eq!(frames.expire(&mut table, at(1)), 1);
        assert_eq!(table.see(key(1), PORT, piece(0, 8, true), at(2)), overlap);
        assert_eq!(frames.release(&mut table, key(1)), []);
        frames.finish(table);
    }
}

#[test]
fn a_duplicate_is_dropped_alone() {
    let mut table = fragments();
    let duplicate = Sighting::Drop(FragmentDrop::Duplicate);
    table.see(key(1), PORT, piece(0, 1480, true), at(1));
    let forged = Piece { ports: Some((1, 1)), ..piece(0, 1480, true) };
    assert_eq!(table.see(key(1), PORT, forged, at(1)), duplicate);
    assert_eq!(table.see(key(1), PORT, piece(1480, 8, true), at(1)), Sighting::Follows(PORTS));
    assert_eq!(table.see(key(1), PORT, piece(1480, 8, true), at(1)), duplicate);
    assert_eq!(table.see(key(1), PORT, piece(1488, 8, false), at(1)), Sighting::Follows(PORTS));
    assert_eq!(table.see(key(1), PORT, piece(1488, 8, false), at(1)), duplicate, "whole");
}

#[test]
fn fragments_that_hide_something_are_dropped() {
    let mut table = fragments();
    let mut see = |protocol, piece| table.see(FragmentKey { protocol, ..key(1) }, PORT, piece, at(1));
    let tiny = Sighting::Drop(FragmentDrop::Tiny);
    assert_eq!(see(UDP, Piece { ports: None, ..piece(0, 8, true) }), tiny);
    assert_eq!(see(UDP, Piece { ports: None, ..piece(0, 7, false) }), tiny);
    assert_eq!(see(TCP, piece(0, 16, true)), tiny, "no flags");
    assert_eq!(see(TCP, piece(8, 800, true)), tiny, "other flags");
    assert_eq!(see(UDP, piece(8, 0, false)), tiny);
    assert_eq!(see(UDP, piece(8, 12, true)), tiny);
    let long = Sighting::Drop(FragmentDrop::TooLong);
    assert_eq!(see(UDP, piece(65_528, 8, false)), long);
    assert_eq!(see(UDP, piece(u32::MAX, u32::MAX, false)), long);
    assert_eq!(see(TCP, piece(16, 800, true)), Sighting::Hold);
    assert_eq!(see(UDP, piece(65_528, 7, false)), Sighting::Hold);
}

#[test]
fn a_fragment_alone_leaves_no_trace() {
    let (mut table, mut frames) = (fragments(), Frames::new());
    table.see(key(1), PORT, piece(1480, 1480, true), at(1));
    frames.hold(&mut table, key(1), 1, PORT);
    assert_eq!(table.see(key(1), PORT, piece(0, 100, false), at(1)), Sighting::First { held: 0 });
    assert_eq!(frames.release(&mut table, key(1)), [], "they wait for another first");
    assert_eq!(table.see(key(2), PORT, piece(0, 100, false), at(1)), Sighting::First { held: 0 });
    assert_eq!(table.datagrams(), 1);
    frames.finish(table);
}

#[test]
fn the_longest_datagram_passes_and_one_in_shreds_does_not() {
    let mut table = fragments();
    for n in 1..54 {
        let len = if n == 53 { 65_535 - 53 * 1232 } else { 1232 };
        assert_eq!(table.see(key(1), PORT, piece(n * 1232, len, n < 53), at(1)), Sighting::Hold);
    }
    assert_eq!(table.see(key(1), PORT, piece(0, 1232, true), at(1)), Sighting::First { held: 0 });
    table.see(key(2), PORT, piece(0, 8, true), at(1));
    for n in 1..64 {
        assert_eq!(table.see(key(2), PORT, piece(n * 8, 8, true), at(1)), Sighting::Follows(PORTS));
    }
    let many = Sighting::Drop(FragmentDrop::TooMany);
    assert_eq!(table.see(key(2), PORT, piece(512, 8, true), at(1)), many);
    assert_eq!(table.see(key(2), PORT, piece(520, 8, false), at(1)), many);
}

#[test]
fn an_identification_may_be_used_again_once_its_datagram_is_whole() {
    let mut table = fragments();
    let other = Piece { ports: Some((5, 6)), ..piece(0, 1480, true) };
    for first in [piece(0, 1480, true), other, piece(0, 1480, true)] {
        let ports = first.ports.expect("a first");
        assert_eq!(table.see(key(1), PORT, first, at(1)), Sighting::First { held: 0 });
        assert_eq!(table.see(key(1), PORT, piece(1480, 8, false), at(1)), Sighting::Follows(ports));
    }
    assert_eq!(table.see(key(1), PORT, piece(1480, 16, false), at(1)), Sighting::Hold, "not the old ports");
    assert_eq!(table.datagrams(), 1);
}

#[test]
fn datagrams_are_forgotten_in_time() {
    let (mut table, mut frames) = (fragments(), Frames::new());
    table.see(key(1), PORT, piece(8, 8, true), at(1000));
    frames.hold(&mut table, key(1), 1, PORT);
    table.see(key(2), PORT, piece(0, 8, true), at(1000));
    table.see(key(2), PORT, piece(8, 8, false), at(1000));
    assert_eq!(frames.expire(&mut table, at(2900)), 0);
    assert_eq!(table.datagrams(), 2);
    frames.expire(&mut table, at(3200));
    assert_eq!(table.datagrams(), 1, "the whole one is gone");
    assert_eq!(frames.expire(&mut table, at(15_990)), 0);
    assert_eq!(frames.expire(&mut table, at(16_300)), 1);
    assert_eq!((table.datagrams(), table.held_frames()), (0, 0));
    frames.finish(table);
}

#[test]
fn a_port_that_floods_loses_only_its_own() {
    let (mut table, mut frames) = (fragments(), Frames::new());
    for id in 0..100 {
        table.see(key(id), PortId(2), piece(0, 8, true), at(1));
    }
    for id in 1000..100_000 {
        assert_eq!(table.see(key(id), PortId(3), piece(8, 8, true), at(2)), Sighting::Hold);
        frames.hold(&mut table, key(id), 3, PortId(3));
        frames.expire(&mut table, at(2));
    }
    assert_eq!(table.datagrams(), 100 + 256);
    assert!(table.held_frames() <= 64);
    for id in 0..100 {
        assert_eq!(table.see(key(id), PortId(2), piece(8, 8, true), at(3)), Sighting::Follows(PORTS));
    }
    assert_eq!(table.see(key(200), PortId(2), piece(8, 8, true), at(3)), Sighting::Hold);
    assert!(frames.hold(&mut table, key(200), 2, PortId(2)));
    frames.finish(table);
}

#[test]
fn when_all_is_full_the_port_with_most_makes_room() {
    let mut table = Fragments::new(16, SEED);
    for id in 0..16 {
        table.see(key(id), PortId(1 + id as u16 % 4), piece(0, 8, true), at(1));
    }
    assert_eq!(table.see(key(99), PortId(9), piece(0, 8, true), at(1)), Sighting::First { held: 0 });
    assert_eq!(table.see(key(99), PortId(9), piece(8, 8, true), at(1)), Sighting::Follows(PORTS));
    assert_eq!(table.datagrams(), 16);
}

#[test]
fn frames_that_wait_are_bounded_and_a_refusal_gives_the_frame_back() {
    let (mut table, mut frames) = (fragments(), Frames::new());
    let mut kept = 0;
    for port in 0..10 {
        for id in 0..100 {
            let key = key(port * 1000 + id);
            table.see(key, PortId(port as u16), piece(8, 8, true), at(1));
            kept += usize::from(frames.hold(&mut table, key, 1, PortId(port as u16)));
        }
        assert_eq!(kept, (64 * (port as usize + 1)).min(256));
    }
    assert_eq!(table.held_frames(), 256);
    let refused = Sighting::Drop(FragmentDrop::TooMany);
    assert_eq!(table.see(key(9099), PortId(9), piece(0, 8, true), at(1)), refused);
    frames.finish(table);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Datagrams cut anywhere and mixed in any order: each fragment passes once, with the ports of its own first.
    #[test]
    fn every_fragment_passes_in_any_order(
        cuts in proptest::collection::vec((proptest::collection::btree_set(3..200u32, 1..8), 1..9u32), 1..8),
        order in any::<u64>(),
    ) {
        let (mut table, mut frames) = (fragments(), Frames::new());
        let mut all = Vec::new();
        for (id, (cuts, rest)) in (0u16..).zip(&cuts) {
            let ends: Vec<_> = cuts.iter().map(|cut| cut * 8).chain([cuts.last().map_or(0, |cut| cut * 8) + rest]).collect();
            let mut offset = 0;
            for end in &ends {
                let ports = (offset == 0).then_some((id, 7));
                all.push((id, Piece { offset, len: end - offset, more: Some(end) != ends.last(), ports }));
                offset = *end;
            }
        }
        let count = all.len();
        let mut state = order | 1;
        let mut passed = 0;
        while !all.is_empty() {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let (id, piece) = all.swap_remove((state >> 33) as usize % all.len());
            match table.see(key(id.into()), PORT, piece, at(1)) {
                Sighting::First { held } => {
                    prop_assert_eq!(piece.offset, 0);
                    let marks = frames.release(&mut table, key(id.into()));
                    prop_assert!(marks.iter().all(|mark| u16::from(*mark) == id) && marks.len() == held);
                    passed += 1 + held;
                }
                Sighting::Follows(ports) => {
                    prop_assert_eq!(ports, (id, 7));
                    passed += 1;
                }
                Sighting::Hold => prop_assert!(frames.hold(&mut table, key(id.into()), id as u8, PORT)),
                Sighting::Drop(why) => prop_assert!(false, "{:?} {:?}", piece, why),
            }
        }
        prop_assert_eq!((passed, table.held_frames()), (count, 0));
        frames.finish(table);
    }

    /// The pieces of a datagram against a map of bytes.
    #[test]
    fn pieces_fit_together_when_no_byte_is_claimed_twice(
        pieces in proptest::collection::vec((0..16u16, 1..6u16, prop::bool::weighted(0.85)), 1..20),
    ) {
        let mut datagram = Datagram::default();
        datagram.begin(key(1), PORT);
        let (mut claimed, mut seen, mut end_at) = ([false; 32], Vec::new(), None);
        let mut refused = false;
        for (start, len, more) in pieces {
            let end = start + len;
            let known = seen.contains(&(start, end));
            let taken = (start..end).any(|byte| claimed[usize::from(byte)]);
            let highest = (0..32).rev().find(|byte| claimed[usize::from(*byte)]).map_or(0, |byte| byte + 1);
            let ends = match (end_at, more) {
                (None, true) => true,
                (None, false) => highest <= end,
                (Some(at), true) => end < at,
                (Some(_), false) => false,
            };
            let result = datagram.add(start * 8, end * 8, more);
            let expected = match () {
                () if refused => Err(FragmentDrop::Overlap),
                () if known => Err(FragmentDrop::Duplicate),
                () if taken || !ends => Err(FragmentDrop::Overlap),
                () => Ok(()),
            };
            prop_assert_eq!(result, expected, "{} {} {}", start, end, more);
            refused |= result == Err(FragmentDrop::Overlap);
            if result.is_ok() {
                seen.push((start, end));
                claimed[usize::from(start)..usize::from(end)].fill(true);
                if !more {
                    end_at = Some(end);
                }
                let whole = end_at.is_some_and(|end| claimed[..usize::from(end)].iter().all(|byte| *byte));
                prop_assert_eq!(datagram.state == State::Whole, whole);
            }
        }
    }

    /// Whatever is sent, no frame is lost and the limits hold.
    #[test]
    fn frames_are_conserved(
        steps in proptest::collection::vec((0..40u32, 0..4u16, (0..6u32, 1..4u32, any::<bool>()), 0..800u64), 0..400),
    ) {
        let (mut table, mut frames) = (Fragments::new(16, SEED), Frames::new());
        let mut now = 1000;
        for (id, port, (start, len, more), wait) in steps {
            now += wait;
            match table.see(key(id), PortId(port), piece(start * 8, len * 8, more), at(now)) {
                Sighting::Hold => drop(frames.hold(&mut table, key(id), 1, PortId(port))),
                Sighting::First { held } => prop_assert_eq!(frames.release(&mut table, key(id)).len(), held),
                Sighting::Follows(ports) => prop_assert_eq!(ports, PORTS),
                Sighting::Drop(_) => {}
            }
            if wait % 3 == 0 {
                frames.expire(&mut table, at(now));
            }
            prop_assert!(table.datagrams() <= 16 && table.held_frames() <= 256);
        }
        frames.finish(table);
    }
}
