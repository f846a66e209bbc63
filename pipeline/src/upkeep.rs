//! What a pipeline does between packets: retries, sweeps, ages.
//!
//! A worker calls [`Pipeline::tick`] every turn; each call does a slice of the work that is due, so none
//! takes long. Nothing here is urgent: a worker that sleeps is woken for it only while something waits.

use std::time::Duration;

use packet::{FramePool, Instant};

use crate::{DropReason, Flow, Outputs, Pipeline, Turn};

/// Every decision is looked at twice in a second: what it counted is brought home then.
const SWEEP: Duration = Duration::from_millis(500);
/// The pause between two slices of upkeep.
const SLICE: Duration = Duration::from_millis(1);
/// Connections and neighbours are looked at once in this time.
const ROUND: Duration = Duration::from_secs(1);
/// Time stamps of "never": nothing is kept.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

/// Where upkeep stands.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    last: Instant,
    /// When the present sweep of both caches began, and the one before.
    began: Instant,
    before: Instant,
    /// Which of the two caches have been swept to their end.
    swept: [bool; 2],
    /// The tables were told that nothing is kept.
    rests: bool,
}

impl Pipeline {
    /// Does what is due. Every turn; cheap when nothing is.
    pub fn tick(&mut self, outputs: &mut Outputs, pool: &mut FramePool, now: Instant) {
        if now.since(self.upkeep.last) < SLICE {
            return;
        }
        let elapsed = now.since(self.upkeep.last).min(ROUND);
        let limits = self.tables.limits();
        self.upkeep.last = now;
        let mut turn = Turn { outputs, pool, now };
        if !self.held.is_empty() || self.fragments.held_frames() > 0 {
            self.wake_cache(now);
            self.retry_held(&mut turn);
            self.count_rule();
        }
        self.sweep_cache(elapsed, now);
        let tables = &self.tables;
        let budget = share(limits.connections / limits.workers, elapsed, ROUND);
        tables.connections.sweep(self.worker, now, budget, &mut |ended| {
            if let Some(lease) = ended.details.nat_port {
                tables.nat_ports.give_back(lease);
            }
        });
        if self.worker == 0 {
            let tables = &self.tables;
            let budget = share(limits.vteps, elapsed, ROUND);
            tables.vteps.expire(now, budget, |vtep| tables.fdb.learned_behind(vtep) > 0);
            let mut questions = std::mem::take(&mut self.questions);
            let budget = share(limits.neighbors, elapsed, ROUND);
            self.tables.neighbors.expire(now, budget, &mut |key, last| {
                if questions.len() < questions.capacity() {
                    questions.push((key, last));
                }
            });
            for (key, last) in questions.drain(..) {
                self.ask_for(key, last, &mut turn);
            }
            self.questions = questions;
        }
    }

    /// Says whether something waits for the next tick, so that a worker must not sleep for long.
    pub fn wants_tick(&self) -> bool {
        !self.upkeep.rests || self.held_frames() > 0
    }

    /// Returns how many frames wait here: for a neighbour, or for their first fragment.
    pub fn held_frames(&self) -> u64 {
        (self.held.len() + self.fragments.held_frames()) as u64
    }

    /// The worker is about to look connections up: from now on it may hold decisions about them.
    pub(crate) fn wake_cache(&mut self, now: Instant) {
        if self.upkeep.rests {
            self.upkeep = Upkeep { last: self.upkeep.last, began: now, before: now, ..Upkeep::default() };
            self.tables.connections.passed(self.worker, now);
        }
    }

    fn sweep_cache(&mut self, elapsed: Duration, now: Instant) {
        if self.upkeep.rests {
            return;
        }
        let Self { routed4, routed6, tables, upkeep, .. } = self;
        if !upkeep.swept[0] {
            let count = share(routed4.capacity(), elapsed, SWEEP);
            upkeep.swept[0] = routed4.sweep(count, &tables.connections, now);
        }
        if !upkeep.swept[1] {
            let count = share(routed6.capacity(), elapsed, SWEEP);
            upkeep.swept[1] = routed6.sweep(count, &tables.connections, now);
        }
        if upkeep.swept != [true; 2] {
            return;
        }
        // Every decision that is left served a packet of a living connection in this sweep or in the one before.
        upkeep.rests = routed4.is_empty() && routed6.is_empty();
        let since = if upkeep.rests { NEVER } else { upkeep.before };
        tables.connections.passed(self.worker, since);
        upkeep.before = upkeep.began;
        upkeep.began = now;
        upkeep.swept = [false; 2];
        let entries = (routed4.used() + routed6.used()) as u64;
        tables.counters(self.worker).ledger.routed_entries.set(entries);
    }

    fn retry_held(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        loop {
            let neighbors = &self.tables.neighbors;
            let is_known = |key: &_| neighbors.find(*key).is_some_and(|(_, target)| target.is_some());
            let Some((waiting, known)) = self.held.take(now, is_known) else { break };
            self.counters().ledger.held.set(self.held_frames());
            if let Some(transform) = waiting.to {
                if known {
                    self.send_tunnel(waiting.frame, transform, turn);
                } else {
                    let reason = DropReason::Unresolved.into();
                    self.drop_frame(waiting.frame, transform.to, reason, turn);
                }
            } else if known {
                self.miss(waiting.frame, &Flow::default(), waiting.from, turn);
            } else {
                self.unresolved(waiting.frame, waiting.from, turn);
            }
        }
        self.ask_again(turn);
        let mut late = std::mem::take(&mut self.late);
        self.fragments.expire(now, &mut |frame, from| late.push((frame, from)));
        for (frame, from) in late.drain(..) {
            self.drop_frame(frame, from, DropReason::Fragment.into(), turn);
        }
        self.late = late;
        self.counters().ledger.held.set(self.held_frames());
    }

    /// Asks again for those that did not answer.
    fn ask_again(&mut self, turn: &mut Turn<'_>) {
        let mut questions = std::mem::take(&mut self.questions);
        for key in self.held.neighbors() {
            if let Ok((_, crate::tables::Ask::Now)) = self.tables.neighbors.resolve(key, turn.now)
                && questions.len() < questions.capacity()
            {
                questions.push((key, None));
            }
        }
        for (key, last) in questions.drain(..) {
            self.ask_for(key, last, turn);
        }
        self.questions = questions;
    }
}

/// Returns how many of `all` are due after `elapsed`, when each is due once in `round`; at least one.
fn share(all: usize, elapsed: Duration, round: Duration) -> usize {
    let part = all as u128 * elapsed.as_nanos() / round.as_nanos();
    usize::try_from(part).unwrap_or(all).min(all) + 1
}
