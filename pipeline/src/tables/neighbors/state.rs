//! What is known of each slot, behind the table's lock: states, who makes room, which slots rest.

use super::index::Index;
use super::*;
use crate::tables::lists::{Link, List};

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: NeighborKey,
    state: NeighborState,
    /// When it was heard, or first asked for, or found not to answer.
    since: Instant,
    /// When it was last asked, and how often.
    asked: Instant,
    asks: u8,
}

/// What a network has in the table, fixed neighbours aside.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    unresolved: List,
    learned: List,
    resting: usize,
}

impl Share {
    fn live(&self) -> usize {
        self.unresolved.len() + self.learned.len()
    }

    /// Returns the list that neighbours of a state are in.
    fn list(&mut self, state: NeighborState) -> Option<&mut List> {
        match state {
            NeighborState::Fixed => None,
            NeighborState::Incomplete | NeighborState::Failed => Some(&mut self.unresolved),
            NeighborState::Reachable | NeighborState::Probed => Some(&mut self.learned),
        }
    }
}

#[derive(Debug)]
struct Resting {
    slot: u32,
    network: NetworkId,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct State {
    entries: Box<[Option<Entry>]>,
    links: Box<[Link]>,
    shares: Box<[Share]>,
    ready: Vec<u32>,
    resting: VecDeque<Resting>,
    live: usize,
    capacity: usize,
    place: usize,
}

impl State {
    pub(super) fn new(capacity: usize, slots: usize, networks: usize) -> Self {
        let count = u32::try_from(slots).expect("fewer neighbours than 2^32");
        Self {
            entries: vec![None; slots].into(),
            links: vec![Link::default(); slots].into(),
            shares: vec![Share::default(); networks].into(),
            ready: (0..count).rev().collect(),
            resting: VecDeque::with_capacity(slots),
            live: 0,
            capacity,
            place: 0,
        }
    }

    /// Returns the neighbour in a slot.
    pub(super) fn neighbor(&self, index: &Index, slot: u32) -> Option<Neighbor> {
        let Entry { key, state, since, .. } = self.entries[slot as usize]?;
        let target = index.target(slot);
        Some(Neighbor { key, adjacency: Adjacency { slot }, target, state, seen: since })
    }

    /// Returns the place that is to be aged next.
    pub(super) fn next_place(&mut self) -> u32 {
        let place = self.place;
        self.place = (place + 1) % self.entries.len();
        u32::try_from(place).expect("checked by new")
    }

    /// Makes an entry for an unknown neighbour, at the cost of another if need be. One that is to be resolved counts as
    /// asked once.
    pub(super) fn create(
        &mut self,
        index: &Index,
        key: NeighborKey,
        state: NeighborState,
        now: Instant,
    ) -> Option<u32> {
        self.wake(now);
        let share = *self.shares.get(key.network.index())?;
        if state != NeighborState::Fixed && share.live() + share.resting >= self.capacity / 4 {
            // One that is learned would leave a slot that has to rest.
            self.free(index, share.unresolved.first()?, now);
        }
        if self.live >= self.capacity {
            let victim = self.victim(share.live(), state)?;
            self.free(index, victim, now);
        }
        let slot = self.ready.pop()?;
        if !index.insert(key, slot) {
            self.ready.push(slot);
            return None;
        }
        let entry = Entry { key, state, since: now, asked: now, asks: 1 };
        self.entries[slot as usize] = Some(entry);
        self.link(key.network, state, slot);
        self.live += 1;
        Some(slot)
    }

    /// Returns who is to make room in a full table for a newcomer of a network that has `own`.
    fn victim(&self, own: usize, state: NeighborState) -> Option<u32> {
        let unresolved = self.shares.iter().max_by_key(|share| share.unresolved.len());
        if let Some(first) = unresolved.and_then(|share| share.unresolved.first()) {
            return Some(first);
        }
        if self.ready.is_empty() {
            return None;
        }
        let learned = self.shares.iter().max_by_key(|share| share.learned.len())?;
        let loses = state == NeighborState::Fixed || learned.learned.len() > own;
        learned.learned.first().filter(|_| loses)
    }

    /// Lets a slot go. It rests when a flow may still have it.
    pub(super) fn free(&mut self, index: &Index, slot: u32, now: Instant) {
        let Some(entry) = self.entries[slot as usize] else { return };
        let network = entry.key.network;
        self.unlink(network, entry.state, slot);
        self.entries[slot as usize] = None;
        index.remove(entry.key, slot);
        self.live -= 1;
        let had_target = !matches!(entry.state, NeighborState::Incomplete | NeighborState::Failed);
        if had_target {
            self.resting.push_back(Resting { slot, network, since: now });
            if let Some(share) = self.shares.get_mut(network.index()) {
                share.resting += 1;
            }
        } else {
            self.ready.push(slot);
        }
    }

    /// Makes slots that have rested available.
    fn wake(&mut self, now: Instant) {
        while let Some(first) = self.resting.front()
            && now.since(first.since) >= REST
        {
            self.ready.push(first.slot);
            if let Some(share) = self.shares.get_mut(first.network.index()) {
                share.resting -= 1;
            }
            self.resting.pop_front();
        }
    }

    /// Says what is to be done about a known neighbour that somebody wants to reach.
    pub(super) fn ask(&mut self, slot: u32, now: Instant) -> Ask {
        let Some(entry) = &mut self.entries[slot as usize] else { return Ask::Wait };
        match entry.state {
            NeighborState::Incomplete => Self::ask_again(entry, now),
            NeighborState::Failed if now.since(entry.since) < FAILED_FOR => Ask::Failed,
            NeighborState::Failed => {
                *entry =
                    Entry { state: NeighborState::Incomplete, since: now, asked: now, asks: 1, ..*entry };
                Ask::Now
            }
            NeighborState::Fixed | NeighborState::Reachable | NeighborState::Probed => Ask::Known,
        }
    }

    fn ask_again(entry: &mut Entry, now: Instant) -> Ask {
        if now.since(entry.asked) < ASK_INTERVAL {
            Ask::Wait
        } else if entry.asks < ASKS {
            entry.asks += 1;
            entry.asked = now;
            Ask::Now
        } else {
            entry.state = NeighborState::Failed;
            entry.since = now;
            Ask::Failed
        }
    }

    /// Notes that a neighbour was heard or set; false when it is fixed, and `state` is not.
    pub(super) fn confirm(&mut self, slot: u32, state: NeighborState, now: Instant) -> bool {
        let Some(entry) = self.entries[slot as usize] else { return false };
        if entry.state == NeighborState::Fixed && state != NeighborState::Fixed {
            return false;
        }
        self.unlink(entry.key.network, entry.state, slot);
        self.entries[slot as usize] = Some(Entry { state, since: now, asks: 0, ..entry });
        self.link(entry.key.network, state, slot);
        true
    }

    /// Ages a slot, and returns who is to be asked now, and where.
    pub(super) fn age(
        &mut self,
        index: &Index,
        slot: u32,
        used: &AtomicBool,
        now: Instant,
    ) -> Option<(NeighborKey, Option<Target>)> {
        let entry = self.entries[slot as usize].as_mut()?;
        let key = entry.key;
        match entry.state {
            NeighborState::Fixed => None,
            NeighborState::Incomplete => (Self::ask_again(entry, now) == Ask::Now).then_some((key, None)),
            NeighborState::Failed => {
                if now.since(entry.since) >= FAILED_FOR {
                    self.free(index, slot, now);
                }
                None
            }
            NeighborState::Reachable if now.since(entry.since) < REACHABLE_FOR => None,
            NeighborState::Reachable if used.swap(false, Ordering::Relaxed) => {
                *entry = Entry { state: NeighborState::Probed, asked: now, asks: 1, ..*entry };
                Some((key, self.neighbor(index, slot)?.target))
            }
            NeighborState::Probed if entry.asks < ASKS || now.since(entry.asked) < ASK_INTERVAL => {
                let ask = Self::ask_again(entry, now) == Ask::Now;
                ask.then_some((key, self.neighbor(index, slot)?.target))
            }
            NeighborState::Reachable | NeighborState::Probed => {
                self.free(index, slot, now);
                None
            }
        }
    }

    fn link(&mut self, network: NetworkId, state: NeighborState, slot: u32) {
        if let Some(list) = self.shares.get_mut(network.index()).and_then(|share| share.list(state)) {
            list.push(&mut self.links, slot);
        }
    }

    fn unlink(&mut self, network: NetworkId, state: NeighborState, slot: u32) {
        if let Some(list) = self.shares.get_mut(network.index()).and_then(|share| share.list(state)) {
            list.remove(&mut self.links, slot);
        }
    }
}
