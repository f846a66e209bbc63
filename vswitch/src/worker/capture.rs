//! Copies of frames for `vsctl capture`.
//!
//! The worker writes a fixed header and the first bytes of a frame into a ring of bytes; the manager turns
//! that into pcapng. A record that does not fit whole is counted as lost: a capture never slows the packet
//! path down by more than its copies.
//!
//! Capacity: the ring's. Threads: the worker writes, the manager reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use packet::{Frame, Instant, PortId};
use rtrb::{Consumer, Producer, RingBuffer};

/// Bytes before each frame in the ring.
const HEADER: usize = 19;

/// Which way a frame goes, as the port sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the switch.
    Rx,
    /// Out of the switch.
    Tx,
}

/// What is to be captured, and the ring it goes to.
#[derive(Debug)]
pub struct Capture {
    /// Number of the capture, to end it by.
    pub number: u64,
    /// Only frames of this port; `None`: of all.
    pub port: Option<PortId>,
    /// Frames that enter the switch.
    pub rx: bool,
    /// Frames that leave it.
    pub tx: bool,
    snaplen: usize,
    ring: Producer<u8>,
    lost: Arc<AtomicU64>,
}

/// The manager's end of a capture.
#[derive(Debug)]
pub struct Reader {
    ring: Consumer<u8>,
    lost: Arc<AtomicU64>,
}

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub time: Instant,
    /// At which port.
    pub port: PortId,
    /// Which way.
    pub direction: Direction,
    /// Length of the whole frame.
    pub len: usize,
    /// The first bytes of it.
    pub head: Vec<u8>,
}

impl Capture {
    /// Makes a capture with a ring of `capacity` bytes.
    pub fn new(
        number: u64,
        port: Option<PortId>,
        (rx, tx): (bool, bool),
        snaplen: usize,
        capacity: usize,
    ) -> (Capture, Reader) {
        let (ring, consumer) = RingBuffer::new(capacity.max(HEADER + 1));
        let lost = Arc::new(AtomicU64::new(0));
        let reader = Reader { ring: consumer, lost: Arc::clone(&lost) };
        (Capture { number, port, rx, tx, snaplen, ring, lost }, reader)
    }

    /// Copies the frame's head if the capture wants frames of this port and direction.
    pub fn offer(&mut self, frame: &Frame, port: PortId, direction: Direction, now: Instant) {
        let wanted = match direction {
            Direction::Rx => self.rx,
            Direction::Tx => self.tx,
        };
        if !wanted || self.port.is_some_and(|only| only != port) {
            return;
        }
        let head = &frame.bytes()[..frame.len().min(self.snaplen)];
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&now.as_nanos().to_le_bytes());
        header[8..10].copy_from_slice(&port.0.to_le_bytes());
        header[10] = u8::from(direction == Direction::Tx);
        header[11..15].copy_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[15..].copy_from_slice(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
        if self.ring.slots() < HEADER + head.len() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (_, rest) = self.ring.push_partial_slice(&header);
        debug_assert!(rest.is_empty(), "room was checked");
        let (_, rest) = self.ring.push_partial_slice(head);
        debug_assert!(rest.is_empty(), "room was checked");
    }
}

impl Reader {
    /// Takes the next record, or `None` when there is no whole one yet.
    pub fn read(&mut self) -> Option<Record> {
        let waiting = self.ring.slots();
        if waiting < HEADER {
            return None;
        }
        let header: [u8; HEADER] = {
            let chunk = self.ring.read_chunk(HEADER).ok()?;
            let mut header = [0; HEADER];
            let (first, second) = chunk.as_slices();
            header[..first.len()].copy_from_slice(first);
            header[first.len()..].copy_from_slice(second);
            // Not committed: the header stays until its frame is there too.
            header
        };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let head_len = usize::try_from(word(15)).ok()?;
        if waiting < HEADER + head_len {
            return None;
        }
        let chunk = self.ring.read_chunk(HEADER + head_len).ok()?;
        let head = chunk.into_iter().skip(HEADER).collect();
        let mut nanos = [0; 8];
        nanos.copy_from_slice(&header[..8]);
        Some(Record {
            time: Instant::from_nanos(u64::from_le_bytes(nanos)),
            port: PortId(u16::from_le_bytes([header[8], header[9]])),
            direction: if header[10] == 0 { Direction::Rx } else { Direction::Tx },
            len: usize::try_from(word(11)).ok()?,
            head,
        })
    }

    /// Returns how many records were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Says whether the worker has ended the capture and everything was read.
    pub fn is_over(&self) -> bool {
        self.ring.is_abandoned() && self.ring.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::{Area, FramePool};

    fn frame(pool: &mut FramePool, len: usize) -> Frame {
        pool.alloc_from(&vec![7; len]).expect("a chunk")
    }

    #[test]
    fn records_come_out_as_they_went_in_across_the_wrap() {
        let mut pool = FramePool::new(Area::new(64, 1).expect("an area"));
        let (mut capture, mut reader) = Capture::new(1, None, (true, true), 96, 256);
        for n in 0..100_u16 {
            let frame = frame(&mut pool, 60 + usize::from(n));
            let now = Instant::from_nanos(u64::from(n));
            capture.offer(&frame, PortId(n), Direction::Tx, now);
            let record = reader.read().expect("a record");
            assert_eq!((record.time, record.port, record.direction), (now, PortId(n), Direction::Tx));
            assert_eq!((record.len, record.head.len()), (frame.len(), frame.len().min(96)));
            pool.free(frame);
        }
        assert_eq!((reader.read(), reader.lost()), (None, 0));
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut pool = FramePool::new(Area::new(64, 1).expect("an area"));
        let (mut capture, mut reader) = Capture::new(1, None, (true, false), 2000, 200);
        let frame = frame(&mut pool, 100);
        capture.offer(&frame, PortId(1), Direction::Rx, Instant::ZERO);
        capture.offer(&frame, PortId(1), Direction::Rx, Instant::ZERO);
        capture.offer(&frame, PortId(1), Direction::Tx, Instant::ZERO);
        pool.free(frame);
        assert!(reader.read().is_some() && reader.read().is_none());
        assert_eq!(reader.lost(), 1);
    }

    #[test]
    fn only_the_wanted_port_is_captured() {
        let mut pool = FramePool::new(Area::new(64, 1).expect("an area"));
        let (mut capture, mut reader) = Capture::new(1, Some(PortId(2)), (true, true), 2000, 4096);
        let frame = frame(&mut pool, 100);
        capture.offer(&frame, PortId(1), Direction::Rx, Instant::ZERO);
        capture.offer(&frame, PortId(2), Direction::Rx, Instant::ZERO);
        pool.free(frame);
        assert_eq!(reader.read().map(|record| record.port), Some(PortId(2)));
        assert_eq!(reader.read(), None);
    }
}
