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
pub(super) struct Owners(Box<[Owner]>);

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
        Self((0..ports).map(|_| owner()).collect())
    }

    /// Says whether the port may have one more, and counts when not.
    #[inline]
    pub(super) fn admit(&self, port: PortId, quota: u32, half_open_quota: u32) -> Result<(), Refused> {
        let owner = self.0.get(port.index()).ok_or(Refused::Quota)?;
        if owner.open.load(Ordering::Relaxed) >= quota {
            owner.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Quota);
        }
        if owner.half_open.load(Ordering::Relaxed) >= half_open_quota {
            owner.refused_half_open.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::HalfOpen);
        }
        Ok(())
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
        let owner = &self.0[port.index()];
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
        }
    }

    /// Takes the oldest expendable connection of the port that has most of them out of its list. It stays counted
    /// until it ends.
    pub(super) fn pop(&self, links: &[Link]) -> Option<u32> {
        let most = self.0.iter().max_by_key(|owner| owner.expendable.load(Ordering::Relaxed))?;
        let mut list = most.lock();
        let slot = list.head;
        (slot != NONE).then(|| list.unlink(links, slot))?;
        Some(slot)
    }

    /// Returns what a port has.
    pub(super) fn counts(&self, port: PortId) -> PortConnections {
        self.0.get(port.index()).map_or_else(PortConnections::default, |owner| PortConnections {
            open: owner.open.load(Ordering::Relaxed),
            half_open: owner.half_open.load(Ordering::Relaxed),
            refused: owner.refused.load(Ordering::Relaxed),
            refused_half_open: owner.refused_half_open.load(Ordering::Relaxed),
        })
    }

    /// Returns how many half-open connections all ports have together.
    pub(super) fn half_open(&self) -> usize {
        self.0.iter().map(|owner| owner.half_open.load(Ordering::Relaxed) as usize).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
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
