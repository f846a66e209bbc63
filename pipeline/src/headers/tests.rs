use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use packet::MacAddr;
use packet::build::eth;
use packet::header::tcp_flags;
use proptest::prelude::*;

use super::*;
use crate::random::{GATEWAY, Kind, STATION, is_right, random};

fn of(bytes: &[u8]) -> Headers {
    Headers::of(bytes).expect("well-formed").expect("IP")
}

proptest! {
    #[test]
    fn headers_are_those_that_etherparse_sees(packet in random()) {
        let bytes = packet.bytes();
        prop_assert!(is_right(&bytes));
        let headers = of(&bytes);
        prop_assert_eq!(headers.tuple, packet.tuple());
        prop_assert_eq!((headers.v6, headers.ttl, headers.tos), (packet.v6, packet.ttl, packet.tos));
        prop_assert_eq!((headers.fragment, headers.options), (Fragment::No, packet.options));
        prop_assert_eq!(headers.end as usize, bytes.len());
        prop_assert!(headers.dont_fragment && !headers.more_fragments);

        let parsed = SlicedPacket::from_ethernet(&bytes).expect("well-formed");
        match parsed.net {
            Some(NetSlice::Ipv4(ip)) => {
                prop_assert_eq!(Address::v4(ip.header().source()), headers.tuple.source);
                prop_assert_eq!(Address::v4(ip.header().destination()), headers.tuple.destination);
            }
            Some(NetSlice::Ipv6(ip)) => {
                prop_assert_eq!(Address::v6(ip.header().source()), headers.tuple.source);
                prop_assert_eq!(Address::v6(ip.header().destination()), headers.tuple.destination);
            }
            _ => prop_assert!(false, "an IP packet"),
        }
        let ports = (headers.tuple.source_port, headers.tuple.destination_port);
        match parsed.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                prop_assert_eq!((tcp.source_port(), tcp.destination_port()), ports);
                prop_assert_eq!(headers.tcp_flags, tcp_flags::ACK);
            }
            Some(TransportSlice::Udp(udp)) => prop_assert_eq!((udp.source_port(), udp.destination_port()), ports),
            Some(_) => prop_assert_eq!(headers.icmp, Some((if packet.v6 { 128 } else { 8 }, 0))),
            None => prop_assert!(matches!(packet.kind, Kind::Sctp | Kind::UdpLite)),
        }
        let segment = Segment::of(&bytes, &headers);
        prop_assert_eq!(segment.is_some(), packet.kind == Kind::Tcp);
        if let Some(segment) = segment {
            prop_assert_eq!(segment.payload_len as usize, packet.data.len());
            prop_assert_eq!((segment.sequence, segment.acknowledgment, segment.window), (7, 9, 65535));
        }
    }

    #[test]
    fn cut_packets_are_malformed_and_never_panic(packet in random(), at in any::<prop::sample::Index>()) {
        let bytes = packet.bytes();
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert!(!matches!(Headers::of(cut), Ok(Some(_))));
    }

    #[test]
    fn any_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4u8,
    ) {
        if bytes.len() > 24 {
            bytes[12..14].copy_from_slice(&[8, 0]);
            bytes[14] = 0x40 | bytes[14] & 0xf;
            if kind > 1 {
                bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
                bytes[14] = 0x60;
                bytes[18] = 0;
            }
        }
        if let Ok(Some(headers)) = Headers::of(&bytes) {
            let _ = Segment::of(&bytes, &headers);
            prop_assert!(headers.end as usize <= bytes.len());
            prop_assert!(headers.l4 as u32 <= headers.end);
        }
    }
}

#[test]
fn fragments_say_where_they_belong() {
    for v6 in [false, true] {
        for (offset, more, fragment) in
            [(0, true, Fragment::First), (1480, true, Fragment::Later), (2960, false, Fragment::Later)]
        {
            let start = eth(STATION, GATEWAY);
            let data = [1, 2, 3, 4, 0, 16, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];
            let bytes = if v6 {
                start.ipv6([0xfd; 16], [0xfe; 16]).fragment(0xabcd, offset, more).raw(17, &data)
            } else {
                start.ipv4([10, 0, 0, 1], [10, 0, 0, 2]).fragment(0xabcd, offset, more).raw(17, &data)
            };
            let headers = of(bytes.as_slice());
            assert_eq!((headers.fragment, headers.fragment_id), (fragment, 0xabcd));
            assert_eq!((headers.fragment_offset, headers.more_fragments), (u32::from(offset), more));
            let ports = if offset == 0 { (0x0102, 0x0304) } else { (0, 0) };
            assert_eq!((headers.tuple.source_port, headers.tuple.destination_port), ports);
            assert_eq!(headers.dont_fragment, v6);
        }
    }
}

#[test]
fn martians_are_malformed() {
    for source in [[127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        let bytes = eth(STATION, GATEWAY).ipv4(source, [10, 0, 0, 2]).udp(1, 2).bytes();
        assert_eq!(Headers::of(&bytes), Err(Malformed), "{source:?}");
    }
    let bytes = eth(STATION, GATEWAY).ipv4([0, 0, 0, 0], [255; 4]).udp(68, 67).bytes();
    assert!(Headers::of(&bytes).is_ok(), "DHCP");
    for (source, destination) in [
        ("::1", "fd00::1"),
        ("ff02::1", "fd00::1"),
        ("::ffff:1.2.3.4", "fd00::1"),
        ("fd00::1", "::ffff:1.2.3.4"),
    ] {
        let [source, destination]: [std::net::Ipv6Addr; 2] =
            [source, destination].map(|text| text.parse().expect("an address"));
        let bytes = eth(STATION, GATEWAY).ipv6(source, destination).udp(1, 2).bytes();
        assert_eq!(Headers::of(&bytes), Err(Malformed), "{source}");
    }
}

#[test]
fn tiny_fragments_are_malformed() {
    let ip = || eth(STATION, GATEWAY).ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
    let first = ip().fragment(1, 0, true).raw(protocol::TCP, &[0x50; 16]);
    assert_eq!(Headers::of(first.as_slice()), Err(Malformed), "half a TCP header");
    let second = ip().fragment(1, 8, false).raw(protocol::TCP, &[0x50; 16]);
    assert_eq!(Headers::of(second.as_slice()), Err(Malformed), "writes over the flags");
    let second = ip().fragment(1, 8, false).raw(protocol::UDP, &[0x50; 16]);
    assert!(Headers::of(second.as_slice()).is_ok());
}

#[test]
fn what_is_not_ip_has_no_headers() {
    let arp = eth(STATION, MacAddr::BROADCAST).arp_request([10, 0, 0, 1], [10, 0, 0, 2]);
    assert_eq!(Headers::of(arp.as_slice()), Ok(None));
}
