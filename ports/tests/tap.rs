//! Tap ports against the real kernel. Needs root; see `common`.

mod common;

use common::{Forwarder, Lab, Namespace, Way, area, eventually, totals};
use packet::area::ChunkKind;
use packet::{FramePool, FrameQueue};
use ports::{Health, Kind, Opened, Port, Spec};
use std::sync::Arc;

const WAYS: [[Way; 2]; 2] = [[Way::Tap, Way::Tap], [Way::Veth, Way::Tap]];

fn tap(queues: u16, persist: bool) -> Kind {
    Kind::Tap { device: "eth0".to_owned(), queues, persist }
}

fn only(opened: Opened) -> Port {
    assert_eq!(opened.queues.len(), 1);
    opened.queues.into_iter().next().expect("one")
}

#[test]
fn tcp_crosses_with_offloads_on_and_off() {
    for ways in WAYS {
        for offloads in ["on", "off"] {
            for mtu in [512, 1500, 9000] {
                let lab = Lab::new();
                let ports = vec![lab.attach(0, ways[0]), lab.attach(1, ways[1])];
                lab.configure(mtu, ways);
                if offloads == "off" {
                    for end in &lab.ends {
                        end.run("ethtool -K eth0 tx off sg off tso off gso off gro off");
                    }
                }
                let forwarder = Forwarder::new(ports, &lab.area);
                lab.check(false, 3_000_000);
                if mtu >= 1280 {
                    lab.check(true, 3_000_000);
                }
                let (ports, mut pool) = forwarder.stop();
                let stats = totals(&ports);
                println!("{ways:?} offloads {offloads} mtu {mtu}: {stats:?}");
                assert_eq!((stats.rx_errors, stats.tx_errors, stats.rx_no_memory), (0, 0, 0), "{stats:?}");
                let mean = stats.rx_bytes / stats.rx_frames;
                assert!(offloads == "off" || mean > 2 * u64::from(mtu), "large frames cross whole: {mean}");
                ports.into_iter().for_each(|port| port.close(&mut pool));
            }
        }
    }
}

#[test]
#[ignore = "needs a kernel with VLAN devices (8021q); tags in frames are tested without them elsewhere"]
fn tagged_frames_reach_vlan_devices() {
    for ways in WAYS {
        let lab = Lab::new();
        let ports = vec![lab.attach(0, ways[0]), lab.attach(1, ways[1])];
        lab.configure(1500, ways);
        for (n, end) in lab.ends.iter().enumerate() {
            end.ip("link add link eth0 name eth0.7 type vlan id 7");
            end.ip("link set eth0.7 up");
            end.ip(&format!("addr add 10.7.0.{}/24 dev eth0.7", n + 1));
        }
        let forwarder = Forwarder::new(ports, &lab.area);
        common::transfer(&lab.ends[0], &lab.ends[1], [10, 7, 0, 2].into(), 3_000_000);
        common::transfer(&lab.ends[1], &lab.ends[0], [10, 7, 0, 1].into(), 3_000_000);
        drop(forwarder);
    }
}

#[test]
fn a_persistent_tap_is_found_again_and_a_transient_one_goes() {
    let ns = Namespace::new("p");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    only(ns.open(tap(1, true), &area)).close(&mut pool);
    ns.ip("link show eth0");
    ns.ip("link set eth0 up address 02:00:00:00:00:77");
    let port = only(ns.open(tap(1, true), &area));
    assert_eq!(port.health(), Health::Up);
    ns.run("sh -c 'ip link show eth0 | grep -q 02:00:00:00:00:77'");
    let busy = {
        let area = Arc::clone(&area);
        ns.enter(move || Port::open(Spec { name: "other".to_owned(), kind: tap(1, true) }, &area))
    };
    let error = busy.expect_err("one queue is one queue").to_string();
    assert!(error.starts_with("port 'other': cannot attach to tap eth0"), "{error}");
    port.close(&mut pool);
    let port = only(ns.open(tap(1, false), &area));
    port.close(&mut pool);
    ns.run(
        "sh -c 'for n in $(seq 200); do ip link show eth0 2>/dev/null || exit 0; sleep 0.01; done; exit 1'",
    );
}

#[test]
fn a_tap_with_several_queues_has_as_many_ports() {
    let ns = Namespace::new("q");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    let opened = ns.open(tap(3, true), &area);
    assert_eq!(opened.queues.len(), 3);
    opened.queues.into_iter().for_each(|port| port.close(&mut pool));
    // It was made with several queues; one of them is enough.
    only(ns.open(tap(1, false), &area)).close(&mut pool);
    only(ns.open(tap(1, true), &area)).close(&mut pool);
    let opened = ns.open(tap(2, false), &area);
    assert_eq!((opened.queues.len(), opened.notes.len()), (1, 1), "{:?}", opened.notes);
    opened.queues.into_iter().for_each(|port| port.close(&mut pool));
}

#[test]
fn health_follows_the_device() {
    let ns = Namespace::new("h");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut port = only(ns.open(tap(1, false), &area));
    let mut queue = FrameQueue::new(4);
    assert_eq!(port.health(), Health::Down);
    ns.ip("link set eth0 up");
    assert_eq!(port.health(), Health::Up);
    ns.ip("link set eth0 down");
    for _ in 0..3 {
        queue.push(pool.alloc_from(&[0xff; 60]).expect("a chunk")).expect("room");
    }
    port.transmit(&mut queue, &mut pool);
    assert_eq!((port.health(), queue.len(), port.stats().tx_errors), (Health::Down, 0, 3));
    ns.ip("link set eth0 up");
    queue.push(pool.alloc_from(&[0xff; 60]).expect("a chunk")).expect("room");
    port.transmit(&mut queue, &mut pool);
    assert_eq!((port.health(), port.stats().tx_errors), (Health::Up, 3));
    ns.ip("link del eth0");
    port.receive(&mut pool, 8, |_| unreachable!("nothing comes from a device that is gone"));
    assert_eq!(port.health(), Health::Gone);
    port.close(&mut pool);
    drop(pool);
    assert_eq!(area.free(ChunkKind::Small), area.total(ChunkKind::Small));
    assert_eq!(area.free(ChunkKind::Large), area.total(ChunkKind::Large));
}

#[test]
fn a_device_may_go_in_full_flood() {
    let lab = Lab::new();
    let ports = vec![lab.attach(0, Way::Tap), lab.attach(1, Way::Tap)];
    lab.configure(1500, [Way::Tap, Way::Tap]);
    let forwarder = Forwarder::new(ports, &lab.area);
    common::flood(&lab.ends[0], [10, 9, 0, 2].into(), || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        lab.ends[1].ip("link del eth0");
        std::thread::sleep(std::time::Duration::from_millis(50));
        lab.ends[0].ip("link del eth0");
    });
    let (ports, mut pool) = forwarder.stop();
    eventually("both are gone", || ports.iter().all(|port| port.health() == Health::Gone));
    assert!(totals(&ports).rx_frames > 100, "{:?}", totals(&ports));
    ports.into_iter().for_each(|port| port.close(&mut pool));
    drop(pool);
    assert_eq!(lab.area.free(ChunkKind::Small), lab.area.total(ChunkKind::Small));
    assert_eq!(lab.area.free(ChunkKind::Large), lab.area.total(ChunkKind::Large));
}
