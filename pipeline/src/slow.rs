//! The slow path: walks the stages and carries out what they decided.
//!
//! The stages only look. Here their effects happen, in one place: stations are learned, tokens taken, copies and
//! answers made; the decision goes into the flow cache. A packet that is dropped has no effect but its counter.

use packet::{Frame, FramePool, Instant, PortId};

use crate::flow_cache::{FlowKey, StationRef, Tick, Transform};
use crate::stages::{loops::Probe, output};
use crate::tables::{LearnLimits, Learned, StationKey};
use crate::walk::{Answer, Decision, Effect, Packet, Shape, Step, View, Walk};
use crate::{DropReason, Event, Flow, Outputs, Pipeline, Snapshot, answer, walk_stages};

impl Pipeline {
    /// Decides a packet that the cache knows nothing of.
    pub(crate) fn miss(
        &mut self,
        frame: Frame,
        flow: &Flow,
        from: PortId,
        outputs: &mut Outputs,
        pool: &mut FramePool,
        now: Instant,
    ) {
        self.counters().ledger.cache_misses.add(1);
        match self.decide(&frame, from, now) {
            Err(reason) => {
                if reason == DropReason::Loop {
                    self.report_loop(&frame, from);
                }
                self.drop_frame(frame, from, reason, pool, now);
            }
            Ok(walk) => match walk.decision {
                Decision::Forward { transform, station } => {
                    if let Some(source) = walk.source.filter(|_| flow.key != FlowKey::NONE) {
                        let generation = self.snapshot.ingress(from).generation;
                        let now = Tick::at(now);
                        if self.cache.insert(flow.key, generation, source, station, transform, now) {
                            self.counters().ledger.cache_entries.add(1);
                        }
                    }
                    self.send(frame, transform, from, outputs, pool, now);
                }
                Decision::Flood => self.flood(frame, &walk, from, outputs, pool, now),
                Decision::Answer(answer) => self.answer(frame, answer, from, outputs, pool, now),
                Decision::Pending => unreachable!("the output stage ends every walk"),
            },
        }
    }

    /// Walks the stages and carries out their effects.
    fn decide(&mut self, frame: &Frame, from: PortId, now: Instant) -> Result<Walk, DropReason> {
        let snapshot = &*self.snapshot;
        let packet = Packet::new(frame, from).ok_or(DropReason::Malformed)?;
        let port = snapshot.port(from).filter(|port| port.up).ok_or(DropReason::PortDown)?;
        let network = snapshot.network(port.network).ok_or(DropReason::PortDown)?;
        let view = View { snapshot, tables: &self.tables, port, network, now };
        let mut walk = Walk::new(port.network);
        if let Step::Drop(reason) = walk_stages(&packet, &view, &mut walk) {
            return Err(reason);
        }
        // What can still refuse the packet comes before what lasts.
        for effect in walk.effects() {
            if let Effect::StormToken { rate } = effect
                && !self.tables.storm(from).take(rate, now)
            {
                return Err(DropReason::Storm);
            }
        }
        for effect in walk.effects() {
            if let Effect::Learn(key) = effect {
                let limits = LearnLimits { port: port.stations, network: network.stations };
                let learned = self.tables.fdb.learn(key, from, limits, now);
                walk.source = note(learned, key, from, |event| {
                    if !self.events.push(event) {
                        self.tables.counters(self.worker).ledger.events_lost.add(1);
                    }
                });
            }
        }
        Ok(walk)
    }

    /// Sends a copy to every other port of the network that carries the VLAN; the last gets the frame itself.
    fn flood(
        &mut self,
        frame: Frame,
        walk: &Walk,
        from: PortId,
        outputs: &mut Outputs,
        pool: &mut FramePool,
        now: Instant,
    ) {
        let Some(shape) = Packet::new(&frame, from).map(|packet| packet.shape()) else {
            return self.drop_frame(frame, from, DropReason::Malformed, pool, now);
        };
        let mut last = None;
        for n in 0..self.snapshot.members(walk.network).len() {
            let Some(next) = target(&self.snapshot, n, shape, walk, from) else { continue };
            if let Some(to) = last.replace(next) {
                self.counters().ledger.created.add(1);
                match pool.copy(&frame) {
                    Some(copy) => self.send(copy, to, from, outputs, pool, now),
                    // It counts as made and lost, at the port it was for.
                    None => self.counters().drop(to.to, DropReason::NoMemory),
                }
            }
        }
        match last {
            Some(to) => self.send(frame, to, from, outputs, pool, now),
            None => self.drop_frame(frame, from, DropReason::NoListener, pool, now),
        }
    }

    /// Turns the question into its answer and sends it back.
    fn answer(
        &mut self,
        mut frame: Frame,
        answer: Answer,
        from: PortId,
        outputs: &mut Outputs,
        pool: &mut FramePool,
        now: Instant,
    ) {
        if answer::write(&mut frame, answer).is_none() {
            return self.drop_frame(frame, from, DropReason::NoMemory, pool, now);
        }
        self.counters().ledger.consumed.add(1);
        self.counters().ledger.created.add(1);
        let transform = Transform { to: from, ..Transform::default() };
        self.send(frame, transform, from, outputs, pool, now);
    }

    fn report_loop(&mut self, frame: &Frame, from: PortId) {
        let probe = Packet::new(frame, from).and_then(|packet| Probe::decode(&packet, self.tables.cookie()));
        let Some(Probe { network, port }) = probe else { return };
        if !self.events.push(Event::LoopSeen { network, sent_by: port, seen_at: from }) {
            self.counters().ledger.events_lost.add(1);
        }
    }
}

/// Returns the source's place as learning left it, and tells of moves.
fn note(
    learned: Learned,
    station: StationKey,
    to: PortId,
    mut tell: impl FnMut(Event),
) -> Option<StationRef> {
    match learned {
        Learned::Known(source) | Learned::New(source) => Some(source),
        Learned::Moved { station: source, from } => {
            tell(Event::StationMoved { station, from, to, held: false });
            Some(source)
        }
        Learned::Held(from) => {
            tell(Event::StationMoved { station, from, to, held: true });
            None
        }
        Learned::Full => None,
    }
}

/// Returns where the copy for member `n` of the network goes, and with which change to its tag; `None` when there
/// is none for it: it is where the frame came from, isolated like it, down, too small or of another VLAN.
fn target(snapshot: &Snapshot, n: usize, shape: Shape, walk: &Walk, from: PortId) -> Option<Transform> {
    let to = *snapshot.members(walk.network).get(n)?;
    let port = snapshot.port(to)?;
    let apart = port.isolated && snapshot.port(from).is_some_and(|port| port.isolated);
    if to == from || apart {
        return None;
    }
    let tag = output::fit(shape, port, walk.vlan).ok()?;
    Some(Transform { to, tag })
}
