//! Packets to and from other hosts in memory: a batch of 64-byte frames of known stations, put into VXLAN or taken out.
//!
//! Measured is `Pipeline::run`, as in `l2`, whose clocks are what a case is to be compared with: all that encap or decap
//! adds to a bridged flow. "1k" are 1000 stations, a half here, a half behind 16 endpoints; "1k x 1k" are 1000 networks, each
//! with an identifier of its own and a pair of stations, whose far ones are behind 1000 endpoints. Over IPv6 the outer
//! UDP checksum is full, as it is by default.
#![allow(clippy::cast_possible_truncation, reason = "sizes of benchmarks are small numbers")]

use std::sync::Arc;

use benches::{Case, Entry};
use packet::build::{Packet, eth};
use packet::{
    Address, Area, Batch, Frame, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId, Prefix, VlanId,
    Vni,
};
use pipeline::tables::{At, Kind, NeighborKey, StationKey, VtepKey};
use pipeline::{
    Domain, DomainKind, DomainSpec, Gateway, HandBack, Hop, Limits, NetworkInfo, Outputs, OverlayInfo,
    Pipeline, PortInfo, Route, SnapshotBuilder, Tables, TunnelInfo,
};

const OUT: PortId = PortId(0);
const OUTSIDE: NetworkId = NetworkId(0);
const VXLAN: u16 = 4789;

/// What a case is about.
#[derive(Clone, Copy)]
struct What {
    /// Of the underlay.
    v6: bool,
    decap: bool,
    networks: usize,
    pairs: usize,
    vteps: usize,
}

/// Frames between stations here and stations behind other hosts.
struct Overlay {
    what: What,
    pipeline: Pipeline,
    outputs: Outputs,
    pool: FramePool,
    batch: Batch,
    frames: Vec<(PortId, Vec<u8>)>,
    random: u64,
}

fn device(n: usize) -> MacAddr {
    MacAddr::local(0xee_0000_0000 + n as u64)
}

/// Returns the address of endpoint `n`; 0 is ours.
fn endpoint(n: usize, v6: bool) -> Address {
    let [high, low] = (n as u16 + 1).to_be_bytes();
    if v6 {
        Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
    } else {
        Address::v4([172, 16, high, low])
    }
}

/// Returns the stations of a pair: the one here, and the one behind another host.
fn stations(pair: usize) -> [MacAddr; 2] {
    [0, 1].map(|side| MacAddr::local(pair as u64 * 2 + side))
}

fn outside(v6: bool) -> NetworkInfo {
    let source = endpoint(0, v6);
    let prefix = Prefix::new(source, if v6 { 64 } else { 16 }).expect("a prefix");
    let hop = Hop { port: Some(OUT), via: Address::UNSPECIFIED, source };
    let routes = vec![(prefix, Route::Hops(vec![hop]))];
    let spec = DomainSpec { kind: DomainKind::Uplink, routes, ..DomainSpec::default() };
    NetworkInfo {
        gateway: Some(Gateway { mac: MacAddr::ZERO, addresses: Vec::new() }),
        domain: Some(Arc::new(Domain::new(spec))),
        ..NetworkInfo::new()
    }
}

impl Overlay {
    fn new(what: What) -> Self {
        let limits = Limits {
            ports: 1 + 2 * what.networks,
            networks: 1 + what.networks,
            stations: (4 * what.pairs).max(64),
            neighbors: (2 * what.vteps).max(64),
            vteps: what.vteps + 1,
            flows: 65_536,
            workers: 1,
            ..Limits::default()
        };
        let tables = Tables::new(limits, [0x0123_4567_89ab_cdef, 0xfeed_face_dead_beef, 7]);
        let now = Instant::from_nanos(1);
        let mut builder = SnapshotBuilder::new();
        let mut outputs = Outputs::new(limits.ports);
        let out =
            PortInfo { router_mac: Some(device(0)), hand_back: HandBack::Nowhere, ..PortInfo::new(OUTSIDE) };
        builder.set_network(OUTSIDE, outside(what.v6));
        builder.set_port(OUT, out);
        outputs.insert(OUT, FrameQueue::new(Batch::CAPACITY));
        for n in 1..=what.vteps {
            let address = endpoint(n, what.v6);
            let key = NeighborKey { network: OUTSIDE, port: Some(OUT), address };
            tables.neighbors.set(key, device(n), OUT, Kind::Fixed, now);
            tables.vteps.fix(VtepKey { network: None, address }, now);
        }
        builder.set_overlay(Some(OverlayInfo::new(OUTSIDE, vec![endpoint(0, what.v6)])));
        for n in 0..what.networks {
            let (network, [here, tunnel]) = (NetworkId(n as u16 + 1), ports(n));
            builder.set_network(network, NetworkInfo::new());
            builder.set_port(here, PortInfo::new(network));
            outputs.insert(here, FrameQueue::new(Batch::CAPACITY));
            let vni = Vni(1000 + n as u32);
            let info = TunnelInfo { vni, udp_port: VXLAN, learned_vteps: 0 };
            builder.set_port(tunnel, PortInfo { tunnel: Some(info), mtu: 1430, ..PortInfo::new(network) });
        }
        let frames = (0..what.pairs).map(|pair| what.frame(pair)).collect();
        for pair in 0..what.pairs {
            let (network, [here, tunnel]) =
                (NetworkId(what.network(pair) as u16 + 1), ports(what.network(pair)));
            let [near, far] = stations(pair);
            let key = |mac| StationKey { network, vlan: VlanId::UNTAGGED, mac };
            let vtep = tables.vteps.find(network, endpoint(what.vtep(pair), what.v6));
            tables.fdb.fix(key(near), here, now);
            tables.fdb.fix(key(far), At { port: tunnel, vtep }, now);
        }
        let mut overlay = Self {
            what,
            pipeline: Pipeline::new(tables, builder.build(), 0),
            outputs,
            pool: FramePool::new(Area::new(2048, 0).expect("8 MiB")),
            batch: Batch::new(),
            frames,
            random: 88_172_645_463_325_252,
        };
        for _ in 0..3 {
            for pair in 0..what.pairs {
                overlay.push(pair);
                if overlay.batch.room() == 0 || pair + 1 == what.pairs {
                    overlay.run();
                    overlay.clear();
                }
            }
        }
        overlay
    }

    fn push(&mut self, pair: usize) {
        let (port, bytes) = &self.frames[pair];
        let frame = self.pool.alloc_from(bytes).expect("the area is larger than a batch");
        self.batch.push(frame, *port);
    }

    /// Takes out what was queued.
    fn clear(&mut self) {
        for n in 0..=self.what.networks {
            let port = if n == 0 { OUT } else { ports(n - 1)[0] };
            let queue = self.outputs.queue(port).expect("made with it");
            while let Some(frame) = queue.pop() {
                self.pool.free(frame);
            }
        }
        self.outputs.clear_touched(self.pipeline.tables().counters(0));
    }
}

/// Returns the ports of a network: the one here, and the tunnel.
fn ports(network: usize) -> [PortId; 2] {
    [1, 2].map(|n| PortId(2 * network as u16 + n))
}

impl What {
    fn network(&self, pair: usize) -> usize {
        pair % self.networks
    }

    fn vtep(&self, pair: usize) -> usize {
        pair % self.vteps + 1
    }

    /// Returns the packet of a pair, and the port that it comes by.
    fn frame(&self, pair: usize) -> (PortId, Vec<u8>) {
        let [near, far] = stations(pair);
        let inner = |from: MacAddr, to: MacAddr| -> Packet {
            let packet = eth(from, to).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(4000 + pair as u16, 53);
            packet.data(&[0; 64 - 42])
        };
        if !self.decap {
            return (ports(self.network(pair))[0], inner(near, far).bytes());
        }
        let (vtep, vni) = (self.vtep(pair), Vni(1000 + self.network(pair) as u32));
        let ends = [endpoint(vtep, self.v6), endpoint(0, self.v6)];
        let link = eth(device(vtep), device(0));
        let source_port = 50_000 + pair as u16 % 10_000;
        let packed = if self.v6 {
            let [from, to] = ends.map(|end| std::net::Ipv6Addr::from(end.octets()));
            link.ipv6(from, to).udp(source_port, VXLAN).vxlan(vni, inner(far, near)).bytes()
        } else {
            let [from, to] = ends.map(|end| end.octets_v4());
            let udp = link.ipv4(from, to).udp(source_port, VXLAN).without_checksum();
            udp.vxlan(vni, inner(far, near)).bytes()
        };
        (OUT, packed)
    }
}

impl Case for Overlay {
    fn prepare(&mut self) {
        self.clear();
        for _ in 0..Batch::CAPACITY {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.push((self.random >> 8) as usize % self.what.pairs);
        }
    }

    fn run(&mut self) -> usize {
        let packets = self.batch.len();
        let now = Instant::from_nanos(1_000_000_000);
        self.pipeline.run(&mut self.batch, &mut self.outputs, &mut self.pool, now);
        packets
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.clear();
        let frames: Vec<Frame> = self.batch.drain().collect();
        frames.into_iter().for_each(|frame| self.pool.free(frame));
        let ledger = &self.pipeline.tables().counters(0).ledger;
        let (walked, all, dropped) = (ledger.cache_misses.get(), ledger.received.get(), ledger.dropped.get());
        assert!(
            walked < 3 * self.what.pairs as u64 && dropped == 0,
            "{walked} of {all} walked, {dropped} died"
        );
    }
}

fn case(decap: bool, v6: bool, networks: usize, pairs: usize, vteps: usize) -> Box<dyn Case> {
    Box::new(Overlay::new(What { v6, decap, networks, pairs, vteps }))
}

const CASES: &[Entry] = &[
    ("encap4/1", || case(false, false, 1, 1, 1)),
    ("encap4/1k", || case(false, false, 1, 500, 16)),
    ("encap4/1k x 1k", || case(false, false, 1000, 1000, 1000)),
    ("encap6/1", || case(false, true, 1, 1, 1)),
    ("encap6/1k", || case(false, true, 1, 500, 16)),
    ("decap4/1", || case(true, false, 1, 1, 1)),
    ("decap4/1k", || case(true, false, 1, 500, 16)),
    ("decap4/1k x 1k", || case(true, false, 1000, 1000, 1000)),
    ("decap6/1", || case(true, true, 1, 1, 1)),
    ("decap6/1k", || case(true, true, 1, 500, 16)),
];

fn main() {
    benches::main("overlay, 64 B inside, known stations", CASES);
}
