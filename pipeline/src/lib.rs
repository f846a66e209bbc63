//! The pipeline: decides what happens to packets.
//!
//! A pure function of packets, tables and time: no system call, no clock, no thread, no log. A worker calls
//! [`Pipeline::run`] with a batch; so do tests, benchmarks and fuzzers.
//!
//! ```text
//! run -> look_up   parse all, hash all, prefetch, look all up in the flow cache
//!     -> settle    hit: check, fit the tag, queue          (fast path, this file and flow_cache.rs)
//!                  miss: walk the stages, commit, queue    (slow path, slow.rs)
//! ```
//!
//! The stages, in their order, are the map of the product; each is a file in `stages/`. A stage decides and changes
//! nothing ([`walk`] says how); `slow.rs` carries out what they decided and keeps the decision in the cache.

#![forbid(unsafe_code)]

pub mod answer;
mod drop_log;
mod drop_reason;
mod event;
mod fib;
mod flow_cache;
pub mod fragmenter;
pub mod headers;
pub mod mss;
mod outputs;
mod policy;
#[cfg(test)]
mod random;
pub mod requests;
pub mod rewrite;
mod slow;
mod snapshot;
pub mod tables;
mod tag;
pub mod walk;

/// The stages, in the order in which a packet passes them. A stage never imports another.
pub mod stages {
    pub mod guard;
    pub mod loops;
    // Keep the order of the walk, which is not the alphabet's.
    pub mod learn;
    pub mod proxy;
    // Layer 2 ends, and the router will begin, here.
    pub mod bridge;
    // What is decided leaves.
    pub mod output;
}

use std::sync::Arc;
use std::sync::atomic::Ordering;

use packet::{Batch, Frame, FramePool, Instant, PortId};

pub use drop_log::{DropLog, DropRecord, HEAD_LEN};
pub use drop_reason::DropReason;
pub use event::Event;
pub use fib::{Fib, FibBuilder};
pub use flow_cache::{StationRef, TagAction, Transform};
pub use outputs::Outputs;
pub use policy::{Action, Identity, Peer, PolicySet, Question, Rule, Service};
pub use snapshot::{
    Gateway, Guard, MAX_PORTS, Neighbor, NetworkInfo, PortInfo, Snapshot, SnapshotBuilder, VlanMode, VlanSet,
};
pub use tables::{Limits, Tables};

use event::Events;
use flow_cache::{Decided, FlowCache, FlowKey, Place, Tick};
use stages::{bridge, guard, learn, loops, output, proxy};
use walk::{Packet, Step, View, Walk};

/// Asks every stage in turn until one has decided. This list is the order of the product.
fn walk_stages(packet: &Packet<'_>, view: &View<'_>, walk: &mut Walk) -> Step {
    macro_rules! step {
        ($stage:ident) => {
            match $stage::walk(packet, view, walk) {
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
    step!(output);
    Step::Done
}

/// One worker's pipeline: its flow cache, and the configuration it works by.
#[derive(Debug)]
pub struct Pipeline {
    tables: Arc<Tables>,
    snapshot: Arc<Snapshot>,
    worker: usize,
    cache: FlowCache,
    flows: Box<[Flow]>,
    /// Runs of frames from one port in the batch, and their lengths.
    runs: Vec<(PortId, usize)>,
    events: Events,
    drop_log: Option<DropLog>,
}

/// What is known of a packet between the two passes over a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// [`FlowKey::NONE`] when a decision about the packet can neither be found nor kept.
    key: FlowKey,
    /// Where to look for the decision.
    place: Place,
}

impl Pipeline {
    /// Makes the pipeline of worker number `worker`. Allocates all that it will ever need.
    pub fn new(tables: Arc<Tables>, snapshot: Arc<Snapshot>, worker: usize) -> Self {
        let cache = FlowCache::new(tables.limits().flows, tables.seed());
        let flows = vec![Flow::default(); Batch::CAPACITY].into_boxed_slice();
        let runs = Vec::with_capacity(Batch::CAPACITY);
        Self { tables, snapshot, worker, cache, flows, runs, events: Events::new(), drop_log: None }
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

    /// Takes the oldest event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Decides every packet of the batch and leaves the batch empty: each frame is in a queue of `outputs`, or went
    /// back to `pool` and was counted under a reason.
    pub fn run(&mut self, batch: &mut Batch, outputs: &mut Outputs, pool: &mut FramePool, now: Instant) {
        self.parse(batch);
        let flows = std::mem::take(&mut self.flows);
        let runs = std::mem::take(&mut self.runs);
        let mut rest = batch.drain().zip(&*flows);
        for (from, count) in &runs {
            let mut run = rest.by_ref().take(*count);
            while let Some(Undecided { frame, flow, why }) = self.send_hits(&mut run, *from, outputs, now) {
                match why {
                    Why::Unknown => self.miss(frame, flow, *from, outputs, pool, now),
                    Why::Tag(transform) => self.send(frame, transform, *from, outputs, pool, now),
                    Why::Full(to) => self.drop_frame(frame, to, DropReason::TxFull, pool, now),
                }
            }
        }
        drop(rest);
        self.flows = flows;
        self.runs = runs;
    }

    /// First pass: makes the keys, and asks the memory for all cache lines at once. Frames come in runs of one
    /// port; what depends on the port is done once a run.
    fn parse(&mut self, batch: &Batch) {
        let Self { cache, flows, runs, tables, worker, .. } = self;
        let counters = tables.counters(*worker);
        let cache = cache.reader();
        runs.clear();
        let mut rest = batch.frames().iter().zip(flows.iter_mut());
        for run in batch.from().chunk_by(|a, b| a == b) {
            let mut bytes = 0;
            for (frame, flow) in rest.by_ref().take(run.len()) {
                bytes += frame.len() as u64;
                let key = frame
                    .bytes()
                    .first_chunk::<16>()
                    .map_or(FlowKey::NONE, |head| FlowKey::new(head, run[0]));
                *flow = Flow { key, place: cache.locate(key) };
            }
            runs.push((run[0], run.len()));
            counters.port(run[0]).rx_frames.add(run.len() as u64);
            counters.port(run[0]).rx_bytes.add(bytes);
        }
        counters.ledger.received.add(batch.len() as u64);
    }

    /// Second pass, the fast path: finds the decisions of a run, checks what their keys do not hold, and queues the
    /// frames, up to the first that needs more.
    fn send_hits<'f>(
        &self,
        run: &mut impl Iterator<Item = (Frame, &'f Flow)>,
        from: PortId,
        outputs: &mut Outputs,
        now: Instant,
    ) -> Option<Undecided<'f>> {
        let tick = Tick::at(now);
        let ingress = self.snapshot.ingress(from);
        let ledger = &self.counters().ledger;
        let cache = self.cache.reader();
        let (versions, egress) = (self.tables.fdb.versions(), self.snapshot.egress());
        let mut hits = 0;
        let undecided = loop {
            let Some((frame, flow)) = run.next() else { break None };
            let decision = cache.find(flow.place, flow.key, ingress.generation, tick, ingress.refresh);
            let holds = |decision: &&Decided| {
                // What the key does not hold: both stations are where they were, the packet fits the output
                // port (a tag counts here: the slow path, which measures exactly, then lets it pass), and the
                // source IP address is the port's.
                let version = |slot: u32| Some(versions.get(slot as usize)?.load(Ordering::Acquire));
                let sum = version(decision.source()).zip(version(decision.destination()));
                sum.is_some_and(|(a, b)| a.wrapping_add(b) == decision.versions())
                    && egress
                        .get(decision.transform().to.index())
                        .is_some_and(|egress| frame.wire_len() <= egress.frame_len as usize)
                    && (!ingress.guards_ip || self.source_is_allowed(&frame, from))
            };
            let Some(decision) = decision.filter(holds) else {
                break Some(Undecided { frame, flow, why: Why::Unknown });
            };
            let transform = decision.transform();
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

    fn source_is_allowed(&self, frame: &Frame, from: PortId) -> bool {
        match (Packet::new(frame, from), self.snapshot.port(from)) {
            (Some(packet), Some(port)) => guard::source_is_allowed(&port.guard, &packet),
            _ => false,
        }
    }

    /// Fits the tag and queues the frame.
    fn send(
        &mut self,
        mut frame: Frame,
        transform: Transform,
        from: PortId,
        outputs: &mut Outputs,
        pool: &mut FramePool,
        now: Instant,
    ) {
        let vlan = self.snapshot.ingress(from).untagged;
        if tag::apply(&mut frame, transform.tag, vlan).is_none() {
            return self.drop_frame(frame, from, DropReason::NoMemory, pool, now);
        }
        match outputs.push(transform.to, frame) {
            Ok(()) => self.counters().ledger.forwarded.add(1),
            Err(frame) => self.drop_frame(frame, transform.to, DropReason::TxFull, pool, now),
        }
    }

    /// Counts a frame under its reason, at the port where it died, and frees it.
    fn drop_frame(
        &mut self,
        frame: Frame,
        at: PortId,
        reason: DropReason,
        pool: &mut FramePool,
        now: Instant,
    ) {
        self.counters().drop(at, reason);
        if self.tables.logs_drops()
            && let Some(log) = &mut self.drop_log
        {
            log.record(&frame, at, reason, now);
        }
        pool.free(frame);
    }

    fn counters(&self) -> &tables::Counters {
        self.tables.counters(self.worker)
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
