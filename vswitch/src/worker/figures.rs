//! What a worker tells about itself: plain counters that it alone writes and anybody may read.
//!
//! Relaxed stores of values the worker keeps anyway, on cache lines that nobody else writes: a turn pays a few
//! nanoseconds, and a reader gets each figure whole but not all of one instant.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::wake::Bell;

/// Buckets of the batch histogram: 1, 2-3, 4-7, ... 128-255, 256.
pub const BATCH_BUCKETS: usize = 9;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Figure(AtomicU64);

impl Figure {
    /// Adds; to be called by the one writer only.
    #[inline]
    pub fn add(&self, value: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
    }

    /// Sets the value.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker shows to all others.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shared {
    /// Wakes the worker.
    pub bell: Bell,
    /// The worker's figures.
    pub figures: Figures,
    /// Set by the worker when its thread has left its loop.
    pub stopped: AtomicBool,
}

impl Shared {
    /// Makes the shared part of a worker that has not run yet.
    ///
    /// # Errors
    /// What `eventfd` says.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { bell: Bell::new()?, figures: Figures::default(), stopped: AtomicBool::new(false) })
    }
}

/// A worker's figures. All are written by the worker only.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Figures {
    /// Turns taken.
    pub turns: Figure,
    /// Turns that moved no frame.
    pub idle_turns: Figure,
    /// Nanoseconds in turns that moved frames.
    pub busy_nanos: Figure,
    /// Nanoseconds since the worker started, all turns and sleeps.
    pub total_nanos: Figure,
    /// Times the worker went to sleep.
    pub sleeps: Figure,
    /// Batches run, by size: bucket n holds sizes from 2^n.
    pub batches: [Figure; BATCH_BUCKETS],
    /// Frames that wait in output queues after the last turn.
    pub queued: Figure,
    /// Frames that devices have taken.
    pub transmitted: Figure,
    /// Frames handed to other workers.
    pub handed_out: Figure,
    /// Frames taken from other workers.
    pub handed_in: Figure,
    /// Generation of the snapshot in use.
    pub generation: Figure,
}

impl Figures {
    /// Counts a batch of `len` frames.
    #[inline]
    pub fn batch(&self, len: usize) {
        let bucket = len.max(1).ilog2() as usize;
        self.batches[bucket.min(BATCH_BUCKETS - 1)].add(1);
    }
}
