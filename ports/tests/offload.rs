//! Frames of every offload state from one port to another, through the real kernel: a veth pair with a port on
//! both ends, and a tap with a packet socket on its device. Needs root; see `common`.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Namespace, area};
use packet::header::Layout;
use packet::{
    Checksum, Frame, FramePool, FrameQueue, Gso, GsoKind, MacAddr, Tunnel, VlanId, Vni, build, checksum,
};
use ports::{Kind, Port};

const SRC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Complete,
    Partial,
    Unknown,
    Large,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    tags: u16,
    v6: bool,
    tcp: bool,
    payload: usize,
    state: State,
}

fn packet(case: Case, pool: &mut FramePool) -> Frame {
    let data: Vec<u8> = (0..case.payload).map(|n| u8::try_from(n * 3 % 253).expect("a byte")).collect();
    let mut eth = build::eth(SRC, DST);
    for tag in 0..case.tags {
        eth = eth.vlan(VlanId(7 + tag));
    }
    let packet = match (case.v6, case.tcp) {
        (false, true) => eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(80, 81).data(&data),
        (false, false) => eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(80, 81).data(&data),
        (true, true) => eth.ipv6([1; 16], [2; 16]).tcp(80, 81).data(&data),
        (true, false) => eth.ipv6([1; 16], [2; 16]).udp(80, 81).data(&data),
    };
    let mut frame = packet.frame(pool).expect("a chunk");
    if case.state == State::Complete {
        return frame;
    }
    let layout = Layout::of(frame.bytes()).expect("well formed");
    let offset = make_partial(&mut frame, &layout);
    if case.state == State::Unknown {
        frame.set_checksum(Checksum::Unknown);
        return frame;
    }
    if case.state == State::Large {
        let kind = match (case.tcp, case.v6) {
            (false, _) => GsoKind::Udp,
            (true, false) => GsoKind::Tcp4,
            (true, true) => GsoKind::Tcp6,
        };
        let header_len = layout.l4 + if case.tcp { 20 } else { 8 };
        frame.set_gso(Some(Gso { kind, size: 1400, header_len, ecn: false, tunnel: None }));
    }
    assert!(offset > 0);
    frame
}

fn make_partial(frame: &mut Frame, layout: &Layout) -> u16 {
    let offset = layout.checksum_at().expect("TCP or UDP");
    let sum = checksum::pseudo(frame.bytes(), layout).expect("IP").fold();
    let at = usize::from(layout.l4 + offset);
    frame.bytes_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame.set_checksum(Checksum::Partial { start: layout.l4, offset });
    offset
}

/// Sends `frame` and returns what arrives.
fn cross(from: &mut Port, to: &mut Port, frame: Frame, pool: &mut FramePool) -> Vec<Frame> {
    let mut queue = FrameQueue::new(4);
    queue.push(frame).expect("room");
    let errors = from.stats().tx_errors;
    from.transmit(&mut queue, pool);
    while from.wants_turn() {
        from.transmit(&mut queue, pool);
    }
    assert!(queue.is_empty());
    assert_eq!(from.stats().tx_errors, errors, "refused");
    let mut arrived = Vec::new();
    let until = Instant::now() + Duration::from_secs(2);
    while arrived.is_empty() && Instant::now() < until {
        to.receive(pool, 256, |frame| arrived.push(frame));
    }
    assert!(!arrived.is_empty(), "nothing arrived: {:?}", to.stats());
    arrived
}

/// Checks that the frame went through as it is.
fn check_whole(ports: &mut [Port; 2], case: Case, pool: &mut FramePool) {
    for direction in [0, 1] {
        let [a, b] = ports;
        let (from, to) = if direction == 0 { (a, b) } else { (b, a) };
        let sent = packet(case, pool);
        let mut expected = pool.copy(&sent).expect("a chunk");
        checksum::resolve(&mut expected);
        let arrived = cross(from, to, sent, pool);
        assert_eq!(arrived.len(), 1, "{case:?} {direction}");
        for frame in arrived {
            assert!(frame.bytes() == expected.bytes(), "{case:?} {direction}: {:02x?}", &frame.bytes()[..60]);
            assert_eq!(frame.gso(), expected.gso(), "{case:?} {direction}");
            assert_eq!(frame.checksum(), expected.checksum(), "{case:?} {direction}");
            pool.free(frame);
        }
        pool.free(expected);
    }
}

fn veth_pair(ns: &Namespace, area: &Arc<packet::Area>) -> [Port; 2] {
    ns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    ns.ip("link add p0 mtu 9000 type veth peer name p1 mtu 9000");
    ns.ip("link set p0 up");
    ns.ip("link set p1 up");
    ["p0", "p1"].map(|device| ns.open(Kind::Veth { device: device.to_owned() }, area).queues.remove(0))
}

fn tap_and_socket(ns: &Namespace, area: &Arc<packet::Area>) -> [Port; 2] {
    ns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let device = "t0".to_owned();
    let tap = ns.open(Kind::Tap { device: device.clone(), queues: 1, persist: false }, area).queues.remove(0);
    ns.ip("link set t0 mtu 9000 up");
    [tap, ns.open(Kind::Veth { device }, area).queues.remove(0)]
}

#[test]
fn every_offload_state_crosses_as_it_is() {
    let ns = Namespace::new("o");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    for make in [veth_pair, tap_and_socket] {
        let mut ports = make(&ns, &area);
        for tags in [0, 1, 2] {
            for v6 in [false, true] {
                for tcp in [false, true] {
                    for (payload, state) in [
                        (20, State::Complete),
                        (21, State::Partial),
                        (21, State::Unknown),
                        (3300, State::Partial),
                        (8000, State::Complete),
                        (8000, State::Partial),
                        (8000, State::Large),
                        (60_000, State::Large),
                    ] {
                        check_whole(&mut ports, Case { tags, v6, tcp, payload, state }, &mut pool);
                    }
                }
            }
        }
        ports.into_iter().for_each(|port| port.close(&mut pool));
    }
}

fn vxlan(v6: bool, pool: &mut FramePool) -> Frame {
    let inner = build::eth(SRC, DST).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(80, 81).data(&[9; 9000]);
    let eth = build::eth(SRC, DST);
    let packet = if v6 {
        eth.ipv6([1; 16], [2; 16]).udp(5000, 4789).vxlan(Vni(7), inner)
    } else {
        eth.ipv4([192, 0, 2, 1], [192, 0, 2, 2]).udp(5000, 4789).without_checksum().vxlan(Vni(7), inner)
    };
    let mut frame = packet.frame(pool).expect("a chunk");
    let outer = Layout::of(frame.bytes()).expect("well formed");
    let inner_l3 = outer.l4 + 8 + 8 + 14;
    let inner = Layout::of_ip(frame.bytes(), inner_l3).expect("well formed");
    make_partial(&mut frame, &inner);
    if v6 {
        // As the kernel leaves it: the pseudo-header's sum alone.
        let sum = checksum::pseudo(frame.bytes(), &outer).expect("IP").fold();
        let at = usize::from(outer.l4) + 6;
        frame.bytes_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let tunnel = Some(Tunnel { outer_l4: outer.l4, inner_l3, outer_checksum: v6 });
    let header_len = inner.l4 + 20;
    frame.set_gso(Some(Gso { kind: GsoKind::Tcp4, size: 1400, header_len, ecn: false, tunnel }));
    frame
}

#[test]
fn a_large_frame_in_a_tunnel_arrives_whole_or_in_good_packets() {
    let ns = Namespace::new("x");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    for make in [veth_pair, tap_and_socket] {
        let mut ports = make(&ns, &area);
        for v6 in [false, true] {
            for direction in [0, 1] {
                let [a, b] = &mut ports;
                let (from, to) = if direction == 0 { (a, b) } else { (b, a) };
                let sent = vxlan(v6, &mut pool);
                let arrived = cross(from, to, sent, &mut pool);
                println!("v6 {v6} direction {direction}: {} frames, {:?}", arrived.len(), arrived[0].gso());
                let mut payload = 0;
                for mut frame in arrived {
                    if frame.is_gso() {
                        payload += frame.len() - usize::from(frame.gso().expect("large").header_len);
                        pool.free(frame);
                        continue;
                    }
                    checksum::complete(&mut frame).expect("finishable");
                    assert_ne!(checksum::is_valid(frame.bytes()), Some(false), "outer");
                    let outer = Layout::of(frame.bytes()).expect("well formed");
                    let inner = outer.l4 as usize + 8 + 8;
                    assert_eq!(checksum::is_valid(&frame.bytes()[inner..]), Some(true), "inner");
                    payload += frame.len() - inner - 14 - 20 - 20;
                    pool.free(frame);
                }
                assert_eq!(payload, 9000, "nothing lost, nothing twice");
            }
        }
        ports.into_iter().for_each(|port| port.close(&mut pool));
    }
}

#[test]
fn the_kernel_cuts_for_a_device_whose_offloads_are_off() {
    let ns = Namespace::new("k");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut ports = veth_pair(&ns, &area);
    ns.run("ethtool -K p0 tso off gso off tx off");
    for v6 in [false, true] {
        for tcp in [false, true] {
            let case = Case { tags: 0, v6, tcp, payload: 9000, state: State::Large };
            println!("{case:?}");
            let sent = packet(case, &mut pool);
            let [from, to] = &mut ports;
            let arrived = cross(from, to, sent, &mut pool);
            assert_eq!(arrived.len(), 7, "{case:?}");
            for frame in arrived {
                assert_eq!(frame.checksum(), Checksum::Complete);
                assert_eq!(checksum::is_valid(frame.bytes()), Some(true));
                pool.free(frame);
            }
        }
    }
    ports.into_iter().for_each(|port| port.close(&mut pool));
}

/// A frame of noise that claims any offload state.
fn noise(seed: &mut u64, pool: &mut FramePool) -> Frame {
    let mut next = || {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    };
    let mut small = |limit: u64| u16::try_from(next() % limit).expect("below 64 KiB");
    let len = [0, 1, 13, 14, 15, 33, 60, 1514, 3392, 9014, 65_000, 69_000][usize::from(small(12))];
    let mut frame = pool.alloc(len).expect("a chunk");
    frame.set_len(len);
    let (a, b) = (small(256), small(256));
    for (n, byte) in frame.bytes_mut().iter_mut().enumerate() {
        *byte = u8::try_from((n * usize::from(a) + usize::from(b)) % 256).expect("a byte");
    }
    let start = small(3);
    if start > 0 && len > 60 {
        frame.bytes_mut()[12..15].copy_from_slice(&[8, 0, 0x45]);
        frame.bytes_mut()[23] = [6, 17][usize::from(start) - 1];
    }
    frame.set_checksum(match small(3) {
        0 => Checksum::Complete,
        1 => Checksum::Unknown,
        _ => Checksum::Partial { start: [34, 14, 0, 65_000][usize::from(small(4))], offset: small(30) },
    });
    if small(2) == 1 {
        let kind = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp][usize::from(small(3))];
        let tunnel = Tunnel { outer_l4: small(100), inner_l3: small(200), outer_checksum: small(2) == 1 };
        let tunnel = (small(2) == 1).then_some(tunnel);
        let (size, header_len, ecn) = (small(2000), small(200), small(2) == 1);
        frame.set_gso(Some(Gso { kind, size, header_len, ecn, tunnel }));
    }
    frame
}

#[test]
fn noise_is_sent_or_counted_and_never_kept() {
    let ns = Namespace::new("n");
    let area = area();
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut queue = FrameQueue::new(64);
    let mut seed = u64::from(std::process::id());
    println!("seed {seed}");
    for make in [veth_pair, tap_and_socket] {
        let mut ports = make(&ns, &area);
        for _ in 0..100 {
            for from in 0..2 {
                let before = ports[from].stats();
                let cut = before.tx_segmented;
                for _ in 0..50 {
                    queue.push(noise(&mut seed, &mut pool)).expect("room");
                }
                ports[from].transmit(&mut queue, &mut pool);
                let after = ports[from].stats();
                assert!(queue.is_empty() && !ports[from].wants_turn());
                let done = after.tx_frames + after.tx_errors - before.tx_frames - before.tx_errors;
                assert!(done == 50 || after.tx_segmented > cut && done >= 50, "{done} of 50: {after:?}");
                let mut arrived = Vec::new();
                while ports[1 - from].receive(&mut pool, 256, |frame| arrived.push(frame)) > 0 {}
                arrived.into_iter().for_each(|frame| pool.free(frame));
            }
        }
        println!("{:?}", ports.each_ref().map(Port::stats));
        assert_eq!(ports[0].health(), ports::Health::Up);
        ports.into_iter().for_each(|port| port.close(&mut pool));
        ns.run("sh -c 'ip link del p0 2>/dev/null || true'");
    }
    drop(pool);
    let kind = packet::area::ChunkKind::Large;
    assert_eq!(area.free(kind), area.total(kind), "every chunk came home");
}
