//! The heads of dropped frames, for whoever watches drops.
//!
//! A ring from one worker to the manager. Records that find it full are lost and counted: watching never slows
//! the worker down. Nothing is written while nobody watches.

use std::sync::Arc;

use packet::{Frame, Instant, PortId};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::drop_reason::DropReason;

/// How many bytes of a frame a record keeps.
pub const HEAD_LEN: usize = 96;

/// One dropped frame.
#[derive(Clone, Debug)]
pub struct DropRecord {
    /// When.
    pub time: Instant,
    /// Where: the input port, or the output port for `tx_full`.
    pub port: PortId,
    /// Why.
    pub reason: DropReason,
    /// The rule or published port that said so.
    pub because: Option<Arc<str>>,
    /// Length of the whole frame.
    pub len: u32,
    head: [u8; HEAD_LEN],
}

impl DropRecord {
    /// Returns the first bytes of the frame.
    pub fn head(&self) -> &[u8] {
        &self.head[..HEAD_LEN.min(self.len as usize)]
    }
}

/// The worker's end of the ring.
#[derive(Debug)]
pub struct DropLog {
    ring: Producer<DropRecord>,
    lost: u64,
}

impl DropLog {
    /// Makes a log for `records` records and the manager's end of it.
    pub fn new(records: usize) -> (Self, Consumer<DropRecord>) {
        let (ring, reader) = RingBuffer::new(records);
        (Self { ring, lost: 0 }, reader)
    }

    /// Returns how many records found the log full.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes a record about a frame.
    pub fn record(
        &mut self,
        frame: &Frame,
        port: PortId,
        reason: DropReason,
        because: Option<Arc<str>>,
        time: Instant,
    ) {
        let bytes = frame.bytes();
        let mut head = [0; HEAD_LEN];
        let kept = bytes.len().min(HEAD_LEN);
        head[..kept].copy_from_slice(&bytes[..kept]);
        let len = u32::try_from(bytes.len()).expect("a chunk is smaller than 4 GiB");
        if self.ring.push(DropRecord { time, port, reason, because, len, head }).is_err() {
            self.lost += 1;
        }
    }
}
