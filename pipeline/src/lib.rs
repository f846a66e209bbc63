//! The pipeline: decides what happens to packets.
//!
//! A pure function of packets, tables and time: no system call, no clock, no thread, no log. A worker calls
//! [`Pipeline::run`] with a batch; so do tests, benchmarks and fuzzers.
//!
//! ```text
//! run -> parse     read all keys, hash all, prefetch
//!     -> send_hits hit: check, rewrite, queue              (fast path, this file, hit.rs, flow_cache.rs)
//!     -> miss      walk the stages, commit, queue          (slow path, slow.rs)
//! ```
//!
//! The stages, in their order, are the map of the product; each is a file in `stages/`. A stage decides and changes
//! nothing ([`walk`] says how); `slow.rs` carries out what they decided and keeps the decision in the cache.

#![forbid(unsafe_code)]

pub mod answer;
mod drop_log;
mod drop_reason;
mod event;
pub mod fib;
mod flow_cache;
pub mod fragmenter;
pub mod headers;
mod held;
mod hit;
pub mod mss;
mod outputs;
pub mod policy;
#[cfg(test)]
mod random;
pub mod requests;
pub mod rewrite;
mod slow;
mod snapshot;
pub mod tables;
mod tag;
pub mod trace;
mod upkeep;
pub mod walk;

/// The stages, in the order in which a packet passes them. A stage never imports another.
pub mod stages {
    pub mod guard;
    pub mod loops;
    // Keep the order of the walk, which is not the alphabet's.
    pub mod learn;
    pub mod proxy;
    // Where the frame goes on its link: to a station, or to the router.
    pub mod bridge;
    // Whose packet it is, and where it goes beyond the link.
    pub mod connection;
    pub mod dnat;
    pub mod forward;
    pub mod neighbor;
    pub mod policy;
    pub mod route;
    pub mod snat;
    // What is decided leaves.
    pub mod output;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use packet::{Batch, Frame, FramePool, Instant, MacAddr, PortId};

pub use drop_log::{DropLog, DropRecord, HEAD_LEN};
pub use drop_reason::DropReason;
pub use event::Event;
pub use flow_cache::{StationRef, TagAction, Transform};
pub use outputs::Outputs;
pub use snapshot::{
    Domain, DomainKind, DomainSpec, Gateway, Guard, HandBack, Hop, MAX_PORTS, Neighbor, NetworkInfo,
    PortInfo, PublishedService, Route, Router, RouterSpec, Snapshot, SnapshotBuilder, Source, Translation,
    Translations, VlanMode, VlanSet,
};
pub use tables::{Limits, Tables};

use event::Events;
use flow_cache::routed::{Key4, Key6, RoutedCache};
use flow_cache::{Decided, FlowCache, FlowKey, Place, Tick};
use held::Held;
use hit::{AnyKey, Check, Kind};
use slow::Death;
use stages::guard;
use tables::{Fragments, NeighborKey, Target};
use upkeep::Upkeep;
use walk::{Packet, Step, View, Walk};

/// Asks every stage in turn until one has decided. This list is the order of the product.
fn walk_stages(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    macro_rules! step {
        ($stage:ident) => {
            walk.enter(stringify!($stage));
            match stages::$stage::walk(packet, view, walk) {
                Step::Next => {}
                decided => return decided,
            }
        };
    }
    step!(loops);
    step!(guard);
    step!(learn);
    step!(proxy);
    step!(bridge);
    step!(connection);
    step!(dnat);
    step!(route);
    step!(policy);
    step!(snat);
    step!(forward);
    step!(neighbor);
    step!(output);
    Step::Done
}

/// What a turn works with: where frames go, where they come from and end, and its time.
pub(crate) struct Turn<'a> {
    pub(crate) outputs: &'a mut Outputs,
    pub(crate) pool: &'a mut FramePool,
    pub(crate) now: Instant,
}

/// One worker's pipeline: its flow cache, and the configuration it works by.
#[derive(Debug)]
pub struct Pipeline {
    tables: Arc<Tables>,
    snapshot: Arc<Snapshot>,
    worker: usize,
    cache: FlowCache,
    routed4: RoutedCache<Key4>,
    routed6: RoutedCache<Key6>,
    flows: Box<[Flow]>,
    /// Runs of frames from one port in the batch, and their lengths.
    runs: Vec<(PortId, usize)>,
    fragments: Fragments,
    held: Held,
    upkeep: Upkeep,
    /// Lists that are empty between calls, kept for their memory.
    pieces: Vec<Frame>,
    late: Vec<(Frame, PortId)>,
    questions: Vec<(NeighborKey, Option<Target>)>,
    events: Events,
    drop_log: Option<DropLog>,
    /// The rule that decided last, and how often since that was counted where all workers count.
    decided: (u32, u64),
}

/// What is known of a packet between the two passes over a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// [`FlowKey::NONE`] when a decision about the packet can neither be found nor kept.
    key: FlowKey,
    /// Where to look for the decision.
    place: Place,
    /// The kind of a packet that is routed or tracked, and where to look for its decision.
    kind: Kind,
    routed: flow_cache::routed::Place,
}

impl Flow {
    /// Returns what a decision about a routed or tracked packet is kept under. The frame is as it came.
    fn key_of(&self, frame: &Frame, from: PortId) -> AnyKey {
        if self.kind == Kind::None { AnyKey::None } else { hit::key(frame.bytes(), from) }
    }
}

impl Pipeline {
    /// Makes the pipeline of worker number `worker`. Allocates all that it will ever need.
    pub fn new(tables: Arc<Tables>, snapshot: Arc<Snapshot>, worker: usize) -> Self {
        let (flows, seed) = (tables.limits().flows, tables.seed());
        Self {
            cache: FlowCache::new(flows, seed),
            routed4: RoutedCache::new(flows, seed),
            routed6: RoutedCache::new(flows / 2, seed),
            flows: vec![Flow::default(); Batch::CAPACITY].into_boxed_slice(),
            runs: Vec::with_capacity(Batch::CAPACITY),
            fragments: Fragments::new(1024, seed),
            held: Held::new(),
            upkeep: Upkeep::default(),
            pieces: Vec::with_capacity(64),
            late: Vec::with_capacity(256),
            questions: Vec::with_capacity(256),
            events: Events::new(),
            drop_log: None,
            decided: (0, 0),
            tables,
            snapshot,
            worker,
        }
    }

    /// Takes another version of the configuration, between two turns, and returns the one before, which the
    /// caller sends to the manager to be dropped there.
    pub fn adopt(&mut self, snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
        std::mem::replace(&mut self.snapshot, snapshot)
    }

    /// Returns the configuration in use.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Returns what workers share.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Sets where the heads of dropped frames go while [`Tables::set_logs_drops`] is on, and returns the log
    /// before.
    pub fn set_drop_log(&mut self, log: Option<DropLog>) -> Option<DropLog> {
        std::mem::replace(&mut self.drop_log, log)
    }

    /// Forgets every cached decision, so that each flow walks the stages again; connections go on. Tests compare what
    /// the cache makes of packets with what the stages do.
    pub fn forget(&mut self, now: Instant) {
        self.cache.clear();
        self.counters().ledger.cache_entries.set(0);
        self.routed4.clear(&self.tables.connections, now);
        self.routed6.clear(&self.tables.connections, now);
    }

    /// Takes the oldest event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Decides every packet of the batch and leaves the batch empty: each frame is in a queue of `outputs`, or went
    /// back to `pool` and was counted under a reason, or waits (see [`Pipeline::held_frames`]).
    pub fn run(&mut self, batch: &mut Batch, outputs: &mut Outputs, pool: &mut FramePool, now: Instant) {
        self.wake_cache(now);
        self.parse(batch);
        let mut turn = Turn { outputs, pool, now };
        let flows = std::mem::take(&mut self.flows);
        let runs = std::mem::take(&mut self.runs);
        let mut rest = batch.drain().zip(&*flows);
        for (from, count) in &runs {
            let mut run = rest.by_ref().take(*count);
            let ingress = self.snapshot.ingress(*from);
            let only_bridged = ingress.router_mac == MacAddr::ZERO && !ingress.tracked;
            loop {
                let undecided = if only_bridged {
                    self.send_hits(&mut run, *from, turn.outputs, now)
                } else {
                    self.send_any_hits(&mut run, *from, turn.outputs, now)
                };
                let Some(Undecided { frame, flow, why }) = undecided else { break };
                match why {
                    Why::Unknown => self.miss(frame, flow, *from, &mut turn),
                    Why::Tag(transform) => self.send(frame, transform, *from, &mut turn),
                    Why::Full(to) => self.drop_frame(frame, to, DropReason::TxFull.into(), &mut turn),
                }
            }
        }
        drop(rest);
        self.flows = flows;
        self.runs = runs;
        self.count_rule();
    }

    /// First pass: makes the keys, and asks the memory for all cache lines at once. Frames come in runs of one
    /// port; what depends on the port is done once a run.
    fn parse(&mut self, batch: &Batch) {
        let Self { cache, routed4, routed6, flows, runs, tables, worker, snapshot, .. } = self;
        let counters = tables.counters(*worker);
        let cache = cache.reader();
        runs.clear();
        let mut rest = batch.frames().iter().zip(flows.iter_mut());
        for run in batch.from().chunk_by(|a, b| a == b) {
            let mut bytes = 0;
            let ingress = snapshot.ingress(run[0]);
            let routes = ingress.router_mac != MacAddr::ZERO || ingress.tracked;
            for (frame, flow) in rest.by_ref().take(run.len()) {
                bytes += frame.len() as u64;
                if routes && hit::concerns(frame.bytes(), &ingress) {
                    let (kind, routed) = match hit::key(frame.bytes(), run[0]) {
                        AnyKey::None => (Kind::None, 0),
                        AnyKey::V4(key) => (Kind::V4, routed4.locate(&key)),
                        AnyKey::V6(key) => (Kind::V6, routed6.locate(&key)),
                    };
                    *flow = Flow { kind, routed, ..Flow::default() };
                    continue;
                }
                let key = frame
                    .bytes()
                    .first_chunk::<16>()
                    .map_or(FlowKey::NONE, |head| FlowKey::new(head, run[0]));
                *flow = Flow { key, place: cache.locate(key), ..Flow::default() };
            }
            runs.push((run[0], run.len()));
            counters.port(run[0]).rx_frames.add(run.len() as u64);
            counters.port(run[0]).rx_bytes.add(bytes);
        }
        counters.ledger.received.add(batch.len() as u64);
    }

    /// Second pass, the fast path of ports that are only bridged: finds the decisions of a run, checks what their keys do
    /// not hold, and queues the frames, up to the first that needs more.
    fn send_hits<'f>(
        &self,
        run: &mut impl Iterator<Item = (Frame, &'f Flow)>,
        from: PortId,
        outputs: &mut Outputs,
        now: Instant,
    ) -> Option<Undecided<'f>> {
        let bridge = self.bridge_check(from, now);
        let ledger = &self.counters().ledger;
        let mut hits = 0;
        let undecided = loop {
            let Some((frame, flow)) = run.next() else { break None };
            let Some(transform) = bridge.find(&frame, flow) else {
                break Some(Undecided { frame, flow, why: Why::Unknown });
            };
            if transform.tag != TagAction::Keep {
                ledger.cache_hits.add(1);
                break Some(Undecided { frame, flow, why: Why::Tag(transform) });
            }
            if let Err(frame) = outputs.push(transform.to, frame) {
                ledger.cache_hits.add(1);
                break Some(Undecided { frame, flow, why: Why::Full(transform.to) });
            }
            hits += 1;
        };
        ledger.cache_hits.add(hits);
        ledger.forwarded.add(hits);
        undecided
    }

    /// As [`Pipeline::send_hits`], for ports whose frames may be routed or tracked.
    fn send_any_hits<'f>(
        &mut self,
        run: &mut impl Iterator<Item = (Frame, &'f Flow)>,
        from: PortId,
        outputs: &mut Outputs,
        now: Instant,
    ) -> Option<Undecided<'f>> {
        let Self { routed4, routed6, snapshot, tables, worker, cache, .. } = self;
        let ledger = &tables.counters(*worker).ledger;
        let ingress = snapshot.ingress(from);
        let check = Check { tables, from, ingress, egress: snapshot.egress(), tick: Tick::at(now) };
        let bridge = BridgeCheck::new(tables, snapshot, cache, from, now);
        let mut hits = 0;
        let undecided = loop {
            let Some((mut frame, flow)) = run.next() else { break None };
            let to = match flow.kind {
                Kind::V4 => check.apply(routed4, flow.routed, &mut frame),
                Kind::V6 => check.apply(routed6, flow.routed, &mut frame),
                Kind::None => match bridge.find(&frame, flow) {
                    Some(transform) if transform.tag != TagAction::Keep => {
                        ledger.cache_hits.add(1);
                        break Some(Undecided { frame, flow, why: Why::Tag(transform) });
                    }
                    found => found.map(|transform| transform.to),
                },
            };
            let Some(to) = to else { break Some(Undecided { frame, flow, why: Why::Unknown }) };
            if let Err(frame) = outputs.push(to, frame) {
                ledger.cache_hits.add(1);
                break Some(Undecided { frame, flow, why: Why::Full(to) });
            }
            hits += 1;
        };
        ledger.cache_hits.add(hits);
        ledger.forwarded.add(hits);
        undecided
    }

    fn bridge_check(&self, from: PortId, now: Instant) -> BridgeCheck<'_> {
        BridgeCheck::new(&self.tables, &self.snapshot, &self.cache, from, now)
    }

    /// Fits the tag and queues the frame.
    fn send(&mut self, mut frame: Frame, transform: Transform, from: PortId, turn: &mut Turn<'_>) {
        let vlan = self.snapshot.ingress(from).untagged;
        if tag::apply(&mut frame, transform.tag, vlan).is_none() {
            return self.drop_frame(frame, from, DropReason::NoMemory.into(), turn);
        }
        match turn.outputs.push(transform.to, frame) {
            Ok(()) => self.counters().ledger.forwarded.add(1),
            Err(frame) => self.drop_frame(frame, transform.to, DropReason::TxFull.into(), turn),
        }
    }

    /// Counts a frame under its reason, at the port where it died, and frees it.
    fn drop_frame(&mut self, frame: Frame, at: PortId, death: Death, turn: &mut Turn<'_>) {
        self.count_drop(&frame, at, &death, turn);
        turn.pool.free(frame);
    }

    /// Counts a packet that dies, whatever its frame is used for next.
    fn count_drop(&mut self, frame: &Frame, at: PortId, death: &Death, turn: &Turn<'_>) {
        self.counters().drop(at, death.reason);
        if self.tables.logs_drops()
            && let Some(log) = &mut self.drop_log
        {
            log.record(frame, at, death.reason, death.because.clone(), turn.now);
        }
    }

    fn counters(&self) -> &tables::Counters {
        self.tables.counters(self.worker)
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
    fn find(&self, frame: &Frame, flow: &Flow) -> Option<Transform> {
        let Self { versions, ingress, .. } = self;
        let decision = self.cache.find(flow.place, flow.key, ingress.generation, self.tick, ingress.refresh);
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
        decision.filter(holds).map(Decided::transform)
    }

    fn source_is_allowed(&self, frame: &Frame) -> bool {
        match (Packet::new(frame, self.from), self.snapshot.port(self.from)) {
            (Some(packet), Some(port)) => guard::source_is_allowed(&port.guard, &packet),
            _ => false,
        }
    }
}

/// A frame that the fast path leaves to the slow one.
struct Undecided<'f> {
    frame: Frame,
    flow: &'f Flow,
    why: Why,
}

enum Why {
    /// No decision, or one that no longer holds.
    Unknown,
    /// It is decided, and its VLAN tag has to change.
    Tag(Transform),
    /// The queue of its port is full.
    Full(PortId),
}
