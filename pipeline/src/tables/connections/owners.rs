//! What each port owns: how many connections, and which of them can make room.
//!
//! Expendable connections (half-open, or over) are in their owner's list, oldest first, so that a full table finds one without
//! a search. Counts change behind the list's lock and are read without it: a refusal costs two loads, and a limit may
//! be passed by as many connections as there are workers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use packet::PortId;

use super::{Refused, State};

/// No slot.
pub(super) const NONE: u32 = u32::MAX;
/// In no list of an owner.
const APART: u32 = u32::MAX - 1;

/// Ports that an eviction looks at.
const LOOKED_AT: u32 = 32;

/// How many more a port has when it next asks whether it has most.
const TELLS_EVERY: u32 = 8;

/// A slot's neighbours in the list that it is in: its owner's, its shard's free slots, or the shard's dead.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) next: AtomicU32,
    /// For the dead: when they died.
    pub(super) prev: AtomicU32,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { next: AtomicU32::new(NONE), prev: AtomicU32::new(APART) }
    }
}

#[derive(Debug)]
struct List {
    head: u32,
    tail: u32,
}

#[derive(Debug)]
#[repr(align(64))]
struct Owner {
    list: Mutex<List>,
    open: AtomicU32,
    half_open: AtomicU32,
    expendable: AtomicU32,
    refused: AtomicU64,
    refused_half_open: AtomicU64,
}

/// How many connections a port has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortConnections {
    /// All.
    pub open: u32,
    /// Those that nobody has answered.
    pub half_open: u32,
    /// How many more were refused because the port had as many as it may have,
    pub refused: u64,
    /// and how many because it had as many half-open ones.
    pub refused_half_open: u64,
}

/// All ports. See the module header.
#[derive(Debug)]
pub(super) struct Owners {
    ports: Box<[Owner]>,
    /// The port that had most expendable connections when it was last looked at, and where to look next.
    heaviest: AtomicU32,
    rotation: AtomicU32,
}

impl Owners {
    pub(super) fn new(ports: usize) -> Self {
        let owner = || Owner {
            list: Mutex::new(List { head: NONE, tail: NONE }),
            open: AtomicU32::new(0),
            half_open: AtomicU32::new(0),
            expendable: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            refused_half_open: AtomicU64::new(0),
        };
        Self {
            ports: (0..ports).map(|_| owner()).collect(),
            heaviest: AtomicU32::new(0),
            rotation: AtomicU32::new(0),
        }
    }

    /// Says whether the port may have one more.
    #[inline]
    pub(super) fn admit(&self, port: PortId, quota: u32, half_open_quota: u32) -> Result<(), Refused> {
        let owner = self.ports.get(port.index()).ok_or(Refused::Quota)?;
        if owner.open.load(Ordering::Relaxed) >= quota {
            return Err(Refused::Quota);
        }
        if owner.half_open.load(Ordering::Relaxed) >= half_open_quota {
            return Err(Refused::HalfOpen);
        }
        Ok(())
    }

    /// Counts a connection that was not admitted.
    #[cold]
    pub(super) fn refused(&self, port: PortId, why: Refused) {
        let Some(owner) = self.ports.get(port.index()) else { return };
        let count = if why == Refused::HalfOpen { &owner.refused_half_open } else { &owner.refused };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the oldest expendable connections of a port to `slots` and returns how many those are; none when all that
    /// it has are half-open.
    pub(super) fn oldest(&self, links: &[Link], port: PortId, slots: &mut [u32]) -> usize {
        let Some(owner) = self.ports.get(port.index()) else { return 0 };
        if owner.expendable.load(Ordering::Relaxed) <= owner.half_open.load(Ordering::Relaxed) {
            return 0;
        }
        let list = owner.lock();
        let (mut slot, mut count) = (list.head, 0);
        for place in slots {
            if slot == NONE {
                break;
            }
            *place = slot;
            count += 1;
            slot = links[slot as usize].next.load(Ordering::Relaxed);
        }
        count
    }

    /// Adds a new connection (`before` is `None`), changes the state of one, or removes one (`after` is `None`).
    pub(super) fn change(
        &self,
        links: &[Link],
        port: PortId,
        slot: u32,
        before: Option<State>,
        after: Option<State>,
    ) {
        let owner = &self.ports[port.index()];
        let mut list = owner.lock();
        let adjust = |count: &AtomicU32, counts: fn(State) -> bool| {
            let (was, is) = (before.is_some_and(counts), after.is_some_and(counts));
            let now = count.load(Ordering::Relaxed) + u32::from(is) - u32::from(was);
            count.store(now, Ordering::Relaxed);
            (was, is)
        };
        adjust(&owner.open, |_| true);
        let (was_half_open, is_half_open) = adjust(&owner.half_open, State::is_half_open);
        let (was, is) = adjust(&owner.expendable, State::is_expendable);
        // What was half-open and is over now, or the reverse, goes to the end: it waits anew.
        let again = was && is && was_half_open != is_half_open;
        if was && (!is || again) {
            list.unlink(links, slot);
        }
        if is && (!was || again) {
            list.push(links, slot);
            let own = owner.expendable.load(Ordering::Relaxed);
            if own.is_multiple_of(TELLS_EVERY) && own > self.expendable(self.heaviest.load(Ordering::Relaxed))
            {
                self.heaviest.store(port.0.into(), Ordering::Relaxed);
            }
        }
    }

    /// Takes the oldest expendable connection of a port out of its list. It stays counted until it ends.
    pub(super) fn pop(&self, links: &[Link], port: PortId) -> Option<u32> {
        let mut list = self.ports.get(port.index())?.lock();
        let slot = list.head;
        (slot != NONE).then(|| list.unlink(links, slot))?;
        Some(slot)
    }

    /// Finds the port with most expendable connections. Of many ports it looks at some each time, in turn, next to
    /// the one known before; a port that gets more than that one says so itself.
    pub(super) fn heaviest(&self) -> Option<PortId> {
        let count = u32::try_from(self.ports.len()).expect("ports are 16 bits");
        let before = self.heaviest.load(Ordering::Relaxed);
        let first = self.rotation.fetch_add(LOOKED_AT, Ordering::Relaxed);
        let looked_at = (0..LOOKED_AT.min(count)).map(|n| first.wrapping_add(n) % count);
        let size = |port| self.expendable(port);
        let most = looked_at.chain([before]).max_by_key(|port| (size(*port), *port))?;
        // PERF: a full look at 1024 ports costs 5000 clocks. When none is found, it is worth it.
        let most = if size(most) == 0 { (0..count).max_by_key(|port| (size(*port), *port))? } else { most };
        self.heaviest.store(most, Ordering::Relaxed);
        Some(PortId(u16::try_from(most).expect("a port's number")))
    }

    fn expendable(&self, port: u32) -> u32 {
        self.ports.get(port as usize).map_or(0, |owner| owner.expendable.load(Ordering::Relaxed))
    }

    /// Returns what a port has.
    pub(super) fn counts(&self, port: PortId) -> PortConnections {
        self.ports.get(port.index()).map_or_else(PortConnections::default, |owner| PortConnections {
            open: owner.open.load(Ordering::Relaxed),
            half_open: owner.half_open.load(Ordering::Relaxed),
            refused: owner.refused.load(Ordering::Relaxed),
            refused_half_open: owner.refused_half_open.load(Ordering::Relaxed),
        })
    }

    /// Returns how many half-open connections all ports have together.
    pub(super) fn half_open(&self) -> usize {
        self.ports.iter().map(|owner| owner.half_open.load(Ordering::Relaxed) as usize).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.ports)
    }
}

impl Owner {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl List {
    fn push(&mut self, links: &[Link], slot: u32) {
        let link = &links[slot as usize];
        link.next.store(NONE, Ordering::Relaxed);
        link.prev.store(self.tail, Ordering::Relaxed);
        match self.tail {
            NONE => self.head = slot,
            tail => links[tail as usize].next.store(slot, Ordering::Relaxed),
        }
        self.tail = slot;
    }

    /// Takes a slot out; nothing happens when it was taken out before.
    fn unlink(&mut self, links: &[Link], slot: u32) {
        let link = &links[slot as usize];
        let (next, prev) = (link.next.load(Ordering::Relaxed), link.prev.load(Ordering::Relaxed));
        if prev == APART {
            return;
        }
        match prev {
            NONE => self.head = next,
            prev => links[prev as usize].next.store(next, Ordering::Relaxed),
        }
        match next {
            NONE => self.tail = prev,
            next => links[next as usize].prev.store(prev, Ordering::Relaxed),
        }
        link.prev.store(APART, Ordering::Relaxed);
    }
}
