//! Routed packets in memory: a batch of 64-byte UDP packets of connections that are known, and of new ones.
//!
//! Everything is on: addresses are guarded, connections tracked, a policy with as many rules as the case says lets them
//! pass, and but for the plain route they are masqueraded. Half of a batch comes from inside, half are answers, each of a
//! connection drawn by chance. "64k" are 64 k entries of the flow cache: 32 k connections, both directions. 16 addresses with
//! 1000 ports each talk to as many servers as that takes, so one external address does.
//!
//! New connections are one packet each, in a table that is kept as full as the case says by time going by.
#![allow(clippy::cast_possible_truncation, reason = "sizes of benchmarks are small numbers")]

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use benches::{Case, Entry, clocks};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use packet::{
    Address, Area, Batch, Frame, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId, Prefix,
};
use pipeline::policy::{Action, Hits, Identity, Peer, PolicySet, Rule, Service};
use pipeline::tables::{Kind, NeighborKey, StationKey, Timeouts};
use pipeline::{
    Domain, DomainKind, DomainSpec, Gateway, Hop, Limits, NetworkInfo, Outputs, Pipeline, PortInfo, Route,
    Router, RouterSpec, Snapshot, SnapshotBuilder, Tables, Translations,
};

const FRONT: NetworkId = NetworkId(0);
const BACK: NetworkId = NetworkId(1);
const OUTSIDE: NetworkId = NetworkId(2);
const WEB: PortId = PortId(0);
const DB: PortId = PortId(1);
const OUT: PortId = PortId(2);
const STATIONS: [MacAddr; 3] =
    [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 3])];
const ROUTERS: [MacAddr; 3] =
    [MacAddr([2, 0xff, 0, 0, 0, 1]), MacAddr([2, 0xff, 0, 0, 0, 2]), MacAddr([2, 0xff, 0, 0, 0, 3])];
/// Inside addresses, and ports of each.
const CLIENTS: usize = 16;
const PORTS: usize = 1000;
const SERVERS: usize = 200;
const LEN: usize = 64;

/// What a case is about.
#[derive(Clone, Copy)]
struct What {
    v6: bool,
    /// To the outside, masqueraded; else to the other network.
    translated: bool,
    rules: usize,
    workers: usize,
    limits: Limits,
}

impl What {
    fn new(v6: bool, translated: bool, rules: usize, flows: usize) -> Self {
        // Caches are half full at most, as the daemon makes them.
        let limits = Limits {
            ports: 3,
            networks: 3,
            stations: 64,
            neighbors: 1024,
            vteps: 0,
            connections: (flows / 2 * 9 / 8).max(4096),
            nat_ports: 32_768,
            flows: (flows * if v6 { 4 } else { 2 }).max(4096),
            workers: 1,
            timeouts: Timeouts::default(),
        };
        Self { v6, translated, rules, workers: 1, limits }
    }

    fn far(&self) -> PortId {
        if self.translated { OUT } else { DB }
    }

    /// Returns the addresses of one of the near and one of the far stations.
    fn address(&self, side: usize, n: usize) -> Address {
        let (n, net) = (n as u8, (side as u8) + 1);
        match (self.v6, side == 1 && self.translated) {
            (false, false) => Address::v4([10, net, 0, 10 + n]),
            (false, true) => Address::v4([198, 51, 100, 1 + n]),
            (true, false) => Address::v6([0xfd, 0, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, n]),
            (true, true) => Address::v6([0x20, 1, 0xd, 0xb8, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1, n]),
        }
    }

    /// Returns the address that translated connections leave with.
    fn own(&self) -> Address {
        if self.v6 {
            Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])
        } else {
            Address::v4([203, 0, 113, 2])
        }
    }

    fn tables(&self) -> Arc<Tables> {
        let limits = Limits { workers: self.workers, ..self.limits };
        let tables = Tables::new(limits, [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef, 7]);
        let at = Instant::from_nanos(1);
        let meet = |network, port, address, to: PortId| {
            let key = NeighborKey { network, port, address };
            tables.neighbors.set(key, STATIONS[to.index()], to, Kind::Fixed, at);
        };
        (0..CLIENTS).for_each(|n| meet(FRONT, None, self.address(0, n), WEB));
        (0..SERVERS).filter(|_| !self.translated).for_each(|n| meet(BACK, None, self.address(1, n), DB));
        meet(OUTSIDE, Some(OUT), self.next_hop(), OUT);
        for (network, port) in [(FRONT, WEB), (BACK, DB)] {
            let key = StationKey { network, vlan: packet::VlanId::UNTAGGED, mac: STATIONS[port.index()] };
            tables.fdb.fix(key, port, at);
        }
        tables
    }

    fn next_hop(&self) -> Address {
        self.address(1, 250)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let mut config = SnapshotBuilder::new();
        let len = if self.v6 { 64 } else { 24 };
        let mut subnets = Vec::new();
        for (side, network) in [FRONT, BACK].into_iter().enumerate() {
            let own = What { translated: false, ..*self }.address(side, 240);
            let subnet = Prefix::new(own, len).expect("a prefix");
            subnets.push((subnet, network));
            let routes = vec![(subnet, Route::Hops(vec![Hop::default()])), (Prefix::host(own), Route::Local)];
            let spec = DomainSpec { routes, masquerade: true, ..DomainSpec::default() };
            let gateway = Gateway { mac: ROUTERS[side], addresses: vec![own.ip()] };
            config.set_network(network, domain(spec, gateway));
        }
        let all = if self.v6 { Prefix::ALL_V6 } else { Prefix::ALL_V4 };
        let hop = Hop { port: Some(OUT), via: self.next_hop(), source: self.own() };
        let routes = vec![(all, Route::Hops(vec![hop]))];
        let spec = DomainSpec { kind: DomainKind::Uplink, routes, ..DomainSpec::default() };
        config.set_network(OUTSIDE, domain(spec, Gateway { mac: MacAddr::ZERO, addresses: Vec::new() }));
        config.set_host_addresses([self.own().ip()].into_iter().collect());
        for (port, network) in [(WEB, FRONT), (DB, BACK), (OUT, OUTSIDE)] {
            let mut info = PortInfo::new(network);
            if port == WEB {
                info.guard.mac = Some(STATIONS[0]);
                info.guard.addresses = (0..CLIENTS).map(|n| self.address(0, n).ip()).collect::<Vec<IpAddr>>();
            }
            if port == OUT {
                info.router_mac = Some(ROUTERS[2]);
            }
            config.set_port(port, info);
        }
        let spec = RouterSpec { uplink: Some(OUTSIDE), subnets, ..RouterSpec::default() };
        let policy = Arc::new(PolicySet::new(self.rules()));
        let translations = Translations::new(Vec::new(), Default::default(), (1024, 65_535));
        let hits = Hits::carried(&Hits::default(), &PolicySet::default(), &policy);
        config.set_router(Router::new(spec, policy, Arc::new(translations), Arc::new(hits)));
        config.build()
    }

    /// Rules about others, and at last the one that lets pass.
    fn rules(&self) -> Vec<Rule> {
        let rule = |from, to, services| Rule {
            name: "rule".into(),
            priority: 1000,
            from,
            to,
            services,
            action: Action::Allow,
            log: false,
            both_ways: false,
        };
        let mut rules: Vec<Rule> = (1..self.rules as u32)
            .map(|n| {
                let host = Prefix::host(Address::v4((0xac10_0000 + n).to_be_bytes()));
                let ports = Service::Ports { protocol: 6, first: n as u16, last: n as u16 };
                rule(Peer::Prefixes(vec![host]), Peer::Any, vec![ports])
            })
            .collect();
        let near = Peer::Identities(vec![Identity::port(WEB)]);
        rules.push(rule(near, Peer::Any, vec![Service::Protocol(17)]));
        rules
    }
}

fn domain(spec: DomainSpec, gateway: Gateway) -> NetworkInfo {
    NetworkInfo { gateway: Some(gateway), domain: Some(Arc::new(Domain::new(spec))), ..NetworkInfo::new() }
}

/// One worker.
struct World {
    what: What,
    worker: usize,
    pipeline: Pipeline,
    outputs: Outputs,
    pool: FramePool,
    batch: Batch,
    now: Instant,
    random: u64,
}

impl World {
    fn new(
        what: What,
        tables: &Arc<Tables>,
        snapshot: &Arc<Snapshot>,
        area: &Arc<Area>,
        worker: usize,
    ) -> Self {
        let mut outputs = Outputs::new(3);
        for port in [WEB, DB, OUT] {
            outputs.insert(port, FrameQueue::new(Batch::CAPACITY));
        }
        Self {
            what,
            worker,
            pipeline: Pipeline::new(Arc::clone(tables), Arc::clone(snapshot), worker),
            outputs,
            pool: FramePool::new(Arc::clone(area)),
            batch: Batch::new(),
            now: Instant::from_nanos(1_000_000_000),
            random: 88_172_645_463_325_252 + worker as u64,
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }

    /// Adds a packet to the batch; its ports are in the order of the wire.
    fn push(&mut self, port: PortId, source: Address, destination: Address, ports: [u16; 2]) {
        let mut frame = self.pool.alloc(LEN).expect("the area is larger than a batch");
        frame.set_len(LEN);
        let bytes = frame.bytes_mut();
        bytes[..6].copy_from_slice(&ROUTERS[port.index()].0);
        bytes[6..12].copy_from_slice(&STATIONS[port.index()].0);
        let l4 = if self.what.v6 {
            bytes[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 10, 17, 64]);
            bytes[22..38].copy_from_slice(&source.octets());
            bytes[38..54].copy_from_slice(&destination.octets());
            54
        } else {
            bytes[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17]);
            bytes[24..26].copy_from_slice(&[0x12, 0x34]);
            bytes[26..30].copy_from_slice(&source.octets_v4());
            bytes[30..34].copy_from_slice(&destination.octets_v4());
            34
        };
        bytes[l4..l4 + 2].copy_from_slice(&ports[0].to_be_bytes());
        bytes[l4 + 2..l4 + 4].copy_from_slice(&ports[1].to_be_bytes());
        bytes[l4 + 4..l4 + 8].copy_from_slice(&[0, 10, 0x12, 0x34]);
        self.batch.push(frame, port);
    }

    /// Adds a packet of connection `n`, the question or its answer.
    fn push_flow(&mut self, n: usize, leaves_by: u16, is_answer: bool) {
        let client = n % (CLIENTS * PORTS);
        let port = 20_000 + (client / CLIENTS) as u16;
        let [near, far] =
            [self.what.address(0, client % CLIENTS), self.what.address(1, n / (CLIENTS * PORTS) % SERVERS)];
        match (is_answer, self.what.translated) {
            (false, _) => self.push(WEB, near, far, [port, 53]),
            (true, true) => self.push(OUT, far, self.what.own(), [53, leaves_by]),
            (true, false) => self.push(DB, far, near, [53, port]),
        }
    }

    /// Returns how many packets walked, of how many.
    fn walked(&self) -> (u64, u64) {
        let ledger = &self.pipeline.tables().counters(self.worker).ledger;
        (ledger.cache_misses.get(), ledger.received.get())
    }

    fn run(&mut self) {
        self.pipeline.run(&mut self.batch, &mut self.outputs, &mut self.pool, self.now);
    }

    /// Takes what left by `port`, in order, and returns the source ports.
    fn take(&mut self, port: PortId) -> Vec<u16> {
        let l4 = if self.what.v6 { 54 } else { 34 };
        let mut ports = Vec::new();
        let queue = self.outputs.queue(port).expect("made with it");
        while let Some(frame) = queue.pop() {
            ports.push(u16::from_be_bytes([frame.bytes()[l4], frame.bytes()[l4 + 1]]));
            self.pool.free(frame);
        }
        ports
    }

    fn clear(&mut self) {
        for port in [WEB, DB, OUT] {
            let queue = self.outputs.queue(port).expect("made with it");
            while let Some(frame) = queue.pop() {
                self.pool.free(frame);
            }
        }
        let tables = Arc::clone(self.pipeline.tables());
        self.outputs.clear_touched(tables.counters(tables.all_counters().len() - 1));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clear();
        let frames: Vec<Frame> = self.batch.drain().collect();
        frames.into_iter().for_each(|frame| self.pool.free(frame));
    }
}

/// Which packets a worker of a [`Known`] gets.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Both,
    Questions,
    Answers,
}

/// Packets of known connections.
struct Known {
    world: World,
    /// The port that each connection leaves by.
    leaves_by: Arc<[u16]>,
    side: Side,
    /// What [`World::walked`] said when all were open.
    opened: (u64, u64),
}

impl Known {
    fn new(world: World, leaves_by: Arc<[u16]>, side: Side) -> Self {
        let opened = world.walked();
        Self { world, leaves_by, side, opened }
    }
}

/// Opens the connections, questions by the first world and answers by the last.
fn open(worlds: &mut [World], connections: usize) -> Arc<[u16]> {
    let mut leaves_by = vec![0; connections];
    let last = worlds.len() - 1;
    for round in 0..3 {
        for start in (0..connections).step_by(Batch::CAPACITY) {
            let range = start..(start + Batch::CAPACITY).min(connections);
            let far = worlds[0].what.far();
            range.clone().for_each(|n| worlds[0].push_flow(n, 0, false));
            worlds[0].run();
            let ports = worlds[0].take(far);
            assert_eq!(ports.len(), range.len(), "all questions leave");
            leaves_by[range.clone()].copy_from_slice(&ports);
            worlds[0].clear();
            range.clone().for_each(|n| worlds[last].push_flow(n, leaves_by[n], true));
            worlds[last].run();
            assert_eq!(worlds[last].take(WEB).len(), range.len(), "all answers arrive in round {round}");
            worlds[last].clear();
        }
    }
    leaves_by.into()
}

fn known(what: What, flows: usize) -> Box<dyn Case> {
    let area = Area::new(2048, 0).expect("8 MiB");
    let mut worlds = [World::new(what, &what.tables(), &what.snapshot(), &area, 0)];
    let leaves_by = open(&mut worlds, flows / 2);
    let [world] = worlds;
    Box::new(Known::new(world, leaves_by, Side::Both))
}

impl Case for Known {
    fn prepare(&mut self) {
        self.world.clear();
        for n in 0..Batch::CAPACITY {
            let flow = self.world.random() as usize % self.leaves_by.len();
            let is_answer = match self.side {
                Side::Both => n >= Batch::CAPACITY / 2,
                side => side == Side::Answers,
            };
            self.world.push_flow(flow, self.leaves_by[flow], is_answer);
        }
    }

    fn run(&mut self) -> usize {
        let packets = self.world.batch.len();
        self.world.run();
        packets
    }

    fn is_long(&self) -> bool {
        self.leaves_by.len() > 1000
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let (walked, all) = self.world.walked();
        let (walked, all) = (walked - self.opened.0, all - self.opened.1);
        assert!(walked * 200 < all + 200, "{walked} of {all} packets of known connections walked");
    }
}

/// Connections of one packet each.
struct New {
    world: World,
    next: usize,
    step: usize,
    /// Nanoseconds; one clock for all workers, as slots of the dead wait until every worker's time has passed them.
    clock: Arc<AtomicU64>,
}

impl New {
    /// About `live` connections are there at any time.
    fn what(v6: bool, live: usize) -> What {
        let seconds = (live / Batch::CAPACITY).max(2) as u64;
        let mut what = What::new(v6, true, 1000, live * 8);
        what.limits.timeouts.udp_unreplied = Duration::from_secs(seconds);
        what.limits.nat_ports = 65_536;
        what
    }
}

impl Case for New {
    fn prepare(&mut self) {
        let world = &mut self.world;
        world.clear();
        // Old ones end, and their slots are free again.
        for _ in 0..2 {
            let half = 500_000_000;
            world.now = Instant::from_nanos(self.clock.fetch_add(half, Ordering::Relaxed) + half);
            world.pipeline.tick(&mut world.outputs, &mut world.pool, world.now);
        }
        for _ in 0..Batch::CAPACITY {
            self.world.push_flow(self.next, 0, false);
            self.next += self.step;
        }
    }

    fn run(&mut self) -> usize {
        let packets = self.world.batch.len();
        self.world.run();
        packets
    }

    fn is_long(&self) -> bool {
        self.world.what.limits.connections > 10_000
    }
}

impl Drop for New {
    fn drop(&mut self) {
        let counters = self.world.pipeline.tables().counters(0);
        let (dropped, all) = (counters.ledger.dropped.get(), counters.ledger.received.get());
        assert!(dropped * 100 < all, "{dropped} of {all} connections were refused");
    }
}

fn new(v6: bool, live: usize) -> Box<dyn Case> {
    let (what, area) = (New::what(v6, live), Area::new(2048, 0).expect("8 MiB"));
    let world = World::new(what, &what.tables(), &what.snapshot(), &area, 0);
    let clock = Arc::new(AtomicU64::new(world.now.as_nanos()));
    Box::new(New { world, next: 0, step: 1, clock })
}

/// Runs a case a worker, each alone and then together, and prints clocks a packet of each. Alone there is no other
/// worker, since each sweeps its part of the tables only.
fn two_workers(name: &str, alone: [Box<dyn Case>; 2], mut cases: [Box<dyn Case + Send>; 2], batches: usize) {
    let alone = alone.map(|mut case| clocks(&mut *case, batches).0);
    let start = Barrier::new(2);
    let together: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&mut cases)
            .map(|(cpu, case)| {
                let start = &start;
                scope.spawn(move || {
                    let mut cpus = CpuSet::new();
                    if cpus.set(cpu).is_ok() {
                        let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
                    }
                    start.wait();
                    clocks(&mut **case, batches).0
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let [a, b] = [alone[0] / together[0], alone[1] / together[1]];
    println!(
        "{name:<44} alone {:.0} {:.0}, together {:.0} {:.0}: {:.2} times one",
        alone[0],
        alone[1],
        together[0],
        together[1],
        a + b
    );
}

fn together(quick: bool) {
    let batches = if quick { 200 } else { 10_000 };
    let area = Area::new(4096, 0).expect("16 MiB");
    let worlds = |what: What, workers: usize| -> Vec<World> {
        let what = What { workers, ..what };
        let (tables, snapshot) = (what.tables(), what.snapshot());
        (0..workers).map(|n| World::new(what, &tables, &snapshot, &area, n)).collect()
    };
    let known = || {
        let mut worlds = worlds(What::new(false, true, 1000, 1000), 2);
        let leaves_by = open(&mut worlds, 500);
        let Ok([questions, answers]) = <[World; 2]>::try_from(worlds) else { unreachable!("one a worker") };
        let known = |world, side| Known::new(world, Arc::clone(&leaves_by), side);
        [known(questions, Side::Questions), known(answers, Side::Answers)]
    };
    let name = "two workers: nat4/1k, a direction each";
    two_workers(
        name,
        known().map(|case| -> Box<dyn Case> { Box::new(case) }),
        known().map(|case| -> Box<dyn Case + Send> { Box::new(case) }),
        batches,
    );
    // Slots of the dead wait for the slower worker, which a busy machine may stop for long.
    let mut what = New::what(false, 4096);
    what.limits.connections *= 4;
    let new = |worlds: Vec<World>| {
        let (step, clock) = (worlds.len(), Arc::new(AtomicU64::new(worlds[0].now.as_nanos())));
        worlds.into_iter().enumerate().map(move |(next, world)| New {
            world,
            next,
            step,
            clock: Arc::clone(&clock),
        })
    };
    let alone = [0, 1].map(|_| -> Box<dyn Case> { Box::new(new(worlds(what, 1)).next().expect("one")) });
    let mut both = new(worlds(what, 2));
    let both = [0, 1].map(|_| -> Box<dyn Case + Send> { Box::new(both.next().expect("two")) });
    two_workers("two workers: new4", alone, both, batches / 10);
}

const CASES: &[Entry] = &[
    ("route4/1k, 1 rule", || known(What::new(false, false, 1, 1000), 1000)),
    ("nat4/1k, 10 rules", || known(What::new(false, true, 10, 1000), 1000)),
    ("nat4/1k, 10k rules", || known(What::new(false, true, 10_000, 1000), 1000)),
    ("nat4/64k, 1k rules", || known(What::new(false, true, 1000, 64 << 10), 64 << 10)),
    ("nat4/1M, 1k rules", || known(What::new(false, true, 1000, 1 << 20), 1 << 20)),
    ("route6/1k, 1 rule", || known(What::new(true, false, 1, 1000), 1000)),
    ("nat6/1k, 1k rules", || known(What::new(true, true, 1000, 1000), 1000)),
    ("nat6/64k, 1k rules", || known(What::new(true, true, 1000, 64 << 10), 64 << 10)),
    ("nat6/1M, 1k rules", || known(What::new(true, true, 1000, 1 << 20), 1 << 20)),
    ("new4, 1k rules, 4k live", || new(false, 4096)),
    ("new4, 1k rules, 32k live", || new(false, 32 << 10)),
    ("new6, 1k rules, 4k live", || new(true, 4096)),
];

fn main() {
    benches::main("routed, 64 B, UDP", CASES);
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().all(|arg| matches!(arg.as_str(), "--bench" | "--quick" | "two")) {
        together(args.iter().any(|arg| arg == "--quick"));
    }
}
