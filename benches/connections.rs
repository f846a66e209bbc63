//! The connection table in memory: what a new connection costs the slow path, in tables that fit in the cache and in
//! one that does not.
//!
//! A new connection is looked up and not found, made, and found by its answer. The table is kept as full as it
//! is: outside the measurement the oldest ones end, and their slots are freed.
#![allow(clippy::cast_possible_truncation, reason = "sizes of benchmarks are small numbers")]

use std::collections::VecDeque;
use std::hint::black_box;

use benches::Case;
use packet::{Address, Instant, NetworkId, PortId, Tuple};
use pipeline::tables::connections::{
    ConnectionId, Connections, Details, Direction, End, Key, NewConnection, Seen, Timeouts,
};
use pipeline::tables::nat_ports::{Inside, NatPorts, Pool, PortLease};

const BATCH: usize = 256;
const SEED: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef];
const NOW: Instant = Instant::from_nanos(1 << 40);
const UDP: u8 = 17;

fn new(n: u32) -> NewConnection {
    let original = Tuple {
        source: Address::v4((0x0a00_0000 | n >> 8).to_be_bytes()),
        destination: Address::v4([198, 51, 100, 7]),
        source_port: 1024 + (n & 0xff) as u16,
        destination_port: 443,
        protocol: UDP,
    };
    NewConnection {
        original: Key { network: NetworkId(1), tuple: original },
        reply: Key { network: NetworkId(2), tuple: original.inverted() },
        owner: PortId(1),
        tcp: None,
        quota: u32::MAX,
        half_open_quota: u32::MAX,
        details: Details::default(),
        counted: 60,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Find nothing, create, find by the answer.
    Create,
    /// The same while another port floods: each of its packets is looked up and refused. Not counted as packets.
    Refuse,
    /// Find by the answer, and track.
    Track,
    /// Every one makes room for itself.
    Evict,
}

struct Table {
    table: Connections,
    size: usize,
    what: What,
    alive: VecDeque<(ConnectionId, u32)>,
    next: u32,
    news: Vec<NewConnection>,
    random: u64,
}

impl Table {
    fn new(size: usize, what: What) -> Self {
        let table = Connections::new(size, 1, 1024, Timeouts::default(), SEED);
        let mut it = Self {
            table,
            size,
            what,
            alive: VecDeque::new(),
            next: 0,
            news: Vec::new(),
            random: 88_172_645_463_325_252,
        };
        let full = if what == What::Evict { size } else { size * 7 / 8 };
        while it.alive.len() < full {
            let made = it.table.create(&new(it.next), NOW);
            it.alive.push_back((made.expect("seven eighths are room"), it.next));
            it.next += 1;
        }
        it
    }

    fn random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as usize
    }
}

impl Case for Table {
    fn prepare(&mut self) {
        match self.what {
            What::Create => {
                // Random ones end, so that slots are not used in the order in which they lie in memory.
                while self.alive.len() + BATCH > self.size * 7 / 8 {
                    let at = self.random() % self.alive.len();
                    let (id, _) = self.alive.swap_remove_back(at).expect("some are alive");
                    self.table.kill(id, End::Flushed);
                }
                self.table.sweep(0, NOW, BATCH, &mut |_| {});
            }
            What::Evict => self.table.sweep(0, NOW, BATCH, &mut |_| {}),
            What::Refuse | What::Track => {}
        }
        self.news.clear();
        for _ in 0..BATCH {
            let n = if self.what == What::Track {
                let at = self.random() % self.alive.len();
                self.alive[at].1
            } else {
                self.next += 1;
                self.next
            };
            self.news.push(new(n));
        }
    }

    fn run(&mut self) -> usize {
        for new in &self.news {
            match self.what {
                What::Create | What::Evict => {
                    black_box(self.table.find(&new.original).is_none());
                    let made = self.table.create(new, NOW);
                    if let (What::Create, Ok(id)) = (self.what, made) {
                        self.alive.push_back((id, 0));
                    }
                    black_box(self.table.find(&new.reply).map(|found| found.state));
                }
                What::Refuse => {
                    black_box(self.table.find(&new.original).is_none());
                    let refused = NewConnection { half_open_quota: 100, ..*new };
                    assert!(self.table.create(&refused, NOW).is_err());
                }
                What::Track => {
                    let found = self.table.find(&new.reply).expect("alive");
                    let seen = Seen { bytes: 60, tcp: None };
                    black_box(self.table.track(found.id, Direction::Reply, seen, NOW).is_ok());
                }
            }
        }
        self.news.len()
    }
}

/// Ports of an external address, taken and given back.
struct Ports {
    ports: NatPorts,
    pools: u32,
    leases: VecDeque<PortLease>,
    next: u32,
    /// How many are held between batches.
    held: usize,
}

impl Ports {
    fn new(pools: u32, held: usize) -> Self {
        let ports = NatPorts::new(held * 5 / 4 + 1024, SEED);
        let mut it = Self { ports, pools, leases: VecDeque::new(), next: 0, held };
        while it.leases.len() < held {
            it.run();
        }
        it
    }
}

impl Case for Ports {
    fn prepare(&mut self) {
        while self.leases.len() > self.held {
            self.ports.give_back(self.leases.pop_front().expect("some are held"));
        }
    }

    fn run(&mut self) -> usize {
        for _ in 0..BATCH {
            self.next += 1;
            let n = self.next;
            let address = Address::v4((0xcb00_7100 + n % self.pools).to_be_bytes());
            let pool = Pool { address, first: 1024, last: 65_535 };
            let inside = Inside {
                network: NetworkId(1),
                address: Address::v4((0x0a00_0000 | n >> 8).to_be_bytes()),
                port: 1024 + (n.wrapping_mul(0x9e37_79b9) >> 16) as u16 / 2,
            };
            let to = (Address::v4([198, 51, 100, 7]), 443);
            let candidate = self.ports.candidate(pool, &inside, UDP, to, 0).expect("free");
            self.leases.push_back(self.ports.take(pool, &inside, UDP, candidate).expect("alone"));
        }
        BATCH
    }
}

fn main() {
    benches::main(
        "connections, in memory",
        &[
            ("create + 2 finds, 4 k connections", || Box::new(Table::new(4096, What::Create))),
            ("create + 2 finds, 256 k connections", || Box::new(Table::new(262_144, What::Create))),
            ("create + 2 finds, 1 M connections", || Box::new(Table::new(1 << 20, What::Create))),
            ("create + 2 finds, full, 1 M connections", || Box::new(Table::new(1 << 20, What::Evict))),
            ("find + refusal at a quota, 1 M connections", || Box::new(Table::new(1 << 20, What::Refuse))),
            ("find + track, 4 k connections", || Box::new(Table::new(4096, What::Track))),
            ("find + track, 1 M connections", || Box::new(Table::new(1 << 20, What::Track))),
            ("NAT port, one pool, half in use", || Box::new(Ports::new(1, 32_000))),
            ("NAT port, 32 pools, 1 M in use", || Box::new(Ports::new(32, 1 << 20))),
        ],
    );
}
