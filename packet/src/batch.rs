//! Frames that travel together: the batch a worker decides at once, and the queue before a port.

use std::collections::VecDeque;
use std::collections::vec_deque;
use std::vec;

use crate::addr::PortId;
use crate::frame::Frame;

/// The frames that are decided together, with the port each came from. Never grows beyond its capacity.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    from: Vec<PortId>,
}

impl Batch {
    /// The most frames a batch takes. PERF: 256 hides the memory latency of look-ups in a large flow cache
    /// and still fits the second-level cache (benches/l2).
    pub const CAPACITY: usize = 256;

    /// Makes an empty batch with all the room it will ever need.
    pub fn new() -> Self {
        Self { frames: Vec::with_capacity(Self::CAPACITY), from: Vec::with_capacity(Self::CAPACITY) }
    }

    /// Adds a frame that came in by port `from`.
    ///
    /// # Panics
    /// When the batch is full: ask [`Batch::room`] before receiving.
    #[inline]
    pub fn push(&mut self, frame: Frame, from: PortId) {
        assert!(self.frames.len() < Self::CAPACITY, "room was asked for before receiving");
        self.frames.push(frame);
        self.from.push(from);
    }

    /// Returns how many more frames fit.
    pub fn room(&self) -> usize {
        Self::CAPACITY - self.frames.len()
    }

    /// Returns how many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Says whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns the frames.
    #[inline]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Returns the frames, to be changed.
    #[inline]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        &mut self.frames
    }

    /// Returns the frames and the port each came in by, both to be changed: who opens a tunnel's packet finds what
    /// came by the tunnel.
    #[inline]
    pub fn parts_mut(&mut self) -> (&mut [Frame], &mut [PortId]) {
        (&mut self.frames, &mut self.from)
    }

    /// Returns the port each frame came in by, in the same order.
    #[inline]
    pub fn from(&self) -> &[PortId] {
        &self.from
    }

    /// Moves all frames out, in order, and leaves the batch empty.
    #[inline]
    pub fn drain(&mut self) -> vec::Drain<'_, Frame> {
        self.from.clear();
        self.frames.drain(..)
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// Frames that wait for a port, first in, first out, at most as many as said when it was made.
#[derive(Debug)]
pub struct FrameQueue {
    frames: VecDeque<Frame>,
    limit: usize,
}

impl FrameQueue {
    /// Makes an empty queue for `limit` frames. This allocates; nothing later does.
    pub fn new(limit: usize) -> Self {
        Self { frames: VecDeque::with_capacity(limit), limit }
    }

    /// Adds a frame at the end.
    ///
    /// # Errors
    /// The frame itself when the queue is full: the caller drops it as `tx_full`.
    #[inline]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.frames.len() >= self.limit {
            return Err(frame);
        }
        self.frames.push_back(frame);
        Ok(())
    }

    /// Puts a frame back at the front, one that [`FrameQueue::pop`] took and the device refused.
    pub fn unpop(&mut self, frame: Frame) {
        self.frames.push_front(frame);
    }

    /// Takes the first frame.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Returns the first frame.
    pub fn front(&self) -> Option<&Frame> {
        self.frames.front()
    }

    /// Returns the frames in order, to be read.
    pub fn iter(&self) -> vec_deque::Iter<'_, Frame> {
        self.frames.iter()
    }

    /// Returns the frames in order.
    pub fn iter_mut(&mut self) -> vec_deque::IterMut<'_, Frame> {
        self.frames.iter_mut()
    }

    /// Takes the first `count` frames, in order.
    pub fn drain(&mut self, count: usize) -> vec_deque::Drain<'_, Frame> {
        self.frames.drain(..count)
    }

    /// Returns how many frames wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Says whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns the most frames it holds.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns how many more frames fit.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.frames.len())
    }
}
