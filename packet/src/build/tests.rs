//! What is built, read by etherparse, field by field.

use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::header::{Ipv6, Layout, NeighborAdvert, NeighborSolicit, Vxlan, nd_option, protocol, tcp_flags};
use crate::{VlanId, Vni, checksum};

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn data() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

proptest! {
    #[test]
    fn etherparse_reads_what_was_built_over_ipv4(
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ports in any::<(u16, u16)>(), ttl in any::<u8>(),
        tos in any::<u8>(), options in proptest::collection::vec(any::<u8>(), 0..40), data in data(),
        vlan in 0..4095u16,
    ) {
        let bytes = eth(A, B).vlan(VlanId(vlan)).ipv4(src, dst).ttl(ttl).tos(tos).options(&options)
            .udp(ports.0, ports.1).data(&data).bytes();
        let packet = SlicedPacket::from_ethernet(&bytes).expect("a valid packet");
        let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4") };
        let header = ip.header().to_header();
        prop_assert_eq!((header.source, header.destination, header.time_to_live), (src, dst, ttl));
        prop_assert_eq!(header.dscp.value() << 2 | header.ecn.value(), tos);
        prop_assert_eq!(&header.options[..options.len()], &options[..]);
        prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), ports);
        prop_assert_eq!(udp.payload(), &data[..]);
        let sum = udp.to_header().calc_checksum_ipv4(&header, &data).expect("short enough");
        prop_assert_eq!(udp.checksum(), sum);
        let Some(LinkExtSlice::Vlan(tag)) = packet.link_exts.first() else { panic!("no tag") };
        prop_assert_eq!(tag.vlan_identifier().value(), vlan);
    }

    #[test]
    fn etherparse_reads_what_was_built_over_ipv6(
        src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), ports in any::<(u16, u16)>(), hops in any::<u8>(),
        tos in any::<u8>(), seq in any::<u32>(), ack in any::<u32>(), window in any::<u16>(), data in data(),
        options in proptest::collection::vec(any::<u8>(), 1..30), flags in any::<u8>(),
    ) {
        let bytes = eth(A, B).ipv6(src, dst).ttl(hops).tos(tos).options(&options)
            .tcp(ports.0, ports.1).seq(seq).ack(ack).window(window).flags(flags).options(&[1, 1, 1]).data(&data)
            .bytes();
        let packet = SlicedPacket::from_ethernet(&bytes).expect("a valid packet");
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
        let header = ip.header().to_header();
        prop_assert_eq!((header.source, header.destination, header.hop_limit), (src, dst, hops));
        prop_assert_eq!(header.traffic_class, tos);
        prop_assert_eq!(header.next_header.0, protocol::DESTINATION_OPTIONS);
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        let read = tcp.to_header();
        prop_assert_eq!((read.source_port, read.destination_port), ports);
        prop_assert_eq!((read.sequence_number, read.acknowledgment_number, read.window_size), (seq, ack, window));
        prop_assert_eq!((read.syn, read.fin), (flags & tcp_flags::SYN != 0, flags & tcp_flags::FIN != 0));
        prop_assert_eq!((read.rst, read.ack), (flags & tcp_flags::RST != 0, flags & tcp_flags::ACK != 0));
        prop_assert_eq!(tcp.payload(), &data[..]);
        let sum = read.calc_checksum_ipv6_raw(src, dst, &data).expect("short enough");
        prop_assert_eq!(read.checksum, sum);
    }
}

#[test]
fn echo_has_a_right_checksum_in_both_families() {
    for bytes in [
        eth(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).icmp_echo(7, 8).data(b"ping"),
        eth(A, B).ipv6([1; 16], [2; 16]).icmp_echo(7, 8).data(b"ping"),
        eth(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).icmp_echo_reply(7, 8).data(b"ping"),
    ] {
        assert_eq!(checksum::is_valid(bytes.as_slice()), Some(true));
        let packet = SlicedPacket::from_ethernet(bytes.as_slice()).expect("a valid packet");
        let payload = match packet.transport.expect("ICMP") {
            TransportSlice::Icmpv4(icmp) => icmp.payload().to_vec(),
            TransportSlice::Icmpv6(icmp) => icmp.payload().to_vec(),
            _ => panic!("no ICMP"),
        };
        assert_eq!(payload, b"ping");
    }
}

#[test]
fn arp_is_read_back() {
    let bytes = arp_request(A, [10, 0, 0, 1], [10, 0, 0, 2]).padded().bytes();
    assert_eq!(bytes.len(), 60);
    let packet = SlicedPacket::from_ethernet(&bytes).expect("a valid packet");
    let Some(NetSlice::Arp(arp)) = packet.net else { panic!("no ARP") };
    assert_eq!(arp.operation().0, 1);
    assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&A.0[..], &[10, 0, 0, 1][..]));
    assert_eq!(arp.target_protocol_addr(), [10, 0, 0, 2]);
    let reply = arp_reply(B, [10, 0, 0, 2], A, [10, 0, 0, 1]).bytes();
    let view = Arp::new(&reply[14..]).expect("a valid message");
    assert_eq!(view.operation(), ArpOperation::Reply);
    assert_eq!((view.sender_mac, view.target_mac), (B, A));
}

#[test]
fn neighbor_discovery_is_read_back() {
    let (ip, target) =
        ("fd00::1".parse::<Ipv6Addr>().expect("good"), "fd00::12:3456".parse::<Ipv6Addr>().expect("good"));
    let packet = neighbor_solicit(A, ip, target);
    assert_eq!(packet.as_slice()[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    assert_eq!(checksum::is_valid(packet.as_slice()), Some(true));
    let view = Ipv6::new(&packet.as_slice()[14..]).expect("well-formed");
    let solicit = NeighborSolicit::new(&view).expect("valid");
    assert_eq!((solicit.src, solicit.target), (ip, target));
    assert_eq!(solicit.options.link_address(nd_option::SOURCE_LINK), Some(A));

    let packet = eth(B, A).ipv6(target, ip).neighbor_advert(target, B, 0x60);
    assert_eq!(checksum::is_valid(packet.as_slice()), Some(true));
    let view = Ipv6::new(&packet.as_slice()[14..]).expect("well-formed");
    let advert = NeighborAdvert::new(&view).expect("valid");
    assert_eq!((advert.router, advert.solicited, advert.overrides), (false, true, true));
    assert_eq!(advert.options.link_address(nd_option::TARGET_LINK), Some(B));
    assert!(NeighborSolicit::new(&view).is_none());
}

#[test]
fn vxlan_carries_a_packet() {
    let inner = eth(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(1, 2).data(b"inside");
    let outer = eth(B, A).ipv4([192, 0, 2, 1], [192, 0, 2, 2]).udp(5, 4789).without_checksum();
    let bytes = outer.vxlan(Vni(0x123456), inner.clone()).bytes();
    let packet = SlicedPacket::from_ethernet(&bytes).expect("a valid packet");
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
    assert_eq!(udp.checksum(), 0);
    let vxlan = Vxlan::new(udp.payload()).expect("valid");
    assert_eq!((vxlan.header.vni(), vxlan.frame), (Vni(0x123456), inner.as_slice()));
}

#[test]
fn fragments_say_so() {
    for bytes in [
        eth(A, B).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).fragment(9, 1480, true).raw(17, &[1; 64]).bytes(),
        eth(A, B).ipv6([1; 16], [2; 16]).options(&[1, 0]).fragment(9, 1480, true).raw(17, &[1; 64]).bytes(),
    ] {
        let layout = Layout::of(&bytes).expect("well-formed");
        assert_eq!((layout.fragment, layout.protocol), (crate::header::Fragment::Later, 17));
        assert_eq!(bytes[usize::from(layout.l4)..], [1; 64]);
        let packet = SlicedPacket::from_ethernet(&bytes).expect("a valid packet");
        assert!(packet.is_ip_payload_fragmented());
    }
}

#[test]
fn two_tags_nest() {
    let packet =
        eth(A, B).service_vlan(VlanId(100)).vlan(VlanId(7)).arp_request([10, 0, 0, 1], [10, 0, 0, 2]);
    let layout = Layout::of(packet.as_slice()).expect("well-formed");
    assert_eq!((layout.vlans, layout.tci, layout.l3), (2, [100, 7], 22));
    assert!(Arp::new(&packet.as_slice()[22..]).is_some());
}
