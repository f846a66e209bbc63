//! The table against a dull twin: a list of connections, searched from end to end.

use packet::header::protocol::UDP;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Create { original: u32, reply: u32, owner: u16 },
    Track { nth: usize, reply: bool },
    Fold { nth: usize, reply: bool },
    Kill { nth: usize },
    Wait { units: u64 },
    Sweep,
    Pass { worker: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u32..12, 0u32..12, 0u16..3).prop_map(|(original, reply, owner)| Op::Create { original, reply, owner }),
        2 => (0usize..20, any::<bool>()).prop_map(|(nth, reply)| Op::Track { nth, reply }),
        2 => (0usize..20, any::<bool>()).prop_map(|(nth, reply)| Op::Fold { nth, reply }),
        1 => (0usize..20).prop_map(|nth| Op::Kill { nth }),
        1 => (1u64..2500).prop_map(|units| Op::Wait { units }),
        2 => Just(Op::Sweep),
        2 => (0usize..2).prop_map(|worker| Op::Pass { worker }),
    ]
}

#[derive(Clone, Debug)]
struct Twin {
    id: ConnectionId,
    new: NewConnection,
    replied: bool,
    seen: u64,
    /// When it began to be half-open, in operations: who is oldest.
    since: usize,
    died: Option<u64>,
}

const CAPACITY: usize = 8;
const QUOTA: u32 = 6;
const HALF_OPEN: u32 = 4;

/// Originals and replies are drawn apart, so that each kind of collision comes up.
fn new(original: u32, reply: u32, owner: u16) -> NewConnection {
    NewConnection {
        reply: plain(reply, UDP, A).reply,
        quota: QUOTA,
        half_open_quota: HALF_OPEN,
        ..plain(original, UDP, PortId(owner))
    }
}

/// What `create` has to answer, and who makes room for it.
fn expect(twins: &[Twin], new: &NewConnection, slots: usize) -> (Option<Refused>, Option<ConnectionId>) {
    let alive = || twins.iter().filter(|twin| twin.died.is_none());
    let of = |owner| alive().filter(move |twin| twin.new.owner == owner);
    let half_open = |owner| of(owner).filter(|twin| !twin.replied).count();
    if of(new.owner).count() >= QUOTA as usize {
        return (Some(Refused::Quota), None);
    }
    if half_open(new.owner) >= HALF_OPEN as usize {
        return (Some(Refused::HalfOpen), None);
    }
    let mut victim = None;
    if alive().count() >= CAPACITY {
        // Of ports with equally many the last is asked.
        let most = (0..4).map(PortId).max_by_key(|port| half_open(*port)).expect("four");
        let limbo = twins.iter().filter(|twin| twin.died.is_some()).count();
        if limbo * 2 >= slots - CAPACITY && most == new.owner {
            return (Some(Refused::Full), None);
        }
        let oldest = of(most).filter(|twin| !twin.replied).min_by_key(|twin| twin.since);
        match oldest {
            Some(twin) => victim = Some(twin.id),
            None => return (Some(Refused::Full), None),
        }
    }
    let rest = || alive().filter(|twin| Some(twin.id) != victim);
    let taken = |key: Key| rest().any(|twin| twin.new.original == key || twin.new.reply == key);
    let refused = match () {
        () if taken(new.original) => Some(Refused::Exists),
        () if taken(new.reply) => Some(Refused::ReplyTaken),
        () if twins.len() >= slots => Some(Refused::Full),
        () => None,
    };
    (refused, victim)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn equals_a_list(ops in prop::collection::vec(op(), 1..120)) {
        let table = table(CAPACITY, 2);
        let slots = table.entries.len();
        let mut twins: Vec<Twin> = Vec::new();
        let mut passed = [0u64; 2];
        table.passed(0, Instant::ZERO);
        table.passed(1, Instant::ZERO);
        let mut unit = 1000u64;
        for (number, op) in ops.into_iter().enumerate() {
            let now = Instant::from_nanos(unit << 24);
            let alive: Vec<usize> = (0..twins.len()).filter(|at| twins[*at].died.is_none()).collect();
            let pick = |nth: usize| (!alive.is_empty()).then(|| alive[nth % alive.len()]);
            let direction = |reply| if reply { Direction::Reply } else { Direction::Original };
            match op {
                Op::Create { original, reply, owner } => {
                    let new = new(original, reply, owner);
                    let (refused, victim) = expect(&twins, &new, slots);
                    for twin in &mut twins {
                        if Some(twin.id) == victim { twin.died = Some(unit); }
                    }
                    let made = table.create(&new, now);
                    prop_assert_eq!(made.err(), refused);
                    if let Ok(id) = made {
                        prop_assert!(twins.iter().all(|twin| twin.id.slot != id.slot), "a slot in use");
                        twins.push(Twin { id, new, replied: false, seen: unit, since: number, died: None });
                    }
                }
                Op::Track { nth, reply } | Op::Fold { nth, reply } => {
                    let Some(at) = pick(nth) else { continue };
                    let twin = &mut twins[at];
                    twin.seen = unit;
                    twin.replied |= reply;
                    let state = if twin.replied { State::Replied } else { State::Unreplied };
                    if matches!(op, Op::Fold { .. }) {
                        prop_assert!(table.fold(twin.id.slot, direction(reply), 1, 60, now));
                        prop_assert_eq!(table.get(twin.id).map(|found| found.state), Some(state));
                    } else {
                        prop_assert_eq!(table.track(twin.id, direction(reply), PACKET, now), Ok(state));
                    }
                }
                Op::Kill { nth } => {
                    let Some(at) = pick(nth) else { continue };
                    // Whoever kills has shown the time before, with the packet that made him.
                    table.fold(twins[at].id.slot, Direction::Original, 0, 0, now);
                    table.kill(twins[at].id, End::Cut);
                    twins[at].died = Some(unit);
                    prop_assert!(!table.fold(twins[at].id.slot, Direction::Original, 0, 0, now));
                }
                Op::Wait { units } => unit += units,
                Op::Sweep => {
                    let freed = |twin: &Twin| twin.died.is_some_and(|died| passed.iter().all(|at| *at > died));
                    let mut expected: Vec<_> = twins.iter().filter(|twin| freed(twin)).map(|twin| twin.id.slot).collect();
                    twins.retain(|twin| !freed(twin));
                    let mut told = Vec::new();
                    for worker in 0..2 {
                        table.sweep(worker, now, 1000, &mut |end: &Ended| told.push(end.id.slot));
                    }
                    told.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(told, expected);
                    for twin in twins.iter_mut().filter(|twin| twin.died.is_none()) {
                        let limit = if twin.replied { 300 } else { 30 } * 1_000_000_000u64;
                        if unit.saturating_sub(twin.seen + 1) << 24 > limit { twin.died = Some(unit); }
                    }
                }
                Op::Pass { worker } => {
                    passed[worker] = unit;
                    table.passed(worker, now);
                }
            }
            for twin in &twins {
                let found = [twin.new.original, twin.new.reply].map(|key| table.find(&key).map(|found| found.id));
                if twin.died.is_none() {
                    prop_assert_eq!(found, [Some(twin.id); 2]);
                } else {
                    prop_assert!(!found.contains(&Some(twin.id)));
                }
            }
            for port in (0..4).map(PortId) {
                let own = || twins.iter().filter(|twin| twin.died.is_none() && twin.new.owner == port);
                let counts = table.port(port);
                let halves = own().filter(|twin| !twin.replied).count();
                prop_assert_eq!((counts.open as usize, counts.half_open as usize), (own().count(), halves));
            }
            let stats = table.stats();
            let dead = twins.iter().filter(|twin| twin.died.is_some()).count();
            prop_assert_eq!((stats.open, stats.limbo), (twins.len() - dead, dead));
        }
    }
}
