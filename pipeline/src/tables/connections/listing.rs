//! What is told of connections: lists, sums, and what a restart needs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use packet::{Instant, PortId};

use super::entry::{between, coarse};
use super::tcp::Numbers;
use super::{ConnectionId, Connections, Details, End, Key, PortConnections, Refused, State};

/// A connection as a list shows it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// What names it.
    pub id: ConnectionId,
    /// As its first packet came.
    pub original: Key,
    /// As answers come.
    pub reply: Key,
    /// The port that it counts for.
    pub owner: PortId,
    /// How far it has come.
    pub state: State,
    /// What was decided.
    pub details: Details,
    /// Packets, indexed by direction; what the fast path has not brought home yet is missing.
    pub packets: [u64; 2],
    /// Bytes, indexed by direction.
    pub bytes: [u64; 2],
    /// How long ago it began.
    pub age: Duration,
    /// When it ends unless there is traffic.
    pub left: Duration,
}

/// What of a connection outlives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// As its first packet came.
    pub original: Key,
    /// As answers come.
    pub reply: Key,
    /// The port that it counts for.
    pub owner: PortId,
    /// How far it has come.
    pub state: State,
    /// What was decided. A NAT port has to be taken again before.
    pub details: Details,
}

/// Sums over the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections alive,
    pub open: usize,
    /// half-open ones among them,
    pub half_open: usize,
    /// and dead ones whose slots are not free yet.
    pub limbo: usize,
    /// How many can be alive.
    pub capacity: usize,
    /// How many were ever made,
    pub created: u64,
    /// and ended, indexed by [`End`].
    pub ended: [u64; 5],
    /// How many were refused because the table was full.
    pub full: u64,
}

impl Connections {
    /// Returns the sums. Takes one shard's lock at a time.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            half_open: self.owners.half_open(),
            capacity: usize::try_from(self.capacity).unwrap_or(0),
            full: self.totals.full.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for number in 0..self.shards.len() {
            let shard = self.lock_shard(number);
            stats.open += self.shards[number].live.load(Ordering::Relaxed) as usize;
            stats.limbo += self.shards[number].limbo.load(Ordering::Relaxed) as usize;
            stats.created += shard.created;
            for (sum, ended) in stats.ended.iter_mut().zip(shard.ended) {
                *sum += ended;
            }
        }
        stats
    }

    /// Returns what a port owns.
    pub fn port(&self, port: PortId) -> PortConnections {
        self.owners.counts(port)
    }

    /// Returns the bytes that the table takes.
    pub fn bytes(&self) -> usize {
        self.index.bytes()
            + size_of_val(&*self.entries)
            + size_of_val(&*self.links)
            + size_of_val(&*self.shards)
            + self.news_bytes()
            + self.owners.bytes()
    }

    /// Shows the connections that `picks` picks to `show`, in no order. One that is made or ends meanwhile may be
    /// shown or not. Takes one connection's lock at a time, and none while it calls.
    pub fn for_each(&self, now: Instant, mut picks: impl FnMut(&View) -> bool, mut show: impl FnMut(&View)) {
        for slot in 0..u32::try_from(self.entries.len()).expect("slots are 23 bits") {
            let view = self.view(slot, now);
            if let Some(view) = view.filter(|view| picks(view)) {
                show(&view);
            }
        }
    }

    fn view(&self, slot: u32, now: Instant) -> Option<View> {
        #[expect(clippy::cast_possible_truncation, reason = "coarse time wraps")]
        let at = coarse(now) as u32;
        let entry = self.lock(slot);
        entry.is_alive().then(|| View {
            id: ConnectionId { slot, stamp: entry.stamp },
            original: Key::from(&entry.keys[0]),
            reply: Key::from(&entry.keys[1]),
            owner: entry.owner,
            state: entry.state,
            details: entry.details,
            packets: entry.counts.map(|count| count.packets()),
            bytes: entry.counts.map(|count| count.bytes()),
            age: between(entry.born, at),
            left: self.timeouts.of(entry.state, entry.protocol()).saturating_sub(between(entry.seen, at)),
        })
    }

    /// Ends all connections that `picks` picks, and returns how many.
    pub fn kill_where(&self, now: Instant, picks: impl FnMut(&View) -> bool, why: End) -> usize {
        let mut count = 0;
        self.for_each(now, picks, |view| {
            count += usize::from(self.end(view.id.slot, why, |entry| entry.stamp == view.id.stamp));
        });
        count
    }

    /// Hands out what has to be saved of every connection.
    pub fn export(&self, mut save: impl FnMut(&Saved)) {
        self.for_each(
            Instant::ZERO,
            |_| true,
            |view| {
                let View { original, reply, owner, state, details, .. } = *view;
                save(&Saved { original, reply, owner, state, details });
            },
        );
    }

    /// Returns what has to be saved of the connection in a slot; `None` when none is alive there.
    pub fn saved(&self, slot: u32) -> Option<Saved> {
        let entry = self.entries.get(slot as usize)?.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        entry.is_alive().then(|| Saved {
            original: Key::from(&entry.keys[0]),
            reply: Key::from(&entry.keys[1]),
            owner: entry.owner,
            state: entry.state,
            details: entry.details,
        })
    }

    /// Takes a connection over from before. Its timeout begins anew, its counters at zero, and quotas do not count;
    /// what TCP numbers it had is learned again from its packets.
    ///
    /// # Errors
    /// As [`Connections::create`].
    pub fn import(&self, saved: &Saved, now: Instant) -> Result<ConnectionId, Refused> {
        self.owners.admit(saved.owner, u32::MAX, u32::MAX)?;
        // Without numbers a handshake could not be followed.
        let state = match saved.state {
            State::SynSent | State::SynReceived => State::PickedUp,
            state => state,
        };
        let keys = [&saved.original, &saved.reply];
        self.insert(keys, saved.owner, (state, Numbers::unknown(state), 0), &saved.details, now)
    }
}
