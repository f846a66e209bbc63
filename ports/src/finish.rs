//! What a device cannot do, done for it before a frame is transmitted.
//!
//! A frame carries what is left to do: a checksum to complete, a large frame to cut. [`Can`] says what a device
//! takes over. Everything else is done here: first the checksum state is resolved where the sending port could
//! not tell it, then what the device cannot finish is finished.
//!
//! [`Pieces`] holds what a large frame was cut into until the device has taken all of it. It has room for the
//! most that one frame becomes, and a port cuts the next only when it is empty, so it is never full.

use packet::segment::{self, Finish, MAX_SEGMENTS};
use packet::{Checksum, Frame, FramePool, FrameQueue, GsoKind, checksum};

use crate::Stats;

/// What a device does itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Can {
    /// Completes checksums.
    pub checksum: bool,
    /// Cuts TCP over IPv4.
    pub tso4: bool,
    /// Cuts TCP over IPv6.
    pub tso6: bool,
    /// Cuts UDP into datagrams.
    pub uso: bool,
    /// Cuts inside a UDP tunnel without outer checksum.
    pub tunnel: bool,
    /// Cuts inside a UDP tunnel with outer checksum.
    pub tunnel_checksum: bool,
}

/// What is to be done with a frame now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The device takes it as it is.
    Send,
    /// It must be cut first.
    Cut,
    /// It contradicts itself and cannot be finished.
    Drop,
}

impl Can {
    /// Says whether the device cuts `frame` itself.
    fn cuts(&self, frame: &Frame) -> bool {
        let Some(gso) = frame.gso() else { return true };
        let kind = match gso.kind {
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::Udp => self.uso,
        };
        let tunnel = match gso.tunnel {
            None => true,
            Some(tunnel) if tunnel.outer_checksum => self.tunnel_checksum,
            Some(_) => self.tunnel,
        };
        self.checksum && kind && tunnel
    }

    /// Finishes `frame` in place as far as the device needs it, and says what comes next.
    #[inline]
    pub fn prepare(&self, frame: &mut Frame, stats: &mut Stats) -> Next {
        if frame.is_finished() { Next::Send } else { self.prepare_offloads(frame, stats) }
    }

    fn prepare_offloads(&self, frame: &mut Frame, stats: &mut Stats) -> Next {
        if frame.checksum() == Checksum::Unknown {
            checksum::resolve(frame);
        }
        if frame.is_gso() {
            return if self.cuts(frame) { Next::Send } else { Next::Cut };
        }
        let sctp = matches!(frame.checksum(), Checksum::Partial { offset: checksum::SCTP_CHECKSUM_AT, .. });
        // A device behind virtio's header would take SCTP's CRC for an Internet checksum.
        if self.checksum && !sctp || frame.checksum() == Checksum::Complete {
            return Next::Send;
        }
        stats.tx_checksummed += 1;
        match checksum::complete(frame) {
            Ok(()) => Next::Send,
            Err(_) => Next::Drop,
        }
    }
}

/// The packets of one large frame, on their way to a device that could not cut it. See the module header.
#[derive(Debug)]
pub struct Pieces {
    queue: FrameQueue,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { queue: FrameQueue::new(MAX_SEGMENTS) }
    }
}

impl Pieces {
    /// Cuts `frame`; the packets are in [`Pieces::queue`] then, behind what is there. A frame that cannot be
    /// cut is dropped and counted in `tx_errors`.
    #[cold]
    pub fn cut(&mut self, frame: Frame, can: &Can, pool: &mut FramePool, stats: &mut Stats) {
        // A tunnel's segments have two checksums, and a header for one partial one; the outer is complete.
        let finish = if can.checksum { Finish::Later } else { Finish::Now };
        let queue = &mut self.queue;
        let mut refused = Vec::new();
        let result = segment::segment(frame, pool, finish, |piece| {
            if let Err(piece) = queue.push(piece) {
                // Only when the queue was not empty before, which the callers see to. Allocates nothing till then.
                refused.push(piece);
            }
        });
        match result {
            Ok(_) => stats.tx_segmented += 1,
            Err(_) => stats.tx_errors += 1,
        }
        for piece in refused {
            stats.tx_errors += 1;
            pool.free(piece);
        }
    }

    /// Returns the packets that wait, for the port to transmit.
    pub fn queue(&mut self) -> &mut FrameQueue {
        &mut self.queue
    }

    /// Says whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Gives all that wait to `pool`.
    pub fn clear(&mut self, pool: &mut FramePool) {
        while let Some(piece) = self.queue.pop() {
            pool.free(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::{Area, Gso};

    const ALL: Can =
        Can { checksum: true, tso4: true, tso6: true, uso: true, tunnel: true, tunnel_checksum: true };

    /// IPv4 and TCP with `payload` bytes, the checksum field zero.
    fn tcp(pool: &mut FramePool, payload: usize) -> Frame {
        let total = u16::try_from(40 + payload).expect("below 64 KiB").to_be_bytes();
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        bytes.resize(54 + payload, 7);
        pool.alloc_from(&bytes).expect("a chunk")
    }

    fn pseudo(frame: &mut Frame) {
        let layout = packet::header::Layout::of(frame.bytes()).expect("IPv4");
        let sum = checksum::pseudo(frame.bytes(), &layout).expect("IPv4").fold();
        frame.bytes_mut()[50..52].copy_from_slice(&sum.to_be_bytes());
    }

    fn large(pool: &mut FramePool, payload: usize) -> Frame {
        let mut frame = tcp(pool, payload);
        pseudo(&mut frame);
        frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
        frame.set_gso(Some(Gso {
            kind: GsoKind::Tcp4,
            size: 1000,
            header_len: 54,
            ecn: false,
            tunnel: None,
        }));
        frame
    }

    #[test]
    fn a_device_that_can_do_all_gets_frames_as_they_are() {
        let mut pool = FramePool::new(Area::new(64, 2).expect("a small area"));
        let mut stats = Stats::default();
        let mut frame = large(&mut pool, 5000);
        assert_eq!(ALL.prepare(&mut frame, &mut stats), Next::Send);
        assert!(frame.is_gso());
        assert_eq!(stats, Stats::default());
        pool.free(frame);
    }

    #[test]
    fn a_device_that_can_do_nothing_gets_complete_packets() {
        let mut pool = FramePool::new(Area::new(64, 2).expect("a small area"));
        let (can, mut stats, mut pieces) = (Can::default(), Stats::default(), Pieces::default());
        let mut frame = large(&mut pool, 2500);
        assert_eq!(can.prepare(&mut frame, &mut stats), Next::Cut);
        pieces.cut(frame, &can, &mut pool, &mut stats);
        assert_eq!((pieces.queue().len(), stats.tx_segmented), (3, 1));
        while let Some(mut piece) = pieces.queue().pop() {
            assert_eq!(can.prepare(&mut piece, &mut stats), Next::Send);
            assert_eq!(checksum::is_valid(piece.bytes()), Some(true));
            pool.free(piece);
        }
        let mut frame = tcp(&mut pool, 10);
        pseudo(&mut frame);
        frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
        assert_eq!(can.prepare(&mut frame, &mut stats), Next::Send);
        assert_eq!(checksum::is_valid(frame.bytes()), Some(true));
        assert_eq!(stats.tx_checksummed, 1);
        pool.free(frame);
    }

    #[test]
    fn a_device_without_one_kind_of_cutting_gets_partial_checksums() {
        let mut pool = FramePool::new(Area::new(64, 2).expect("a small area"));
        let (mut stats, mut pieces) = (Stats::default(), Pieces::default());
        let can = Can { tso4: false, ..ALL };
        let mut frame = large(&mut pool, 2500);
        assert_eq!(can.prepare(&mut frame, &mut stats), Next::Cut);
        pieces.cut(frame, &can, &mut pool, &mut stats);
        assert!(
            pieces.queue().front().is_some_and(|piece| matches!(piece.checksum(), Checksum::Partial { .. }))
        );
        pieces.clear(&mut pool);
        assert!(pieces.is_empty());
    }

    #[test]
    fn an_unknown_checksum_is_resolved_for_every_device() {
        let mut pool = FramePool::new(Area::new(64, 2).expect("a small area"));
        let mut stats = Stats::default();
        let mut frame = tcp(&mut pool, 10);
        pseudo(&mut frame);
        frame.set_checksum(Checksum::Unknown);
        assert_eq!(ALL.prepare(&mut frame, &mut stats), Next::Send);
        assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 16 });
        pool.free(frame);
    }

    #[test]
    fn a_frame_that_contradicts_itself_is_dropped() {
        let mut pool = FramePool::new(Area::new(64, 2).expect("a small area"));
        let (can, mut stats, mut pieces) = (Can::default(), Stats::default(), Pieces::default());
        let mut frame = tcp(&mut pool, 10);
        frame.set_checksum(Checksum::Partial { start: 64, offset: 16 });
        assert_eq!(can.prepare(&mut frame, &mut stats), Next::Drop);
        pool.free(frame);
        let mut frame = large(&mut pool, 2500);
        frame.bytes_mut()[14] = 0x46;
        frame.set_gso(Some(Gso {
            kind: GsoKind::Tcp6,
            size: 1000,
            header_len: 54,
            ecn: false,
            tunnel: None,
        }));
        pieces.cut(frame, &can, &mut pool, &mut stats);
        assert_eq!((pieces.is_empty(), stats.tx_errors), (true, 1));
    }
}
