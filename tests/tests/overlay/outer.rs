//! What is on the wire: the outer headers, and what becomes of them.

use packet::build::{Packet, eth};
use packet::{Checksum, Vni, checksum, ecn};
use pipeline::{DropReason, Dscp};
use tests::cluster::*;
use tests::lab::Received;

fn plain(bytes: Vec<u8>) -> Received {
    Received { bytes, checksum: Checksum::Complete, gso: None }
}

/// Returns what host 1 would send to host 0 with an inner packet, and an outer type of service.
fn packed(inner: impl Into<Packet>, tos: u8) -> Received {
    let outer = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]).tos(tos);
    plain(outer.udp(50_000, 4789).without_checksum().vxlan(Vni(101), inner).bytes())
}

#[test]
fn the_outer_headers_are_those_of_rfc_7348() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let mut ports = std::collections::BTreeSet::new();
    for port in 0..100 {
        let inner = between(1, 0, 1).udp(1000 + port, 2).data(b"inside");
        cluster.send(0, "a", inner.as_slice());
        let wire = cluster.on_wire(0).expect("a packet");
        let source = u16::from_be_bytes([wire.bytes[34], wire.bytes[35]]);
        assert!(source >= 49152);
        ports.insert(source);
        let outer = eth(device(0), device(1)).ipv4([192, 0, 2, 1], [192, 0, 2, 2]).ttl(64);
        let expected = outer.udp(source, 4789).without_checksum().vxlan(Vni(101), inner.clone());
        assert_eq!(wire, plain(expected.bytes()));
        // Once more: the same port.
        cluster.send(0, "a", inner.as_slice());
        assert_eq!(cluster.on_wire(0), Some(wire));
    }
    assert!(ports.len() > 90, "flows spread over {} ports", ports.len());
}

#[test]
fn ipv6_takes_seventy_bytes_and_has_a_checksum() {
    let mut cluster = Cluster::with(2, Plan { known: true, v6: true, ..Plan::default() });
    for inner in [between(1, 0, 1).udp(1, 2).data(b"odd"), between6(1, 0, 1).tcp(1, 2).data(b"even")] {
        cluster.send(0, "a", inner.as_slice());
        let wire = cluster.on_wire(0).expect("a packet");
        let source = u16::from_be_bytes([wire.bytes[54], wire.bytes[55]]);
        let [from, to] = [0u16, 1].map(|host| [0x2001u16, 0xdb8, 0, 0, 0, 0, 0, host + 1]);
        let outer = eth(device(0), device(1)).ipv6(from, to).ttl(64);
        assert_eq!(wire, plain(outer.udp(source, 4789).vxlan(Vni(101), inner.clone()).bytes()));
        cluster.arrive(1, &wire);
        cluster.receive(1, "a", inner);
    }
}

#[test]
fn settings_say_how_outer_headers_are_made() {
    let overlay = |overlay: &mut pipeline::OverlayInfo| {
        overlay.ttl = 3;
        overlay.dscp = Dscp::Fixed(46);
        overlay.checksum_v4 = true;
        overlay.source_ports = (7000, 7000);
    };
    let mut cluster = Cluster::with(2, Plan { known: true, udp_port: 8472, overlay, ..Plan::default() });
    let inner = between(1, 0, 1).tos(0xa8 | ecn::ECT1).udp(1, 2).data(b"x");
    cluster.send(0, "a", inner.as_slice());
    let wire = cluster.on_wire(0).expect("a packet");
    // The mark is the inner packet's all the same.
    let outer =
        eth(device(0), device(1)).ipv4([192, 0, 2, 1], [192, 0, 2, 2]).ttl(3).tos(46 << 2 | ecn::ECT1);
    assert_eq!(wire, plain(outer.udp(7000, 8472).vxlan(Vni(101), inner.clone()).bytes()));
    cluster.arrive(1, &wire);
    cluster.receive(1, "a", inner);
}

#[test]
fn marks_go_in_and_come_out() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    for mark in [ecn::NOT_ECT, ecn::ECT0, ecn::ECT1, ecn::CE] {
        let inner = between(1, 0, 1).tos(0x20 | mark).udp(1, 2).data(b"x");
        cluster.send(0, "a", inner);
        let wire = cluster.on_wire(0).expect("a packet");
        assert_eq!(wire.bytes[15], 0x20 | mark);
    }
    let inner = |tos| between(1, 1, 0).tos(tos).udp(1, 2).data(b"x");
    for (inside, outside, expected) in [
        (ecn::NOT_ECT, ecn::ECT0, ecn::NOT_ECT),
        (ecn::ECT0, ecn::CE, ecn::CE),
        (ecn::ECT0, ecn::ECT1, ecn::ECT1),
        (ecn::ECT1, ecn::CE, ecn::CE),
        (ecn::CE, ecn::NOT_ECT, ecn::CE),
    ] {
        cluster.arrive(0, &packed(inner(0x40 | inside), 0x88 | outside));
        cluster.receive(0, "a", inner(0x40 | expected));
    }
    let inner6 = |tos| between6(1, 1, 0).tos(tos).udp(1, 2).data(b"x");
    cluster.arrive(0, &packed(inner6(ecn::ECT0), ecn::CE));
    cluster.receive(0, "a", inner6(ecn::CE));
    cluster.arrive(0, &packed(inner(ecn::NOT_ECT), ecn::CE));
    assert_eq!(cluster.hosts[0].dropped(DropReason::Ecn), 1);
    // What is not IP has no marks, and is not dropped for them.
    let arp = packet::build::arp_request(mac(1, 1), ip(1, 1), [10, 1, 0, 99]);
    cluster.arrive(0, &packed(arp.clone(), ecn::CE));
    cluster.receive(0, "a", arp);
    cluster.silent();
}

#[test]
fn padding_is_taken_off_and_options_are_read() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let inner = between(1, 1, 0).udp(1, 2).data(b"x");
    let mut wire = packed(inner.clone(), 0);
    wire.bytes.extend([0; 9]);
    cluster.arrive(0, &wire);
    cluster.receive(0, "a", inner.as_slice());
    let outer = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]).options(&[1, 1, 1, 0]);
    cluster.arrive(0, &plain(outer.udp(1, 4789).vxlan(Vni(101), inner.clone()).bytes()));
    cluster.receive(0, "a", inner);
}

#[test]
fn an_outer_checksum_is_checked_where_nobody_did() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let inner = between(1, 1, 0).udp(1, 2).data(b"x");
    let outer = || eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]);
    let mut wire = plain(outer().udp(1, 4789).vxlan(Vni(101), inner.clone()).bytes());
    wire.checksum = Checksum::Unknown;
    cluster.arrive(0, &wire);
    cluster.receive(0, "a", inner.as_slice());
    // A sender on this machine leaves it to its device, or the inner one.
    let at = 34 + 6;
    let layout = packet::header::Layout::of(&wire.bytes).expect("good");
    let pseudo = checksum::pseudo(&wire.bytes, &layout).expect("IP").fold();
    let mut left = wire.clone();
    left.bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    cluster.arrive(0, &left);
    cluster.receive(0, "a", inner.as_slice());
    left.checksum = Checksum::Partial { start: 34, offset: 6 };
    cluster.arrive(0, &left);
    let received = cluster.hosts[0].take_whole("a").expect("the packet");
    assert_eq!(received, plain(inner.bytes()));
    wire.bytes[at] ^= 1;
    cluster.arrive(0, &wire);
    assert_eq!(cluster.hosts[0].dropped(DropReason::VxlanMalformed), 1);
    // Where the device did, it is not looked at.
    wire.checksum = Checksum::Complete;
    cluster.arrive(0, &wire);
    assert!(cluster.hosts[0].take("a").is_some());
}

#[test]
fn a_trace_shows_both_ends() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let notes = |cluster: &Cluster, host: usize, port: &str, bytes: &[u8], stage: &str| {
        let lab = &cluster.hosts[host];
        let (trace, verdict) =
            pipeline::trace::trace(lab.pipeline.snapshot(), &lab.tables, bytes, lab.id(port), lab.now());
        let step = trace.steps.into_iter().find(|step| step.stage == stage);
        (step.unwrap_or_else(|| panic!("no stage '{stage}'")).notes.join("; "), verdict)
    };
    let inner = between(1, 0, 1).udp(1, 2).data(b"x").bytes();
    let (encap, verdict) = notes(&cluster, 0, "a", &inner, "encap");
    assert_eq!(encap, "identifier 101 from 192.0.2.1 to 192.0.2.2 by 192.0.2.2, port 2");
    let to = cluster.hosts[0].id("front-tunnel");
    assert!(matches!(verdict, pipeline::trace::Verdict::Forward { to: port, .. } if port == to));
    cluster.send(0, "a", &inner);
    let wire = cluster.on_wire(0).expect("a packet");
    let (decap, verdict) = notes(&cluster, 1, "out", &wire.bytes, "decap");
    assert_eq!(decap, "from 192.0.2.1, identifier 101");
    let to = cluster.hosts[1].id("a");
    assert!(matches!(verdict, pipeline::trace::Verdict::Forward { to: port, .. } if port == to));
}
