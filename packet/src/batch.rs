//! Frames that travel together: the batch a worker decides at once, and the queue before a port.

use std::slice;
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
///
/// PERF: a ring of its own. That of the standard library can grow, so that what puts a frame into it is too much for the
/// compiler to have in each loop that does (benches/overlay).
pub struct FrameQueue {
    /// As many as a power of two; those that wait begin at `first` and go on at the start.
    slots: Box<[Option<Frame>]>,
    first: usize,
    count: usize,
    limit: usize,
}

impl FrameQueue {
    /// Makes an empty queue for `limit` frames. This allocates; nothing later does.
    pub fn new(limit: usize) -> Self {
        let slots = (0..limit.next_power_of_two()).map(|_| None).collect();
        Self { slots, first: 0, count: 0, limit }
    }

    #[inline(always)]
    fn place(&self, n: usize) -> usize {
        self.first.wrapping_add(n) & self.slots.len().wrapping_sub(1)
    }

    /// Adds a frame at the end.
    ///
    /// # Errors
    /// The frame itself when the queue is full: the caller drops it as `tx_full`.
    #[inline(always)]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        let place = self.place(self.count);
        match self.slots.get_mut(place) {
            Some(slot) if self.count < self.limit => {
                *slot = Some(frame);
                self.count += 1;
                Ok(())
            }
            _ => Err(frame),
        }
    }

    /// Puts a frame back at the front, one that [`FrameQueue::pop`] took and the device refused.
    ///
    /// # Panics
    /// When the queue is full: none was taken.
    pub fn unpop(&mut self, frame: Frame) {
        assert!(self.count < self.slots.len(), "a frame was taken from the queue before");
        self.first = self.place(self.slots.len() - 1);
        self.slots[self.first] = Some(frame);
        self.count += 1;
    }

    /// Takes the first frame.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.slots.get_mut(self.first)?.take()?;
        self.first = self.place(1);
        self.count -= 1;
        Some(frame)
    }

    /// Returns the first frame.
    pub fn front(&self) -> Option<&Frame> {
        self.slots.get(self.first)?.as_ref()
    }

    /// Returns the frames in order, to be read.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.iter_from(0)
    }

    /// Returns the frames behind the first `start`, without a look at those.
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = &Frame> {
        (start..self.count).map_while(|n| self.slots.get(self.place(n))?.as_ref())
    }

    /// Returns the frames in order.
    pub fn iter_mut(&mut self) -> IterMut<'_> {
        let until_end = self.count.min(self.slots.len() - self.first);
        let (start, end) = self.slots.split_at_mut(self.first);
        IterMut { near: end[..until_end].iter_mut(), far: start[..self.count - until_end].iter_mut() }
    }

    /// Takes the first `count` frames, in order. Those that are not asked for stay.
    pub fn drain(&mut self, count: usize) -> Drain<'_> {
        let left = count.min(self.count);
        Drain { queue: self, left }
    }

    /// Returns how many frames wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Says whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the most frames it holds.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns how many more frames fit.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.count)
    }
}

impl std::fmt::Debug for FrameQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The frames of a [`FrameQueue`], to be changed.
#[derive(Debug)]
pub struct IterMut<'a> {
    near: slice::IterMut<'a, Option<Frame>>,
    far: slice::IterMut<'a, Option<Frame>>,
}

impl<'a> Iterator for IterMut<'a> {
    type Item = &'a mut Frame;

    fn next(&mut self) -> Option<Self::Item> {
        self.near.next().or_else(|| self.far.next())?.as_mut()
    }

    // `skip` and `take` of long queues ask for it.
    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        match n.checked_sub(self.near.len()) {
            None => self.near.nth(n)?.as_mut(),
            Some(rest) => {
                self.near = Default::default();
                self.far.nth(rest)?.as_mut()
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.near.len() + self.far.len();
        (len, Some(len))
    }
}

impl ExactSizeIterator for IterMut<'_> {}

/// The first frames of a [`FrameQueue`], taken one by one.
#[derive(Debug)]
pub struct Drain<'a> {
    queue: &'a mut FrameQueue,
    left: usize,
}

impl Iterator for Drain<'_> {
    type Item = Frame;

    #[inline]
    fn next(&mut self) -> Option<Frame> {
        self.left = self.left.checked_sub(1)?;
        self.queue.pop()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Drain<'_> {}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::*;
    use crate::{Area, FramePool};

    #[test]
    fn a_queue_is_as_that_of_the_standard_library() {
        let area = Area::new(256, 0).expect("1 MiB");
        let mut pool = FramePool::new(Arc::clone(&area));
        let mut random = 1u32;
        let mut below = |n: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) as usize % n
        };
        for limit in [1, 3, 8, 21] {
            let (mut queue, mut model) = (FrameQueue::new(limit), VecDeque::new());
            for n in 0..5000u32 {
                match below(8) {
                    0..4 => {
                        let frame = pool.alloc_from(&n.to_le_bytes()).expect("chunks");
                        match queue.push(frame) {
                            Ok(()) => model.push_back(n),
                            Err(frame) => pool.free(frame),
                        }
                        assert!(model.len() <= limit);
                    }
                    4 => {
                        let frame = queue.pop();
                        assert_eq!(frame.as_ref().map(number), model.pop_front());
                        if let Some(frame) = frame {
                            if below(2) == 0 {
                                model.push_front(number(&frame));
                                queue.unpop(frame);
                            } else {
                                pool.free(frame);
                            }
                        }
                    }
                    5 => {
                        let count = below(limit + 2);
                        let taken: Vec<u32> = queue
                            .drain(count)
                            .map(|frame| {
                                let number = number(&frame);
                                pool.free(frame);
                                number
                            })
                            .collect();
                        assert_eq!(taken, model.drain(..count.min(model.len())).collect::<Vec<_>>());
                    }
                    _ => {
                        let skip = below(limit + 2);
                        let rest = queue.iter_mut().skip(skip).map(|frame| number(frame));
                        assert!(rest.eq(model.iter().copied().skip(skip)));
                    }
                }
                assert!(queue.iter().map(number).eq(model.iter().copied()));
                assert_eq!(queue.front().map(number), model.front().copied());
                assert_eq!((queue.len(), queue.room()), (model.len(), limit - model.len()));
            }
            queue.drain(limit).for_each(|frame| pool.free(frame));
        }
    }

    fn number(frame: &Frame) -> u32 {
        u32::from_le_bytes(frame.bytes().try_into().expect("four bytes"))
    }
}
