//! Output queues: where decided frames wait until their port transmits them.
//!
//! A worker has one queue a port, its own ports' and the others' alike: what waits for a port of another worker
//! crosses over from there. The list of touched ports lets a turn visit only those that got something.
//!
//! Queues come from the manager ready-made, so nothing here allocates in a turn. A full queue refuses. A tunnel has none: what
//! leaves by it is packed and waits for the port of the underlay.

use packet::{Frame, FrameQueue, PortId};

use crate::tables::Counters;

/// The queues of one worker, by port.
#[derive(Debug, Default)]
pub struct Outputs {
    queues: Vec<Option<Output>>,
    touched: Vec<PortId>,
}

#[derive(Debug)]
#[repr(align(64))]
struct Output {
    queue: FrameQueue,
    frames: u64,
    bytes: u64,
}

impl Outputs {
    /// Makes room for `ports` ports, without queues.
    pub fn new(ports: usize) -> Self {
        Self { queues: (0..ports).map(|_| None).collect(), touched: Vec::with_capacity(ports) }
    }

    /// Adds the queue of a port and returns the one it had before.
    ///
    /// # Panics
    /// When the port number is beyond what the outputs were made for.
    pub fn insert(&mut self, port: PortId, queue: FrameQueue) -> Option<FrameQueue> {
        self.touched.retain(|other| *other != port);
        let old = self.queues[port.index()].replace(Output { queue, frames: 0, bytes: 0 });
        old.map(|output| output.queue)
    }

    /// Removes the queue of a port, with the frames in it.
    pub fn remove(&mut self, port: PortId) -> Option<FrameQueue> {
        self.touched.retain(|other| *other != port);
        self.queues.get_mut(port.index())?.take().map(|output| output.queue)
    }

    /// Returns the queue of a port.
    #[inline]
    pub fn queue(&mut self, port: PortId) -> Option<&mut FrameQueue> {
        self.queues.get_mut(port.index())?.as_mut().map(|output| &mut output.queue)
    }

    /// Returns the ports that got a frame since [`Outputs::clear_touched`].
    pub fn touched(&self) -> &[PortId] {
        &self.touched
    }

    /// Forgets which ports were touched and adds their counts to `counters`. Once a turn.
    pub fn clear_touched(&mut self, counters: &Counters) {
        for port in self.touched.drain(..) {
            if let Some(output) = &mut self.queues[port.index()] {
                counters.port(port).tx_frames.add(output.frames);
                counters.port(port).tx_bytes.add(output.bytes);
                output.frames = 0;
                output.bytes = 0;
            }
        }
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// The frame, when the port has no queue or a full one.
    #[inline(always)]
    pub(crate) fn push(&mut self, port: PortId, frame: Frame) -> Result<(), Frame> {
        let Some(Some(output)) = self.queues.get_mut(port.index()) else { return Err(frame) };
        let len = frame.len() as u64;
        output.queue.push(frame)?;
        if output.frames == 0 {
            self.touched.push(port);
        }
        output.frames += 1;
        output.bytes += len;
        Ok(())
    }

    /// Returns how many frames wait in all queues. For ledgers: walks all ports.
    pub fn queued(&self) -> usize {
        self.queues.iter().flatten().map(|output| output.queue.len()).sum()
    }
}
