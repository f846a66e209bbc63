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

mod answer;
mod drop_log;
mod drop_reason;
mod event;
mod flow_cache;
mod outputs;
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

use packet::{Batch, Frame, FramePool, Instant, PortId};

pub use drop_log::{DropLog, DropRecord, HEAD_LEN};
pub use drop_reason::DropReason;
pub use event::Event;
pub use flow_cache::{StationRef, TagAction, Transform};
pub use outputs::Outputs;
pub use snapshot::{
    Gateway, Guard, MAX_PORTS, Neighbor, NetworkInfo, PortInfo, Snapshot, SnapshotBuilder, VlanMode, VlanSet,
};
pub use tables::{Limits, Tables};

use event::Events;
use flow_cache::{FlowCache, FlowKey, Hit, Tick};
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
    lookups: Box<[Lookup]>,
    events: Events,
    drop_log: Option<DropLog>,
}

/// What is known of a packet between the two passes over a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Lookup {
    key: FlowKey,
    hit: Option<Hit>,
    line: u32,
    from: PortId,
    /// The decision may come from the cache and go into it.
    cached: bool,
}

impl Pipeline {
    /// Makes the pipeline of worker number `worker`. Allocates all that it will ever need.
    pub fn new(tables: Arc<Tables>, snapshot: Arc<Snapshot>, worker: usize) -> Self {
        let cache = FlowCache::new(tables.limits().flows, tables.seed());
        let lookups = vec![Lookup::default(); Batch::CAPACITY].into_boxed_slice();
        Self { tables, snapshot, worker, cache, lookups, events: Events::new(), drop_log: None }
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
        let tick = Tick::at(now);
        self.look_up(batch, tick);
        let mut hits = 0;
        for (n, frame) in batch.drain().enumerate() {
            let lookup = self.lookups[n];
            match lookup.hit {
                Some(hit) if self.still_holds(&hit, &frame, lookup.from) => {
                    hits += 1;
                    self.send(frame, hit.transform, lookup.from, outputs, pool, now);
                }
                _ => self.miss(frame, &lookup, outputs, pool, now),
            }
        }
        self.counters().ledger.cache_hits.add(hits);
    }

    /// Finds the packets' decisions: one pass to hash and prefetch, one to compare, so that the memory works on
    /// all of them at once.
    fn look_up(&mut self, batch: &Batch, tick: Tick) {
        let Self { snapshot, cache, lookups, tables, .. } = self;
        let counters = tables.counters(self.worker);
        let mut received = Received::default();
        for ((frame, from), lookup) in batch.frames().iter().zip(batch.from()).zip(lookups.iter_mut()) {
            received.count(counters, *from, frame.len());
            *lookup = Lookup { from: *from, ..Lookup::default() };
            if let Some(head) = frame.bytes().first_chunk::<16>()
                && is_cacheable(head)
            {
                lookup.key = FlowKey::new(head, *from);
                lookup.line = cache.locate(lookup.key);
                lookup.cached = snapshot.ingress(*from).cached;
            }
        }
        received.flush(counters);
        counters.ledger.received.add(batch.len() as u64);
        for lookup in lookups[..batch.len()].iter_mut().filter(|lookup| lookup.cached) {
            let ingress = snapshot.ingress(lookup.from);
            lookup.hit = cache.find(lookup.line, lookup.key, ingress.generation, tick, ingress.refresh);
            if let Some(hit) = &lookup.hit {
                packet::prefetch(tables.fdb.version(hit.source));
                packet::prefetch(tables.fdb.version(hit.destination));
            }
        }
    }

    /// Checks what the key of a hit does not hold: both stations are where they were, the source IP address is
    /// the port's, and the packet fits the output port.
    #[inline(always)]
    fn still_holds(&self, hit: &Hit, frame: &Frame, from: PortId) -> bool {
        use std::sync::atomic::Ordering::Acquire;
        let fdb = &self.tables.fdb;
        let versions =
            fdb.version(hit.source).load(Acquire).wrapping_add(fdb.version(hit.destination).load(Acquire));
        // A tag is not counted: 18 bytes are allowed where 14 would do, and the slow path measures exactly.
        let fits = frame.wire_len() <= self.snapshot.egress(hit.transform.to).frame_len as usize;
        versions == hit.versions
            && fits
            && (!self.snapshot.ingress(from).guards_ip || self.source_is_allowed(frame, from))
    }

    fn source_is_allowed(&self, frame: &Frame, from: PortId) -> bool {
        match (Packet::new(frame, from), self.snapshot.port(from)) {
            (Some(packet), Some(port)) => guard::source_is_allowed(&port.guard, &packet),
            _ => false,
        }
    }

    /// Fits the tag and queues the frame.
    #[inline(always)]
    fn send(
        &mut self,
        mut frame: Frame,
        transform: Transform,
        from: PortId,
        outputs: &mut Outputs,
        pool: &mut FramePool,
        now: Instant,
    ) {
        if transform.tag != TagAction::Keep {
            let vlan = self.snapshot.ingress(from).untagged;
            if tag::apply(&mut frame, transform.tag, vlan).is_none() {
                return self.drop_frame(frame, from, DropReason::NoMemory, pool, now);
            }
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

/// Says whether a decision about such a frame can be kept: it goes to one station, and is not ARP, which has to be
/// read every time.
#[inline(always)]
fn is_cacheable(head: &[u8; 16]) -> bool {
    head[0] & 1 == 0 && head[12..14] != [0x08, 0x06]
}

/// Adds up what one port received, so that its counters are touched once a run of frames.
#[derive(Default)]
struct Received {
    port: PortId,
    frames: u64,
    bytes: u64,
}

impl Received {
    #[inline(always)]
    fn count(&mut self, counters: &tables::Counters, port: PortId, len: usize) {
        if port != self.port {
            self.flush(counters);
            self.port = port;
        }
        self.frames += 1;
        self.bytes += len as u64;
    }

    fn flush(&mut self, counters: &tables::Counters) {
        if self.frames > 0 {
            let port = counters.port(self.port);
            port.rx_frames.add(self.frames);
            port.rx_bytes.add(self.bytes);
            (self.frames, self.bytes) = (0, 0);
        }
    }
}
