//! A port whose device is a pair of queues in memory, for tests, benchmarks and replay.
//!
//! [`pair`] makes both sides: the [`End`] is opened as a port of the switch, the [`Peer`] stays with the test
//! or with a traffic generator's thread and plays the device. Frames move whole, with their offload state,
//! and are never copied.
//!
//! Each direction is a ring with one producer and one consumer. Capacity is fixed by [`pair`] and nothing
//! allocates later. When the ring towards the peer is full, frames stay in the port's queue; when the ring
//! towards the switch is full, [`Peer::send`] gives the frame back.
//!
//! An `End` may be opened again after its port was closed, like any device. A peer can say that the device is
//! down or gone ([`Peer::set_health`]), and one that is dropped is gone.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use packet::{Frame, FramePool, FrameQueue};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::{Error, Health, Opened, Port, Stats};

/// Both rings as the switch's side sees them.
#[derive(Debug)]
struct Rings {
    rx: Consumer<Frame>,
    tx: Producer<Frame>,
}

#[derive(Debug)]
struct Shared {
    /// The rings while no port has them.
    rings: Mutex<Option<Rings>>,
    /// What a peer that is gone did not receive.
    abandoned: Mutex<Option<Consumer<Frame>>>,
    /// `Health` as a number; written by the peer.
    health: AtomicU8,
}

impl Shared {
    fn rings(&self) -> std::sync::MutexGuard<'_, Option<Rings>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Release);
    }

    fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            up if up == Health::Up as u8 => Health::Up,
            down if down == Health::Down as u8 => Health::Down,
            _ => Health::Gone,
        }
    }
}

/// The switch's side of a pair, to be opened as [`Kind::Memory`](crate::Kind::Memory). One port at a time.
#[derive(Clone, Debug)]
pub struct End {
    shared: Arc<Shared>,
}

/// The device's side of a pair. One thread uses it; it may be another than the worker's.
///
/// What it has not received when it is dropped goes home when the port is closed. After that, take frames out
/// with [`Peer::drain`] before dropping the peer, or their chunks are lost.
#[derive(Debug)]
pub struct Peer {
    tx: Producer<Frame>,
    rx: Consumer<Frame>,
    shared: Arc<Shared>,
}

/// Makes a pair whose two rings hold `capacity` frames each. Nothing allocates later.
pub fn pair(capacity: usize) -> (End, Peer) {
    let (to_switch, from_peer) = RingBuffer::new(capacity);
    let (to_peer, from_switch) = RingBuffer::new(capacity);
    let shared = Arc::new(Shared {
        rings: Mutex::new(Some(Rings { rx: from_peer, tx: to_peer })),
        abandoned: Mutex::new(None),
        health: AtomicU8::new(Health::Up as u8),
    });
    (End { shared: Arc::clone(&shared) }, Peer { tx: to_switch, rx: from_switch, shared })
}

impl Peer {
    /// Hands a frame to the switch.
    ///
    /// # Errors
    /// The frame itself when the ring is full.
    #[inline]
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        self.tx.push(frame).map_err(|rtrb::PushError::Full(frame)| frame)
    }

    /// Takes the next frame that the switch has transmitted.
    #[inline]
    pub fn receive(&mut self) -> Option<Frame> {
        self.rx.pop().ok()
    }

    /// Returns how many frames can be sent before the ring is full.
    pub fn room(&self) -> usize {
        self.tx.slots()
    }

    /// Returns how many frames wait to be received.
    pub fn waiting(&self) -> usize {
        self.rx.slots()
    }

    /// Gives every frame that the switch has transmitted to `pool` and returns how many there were.
    pub fn drain(&mut self, pool: &mut FramePool) -> usize {
        let mut count = 0;
        while let Some(frame) = self.receive() {
            pool.free(frame);
            count += 1;
        }
        count
    }

    /// Makes the device look up, down or gone to the switch.
    pub fn set_health(&self, health: Health) {
        self.shared.set_health(health);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.set_health(Health::Gone);
        let rx = std::mem::replace(&mut self.rx, RingBuffer::new(0).1);
        *self.shared.abandoned.lock().unwrap_or_else(PoisonError::into_inner) = Some(rx);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Port and peer are gone, and with them every pool that could take these frames: their chunks are
        // lost to the area. Only a test that ends without looking gets here.
        let left = self.abandoned.get_mut().unwrap_or_else(PoisonError::into_inner);
        while let Some(frame) = left.as_mut().and_then(|rx| rx.pop().ok()) {
            std::mem::forget(frame);
        }
    }
}

/// The port over the switch's side.
#[derive(Debug)]
pub struct Memory {
    rings: Rings,
    shared: Arc<Shared>,
    stats: Stats,
}

/// Opens the switch's side of a pair.
///
/// # Errors
/// `EBUSY` while another port has it open.
pub fn open(port: &str, end: End) -> Result<Opened, Error> {
    let rings = end.shared.rings().take().ok_or_else(|| Error {
        port: port.to_owned(),
        operation: "open the memory pair".to_owned(),
        source: io::Error::from_raw_os_error(libc::EBUSY),
    })?;
    let memory = Memory { rings, shared: end.shared, stats: Stats::default() };
    Ok(Opened { queues: vec![Port::Memory(memory)], mode: "memory".to_owned(), notes: Vec::new() })
}

impl Memory {
    /// See [`Port::receive`].
    #[inline]
    pub fn receive(&mut self, _pool: &mut FramePool, budget: usize, mut sink: impl FnMut(Frame)) -> usize {
        let count = self.rings.rx.slots().min(budget);
        let Ok(chunk) = self.rings.rx.read_chunk(count) else { return 0 };
        for frame in chunk {
            self.stats.rx_bytes += frame.len() as u64;
            sink(frame);
        }
        self.stats.rx_frames += count as u64;
        count
    }

    /// See [`Port::transmit`].
    #[inline]
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        if queue.is_empty() {
            return;
        }
        if self.health() != Health::Up {
            // What a device that is down does; frames kept for it would be stale when it comes back.
            self.stats.tx_errors += queue.len() as u64;
            queue.drain(queue.len()).for_each(|frame| pool.free(frame));
            return;
        }
        let count = self.rings.tx.slots().min(queue.len());
        let Ok(chunk) = self.rings.tx.write_chunk_uninit(count) else { return };
        let bytes = &mut self.stats.tx_bytes;
        chunk.fill_from_iter(queue.drain(count).inspect(|frame| *bytes += frame.len() as u64));
        self.stats.tx_frames += count as u64;
    }

    /// See [`Port::wants_turn`].
    pub fn wants_turn(&mut self) -> bool {
        !self.rings.rx.is_empty()
    }

    /// See [`Port::health`].
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// See [`Port::stats`].
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Gives the frames that were not received to `pool` and makes the end free to be opened again.
    pub fn close(mut self, pool: &mut FramePool) {
        while let Ok(frame) = self.rings.rx.pop() {
            pool.free(frame);
        }
        let abandoned = self.shared.abandoned.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut rx) = abandoned {
            while let Ok(frame) = rx.pop() {
                pool.free(frame);
            }
        }
        *self.shared.rings() = Some(self.rings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::Area;
    use packet::area::ChunkKind;
    use packet::{Checksum, Gso, GsoKind};

    fn lab(capacity: usize) -> (Memory, Peer, FramePool, End) {
        let (end, peer) = pair(capacity);
        let opened = open("m", end.clone()).expect("not open yet");
        let Some(Port::Memory(memory)) = opened.queues.into_iter().next() else { panic!("one memory port") };
        let pool = FramePool::new(Area::new(256, 4).expect("a small area"));
        (memory, peer, pool, end)
    }

    #[test]
    fn frames_cross_whole_and_in_order() {
        let (mut port, mut peer, mut pool, _end) = lab(8);
        for n in 0..5_u8 {
            let mut frame = pool.alloc_from(&[n; 60]).expect("a chunk");
            frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
            frame.set_gso(Some(Gso {
                kind: GsoKind::Tcp4,
                size: 10,
                header_len: 54,
                ecn: false,
                tunnel: None,
            }));
            peer.send(frame).expect("room");
        }
        assert!(port.wants_turn());
        let mut queue = FrameQueue::new(16);
        assert_eq!(port.receive(&mut pool, 3, |f| queue.push(f).expect("room")), 3);
        assert_eq!(port.receive(&mut pool, 3, |f| queue.push(f).expect("room")), 2);
        assert!(!port.wants_turn());
        port.transmit(&mut queue, &mut pool);
        assert!(queue.is_empty());
        for n in 0..5_u8 {
            let frame = peer.receive().expect("what was sent");
            assert_eq!(frame.bytes(), [n; 60]);
            assert_eq!(frame.checksum(), Checksum::Partial { start: 34, offset: 16 });
            assert!(frame.is_gso());
            pool.free(frame);
        }
        let stats = port.stats();
        assert_eq!((stats.rx_frames, stats.rx_bytes, stats.tx_frames, stats.tx_bytes), (5, 300, 5, 300));
    }

    #[test]
    fn a_full_ring_keeps_frames_with_their_owner() {
        let (mut port, mut peer, mut pool, _end) = lab(2);
        let mut queue = FrameQueue::new(8);
        for _ in 0..3 {
            queue.push(pool.alloc_from(b"x").expect("a chunk")).expect("room");
        }
        port.transmit(&mut queue, &mut pool);
        assert_eq!((queue.len(), peer.waiting(), port.stats().tx_frames), (1, 2, 2));
        assert_eq!(peer.drain(&mut pool), 2);
        port.transmit(&mut queue, &mut pool);
        assert_eq!(peer.drain(&mut pool), 1);
        for _ in 0..2 {
            peer.send(pool.alloc_from(b"y").expect("a chunk")).expect("room");
        }
        let refused = peer.send(pool.alloc_from(b"y").expect("a chunk")).expect_err("full");
        pool.free(refused);
        port.close(&mut pool);
        let area = Arc::clone(pool.area());
        drop(pool);
        assert_eq!(area.free(ChunkKind::Small), 256);
    }

    #[test]
    fn a_device_that_is_down_or_gone_takes_frames_and_counts_errors() {
        let (mut port, peer, mut pool, _end) = lab(2);
        let mut queue = FrameQueue::new(8);
        peer.set_health(Health::Down);
        assert_eq!(port.health(), Health::Down);
        queue.push(pool.alloc_from(b"x").expect("a chunk")).expect("room");
        port.transmit(&mut queue, &mut pool);
        assert_eq!((queue.len(), port.stats().tx_errors), (0, 1));
        drop(peer);
        assert_eq!(port.health(), Health::Gone);
        port.close(&mut pool);
    }

    #[test]
    fn what_a_dropped_peer_did_not_receive_comes_home() {
        let (mut port, peer, mut pool, _end) = lab(4);
        let mut queue = FrameQueue::new(8);
        queue.push(pool.alloc_from(b"x").expect("a chunk")).expect("room");
        port.transmit(&mut queue, &mut pool);
        drop(peer);
        port.close(&mut pool);
        let area = Arc::clone(pool.area());
        drop(pool);
        assert_eq!(area.free(ChunkKind::Small), 256);
    }

    #[test]
    fn an_end_is_opened_by_one_port_at_a_time() {
        let (port, mut peer, mut pool, end) = lab(2);
        let error = open("n", end.clone()).expect_err("busy");
        assert!(error.to_string().starts_with("port 'n': cannot open the memory pair"), "{error}");
        port.close(&mut pool);
        let Ok(opened) = open("m", end) else { panic!("closed, so free again") };
        let Some(mut port) = opened.queues.into_iter().next() else { panic!("one port") };
        peer.send(pool.alloc_from(b"x").expect("a chunk")).expect("room");
        assert_eq!(port.receive(&mut pool, 8, std::mem::forget), 1);
        port.close(&mut pool);
    }

    #[test]
    fn two_threads_lose_nothing() {
        let (mut port, mut peer, mut pool, _end) = lab(16);
        let area = Arc::clone(pool.area());
        let generator = std::thread::spawn(move || {
            let mut pool = FramePool::new(area);
            let (mut sent, mut received) = (0_u32, 0_u32);
            while received < 20_000 {
                if sent < 20_000
                    && let Some(frame) = pool.alloc_from(&sent.to_be_bytes())
                {
                    match peer.send(frame) {
                        Ok(()) => sent += 1,
                        Err(frame) => pool.free(frame),
                    }
                }
                while let Some(frame) = peer.receive() {
                    assert_eq!(frame.bytes(), received.to_be_bytes());
                    received += 1;
                    pool.free(frame);
                }
                std::thread::yield_now();
            }
        });
        let mut queue = FrameQueue::new(64);
        while !generator.is_finished() {
            port.receive(&mut pool, queue.room(), |frame| queue.push(frame).expect("room was asked for"));
            port.transmit(&mut queue, &mut pool);
            std::thread::yield_now();
        }
        generator.join().expect("no assertion failed");
        port.close(&mut pool);
    }
}
