//! Nothing that moves frames allocates. Needs root; see `common`.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{Lab, Way, eventually};
use packet::{Checksum, Frame, FramePool, FrameQueue, Gso, GsoKind, MacAddr, build};
use ports::Port;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: passed on from the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on from the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn frame(pool: &mut FramePool, tcp: &build::Packet, large: bool) -> Frame {
    let mut frame = tcp.frame(pool).expect("a chunk");
    if large {
        frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
        frame.set_gso(Some(Gso {
            kind: GsoKind::Tcp4,
            size: 1400,
            header_len: 54,
            ecn: false,
            tunnel: None,
        }));
    } else {
        frame.set_checksum(Checksum::Unknown);
    }
    frame
}

/// Transmits on each port and receives on each what the far end's neighbour discovery and the flood send.
fn turns(
    ports: &mut [Port],
    pool: &mut FramePool,
    queue: &mut FrameQueue,
    packets: &[build::Packet; 2],
) -> usize {
    let mut received = 0;
    for port in ports {
        for n in 0..70 {
            let frame = frame(pool, &packets[usize::from(n % 7 == 0)], n % 7 == 0);
            if let Err(frame) = queue.push(frame) {
                pool.free(frame);
            }
        }
        port.transmit(queue, pool);
        let mut arrived = [const { None }; 64];
        let count = port.receive(pool, 64, |frame| {
            if let Some(place) = arrived.iter_mut().find(|place| place.is_none()) {
                *place = Some(frame);
            }
        });
        received += count;
        arrived.into_iter().flatten().for_each(|frame| pool.free(frame));
        port.health();
        port.stats();
    }
    received
}

#[test]
fn moving_frames_allocates_nothing() {
    let lab = Lab::new();
    let ways = [Way::Veth, Way::Tap];
    let mut ports = vec![lab.attach(0, ways[0]), lab.attach(1, ways[1])];
    lab.configure(1500, ways);
    for (n, end) in lab.ends.iter().enumerate() {
        end.ip(&format!("neigh add 10.9.0.{} lladdr 02:00:00:00:00:09 dev eth0", 2 - n));
    }
    let (a, b) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
    let packets = [60, 20_000]
        .map(|len| build::eth(a, b).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(80, 81).data(&vec![5; len]));
    let mut pool = FramePool::new(Arc::clone(&lab.area));
    let mut queue = FrameQueue::new(128);
    for n in 0..2 {
        let to = [10, 9, 0, [2, 1][n]].into();
        common::flood(&lab.ends[n], to, || {
            eventually("the flood arrives", || turns(&mut ports[n..=n], &mut pool, &mut queue, &packets) > 0);
            let before = COUNT.get();
            let mut received = 0;
            for _ in 0..200 {
                received += turns(&mut ports[n..=n], &mut pool, &mut queue, &packets);
            }
            assert_eq!(COUNT.get() - before, 0, "allocations");
            assert!(received > 0);
        });
    }
    // What goes wrong allocates nothing either.
    lab.ends[1].ip("link del eth0");
    let before = COUNT.get();
    turns(&mut ports, &mut pool, &mut queue, &packets);
    assert_eq!(COUNT.get() - before, 0, "allocations");
    while let Some(frame) = queue.pop() {
        pool.free(frame);
    }
    ports.into_iter().for_each(|port| port.close(&mut pool));
}
