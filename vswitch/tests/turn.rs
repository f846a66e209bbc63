//! A worker's turns over memory ports: nothing is allocated, frames cross between workers, and every frame is
//! accounted for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use packet::area::ChunkKind;
use packet::{Area, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId};
use pipeline::{Limits, NetworkInfo, PortInfo, SnapshotBuilder, Tables};
use ports::{Kind, Port, Spec, memory};
use rtrb::{Producer, RingBuffer};
use vswitch::worker::figures::Shared;
use vswitch::worker::handover::Links;
use vswitch::worker::mail::{Message, Published};
use vswitch::worker::wake::Doorbell;
use vswitch::worker::{Parts, Poll, Worker};

/// The system's allocator, and how often it was asked.
struct Counting;

thread_local! {
    /// By thread: the test harness allocates in its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate after its locals are gone; it is not the one that is watched.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NETWORK: NetworkId = NetworkId(0);
const PORTS: u16 = 4;
const WORKERS: usize = 2;

struct Crew {
    workers: Vec<Worker>,
    mailboxes: Vec<Producer<Message>>,
    shared: Vec<Arc<Shared>>,
    tables: Arc<Tables>,
    area: Arc<Area>,
    peers: Vec<memory::Peer>,
}

/// Makes two workers with two of four memory ports each, all on one network.
fn crew() -> Crew {
    let limits = Limits {
        ports: PORTS.into(),
        networks: 1,
        stations: 4096,
        flows: 16_384,
        workers: WORKERS,
        ..Limits::default()
    };
    let tables = Tables::new(limits, [1, 2, 3]);
    let area = Area::new(8192, 16).expect("32 MiB");
    let mut builder = SnapshotBuilder::new();
    builder.set_network(NETWORK, NetworkInfo::new());
    (0..PORTS).for_each(|n| builder.set_port(PortId(n), PortInfo::new(NETWORK)));
    let published = Arc::new(Published::new(builder.build()));
    let shared: Vec<_> = (0..WORKERS).map(|_| Arc::new(Shared::new().expect("an eventfd"))).collect();
    let (bell, _door) = Doorbell::new().expect("a pipe");
    let bell = Arc::new(bell);
    let (mut workers, mut mailboxes) = (Vec::new(), Vec::new());
    for (id, links) in Links::mesh(&shared).into_iter().enumerate() {
        let (mailbox, messages) = RingBuffer::new(64);
        let (events, _) = RingBuffer::new(256);
        let parts = Parts {
            id,
            poll: Poll::Busy,
            budget: 64,
            ports: PORTS.into(),
            pool: FramePool::new(Arc::clone(&area)),
            tables: Arc::clone(&tables),
            published: Arc::clone(&published),
            shared: Arc::clone(&shared[id]),
            links,
            mailbox: messages,
            events,
            manager: Arc::clone(&bell),
        };
        workers.push(Worker::new(parts).expect("epoll"));
        mailboxes.push(mailbox);
    }
    let mut peers = Vec::new();
    for n in 0..PORTS {
        let (end, peer) = memory::pair(512);
        let spec = Spec { name: n.to_string(), kind: Kind::Memory { end } };
        let port = Port::open(spec, &area).expect("memory").queues.remove(0);
        let (id, owner) = (PortId(n), usize::from(n) % WORKERS);
        for (worker, mailbox) in mailboxes.iter_mut().enumerate().filter(|(worker, _)| *worker != owner) {
            assert_ne!(worker, owner);
            let message = Message::AddRemote { id, worker: owner, frames: FrameQueue::new(256) };
            mailbox.push(message).expect("room");
        }
        let message =
            Message::AddPort { id, queue: 0, port: Box::new(port), frames: Some(FrameQueue::new(1024)) };
        mailboxes[owner].push(message).expect("room");
        peers.push(peer);
    }
    workers.iter_mut().for_each(Worker::between_turns);
    Crew { workers, mailboxes, shared, tables, area, peers }
}

fn frame(to: MacAddr, from: MacAddr) -> Vec<u8> {
    [&to.0[..], &from.0, &[0x88, 0xb5], &[0; 46]].concat()
}

#[test]
fn turns_allocate_nothing_and_account_for_every_frame() {
    let Crew { mut workers, mut mailboxes, shared, tables, area, mut peers } = crew();
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut now = Instant::from_nanos(1_000_000_000);
    let (mut sent, mut received) = (0_u64, 0_u64);
    for round in 0..300_u64 {
        for n in 0..400_u64 {
            let side = (n * 7 + round) % u64::from(PORTS);
            let to = match n % 8 {
                0 => MacAddr::BROADCAST,
                _ => MacAddr::local((n + 1) % u64::from(PORTS)),
            };
            let side = usize::try_from(side).expect("small");
            let bytes = frame(to, MacAddr::local(side as u64));
            let frame = pool.alloc_from(&bytes).expect("chunks enough");
            match peers[side].send(frame) {
                Ok(()) => sent += 1,
                Err(frame) => pool.free(frame),
            }
        }
        let before = ALLOCATIONS.get();
        for _ in 0..4 {
            for worker in &mut workers {
                worker.between_turns();
                worker.turn(now);
            }
            now = now + Duration::from_micros(50);
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "allocations in round {round}");
        received += peers.iter_mut().map(|peer| peer.drain(&mut pool) as u64).sum::<u64>();
    }
    for _ in 0..20 {
        for worker in &mut workers {
            worker.turn(now);
        }
        received += peers.iter_mut().map(|peer| peer.drain(&mut pool) as u64).sum::<u64>();
    }

    let sum = |pick: fn(&pipeline::tables::Ledger) -> u64| -> u64 {
        tables.all_counters().iter().map(|counters| pick(&counters.ledger)).sum()
    };
    let figure = |pick: fn(&Shared) -> u64| -> u64 { shared.iter().map(|shared| pick(shared)).sum() };
    assert_eq!(sum(|l| l.received.get()), sent);
    assert_eq!(figure(|s| s.figures.transmitted.get()), received);
    assert_eq!(figure(|s| s.figures.handed_out.get()), figure(|s| s.figures.handed_in.get()));
    assert!(figure(|s| s.figures.handed_in.get()) > 10_000, "frames crossed over");
    assert_eq!(
        sum(|l| l.received.get()) + sum(|l| l.created.get()),
        received + sum(|l| l.dropped.get()) + sum(|l| l.consumed.get()),
        "every frame is accounted for"
    );

    for mailbox in &mut mailboxes {
        mailbox.push(Message::Stop).expect("room");
    }
    workers.into_iter().for_each(Worker::dismantle);
    for peer in &mut peers {
        peer.drain(&mut pool);
    }
    drop(pool);
    assert_eq!(area.free(ChunkKind::Small), 8192, "every chunk came home");
}
