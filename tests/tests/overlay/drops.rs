//! Why packets of the overlay die, each under a reason of its own.

use packet::build::{Packet, eth};
use packet::{Checksum, MacAddr, Vni};
use pipeline::DropReason;
use tests::cluster::*;
use tests::lab::Received;

fn arrives(cluster: &mut Cluster, bytes: Vec<u8>) {
    cluster.arrive(0, &Received { bytes, checksum: Checksum::Complete, gso: None });
}

/// Returns what host 1 sends to host 0 in a tunnel.
fn packed(vni: u32, inner: impl Into<Packet>) -> Vec<u8> {
    let outer = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]);
    outer.udp(50_000, 4789).vxlan(Vni(vni), inner).bytes()
}

fn good() -> Packet {
    between(1, 1, 0).udp(1, 2).data(b"good")
}

/// Sends it to host 0 and expects that it dies there for `reason`, at once and again.
#[track_caller]
fn dies(cluster: &mut Cluster, bytes: &[u8], reason: DropReason) {
    for _ in 0..2 {
        let before = cluster.hosts[0].dropped(reason);
        arrives(cluster, bytes.to_vec());
        assert_eq!(cluster.hosts[0].dropped(reason), before + 1, "{reason}");
        cluster.silent();
    }
}

#[test]
fn headers_that_are_wrong_are_malformed() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let whole = packed(101, good());
    // No valid identifier.
    let mut flags = whole.clone();
    flags[42] = 0;
    dies(&mut cluster, &flags, DropReason::VxlanMalformed);
    // Reserved bits are ignored.
    let mut reserved = whole.clone();
    (reserved[42], reserved[43], reserved[49]) = (0xff, 0xff, 0xff);
    reserved[40..42].fill(0);
    arrives(&mut cluster, reserved);
    cluster.receive(0, "a", good());
    // Cut off anywhere behind the UDP header.
    let outer = || eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]).udp(50_000, 4789);
    let datagram = &whole[42..];
    for len in 0..8 + 14 {
        dies(&mut cluster, &outer().data(&datagram[..len]).bytes(), DropReason::VxlanMalformed);
    }
    // The UDP header claims more than there is.
    let mut long = whole.clone();
    long[38..40].copy_from_slice(&9000u16.to_be_bytes());
    dies(&mut cluster, &long, DropReason::VxlanMalformed);
    // An inner frame may be cut off, which is its receiver's affair.
    let inner = &whole[50..70];
    let mut header = whole[42..50].to_vec();
    header.extend(inner);
    arrives(&mut cluster, outer().data(&header).bytes());
    cluster.receive(0, "a", inner);
}

#[test]
fn identifiers_and_endpoints_must_be_known() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    dies(&mut cluster, &packed(103, good()), DropReason::UnknownVni);
    let stranger = eth(device(1), device(0)).ipv4([192, 0, 2, 9], [192, 0, 2, 1]);
    let bytes = stranger.udp(1, 4789).vxlan(Vni(101), good()).bytes();
    dies(&mut cluster, &bytes, DropReason::UnknownVtep);
    // Nor may a stranger have our own address, or everybody's, where endpoints are learned.
    let mut cluster = Cluster::with(2, Plan { learns: Some(9), ..Plan::default() });
    for wrong in [[192, 0, 2, 1], [255, 255, 255, 255], [224, 0, 0, 1], [0, 0, 0, 0]] {
        let outer = eth(device(1), device(0)).ipv4(wrong, [192, 0, 2, 1]);
        let bytes = outer.udp(1, 4789).vxlan(Vni(101), good()).bytes();
        let before = DropReason::ALL.iter().map(|reason| cluster.hosts[0].dropped(*reason)).sum::<u64>();
        arrives(&mut cluster, bytes);
        let after = DropReason::ALL.iter().map(|reason| cluster.hosts[0].dropped(*reason)).sum::<u64>();
        assert_eq!(after, before + 1, "{wrong:?}");
    }
    cluster.silent();
}

#[test]
fn a_shared_device_gives_other_identifiers_to_the_host() {
    let mut cluster = Cluster::with(2, Plan { shared: true, known: true, ..Plan::default() });
    let foreign = packed(103, good());
    arrives(&mut cluster, foreign.clone());
    cluster.receive(0, "out", foreign);
    // Another address or port is not ours either.
    let other = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]);
    let other = other.udp(1, 4790).vxlan(Vni(101), good()).bytes();
    arrives(&mut cluster, other.clone());
    cluster.receive(0, "out", other);
    cluster.silent();
}

#[test]
fn a_packet_of_the_overlay_holds_no_other_one_to_us() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let nested = |to: [u8; 4], port| {
        let inner = eth(mac(1, 1), mac(1, 0)).ipv4(ip(1, 1), to).udp(1, port);
        inner.vxlan(Vni(102), between(2, 1, 0).udp(1, 2).data(b"x"))
    };
    dies(&mut cluster, &packed(101, nested([192, 0, 2, 1], 4789)), DropReason::Nested);
    // A station may have tunnels of its own.
    let own = nested([10, 1, 0, 10], 4789);
    arrives(&mut cluster, packed(101, own.clone()));
    cluster.receive(0, "a", own);
    cluster.silent();
}

#[test]
fn what_belongs_to_another_is_not_for_an_endpoint_to_claim() {
    let mut cluster = Cluster::with(3, Plan { known: true, ..Plan::default() });
    let from = |source: MacAddr| eth(source, mac(1, 0)).ipv4(ip(1, 1), ip(1, 0)).udp(1, 2).data(b"x");
    // A local port's, another endpoint's, the gateway's.
    for source in [mac(1, 0), mac(1, 2), gateway(1)] {
        dies(&mut cluster, &packed(101, from(source)), DropReason::VtepSpoof);
    }
    arrives(&mut cluster, packed(101, from(mac(1, 1))));
    cluster.receive(0, "a", from(mac(1, 1)));
    // What was decided about one endpoint's packets is not good for another's.
    let hits = |cluster: &Cluster| cluster.hosts[0].tables.counters(0).ledger.cache_hits.get();
    for n in 0..3 {
        arrives(&mut cluster, packed(101, from(mac(1, 1))));
        cluster.receive(0, "a", from(mac(1, 1)));
        assert_eq!(hits(&cluster), n + 1);
    }
    let other = eth(device(2), device(0)).ipv4([192, 0, 2, 3], [192, 0, 2, 1]);
    dies(&mut cluster, &other.udp(1, 4789).vxlan(Vni(101), from(mac(1, 1))).bytes(), DropReason::VtepSpoof);
    // Nobody's MAC is nobody's.
    dies(&mut cluster, &packed(101, from(MacAddr::BROADCAST)), DropReason::Malformed);
}

#[test]
fn tags_and_the_gateways_mac_do_not_cross() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let tagged = eth(mac(1, 1), mac(1, 0)).vlan(packet::VlanId(7)).raw(0x88b5, b"tagged");
    dies(&mut cluster, &packed(101, tagged), DropReason::Vlan);
    let to_gateway = eth(mac(1, 1), gateway(1)).ipv4(ip(1, 1), ip(2, 0)).udp(1, 2).data(b"x");
    dies(&mut cluster, &packed(101, to_gateway), DropReason::NoRoute);
}

#[test]
fn fragments_of_outer_packets_are_not_put_together() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let whole = packed(101, between(1, 1, 0).udp(1, 2).data(&[7; 1000]));
    let outer = |offset, more| {
        eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]).fragment(7, offset, more)
    };
    let before = cluster.hosts[0].dropped(DropReason::Fragment);
    arrives(&mut cluster, outer(0, true).raw(17, &whole[34..34 + 512]).bytes());
    arrives(&mut cluster, outer(512, false).raw(17, &whole[34 + 512..]).bytes());
    assert_eq!(cluster.hosts[0].dropped(DropReason::Fragment), before + 2);
    cluster.silent();
}

#[test]
fn an_error_about_a_packet_of_the_overlay_ends_here() {
    let mut cluster = Cluster::with(2, Plan { known: true, shared: true, ..Plan::default() });
    cluster.send(0, "a", between(1, 0, 1).udp(1, 2).data(b"x").bytes());
    let wire = cluster.on_wire(0).expect("a packet");
    let mut quote = vec![3, 4, 0, 0, 0, 0, 0x05, 0x14];
    quote.extend_from_slice(&wire.bytes[14..]);
    let sum = packet::checksum::Sum::new().bytes(&quote).checksum();
    quote[2..4].copy_from_slice(&sum.to_be_bytes());
    let router = eth(device(1), device(0)).ipv4([192, 0, 2, 254], [192, 0, 2, 1]);
    arrives(&mut cluster, router.raw(1, &quote).bytes());
    cluster.silent();
}
