//! Counters: written by one worker, read by anyone.
//!
//! Each worker has its own set, so a count is a plain load and store, without a locked instruction. The manager
//! adds the sets up when somebody asks. Counters only grow, until a port number is given to another port: the
//! manager then takes the difference to what it noted at that time.

use std::sync::atomic::{AtomicU64, Ordering};

use packet::PortId;

use crate::drop_reason::DropReason;

/// One number. Only its worker adds; any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only from the thread that owns the counter: two that add would lose counts.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the number of something that comes and goes. Only from the thread that owns the counter.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the pipeline counts for a port.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PortCounters {
    /// Frames that came in.
    pub rx_frames: Counter,
    /// Bytes that came in.
    pub rx_bytes: Counter,
    /// Frames queued for it.
    pub tx_frames: Counter,
    /// Bytes queued for it.
    pub tx_bytes: Counter,
}

/// One side of the frame ledger: `received + created = forwarded + dropped + consumed + held` at the end of a turn.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Ledger {
    /// Frames taken from ports.
    pub received: Counter,
    /// Copies and replies made.
    pub created: Counter,
    /// Frames put into an output queue.
    pub forwarded: Counter,
    /// Frames dropped, for whatever reason.
    pub dropped: Counter,
    /// Frames that ended here as meant: answered, or for the manager.
    pub consumed: Counter,
    /// Decisions found in the flow cache.
    pub cache_hits: Counter,
    /// Decisions made by walking the stages.
    pub cache_misses: Counter,
    /// Events that found the event queue full.
    pub events_lost: Counter,
    /// Places of the flow cache that hold a decision; they are used again, never given back.
    pub cache_entries: Counter,
    /// Decisions kept about routed and tracked flows, now.
    pub routed_entries: Counter,
    /// Frames that wait for a neighbour or for their first fragment, now.
    pub held: Counter,
}

/// The counters of one worker.
#[derive(Debug)]
pub struct Counters {
    ports: Box<[PortCounters]>,
    drops: Box<[Counter]>,
    /// The worker's ledger.
    pub ledger: Ledger,
}

impl Counters {
    /// Makes counters for `ports` ports, all zero.
    pub fn new(ports: usize) -> Self {
        Self {
            ports: (0..ports).map(|_| PortCounters::default()).collect(),
            drops: (0..ports * DropReason::COUNT).map(|_| Counter::default()).collect(),
            ledger: Ledger::default(),
        }
    }

    /// Returns a port's counters.
    ///
    /// # Panics
    /// When the port number is beyond what the counters were made for.
    #[inline(always)]
    pub fn port(&self, port: PortId) -> &PortCounters {
        &self.ports[port.index()]
    }

    /// Returns how many frames were dropped at `port` for `reason`.
    pub fn drops(&self, port: PortId, reason: DropReason) -> u64 {
        self.drop_counter(port, reason).get()
    }

    /// Counts a frame dropped at `port`.
    pub fn drop(&self, port: PortId, reason: DropReason) {
        self.drop_counter(port, reason).add(1);
        self.ledger.dropped.add(1);
    }

    /// Returns how many ports the counters were made for.
    pub fn port_count(&self) -> usize {
        self.ports.len()
    }

    fn drop_counter(&self, port: PortId, reason: DropReason) -> &Counter {
        &self.drops[port.index() * DropReason::COUNT + reason.index()]
    }
}
