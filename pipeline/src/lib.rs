//! The pipeline: decides what happens to packets.
//!
//! A pure function of packets, tables and time: no system call, no clock, no thread, no log. A worker calls
//! [`Pipeline::run`] with a batch; so do tests, benchmarks and fuzzers.
//!
//! ```text
//! run -> parse     read all keys, hash all, prefetch      (parse.rs)
//!     -> send_hits hit: check, rewrite, queue              (fast path, hit.rs, flow_cache.rs)
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
mod overlay;
mod parse;
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
    // Most of what comes from other hosts was opened before.
    pub mod decap;
    // Keep the order of the walk, which is not the alphabet's.
    pub mod guard;
    pub mod loops;
    // Where it is, and what can be answered at once.
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
    // What is decided leaves, packed when it leaves by a tunnel.
    pub mod encap;
    pub mod output;
}

use std::sync::Arc;

use packet::segment::MAX_SEGMENTS;
use packet::{Batch, Frame, FramePool, Instant, PortId, VtepId};

pub use drop_log::{DropLog, DropRecord, HEAD_LEN};
pub use drop_reason::DropReason;
pub use event::Event;
pub use flow_cache::{StationRef, TagAction, Transform};
pub use outputs::Outputs;
pub use snapshot::{
    Domain, DomainKind, DomainSpec, Dscp, Gateway, Guard, HandBack, Hop, MAX_PORTS, Neighbor, NetworkInfo,
    OVERHEAD_V4, OVERHEAD_V6, OverlayInfo, PortInfo, PublishedService, Route, Router, RouterSpec, Snapshot,
    SnapshotBuilder, Source, Translation, Translations, TunnelInfo, VlanMode, VlanSet, mtu_within,
};
pub use tables::{Limits, Tables};

use event::Events;
use flow_cache::FlowCache;
use flow_cache::routed::{Key4, Key6, RoutedCache};
use held::Held;
use hit::{Run, Undecided, Why};
use overlay::encap::Templates;
use overlay::known::Known;
use parse::Flow;
use slow::Death;
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
    step!(decap);
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
    step!(encap);
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
    segments: Vec<Frame>,
    vteps: Vec<VtepId>,
    questions: Vec<(NeighborKey, Option<Target>)>,
    /// What goes before packets to other hosts.
    templates: Templates,
    /// Where packets from other hosts come from.
    known: Known,
    events: Events,
    drop_log: Option<DropLog>,
    /// The rule that decided last, and how often since that was counted where all workers count.
    decided: (u32, u64),
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
            segments: Vec::with_capacity(MAX_SEGMENTS),
            vteps: Vec::with_capacity(tables.limits().vteps),
            templates: Templates::new(tables.limits().vteps),
            known: Known::new(tables.limits().vteps),
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
        self.known.adopt();
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
        self.known.adopt();
        self.templates.clear();
    }

    /// Takes the oldest event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Decides every packet of the batch and leaves the batch empty: each frame is in a queue of `outputs`, or went
    /// back to `pool` and was counted under a reason, or waits (see [`Pipeline::held_frames`]).
    pub fn run(&mut self, batch: &mut Batch, outputs: &mut Outputs, pool: &mut FramePool, now: Instant) {
        self.wake_cache(now);
        if self.snapshot.overlay().info.is_some() {
            self.open(batch);
        }
        self.parse(batch);
        let mut turn = Turn { outputs, pool, now };
        let flows = std::mem::take(&mut self.flows);
        let runs = std::mem::take(&mut self.runs);
        let mut frames = batch.drain();
        let mut flows_left = &*flows;
        for (from, count) in &runs {
            let (these, rest) = flows_left.split_at(*count);
            flows_left = rest;
            let mut run = Run { frames: &mut frames, flows: these.iter() };
            let only_bridges = self.snapshot.ingress(*from).only_bridges();
            loop {
                let undecided = if only_bridges {
                    self.send_hits(&mut run, *from, turn.outputs, now)
                } else {
                    self.send_any_hits(&mut run, *from, turn.outputs, now)
                };
                let Some(Undecided { frame, flow, why }) = undecided else { break };
                match why {
                    Why::Unknown => self.miss(frame, flow, *from, &mut turn),
                    Why::Send(transform) => self.send(frame, transform, *from, &mut turn),
                    Why::Drop(at, reason) => self.drop_frame(frame, at, reason.into(), &mut turn),
                }
            }
        }
        drop(frames);
        self.flows = flows;
        self.runs = runs;
        self.count_rule();
    }

    /// Fits the tag and queues the frame.
    fn send(&mut self, mut frame: Frame, transform: Transform, from: PortId, turn: &mut Turn<'_>) {
        let vlan = self.snapshot.ingress(from).untagged;
        if tag::apply(&mut frame, transform.tag, vlan).is_none() {
            return self.drop_frame(frame, from, DropReason::NoMemory.into(), turn);
        }
        if self.snapshot.is_tunnel(transform.to) {
            return self.send_tunnel(frame, transform, turn);
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
