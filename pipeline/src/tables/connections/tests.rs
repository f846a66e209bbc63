//! The table step by step, with a hand-wound clock. The dull twin is in `model`.

use std::cell::RefCell;
use std::time::Duration;

use packet::header::protocol::{ICMP, TCP, UDP};
use packet::header::tcp_flags::{ACK, FIN, RST, SYN};
use packet::{Address, NetworkId, PortId, Tuple};

use super::*;
use crate::headers::Segment;

mod model;
mod threads;

const A: PortId = PortId(0);
const B: PortId = PortId(1);
const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef];
const NEVER: Instant = Instant::from_nanos(u64::MAX);

pub(super) fn at(seconds: u64) -> Instant {
    Instant::from_nanos(seconds * 1_000_000_000)
}

pub(super) fn table(capacity: usize, workers: usize) -> Connections {
    Connections::new(capacity, workers, 4, Timeouts::default(), SEED)
}

pub(super) fn key(network: u16, protocol: u8, from: u32, to: u32) -> Key {
    let tuple = Tuple {
        source: Address::v4(from.to_be_bytes()),
        destination: Address::v4(to.to_be_bytes()),
        source_port: 1000,
        destination_port: 80,
        protocol,
    };
    Key { network: NetworkId(network), tuple }
}

/// Connection `n`: nothing translated.
pub(super) fn plain(n: u32, protocol: u8, owner: PortId) -> NewConnection {
    let original = key(1, protocol, n, 0xffff_0000);
    NewConnection {
        original,
        reply: Key { network: NetworkId(2), tuple: original.tuple.inverted() },
        owner,
        tcp: (protocol == TCP).then_some(SYN_SEGMENT),
        quota: u32::MAX,
        half_open_quota: u32::MAX,
        details: Details::default(),
        counted: 0,
    }
}

const SYN_SEGMENT: Segment =
    Segment { flags: SYN, sequence: 100, acknowledgment: 0, window: 1000, payload_len: 0 };

const PACKET: Seen = Seen { bytes: 100, tcp: None };

fn sweep(table: &Connections, now: Instant) -> Vec<Ended> {
    let ended = RefCell::new(Vec::new());
    for worker in 0..table.cursors.len() {
        table.sweep(worker, now, 1 << 20, &mut |end: &Ended| ended.borrow_mut().push(*end));
    }
    // What was found idle has gone to limbo; what left limbo was freed before.
    for worker in 0..table.cursors.len() {
        table.sweep(worker, now, 1 << 20, &mut |end: &Ended| ended.borrow_mut().push(*end));
    }
    ended.into_inner()
}

#[test]
fn both_directions_are_found_and_know_of_each_other() {
    let table = table(100, 1);
    let details = Details { rule: 7, peer_port: B, flags: 3, ..Details::default() };
    let new = NewConnection { details, ..plain(1, UDP, A) };
    let id = table.create(&new, at(1)).expect("room");
    let original = table.find(&new.original).expect("made");
    assert_eq!((original.id, original.direction), (id, Direction::Original));
    assert_eq!((original.original, original.reply, original.owner), (new.original, new.reply, A));
    assert_eq!((original.state, original.details), (State::Unreplied, details));
    let reply = table.find(&new.reply).expect("made");
    assert_eq!((reply.id, reply.direction), (id, Direction::Reply));
    assert_eq!(reply.key(reply.direction), new.reply);
    assert!(table.find(&Key { network: NetworkId(3), ..new.original }).is_none(), "networks are apart");
    let later = Details { checked: 9, ..details };
    table.revalidated(id, later);
    assert_eq!(table.get(id).map(|found| found.details), Some(later));
}

#[test]
fn a_key_in_use_is_refused_whichever_side_it_is() {
    let table = table(100, 1);
    let first = plain(1, UDP, A);
    table.create(&first, at(1)).expect("room");
    assert_eq!(table.create(&first, at(1)), Err(Refused::Exists));
    let other = NewConnection { original: plain(2, UDP, A).original, ..first };
    assert_eq!(table.create(&other, at(1)), Err(Refused::ReplyTaken));
    let turned = NewConnection { original: first.reply, reply: plain(3, UDP, A).reply, ..first };
    assert_eq!(table.create(&turned, at(1)), Err(Refused::Exists));
    let itself = NewConnection { reply: plain(4, UDP, A).original, ..plain(4, UDP, A) };
    assert_eq!(table.create(&itself, at(1)), Err(Refused::ReplyTaken));
    assert!(table.find(&plain(2, UDP, A).original).is_none(), "neither side of what was refused");
    assert_eq!(table.port(A).open, 1);
}

#[test]
fn idle_connections_end_by_their_protocol_and_state() {
    let table = table(100, 1);
    let cases = [
        (1, UDP, false, 30),
        (2, UDP, true, 300),
        (3, ICMP, false, 60),
        (4, ICMP, true, 60),
        (5, 47, true, 600),
    ];
    for (n, protocol, replied, _) in cases {
        let id = table.create(&plain(n, protocol, A), at(1000)).expect("room");
        table.track(id, Direction::Original, PACKET, at(1000)).expect("alive");
        if replied {
            table.track(id, Direction::Reply, PACKET, at(1000)).expect("alive");
        }
    }
    for second in 0..700 {
        sweep(&table, at(1000 + second));
        for (n, protocol, _, limit) in cases {
            let found = table.find(&plain(n, protocol, A).original).is_some();
            assert_eq!(found, second <= limit, "case {n} after {second} s");
        }
    }
    assert_eq!(table.stats().ended[End::Idle as usize], 5);
}

#[test]
fn three_idle_hours_end_no_tcp_connection_and_a_day_does() {
    let table = table(100, 1);
    let id = established(&table, 1);
    sweep(&table, at(10_800));
    let keepalive = Segment { flags: ACK, ..SYN_SEGMENT };
    let seen = Seen { bytes: 40, tcp: Some(keepalive) };
    assert_eq!(table.track(id, Direction::Original, seen, at(10_800)), Ok(State::Established));
    sweep(&table, at(10_800 + 24 * 3600));
    assert!(table.get(id).is_some());
    let ended = sweep(&table, at(10_802 + 24 * 3600));
    assert_eq!(ended[0].why, End::Idle);
    assert_eq!((ended[0].packets, ended[0].bytes), ([3, 1], [120, 40]));
    assert_eq!(ended[0].lasted.as_secs(), 10_799);
}

fn established(table: &Connections, n: u32) -> ConnectionId {
    let id = table.create(&plain(n, TCP, A), at(1)).expect("room");
    let answer = Segment { flags: SYN | ACK, sequence: 500, acknowledgment: 101, ..SYN_SEGMENT };
    let confirmed = Segment { flags: ACK, sequence: 101, acknowledgment: 501, ..SYN_SEGMENT };
    let step = |direction, segment| {
        table.track(id, direction, Seen { bytes: 40, tcp: Some(segment) }, at(1)).expect("a handshake")
    };
    assert_eq!(step(Direction::Original, SYN_SEGMENT), State::SynSent);
    assert_eq!(step(Direction::Reply, answer), State::SynReceived);
    assert_eq!(step(Direction::Original, confirmed), State::Established);
    id
}

#[test]
fn what_the_fast_path_brings_home_keeps_alive_and_counts() {
    let table = table(100, 1);
    let id = table.create(&plain(1, UDP, A), at(1)).expect("room");
    assert!(table.fold(id.slot, Direction::Original, 5_000, 1 << 33, at(20)));
    assert!(table.fold(id.slot, Direction::Original, 0, 0, at(40)), "alive, and nothing to count");
    sweep(&table, at(49));
    assert!(table.fold(id.slot, Direction::Reply, 1, 60, at(50)));
    let mut views = Vec::new();
    table.for_each(at(60), |_| true, |view| views.push(*view));
    let view = views[0];
    assert_eq!((view.state, view.packets, view.bytes), (State::Replied, [5_000, 1], [1 << 33, 60]));
    assert!(view.age.as_secs().abs_diff(59) <= 1 && view.left.as_secs().abs_diff(290) <= 1, "{view:?}");
    sweep(&table, at(352));
    assert!(!table.fold(id.slot, Direction::Original, 1, 60, at(353)), "dead");
}

#[test]
fn a_slot_is_not_used_again_before_every_worker_has_passed() {
    let table = table(4, 2);
    table.passed(0, at(1));
    table.passed(1, at(1));
    let new = plain(1, UDP, A);
    let id = table.create(&new, at(10)).expect("room");
    table.track(id, Direction::Original, PACKET, at(10)).expect("alive");
    table.kill(id, End::Cut);
    assert!(table.find(&new.original).is_none() && table.get(id).is_none());
    let again = table.create(&new, at(10)).expect("the keys of the dead are free");
    assert_ne!(again.slot, id.slot);
    assert!(sweep(&table, at(20)).is_empty());
    table.passed(0, at(20));
    assert!(sweep(&table, at(20)).is_empty(), "worker 1 may still use it");
    table.passed(1, at(10));
    assert!(sweep(&table, at(20)).is_empty(), "it may have validated it in the very turn of the death");
    table.passed(1, NEVER);
    let ended = sweep(&table, at(20));
    assert_eq!(ended.iter().map(|end| (end.id, end.why)).collect::<Vec<_>>(), [(id, End::Cut)]);
    assert_eq!(table.find(&new.original).map(|found| found.id), Some(again), "its namesake lives");
    let next = table.create(&plain(2, UDP, A), at(21)).expect("room");
    assert_eq!(next.slot, id.slot, "the last slot that was freed");
    assert_ne!(next.stamp, id.stamp);
    table.kill(id, End::Cut);
    assert!(table.get(next).is_some(), "the old name means nothing any more");
    assert_eq!(table.track(id, Direction::Original, PACKET, at(21)), Err(Invalid::Gone));
}

#[test]
fn death_is_never_earlier_than_a_validation_before() {
    let table = table(4, 2);
    table.passed(0, at(5));
    table.passed(1, at(5));
    let id = table.create(&plain(1, UDP, A), at(10)).expect("room");
    // The second worker's turn began later than the first one's, which kills.
    assert!(table.fold(id.slot, Direction::Original, 1, 60, at(12)));
    table.kill(id, End::Flushed);
    table.passed(0, at(11));
    table.passed(1, at(12));
    assert!(sweep(&table, at(11)).is_empty());
    table.passed(0, at(13));
    table.passed(1, at(13));
    assert_eq!(sweep(&table, at(13)).len(), 1);
}

#[test]
fn quotas_are_per_port_and_count_half_open_ones_apart() {
    let table = table(100, 1);
    let make = |n, owner| {
        table.create(&NewConnection { quota: 4, half_open_quota: 2, ..plain(n, UDP, owner) }, at(1))
    };
    let first = make(1, A).expect("room");
    make(2, A).expect("room");
    assert_eq!(make(3, A), Err(Refused::HalfOpen));
    table.track(first, Direction::Reply, PACKET, at(1)).expect("alive");
    let third = make(3, A).expect("one is answered");
    table.track(third, Direction::Reply, PACKET, at(1)).expect("alive");
    let fourth = make(4, A).expect("another is");
    table.track(fourth, Direction::Reply, PACKET, at(1)).expect("alive");
    assert_eq!(make(5, A), Err(Refused::Quota));
    make(6, B).expect("the quota is not B's");
    let expected = PortConnections { open: 4, half_open: 1, refused: 1, refused_half_open: 1 };
    assert_eq!(table.port(A), expected);
    table.kill(fourth, End::Cut);
    make(5, A).expect("the dead do not count");
    assert_eq!(table.create(&plain(9, UDP, PortId(99)), at(1)), Err(Refused::Quota), "no such port");
}

#[test]
fn of_a_port_at_its_quota_the_oldest_that_is_over_makes_room() {
    let table = table(100, 1);
    let make = |n, owner| {
        let new = plain(n, TCP, owner);
        table.create(&NewConnection { quota: 3, half_open_quota: 2, ..new }, at(1))
    };
    let refusal = Segment { flags: RST | ACK, sequence: 0, acknowledgment: 101, ..SYN_SEGMENT };
    let reset = |id| {
        let refusal = Seen { bytes: 40, tcp: Some(refusal) };
        assert_eq!(table.track(id, Direction::Reply, refusal, at(1)), Ok(State::Reset));
    };
    let waiting = make(1, A).expect("room");
    let [first, second] = [2, 3].map(|n| {
        let id = make(n, A).expect("room");
        reset(id);
        id
    });
    // The half-open one is older, and stays.
    let third = make(4, A).expect("one that is over makes room");
    assert!(table.get(first).is_none() && table.get(second).is_some() && table.get(waiting).is_some());
    reset(third);
    make(5, A).expect("the next one does");
    assert!(table.get(second).is_none());
    assert_eq!(make(6, A), Err(Refused::HalfOpen), "room, but two are half-open");
    make(7, B).expect("the quota is not B's");
    assert_eq!(table.port(A).refused_half_open, 1);
}

#[test]
fn the_port_with_most_half_open_connections_makes_room() {
    let table = table(10, 1);
    let answered = |n, owner| {
        let id = table.create(&plain(n, UDP, owner), at(1)).expect("room");
        table.track(id, Direction::Reply, PACKET, at(1)).expect("alive");
        id
    };
    let kept: Vec<_> = (0..4).map(|n| answered(n, A)).collect();
    let own = table.create(&plain(10, UDP, B), at(1)).expect("room");
    let flood: Vec<_> =
        (20..25).map(|n| table.create(&plain(n, UDP, PortId(2)), at(1)).expect("room")).collect();
    for (n, victim) in flood.iter().take(4).enumerate() {
        let n = u32::try_from(n).expect("small");
        table.create(&plain(30 + n, UDP, B), at(2)).expect("one makes room");
        let most = flood.iter().filter(|id| table.get(**id).is_none()).count();
        if n < 2 {
            assert!(table.get(*victim).is_none() && most == n as usize + 1, "oldest first");
        }
    }
    assert!(kept.iter().all(|id| table.get(*id).is_some()), "what is answered stays");
    assert!(table.stats().open <= 10);
    let _ = own;
}

#[test]
fn among_a_thousand_ports_the_flooding_one_makes_room() {
    let table = Connections::new(4000, 1, 1024, Timeouts::default(), SEED);
    let modest: Vec<_> = (0..100u16)
        .map(|n| table.create(&plain(n.into(), UDP, PortId(n * 10)), at(1)).expect("room"))
        .collect();
    for n in 1000..50_000 {
        // Spare slots are for the dead; only a sweep frees them.
        let _ = table.create(&plain(n, UDP, PortId(707)), at(1));
        table.sweep(0, at(1), 4, &mut |_: &Ended| {});
    }
    for n in 0..100 {
        table.create(&plain(100_000 + n, UDP, PortId(3)), at(2)).expect("the flood makes room");
        table.sweep(0, at(2), 4, &mut |_: &Ended| {});
    }
    assert!(modest.iter().all(|id| table.get(*id).is_some()), "others keep even their only half-open one");
    assert_eq!(table.port(PortId(3)).half_open, 100);
    let stats = table.stats();
    // Shards tell the table of what they have only now and then.
    assert!(stats.open <= stats.capacity * 65 / 64 && stats.full == 0, "{stats:?}");
}

#[test]
fn a_table_full_of_answered_connections_is_full() {
    let table = table(10, 1);
    for n in 0..10 {
        let id = table.create(&plain(n, UDP, A), at(1)).expect("room");
        table.track(id, Direction::Reply, PACKET, at(1)).expect("alive");
    }
    assert_eq!(table.create(&plain(99, UDP, B), at(1)), Err(Refused::Full));
    assert_eq!((table.stats().full, table.stats().open), (1, 10));
    sweep(&table, at(400));
    table.create(&plain(99, UDP, B), at(400)).expect("all others were idle");
}

#[test]
fn finished_connections_make_room_too() {
    let table = table(10, 1);
    for n in 0..10 {
        let id = established(&table, n);
        let fin = Segment { flags: FIN | ACK, sequence: 101, acknowledgment: 501, ..SYN_SEGMENT };
        for direction in [Direction::Original, Direction::Reply] {
            table.track(id, direction, Seen { bytes: 40, tcp: Some(fin) }, at(2)).expect("alive");
        }
    }
    assert_eq!(table.port(A).half_open, 0);
    table.create(&plain(99, TCP, B), at(3)).expect("the oldest of them made room");
    assert!(table.find(&plain(0, TCP, A).original).is_none());
}

#[test]
fn a_new_syn_opens_what_was_closed_and_an_answer_cannot() {
    let table = table(10, 1);
    let id = established(&table, 1);
    let reset = Segment { flags: RST, sequence: 501, ..SYN_SEGMENT };
    let seen = |tcp| Seen { bytes: 40, tcp: Some(tcp) };
    assert_eq!(table.track(id, Direction::Reply, seen(reset), at(5)), Ok(State::Reset));
    assert_eq!(table.port(A).half_open, 0);
    let syn = Segment { sequence: 9_000_000, ..SYN_SEGMENT };
    assert_eq!(table.track(id, Direction::Original, seen(syn), at(6)), Ok(State::SynSent));
    assert_eq!(table.port(A).half_open, 1);
    let refused = Segment { flags: RST | ACK, sequence: 0, acknowledgment: 9_000_001, ..SYN_SEGMENT };
    assert_eq!(table.track(id, Direction::Reply, seen(refused), at(7)), Ok(State::Reset));
    assert_eq!(table.track(id, Direction::Reply, seen(syn), at(8)), Err(Invalid::Ended));
    assert!(table.get(id).is_none(), "so the newcomer can have its own");
    assert_eq!(table.port(A), PortConnections::default());
}

#[test]
fn a_doubtful_reset_is_disproved_by_traffic() {
    let table = table(10, 1);
    let id = established(&table, 1);
    assert!(table.fold(id.slot, Direction::Original, 1000, 1_000_000, at(2)));
    let reset = Seen { bytes: 40, tcp: Some(Segment { flags: RST, sequence: 77_000_000, ..SYN_SEGMENT }) };
    assert_eq!(table.track(id, Direction::Reply, reset, at(3)), Ok(State::Doubted));
    assert!(table.fold(id.slot, Direction::Original, 10, 1000, at(4)), "it may be from before");
    assert_eq!(table.get(id).map(|found| found.state), Some(State::Doubted));
    sweep(&table, at(200));
    assert!(table.fold(id.slot, Direction::Original, 10, 1000, at(200)));
    assert_eq!(table.get(id).map(|found| found.state), Some(State::Established));
    assert_eq!(table.track(id, Direction::Reply, reset, at(201)), Ok(State::Doubted));
    sweep(&table, at(442));
    assert!(table.get(id).is_none(), "nothing more came (RFC 7857, 2.2)");
}

#[test]
fn a_worker_whose_clock_is_behind_changes_no_judgement() {
    let table = table(10, 1);
    let id = established(&table, 1);
    let carried = |now| table.fold(id.slot, Direction::Reply, 1, 60, now);
    assert!(carried(at(100)) && carried(at(99)));
    let reset = Segment { flags: RST, sequence: 77_000_000, ..SYN_SEGMENT };
    let reset = Seen { bytes: 40, tcp: Some(reset) };
    // As seen from before the last packet, nothing has been quiet for long.
    assert_eq!(table.track(id, Direction::Reply, reset, at(99)), Ok(State::Doubted));
    assert!(carried(at(98)));
    assert_eq!(table.get(id).map(|found| found.state), Some(State::Doubted));
    assert!(carried(at(103)));
    assert_eq!(table.get(id).map(|found| found.state), Some(State::Established));
    sweep(&table, at(98));
    assert!(table.get(id).is_some());
}

#[test]
fn what_is_exported_can_be_imported() {
    let (before, after) = (table(100, 1), table(100, 1));
    established(&before, 1);
    before.create(&plain(2, UDP, B), at(1)).expect("room");
    before.create(&plain(3, TCP, B), at(1)).expect("room");
    let mut saved = Vec::new();
    before.export(|one| saved.push(*one));
    assert_eq!(saved.len(), 3);
    for one in &saved {
        after.import(one, at(1000)).expect("room");
    }
    let state = |n, protocol| after.find(&plain(n, protocol, A).reply).map(|found| found.state);
    assert_eq!(state(1, TCP), Some(State::Established));
    assert_eq!(state(2, UDP), Some(State::Unreplied));
    assert_eq!(state(3, TCP), Some(State::PickedUp), "its handshake can no longer be followed");
    assert_eq!((after.port(A).open, after.port(B).half_open), (1, 2));
}

#[test]
fn a_connection_takes_less_than_200_bytes() {
    let table = Connections::new(262_144, 2, 1024, Timeouts::default(), SEED);
    let each = table.bytes() as f64 / 262_144.0;
    assert!(each < 200.0, "{each}");
}

#[test]
fn listing_picks_and_flushing_ends_them() {
    let table = table(100, 1);
    for n in 0..10 {
        table.create(&plain(n, UDP, PortId(u16::try_from(n % 2).expect("small"))), at(1)).expect("room");
    }
    assert_eq!(table.kill_where(at(2), |view| view.owner == A, End::Flushed), 5);
    assert_eq!((table.port(A).open, table.port(B).open), (0, 5));
    let left = Duration::from_secs(29);
    table.for_each(at(2), |_| true, |view| assert!(view.left.abs_diff(left) < Duration::from_secs(1)));
}

#[test]
fn a_reader_of_news_misses_nothing_even_when_it_is_slow() {
    let table = table(20_000, 1);
    let (mut marks, mut known) = (Marks::default(), std::collections::BTreeSet::new());
    let mut n = 0;
    for burst in [1, 0, 7, 15_000, 3] {
        let mut made = std::collections::BTreeSet::new();
        for _ in 0..burst {
            n += 1;
            made.insert(table.create(&plain(n, UDP, A), at(1)).expect("room").slot);
        }
        let mut shown = Vec::new();
        table.news(&mut marks, |slot| shown.push(slot));
        if burst < 10 {
            assert_eq!(shown.len(), burst, "only what is new");
        }
        known.extend(shown);
        assert!(made.is_subset(&known));
    }
    let slot = table.find(&plain(n, UDP, A).original).expect("made").id.slot;
    let saved = table.saved(slot).expect("alive");
    assert_eq!((saved.original, saved.owner), (plain(n, UDP, A).original, A));
    table.kill_where(at(1), |_| true, End::Flushed);
    assert!(table.saved(slot).is_none());
}
