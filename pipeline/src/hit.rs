//! The second pass over a batch, the fast path: finds what was decided, checks what a key does not hold, rewrites, and
//! queues the frames.
//!
//! Here is the loop, and the check of bridged frames, of which nothing changes; `routed.rs` has the check and the rewrite of
//! routed and tracked ones. Frames are taken strictly in order: one that has to walk does so before the next is looked
//! at.

mod routed;

use std::sync::atomic::{AtomicU32, Ordering};

use packet::{Frame, Instant, PortId};

use crate::flow_cache::routed::{Key4, Key6, Names};
use crate::flow_cache::{self, Decided, FlowCache, FlowKey, Place, TagAction, Tick, Transform};
use crate::overlay::away::Away;
use crate::parse::Flow;
use crate::stages::guard;
use crate::tables::Tables;
use crate::walk::Packet;
use crate::{DropReason, Outputs, Pipeline, Snapshot, snapshot};

pub(crate) use routed::{ICMP, ICMPV6, L4_V4, L4_V6, LEN4, LEN6, TCP, UDP, key4, key6, word};

/// A frame that the fast path leaves to the slow one.
pub(crate) struct Undecided<'f> {
    pub(crate) frame: Frame,
    pub(crate) flow: &'f Flow,
    pub(crate) why: Why,
}

pub(crate) enum Why {
    /// No decision, or one that no longer holds.
    Unknown,
    /// It is decided, and its VLAN tag has to change, or packing it takes more than headers.
    Send(Transform),
    /// It is decided, and dies at this port: its queue is full, or its endpoint went.
    Drop(PortId, DropReason),
}

/// The frames of a run that are left, with their flows.
pub(crate) struct Run<'r, 'f, 'b> {
    pub(crate) frames: &'r mut std::vec::Drain<'b, Frame>,
    pub(crate) flows: std::slice::Iter<'f, Flow>,
}

impl<'f> Run<'_, 'f, '_> {
    #[inline(always)]
    fn next(&mut self) -> Option<(Frame, &'f Flow)> {
        let flow = self.flows.next()?;
        Some((self.frames.next()?, flow))
    }
}

impl Pipeline {
    /// Sends the frames of a run that comes from a port that only bridges, up to the first that needs more.
    pub(crate) fn send_hits<'f>(
        &self,
        run: &mut Run<'_, 'f, '_>,
        from: PortId,
        outputs: &mut Outputs,
        now: Instant,
    ) -> Option<Undecided<'f>> {
        let bridge = BridgeCheck::new(&self.tables, &self.snapshot, &self.cache, from, now);
        let away = Away::new(&self.templates, &self.tables, &self.snapshot, self.counters());
        let ledger = &self.counters().ledger;
        let mut hits = 0;
        let undecided = loop {
            let Some((frame, flow)) = run.next() else { break None };
            let found = match flow {
                Flow::Bridged { key, place } => bridge.find(&frame, *key, *place),
                _ => None,
            };
            let Some(decided) = found else { break Some(Undecided { frame, flow, why: Why::Unknown }) };
            let transform = decided.transform();
            if transform.tag != TagAction::Keep {
                break Some(Undecided { frame, flow, why: Why::Send(bridge.whole(decided, &away)) });
            }
            if let Err(frame) = outputs.push(transform.to, frame)
                && let Err((frame, why)) = away.send(frame, Names::of(decided), outputs)
            {
                break Some(Undecided { frame, flow, why });
            }
            hits += 1;
        };
        ledger.forwarded.add(hits);
        ledger.cache_hits.add(hits + u64::from(undecided.as_ref().is_some_and(Undecided::was_found)));
        undecided
    }

    /// As [`Pipeline::send_hits`], for ports whose frames may be routed or tracked.
    pub(crate) fn send_any_hits<'f>(
        &mut self,
        run: &mut Run<'_, 'f, '_>,
        from: PortId,
        outputs: &mut Outputs,
        now: Instant,
    ) -> Option<Undecided<'f>> {
        let Self { routed4, routed6, snapshot, tables, worker, cache, templates, .. } = self;
        let counters = tables.counters(*worker);
        let ledger = &counters.ledger;
        let away = Away::new(templates, tables, snapshot, counters);
        let check = routed::Check::new(tables, snapshot, from, now);
        let bridge = BridgeCheck::new(tables, snapshot, cache, from, now);
        let (mut routed4, mut routed6) = (routed4.finder(), routed6.finder());
        let mut hits = 0;
        let undecided = loop {
            let Some((mut frame, flow)) = run.next() else { break None };
            let names = match flow {
                Flow::V4 { spot, is_query: false } => {
                    check.apply::<Key4, false>(&mut routed4, *spot, &mut frame)
                }
                Flow::V6 { spot, is_query: false } => {
                    check.apply::<Key6, false>(&mut routed6, *spot, &mut frame)
                }
                Flow::V4 { spot, is_query: true } => check.query(&mut routed4, *spot, &mut frame),
                Flow::V6 { spot, is_query: true } => check.query(&mut routed6, *spot, &mut frame),
                Flow::Bridged { key, place } => match bridge.find(&frame, *key, *place) {
                    Some(decided) if decided.transform().tag != TagAction::Keep => {
                        break Some(Undecided { frame, flow, why: Why::Send(bridge.whole(decided, &away)) });
                    }
                    found => found.map(Names::of),
                },
            };
            let Some(names) = names else { break Some(Undecided { frame, flow, why: Why::Unknown }) };
            if let Err(frame) = outputs.push(names.to(), frame)
                && let Err((frame, why)) = away.send(frame, names, outputs)
            {
                break Some(Undecided { frame, flow, why });
            }
            hits += 1;
        };
        ledger.forwarded.add(hits);
        ledger.cache_hits.add(hits + u64::from(undecided.as_ref().is_some_and(Undecided::was_found)));
        undecided
    }
}

impl Undecided<'_> {
    fn was_found(&self) -> bool {
        !matches!(self.why, Why::Unknown)
    }
}

/// What the fast path checks of bridged frames from one port.
#[derive(Clone, Copy)]
struct BridgeCheck<'a> {
    snapshot: &'a Snapshot,
    cache: flow_cache::Reader<'a>,
    versions: &'a [AtomicU32],
    egress: &'a [snapshot::Egress],
    ingress: snapshot::Ingress,
    from: PortId,
    tick: Tick,
}

impl<'a> BridgeCheck<'a> {
    fn new(
        tables: &'a Tables,
        snapshot: &'a Snapshot,
        cache: &'a FlowCache,
        from: PortId,
        now: Instant,
    ) -> Self {
        Self {
            snapshot,
            cache: cache.reader(),
            versions: tables.fdb.versions(),
            egress: snapshot.egress(),
            ingress: snapshot.ingress(from),
            from,
            tick: Tick::at(now),
        }
    }

    /// Returns what was decided about a frame, when that still holds. What the key does not hold: both stations are
    /// where they were, the packet fits the output port (a tag counts here: the slow path, which measures
    /// exactly, then lets it pass), and the source IP address is the port's.
    #[inline(always)]
    fn find(&self, frame: &Frame, key: FlowKey, place: Place) -> Option<&'a Decided> {
        let Self { versions, ingress, .. } = self;
        let decision = self.cache.find(place, key, ingress.generation, self.tick, ingress.refresh);
        let holds = |decision: &&Decided| {
            let version = |slot: u32| Some(versions.get(slot as usize)?.load(Ordering::Acquire));
            let sum = version(decision.source()).zip(version(decision.destination()));
            sum.is_some_and(|(a, b)| a.wrapping_add(b) == decision.versions())
                && self
                    .egress
                    .get(decision.transform().to.index())
                    .is_some_and(|egress| frame.wire_len() <= egress.frame_len as usize)
                && (!ingress.guards_ip || self.source_is_allowed(frame))
        };
        decision.filter(holds)
    }

    /// Returns all that was decided, the endpoint included.
    #[cold]
    fn whole(&self, decided: &Decided, away: &Away<'_>) -> Transform {
        Transform { vtep: away.endpoint(Names::of(decided)), ..decided.transform() }
    }

    fn source_is_allowed(&self, frame: &Frame) -> bool {
        match (Packet::new(frame, self.from), self.snapshot.port(self.from)) {
            (Some(packet), Some(port)) => guard::source_is_allowed(&port.guard, &packet),
            _ => false,
        }
    }
}
