//! The slow path: walks the stages and carries out what they decided.
//!
//! The stages only look. Here their effects happen, in one place: stations are learned, tokens taken, connections made,
//! copies and answers sent; the decision goes into the flow cache. A packet that is dropped has no effect but its
//! counter, and the end of a connection that is not allowed any more.

mod fragment;
mod route;

use std::sync::Arc;

use packet::{Frame, PortId, VtepId};

use crate::flow_cache::{FlowKey, StationRef, Tick, Transform};
use crate::headers::Headers;
use crate::parse::{self, AnyKey};
use crate::stages::{loops::Probe, output};
use crate::tables::connections::End;
use crate::tables::{At, Kind, LearnLimits, Learned, StationKey};
use crate::walk::{Answer, Decision, Effect, Lookup, Packet, Shape, Step, View, Walk};
use crate::{DropReason, Event, Flow, HandBack, Pipeline, Snapshot, Turn, answer, walk_stages};

/// How often a walk begins anew before the packet is dropped: for a connection that ends, for another worker that
/// was faster, for a port that turns out to be in use with just this destination.
const ATTEMPTS: u32 = 64;
/// ICMP errors and resets a second that one port's packets may cause (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
const REFUSALS_A_SECOND: u32 = 1000;

/// Why a packet died, and the rule or published port that said so.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    pub(crate) reason: DropReason,
    pub(crate) because: Option<Arc<str>>,
}

impl From<DropReason> for Death {
    fn from(reason: DropReason) -> Self {
        Self { reason, because: None }
    }
}

impl Pipeline {
    /// Decides a packet that the cache knows nothing of.
    pub(crate) fn miss(&mut self, frame: Frame, flow: &Flow, from: PortId, turn: &mut Turn<'_>) {
        self.counters().ledger.cache_misses.add(1);
        let mut frame = frame;
        if self.snapshot.ingress(from).is_underlay {
            match self.open_late(frame, from, turn) {
                Some(unopened) => frame = unopened,
                None => return,
            }
        }
        let headers = match self.headers(&frame, from) {
            Ok(headers) => headers,
            Err(reason) => return self.drop_frame(frame, from, reason.into(), turn),
        };
        match headers.filter(Headers::is_fragment) {
            Some(headers) => self.fragment(frame, headers, from, turn),
            None => self.walk_and_send(frame, headers, flow, from, turn),
        }
    }

    /// Reads the headers of a packet that may be routed. One that is only bridged may have any.
    fn headers(&self, frame: &Frame, from: PortId) -> Result<Option<Headers>, DropReason> {
        if !parse::concerns(frame.bytes(), &self.snapshot.ingress(from)) {
            return Ok(None);
        }
        Headers::of(frame.bytes()).map_err(|_| DropReason::Malformed)
    }

    /// Walks, and does to the frame what was decided.
    pub(crate) fn walk_and_send(
        &mut self,
        frame: Frame,
        headers: Option<Headers>,
        flow: &Flow,
        from: PortId,
        turn: &mut Turn<'_>,
    ) {
        let network = self.snapshot.port(from).map(|port| port.network).unwrap_or_default();
        // PERF: it is half a kilobyte, and stays where it is made.
        let mut walk = Walk::new(network, headers);
        let connection = match self.decide(&frame, &mut walk, from, turn) {
            Ok(connection) => connection,
            Err(death) => {
                if death.reason == DropReason::Loop {
                    self.report_loop(&frame, from);
                }
                return self.drop_frame(frame, from, death, turn);
            }
        };
        match walk.decision {
            Decision::Forward { transform, station } => {
                match (flow.key_of(&frame, from, self.vtep_of(&frame, from)), connection) {
                    (AnyKey::None, None) => self.keep_bridged(flow, &walk, station, transform, from, turn),
                    (key, Some(joined)) => self.keep_tracked(key, &joined, station, transform, from, turn),
                    _ => {}
                }
                self.send(frame, transform, from, turn);
            }
            Decision::Route { .. } => self.route(frame, flow, &walk, connection, from, turn),
            Decision::Flood => self.flood(frame, &walk, from, turn),
            Decision::Answer(answer) => {
                self.counters().ledger.consumed.add(1);
                self.answer(frame, answer, from, turn);
            }
            Decision::Refuse(reason, answer) => self.refuse(frame, reason, walk.because, answer, from, turn),
            Decision::Hold(neighbor) => self.hold(frame, neighbor, from, turn),
            Decision::HandBack => {
                let to = match self.snapshot.port(from).map(|port| port.hand_back) {
                    Some(HandBack::By(port)) => port,
                    _ => from,
                };
                self.send(frame, Transform { to, ..Transform::default() }, from, turn);
            }
            Decision::Consume => {
                self.counters().ledger.consumed.add(1);
                turn.pool.free(frame);
            }
            Decision::Seek(neighbor) => {
                self.counters().ledger.consumed.add(1);
                turn.pool.free(frame);
                self.seek(neighbor, turn);
            }
            Decision::Pending => unreachable!("the output stage ends every walk"),
        }
    }

    fn keep_bridged(
        &mut self,
        flow: &Flow,
        walk: &Walk,
        station: StationRef,
        transform: Transform,
        from: PortId,
        turn: &Turn<'_>,
    ) {
        let key = flow.stations();
        if let Some(source) = walk.source.filter(|_| key != FlowKey::NONE) {
            let generation = self.snapshot.ingress(from).generation;
            if self.cache.insert(key, generation, source, station, transform, Tick::at(turn.now)) {
                self.counters().ledger.cache_entries.add(1);
            }
        }
    }

    /// Walks the stages and carries out their effects. Returns the connection that the packet belongs to, and what its
    /// state allows.
    fn decide(
        &mut self,
        frame: &Frame,
        walk: &mut Walk,
        from: PortId,
        turn: &Turn<'_>,
    ) -> Result<Option<route::Joined>, Death> {
        for _ in 0..ATTEMPTS {
            let mut packet = Packet::new(frame, from).ok_or(DropReason::Malformed)?;
            let view = View::of(&self.snapshot, &self.tables, from, turn.now).ok_or(DropReason::PortDown)?;
            // A frame that passed through the tunnels of another switch in this process may still say so.
            packet.vtep = packet.vtep.filter(|_| view.port.tunnel.is_some());
            let at = At { port: from, vtep: packet.vtep };
            let step = walk_stages(&packet, &view, walk);
            if let Some(id) = walk.ended {
                self.tables.connections.kill(id, End::Cut);
            }
            match step {
                Step::Drop(reason) => {
                    self.note_rule(walk);
                    return Err(Death { reason, because: walk.because.take() });
                }
                Step::Again => {
                    walk.begin_again(walk.attempt);
                    continue;
                }
                Step::Next | Step::Done => {}
            }
            self.carry_out(walk, at, turn)?;
            match self.join(walk, frame, from, turn) {
                Ok(connection) => {
                    if !matches!(walk.decision, Decision::Hold(_)) {
                        self.note_rule(walk);
                    }
                    return Ok(connection);
                }
                Err(route::Refusal::Retry) => walk.begin_again(walk.attempt),
                // Only another port helps. A port that somebody else was given meanwhile is found taken by itself.
                Err(route::Refusal::Collision) => walk.begin_again(walk.attempt + 1),
                Err(route::Refusal::Drop(reason)) => return Err(reason.into()),
            }
        }
        Err(DropReason::SnatExhausted.into())
    }

    /// Counts the rule that decided about a new connection, and tells of it if that is asked for.
    fn note_rule(&mut self, walk: &Walk) {
        let (Some(n), Lookup::New) = (walk.rule, walk.connection) else { return };
        let router = self.snapshot.router();
        if router.policy.rule(n).log {
            self.tell(Event::Policy { rule: n, from: walk.subject.from, tuple: walk.subject.tuple });
        }
        // PERF: all workers count a rule in one number; a batch writes it once for each change of rule.
        if self.decided.0 != n {
            self.count_rule();
            self.decided.0 = n;
        }
        self.decided.1 += 1;
    }

    /// Counts the decisions of the rule that decided last. At the end of each turn: the number is the snapshot's.
    pub(crate) fn count_rule(&mut self) {
        let (rule, decisions) = self.decided;
        if decisions > 0 {
            self.snapshot.router().hits.count(rule, decisions);
            self.decided.1 = 0;
        }
    }

    /// Carries out the effects that concern stations and neighbours.
    fn carry_out(&mut self, walk: &mut Walk, at: At, turn: &Turn<'_>) -> Result<(), DropReason> {
        let now = turn.now;
        if walk.effects().next().is_none() {
            return Ok(());
        }
        // What can still refuse the packet comes before what lasts.
        for effect in walk.effects() {
            if let Effect::StormToken { rate } = effect
                && !self.tables.storm(at.port).take(rate, now)
            {
                return Err(DropReason::Storm);
            }
        }
        for n in 0..walk.effects.len() {
            let Some(effect) = walk.effects[n] else { break };
            match effect {
                Effect::StormToken { .. } => {}
                Effect::Learn(key) => walk.source = self.learn(key, at, turn),
                Effect::PathMtu { to, mtu } => self.tell(Event::PathMtu { to, mtu }),
                Effect::Meet { neighbor, mac, asks } => {
                    let kind = if asks { Kind::Asker } else { Kind::Learned };
                    self.tables.neighbors.set(neighbor, mac, at, kind, now);
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self, key: StationKey, at: At, turn: &Turn<'_>) -> Option<StationRef> {
        let port = self.snapshot.port(at.port)?;
        let network = self.snapshot.network(port.network)?;
        let limits = LearnLimits { port: port.stations, network: network.stations };
        let learned = self.tables.fdb.learn(key, at, limits, turn.now);
        note(learned, key, at.port, |event| {
            if !self.events.push(event) {
                self.tables.counters(self.worker).ledger.events_lost.add(1);
            }
        })
    }

    /// Sends a copy to every other port of the network that carries the VLAN; the last gets the frame itself.
    fn flood(&mut self, frame: Frame, walk: &Walk, from: PortId, turn: &mut Turn<'_>) {
        let Some(shape) = Packet::new(&frame, from).map(|packet| packet.shape()) else {
            return self.drop_frame(frame, from, DropReason::Malformed.into(), turn);
        };
        let mut last = None;
        for n in 0..self.snapshot.members(walk.network).len() {
            let Some(next) = target(&self.snapshot, n, shape, walk, from) else { continue };
            if let Some(to) = last.replace(next) {
                self.counters().ledger.created.add(1);
                match turn.pool.copy(&frame) {
                    Some(copy) => self.send(copy, to, from, turn),
                    // It counts as made and lost, at the port it was for.
                    None => self.counters().drop(to.to, DropReason::NoMemory),
                }
            }
        }
        match last {
            Some(to) => self.send(frame, to, from, turn),
            None => self.drop_frame(frame, from, DropReason::NoListener.into(), turn),
        }
    }

    /// Turns the question into its answer and sends it back.
    fn answer(&mut self, mut frame: Frame, answer: Answer, from: PortId, turn: &mut Turn<'_>) {
        self.counters().ledger.created.add(1);
        if answer::write(&mut frame, answer).is_none() {
            return self.drop_frame(frame, from, DropReason::NoMemory.into(), turn);
        }
        let transform = self.back(&frame, from);
        self.send(frame, transform, from, turn);
    }

    /// Returns the number of the endpoint that a frame came from, 0 when its port is no tunnel.
    pub(crate) fn vtep_of(&self, frame: &Frame, from: PortId) -> u16 {
        if self.snapshot.is_tunnel(from) { VtepId::raw(frame.vtep()) } else { 0 }
    }

    /// Returns the way back to where a frame came from.
    fn back(&self, frame: &Frame, from: PortId) -> Transform {
        let vtep = frame.vtep().filter(|_| self.snapshot.is_tunnel(from));
        Transform { to: from, vtep, ..Transform::default() }
    }

    /// Drops a packet and tells its sender, if and as often as that may be told.
    pub(crate) fn refuse(
        &mut self,
        mut frame: Frame,
        reason: DropReason,
        because: Option<Arc<str>>,
        answer: Answer,
        from: PortId,
        turn: &mut Turn<'_>,
    ) {
        let death = Death { reason, because };
        if !self.tables.refusals(from).take(REFUSALS_A_SECOND, turn.now) {
            return self.drop_frame(frame, from, death, turn);
        }
        self.count_drop(&frame, from, &death, turn);
        if answer::write(&mut frame, answer).is_none() {
            return turn.pool.free(frame);
        }
        self.counters().ledger.created.add(1);
        let transform = self.back(&frame, from);
        self.send(frame, transform, from, turn);
    }

    fn report_loop(&mut self, frame: &Frame, from: PortId) {
        let probe = Packet::new(frame, from).and_then(|packet| Probe::decode(&packet, self.tables.cookie()));
        let Some(Probe { network, port }) = probe else { return };
        self.tell(Event::LoopSeen { network, sent_by: port, seen_at: from });
    }

    pub(crate) fn tell(&mut self, event: Event) {
        if !self.events.push(event) {
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
        // A move between hosts is their affair: no two of our ports are wired together.
        Learned::Moved { station: source, from } if from.port == to => Some(source),
        Learned::Held(from) if from.port == to => None,
        Learned::Moved { station: source, from } => {
            tell(Event::StationMoved { station, from: from.port, to, held: false });
            Some(source)
        }
        Learned::Held(from) => {
            tell(Event::StationMoved { station, from: from.port, to, held: true });
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
    let source = snapshot.port(from)?;
    let apart = port.isolated && source.isolated || port.tunnel.is_some() && source.tunnel.is_some();
    if to == from || apart {
        return None;
    }
    let tag = output::fit(shape, port, walk.vlan).ok()?;
    Some(Transform { to, tag, vtep: None })
}
