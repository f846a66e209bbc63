//! Nothing on the packet path allocates: a counting allocator watches ports, pipeline and pool at work.

#![expect(clippy::cast_possible_truncation, reason = "the figures of this test are small")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use packet::build::{arp_request, eth};
use packet::{
    Address, Area, Batch, FramePool, FrameQueue, Instant, MacAddr, NetworkId, PortId, Prefix, VlanId, Vni,
};
use pipeline::tables::{At, Kind as Known, NeighborKey, StationKey, VtepKey};
use pipeline::{
    Domain, DomainKind, DomainSpec, Gateway, Hop, Limits, Neighbor, NetworkInfo, Outputs, OverlayInfo,
    Pipeline, PortInfo, Route, SnapshotBuilder, Tables, TunnelInfo,
};
use ports::{Kind, Port, Spec, memory};

/// The system's allocator, and how often each thread asked it: the test harness allocates in its own.
struct Counting;

thread_local! {
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

#[test]
fn a_turn_allocates_nothing() {
    let limits = Limits {
        ports: PORTS.into(),
        networks: 1,
        stations: 4096,
        flows: 16_384,
        workers: 1,
        ..Limits::default()
    };
    let tables = Tables::new(limits, [1, 2, 3]);
    let area = Area::new(8192, 16).expect("32 MiB");
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut outputs = Outputs::new(limits.ports);
    let mut builder = SnapshotBuilder::new();
    let mut info = NetworkInfo::new();
    let known = Neighbor { mac: MacAddr::local(1), port: PortId(1) };
    info.neighbors.insert([10, 0, 0, 1].into(), known);
    builder.set_network(NETWORK, info);
    let mut sides = Vec::new();
    for n in 0..PORTS {
        builder.set_port(PortId(n), PortInfo::new(NETWORK));
        outputs.insert(PortId(n), FrameQueue::new(256));
        let (end, peer) = memory::pair(512);
        let spec = Spec { name: n.to_string(), kind: Kind::Memory { end } };
        let port = Port::open(spec, &area).expect("memory").queues.remove(0);
        sides.push((port, peer));
    }
    let mut pipeline = Pipeline::new(Arc::clone(&tables), builder.build(), 0);
    let mut batch = Batch::new();

    // Known pairs, invented sources, floods, questions, noise, frames that nobody may get.
    let kinds: Vec<Vec<u8>> = (0..600u64)
        .map(|n| match n % 6 {
            0 | 1 => eth(MacAddr::local(n % 12), MacAddr::local((n + 6) % 12)).raw(0x88b5, &[0; 46]).bytes(),
            2 => eth(MacAddr::local(1000 + n), MacAddr::local(3)).raw(0x88b5, &[0; 1500]).bytes(),
            3 => eth(MacAddr::local(n), MacAddr::BROADCAST).raw(0x88b5, &[0; 46]).bytes(),
            4 => arp_request(MacAddr::local(5), [10, 0, 0, 5], [10, 0, 0, 1]).bytes(),
            _ => vec![0xff; n as usize % 70],
        })
        .collect();
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut moved = 0;
    for round in 0..200 {
        for (n, bytes) in kinds.iter().enumerate() {
            let frame = pool.alloc_from(bytes).expect("chunks enough");
            let side = (n * 7 + round) % sides.len();
            if let Err(frame) = sides[side].1.send(frame) {
                pool.free(frame);
            }
        }
        let before = ALLOCATIONS.with(Cell::get);
        for (n, (port, _)) in sides.iter_mut().enumerate() {
            let id = PortId(n as u16);
            moved += port.receive(&mut pool, batch.room(), |frame| batch.push(frame, id));
            pipeline.run(&mut batch, &mut outputs, &mut pool, now);
        }
        for (n, (port, _)) in sides.iter_mut().enumerate() {
            port.transmit(outputs.queue(PortId(n as u16)).expect("made above"), &mut pool);
        }
        outputs.clear_touched(tables.counters(0));
        while pipeline.next_event().is_some() {}
        let after = ALLOCATIONS.with(Cell::get);
        assert_eq!(after - before, 0, "allocations in round {round}");
        for (_, peer) in &mut sides {
            peer.drain(&mut pool);
        }
        now = now + Duration::from_millis(400);
        tables.fdb.sweep(now, usize::MAX, |_| Some(Duration::from_secs(3)));
    }
    assert!(moved > 100_000, "{moved} frames went through");
    for (n, (port, mut peer)) in sides.into_iter().enumerate() {
        let mut queue = outputs.remove(PortId(n as u16)).expect("made above");
        while let Some(frame) = queue.pop() {
            pool.free(frame);
        }
        peer.drain(&mut pool);
        port.close(&mut pool);
    }
}

const OUTSIDE: NetworkId = NetworkId(1);
const HERE: PortId = PortId(0);
const OUT: PortId = PortId(1);
const TUNNEL: PortId = PortId(2);

fn endpoint(host: u8) -> Address {
    Address::v4([192, 0, 2, host])
}

/// A network with a tunnel, of which four endpoints are known.
fn overlay(tables: &Tables, now: Instant) -> SnapshotBuilder {
    let mut builder = SnapshotBuilder::new();
    let hop = Hop { port: Some(OUT), via: Address::UNSPECIFIED, source: endpoint(1) };
    let routes = vec![(Prefix::new(endpoint(1), 24).expect("a prefix"), Route::Hops(vec![hop]))];
    let spec = DomainSpec { kind: DomainKind::Uplink, routes, ..DomainSpec::default() };
    let outside = NetworkInfo {
        gateway: Some(Gateway { mac: MacAddr::ZERO, addresses: Vec::new() }),
        domain: Some(Arc::new(Domain::new(spec))),
        ..NetworkInfo::new()
    };
    builder.set_network(NETWORK, NetworkInfo::new());
    builder.set_network(OUTSIDE, outside);
    builder.set_port(HERE, PortInfo::new(NETWORK));
    builder.set_port(OUT, PortInfo { router_mac: Some(MacAddr::local(0xee)), ..PortInfo::new(OUTSIDE) });
    let tunnel = TunnelInfo { vni: Vni(101), udp_port: 4789, learned_vteps: 8 };
    builder.set_port(TUNNEL, PortInfo { tunnel: Some(tunnel), mtu: 1450, ..PortInfo::new(NETWORK) });
    builder.set_overlay(Some(OverlayInfo::new(OUTSIDE, vec![endpoint(1)])));
    for host in 2..6 {
        let key = NeighborKey { network: OUTSIDE, port: Some(OUT), address: endpoint(host) };
        tables.neighbors.set(key, MacAddr::local(0xee00 + u64::from(host)), OUT, Known::Fixed, now);
        let vtep = tables.vteps.fix(VtepKey { network: None, address: endpoint(host) }, now);
        let mac = MacAddr::local(host.into());
        let key = StationKey { network: NETWORK, vlan: VlanId::UNTAGGED, mac };
        tables.fdb.fix(key, At { port: TUNNEL, vtep }, now);
    }
    builder
}

#[test]
fn nor_do_tunnels() {
    let limits =
        Limits { ports: 3, networks: 2, stations: 4096, flows: 4096, workers: 1, ..Limits::default() };
    let tables = Tables::new(limits, [1, 2, 3]);
    let mut now = Instant::from_nanos(1_000_000_000);
    let mut builder = overlay(&tables, now);
    let mut pool = FramePool::new(Area::new(8192, 16).expect("32 MiB"));
    let mut outputs = Outputs::new(limits.ports);
    for port in [HERE, OUT] {
        outputs.insert(port, FrameQueue::new(512));
    }
    let mut pipeline = Pipeline::new(Arc::clone(&tables), builder.build(), 0);
    let mut batch = Batch::new();
    // Known stations and floods, both ways; endpoints that are learned or refused, other identifiers, nonsense.
    let data = [0; 100];
    let inner = |from: u64, to: MacAddr| {
        eth(MacAddr::local(from), to).ipv4([10, 1, 0, 1], [10, 1, 0, 2]).udp(1, 2).data(&data)
    };
    let packed = |host: u8, vni: u32, to: MacAddr| {
        let outer = eth(MacAddr::local(0xee00), MacAddr::local(0xee));
        let udp = outer.ipv4([192, 0, 2, host], [192, 0, 2, 1]).udp(50_000, 4789);
        udp.vxlan(Vni(vni), inner(host.into(), to)).bytes()
    };
    let kinds: Vec<(PortId, Vec<u8>)> = (0..120u8)
        .map(|n| match n % 8 {
            0..3 => (HERE, inner(1, MacAddr::local(u64::from(2 + n % 4))).bytes()),
            3 => (HERE, inner(1000 + u64::from(n), MacAddr::BROADCAST).bytes()),
            4 | 5 => (OUT, packed(2 + n % 4, 101, MacAddr::local(1))),
            6 => (OUT, packed(100 + n, 101, MacAddr::local(1))),
            _ => (OUT, packed(2, 100 + u32::from(n) % 3, MacAddr::BROADCAST)),
        })
        .collect();
    for round in 0..300 {
        for (port, bytes) in &kinds {
            batch.push(pool.alloc_from(bytes).expect("chunks enough"), *port);
        }
        // A change of the configuration makes all that is known be found out again.
        let adopted = (round % 50 == 49).then(|| {
            builder.set_overlay(Some(OverlayInfo::new(OUTSIDE, vec![endpoint(1)])));
            builder.build()
        });
        let before = ALLOCATIONS.with(Cell::get);
        let old = adopted.map(|snapshot| pipeline.adopt(snapshot));
        pipeline.run(&mut batch, &mut outputs, &mut pool, now);
        pipeline.tick(&mut outputs, &mut pool, now);
        outputs.clear_touched(tables.counters(0));
        while pipeline.next_event().is_some() {}
        let after = ALLOCATIONS.with(Cell::get);
        assert_eq!(after - before, 0, "allocations in round {round}");
        drop(old);
        for port in [HERE, OUT] {
            let queue = outputs.queue(port).expect("made above");
            while let Some(frame) = queue.pop() {
                pool.free(frame);
            }
        }
        now = now + Duration::from_millis(400);
    }
    let ledger = &tables.counters(0).ledger;
    let (hits, all) = (ledger.cache_hits.get(), ledger.received.get());
    assert!(hits > all / 3, "{hits} of {all} packets were of known flows");
}
