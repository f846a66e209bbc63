//! Frames for ports that another worker owns.
//!
//! One single-producer ring for each ordered pair of workers. The sender pushes (port, frame) after its
//! pipeline ran and rings the receiver's bell once a turn; the receiver moves them into its own output queues
//! at the start of its turn. Frames inside a ring count as queued.
//!
//! Capacity: [`RING`] frames a pair. Full: the sender keeps the frame and drops it as `tx_full`.
//! Threads: each end belongs to one worker.

use std::sync::Arc;

use packet::{Frame, PortId};
use rtrb::{Consumer, Producer, RingBuffer};

use super::figures::Shared;

/// Frames a ring holds: four full batches, so that a receiver may be late by some turns of a flood.
pub const RING: usize = 1024;

type Parcel = (PortId, Frame);

/// One worker's ends of all rings.
#[derive(Debug)]
pub struct Links {
    to: Vec<Option<Lane>>,
    from: Vec<Consumer<Parcel>>,
}

#[derive(Debug)]
struct Lane {
    ring: Producer<Parcel>,
    peer: Arc<Shared>,
    pushed: bool,
}

impl Links {
    /// Makes the rings between `workers` and returns each worker's ends.
    pub fn mesh(workers: &[Arc<Shared>]) -> Vec<Links> {
        let mut links: Vec<Links> =
            workers.iter().map(|_| Links { to: Vec::new(), from: Vec::new() }).collect();
        for from in 0..workers.len() {
            for (to, peer) in workers.iter().enumerate() {
                if from == to {
                    links[from].to.push(None);
                    continue;
                }
                let (ring, consumer) = RingBuffer::new(RING);
                links[from].to.push(Some(Lane { ring, peer: Arc::clone(peer), pushed: false }));
                links[to].from.push(consumer);
            }
        }
        links
    }

    /// Hands a frame to `worker`, which owns `port`.
    ///
    /// # Errors
    /// The frame itself when the ring is full or there is no such worker.
    #[inline]
    pub fn push(&mut self, worker: usize, port: PortId, frame: Frame) -> Result<(), Frame> {
        let Some(Some(lane)) = self.to.get_mut(worker) else { return Err(frame) };
        lane.pushed = true;
        lane.ring.push((port, frame)).map_err(|rtrb::PushError::Full((_, frame))| frame)
    }

    /// Wakes the workers that got frames since the last call, if they sleep.
    #[inline]
    pub fn ring(&mut self) {
        for lane in self.to.iter_mut().flatten() {
            if std::mem::take(&mut lane.pushed) {
                lane.peer.bell.ring();
            }
        }
    }

    /// Takes everything that others handed over and passes it to `sink`. Returns how many frames.
    #[inline]
    pub fn drain(&mut self, mut sink: impl FnMut(PortId, Frame)) -> usize {
        let mut count = 0;
        for ring in &mut self.from {
            // What is there now: a sender that never pauses must not keep us here.
            let waiting = ring.slots();
            let Ok(chunk) = ring.read_chunk(waiting) else { continue };
            for (port, frame) in chunk {
                sink(port, frame);
            }
            count += waiting;
        }
        count
    }

    /// Says whether nothing waits in any ring towards us.
    pub fn is_empty(&self) -> bool {
        self.from.iter().all(Consumer::is_empty)
    }
}
