//! Views against etherparse, and against any bytes.

use etherparse::{PacketBuilder, SlicedPacket};
use proptest::prelude::*;

use super::*;
use crate::VlanId;

/// Makes every view that there is of `bytes`, whatever they are.
fn look_at_everything(bytes: &[u8]) {
    let _ = Layout::of(bytes);
    for l3 in [0u16, 14, 60, u16::MAX] {
        let _ = Layout::of_ip(bytes, l3);
    }
    for at in 0..bytes.len().min(64) {
        let rest = &bytes[at..];
        let _ = (EthernetHeader::split(rest), VlanTag::split(rest), Arp::new(rest).map(Arp::operation));
        if let Some(ip) = Ipv4::new(rest) {
            let _ = (ip.checksum_is_valid(), ip.pseudo(), ip.header.fragment_offset());
        }
        if let Some(ip) = Ipv6::new(rest) {
            let _ = ip.pseudo();
            for options in
                [NeighborSolicit::new(&ip).map(|m| m.options), NeighborAdvert::new(&ip).map(|m| m.options)]
            {
                let _ = options.map(|o| (o.link_address(1), o.count()));
            }
        }
        let _ = NdOptions::new(rest).map(|o| (o.link_address(2), o.count()));
        let _ = (Tcp::new(rest), Udp::new(rest), Vxlan::new(rest), Icmp::new(rest).map(|i| i.is_error4()));
        for next in 0..=255 {
            let _ = walk_extensions(rest, next);
        }
        let mut copy = rest.to_vec();
        let _ = Ipv4Header::fill_checksum(&mut copy);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        look_at_everything(&bytes);
    }

    /// Bytes that get past the first checks.
    #[test]
    fn nearly_good_bytes_are_looked_at_without_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 14..160),
        kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100, 0x88a8]),
        next in prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 58, 60]),
    ) {
        bytes[12..14].copy_from_slice(&kind.to_be_bytes());
        if bytes.len() > 60 {
            if kind == 0x0800 {
                bytes[14] = 0x40 | bytes[14] & 0xf;
                bytes[16] = 0;
            } else {
                bytes[14] = 0x60;
                bytes[18] = 0;
                bytes[20] = next;
            }
        }
        look_at_everything(&bytes);
        if let Ok(layout) = Layout::of(&bytes) {
            prop_assert!(layout.end as usize <= bytes.len());
            prop_assert!(u32::from(layout.l4) <= layout.end);
            prop_assert!(layout.l3 <= layout.l4);
        }
    }

    #[test]
    fn layout_and_views_agree_with_etherparse(
        v6 in any::<bool>(), tags in 0..3usize, udp in any::<bool>(), pad in 0..20usize,
        data in proptest::collection::vec(any::<u8>(), 0..50), tci in any::<u16>(), ports in any::<(u16, u16)>(),
    ) {
        let vlan = VlanId(tci & 0xfff);
        let id = etherparse::VlanId::try_new(vlan.0).expect("12 bits");
        let b = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut bytes = Vec::new();
        macro_rules! rest { ($b:expr) => {{
            let b = if v6 { $b.ipv6([1; 16], [2; 16], 9) } else { $b.ipv4([1, 2, 3, 4], [5, 6, 7, 8], 9) };
            if udp {
                b.udp(ports.0, ports.1).write(&mut bytes, &data).expect("a vector");
            } else {
                b.tcp(ports.0, ports.1, 7, 9).write(&mut bytes, &data).expect("a vector");
            }
        }} }
        match tags {
            0 => rest!(b),
            1 => rest!(b.single_vlan(id)),
            _ => rest!(b.double_vlan(id, id)),
        }
        let end = bytes.len();
        bytes.extend(vec![0xee; pad]);

        let layout = Layout::of(&bytes).expect("well-formed");
        prop_assert_eq!(usize::from(layout.vlans), tags);
        prop_assert_eq!(layout.end as usize, end);
        prop_assert_eq!(usize::from(layout.l3), 14 + 4 * tags);
        prop_assert_eq!(layout.tci[0] & 0xfff, if tags > 0 { vlan.0 } else { 0 });
        prop_assert_eq!(layout.tci[1] & 0xfff, if tags > 1 { vlan.0 } else { 0 });
        let sliced = SlicedPacket::from_ethernet(&bytes).expect("well-formed");
        let l3 = usize::from(layout.l3);
        let payload = if v6 {
            let ip = Ipv6::new(&bytes[l3..]).expect("well-formed");
            prop_assert_eq!((ip.header.src, ip.header.dst, ip.header.hop_limit), ([1; 16], [2; 16], 9));
            ip.payload
        } else {
            let ip = Ipv4::new(&bytes[l3..]).expect("well-formed");
            prop_assert!(ip.checksum_is_valid());
            prop_assert_eq!((ip.header.src, ip.header.ttl), ([1, 2, 3, 4], 9));
            ip.payload
        };
        prop_assert_eq!(payload, &bytes[usize::from(layout.l4)..end]);
        let etherparse_payload = match sliced.transport.expect("there is one") {
            etherparse::TransportSlice::Udp(slice) => {
                let view = Udp::new(payload).expect("well-formed");
                prop_assert_eq!(view.header.src_port.get(), slice.source_port());
                prop_assert_eq!(view.header.checksum.get(), slice.checksum());
                prop_assert_eq!(view.payload, slice.payload());
                slice.payload()
            }
            etherparse::TransportSlice::Tcp(slice) => {
                let view = Tcp::new(payload).expect("well-formed");
                prop_assert_eq!(view.header.dst_port.get(), slice.destination_port());
                prop_assert_eq!(view.header.seq.get(), slice.sequence_number());
                prop_assert_eq!(view.payload, slice.payload());
                slice.payload()
            }
            _ => unreachable!("TCP or UDP was built"),
        };
        prop_assert_eq!(etherparse_payload, &data[..]);
        prop_assert_eq!(crate::checksum::is_valid(&bytes), Some(true));
    }
}

#[test]
fn extension_headers_are_walked_to_the_transport_header() {
    // Hop-by-hop (8), destination options (16), routing (8), AH (12), fragment (8), then UDP.
    let mut bytes = vec![60, 0, 1, 4, 0, 0, 0, 0];
    bytes.extend([43, 1]);
    bytes.extend([0; 14]);
    bytes.extend([51, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([44, 1]);
    bytes.extend([0; 10]);
    bytes.extend([17, 0, 0, 1, 0, 0, 0, 9]);
    let walk = walk_extensions(&bytes, 0).expect("well-formed");
    assert_eq!(walk, ExtensionWalk { protocol: 17, len: 52, fragment: Some(44) });
    for len in 1..bytes.len() {
        assert_eq!(walk_extensions(&bytes[..len], 0), None, "cut at {len}");
    }
}

#[test]
fn walk_of_extension_headers_is_bounded() {
    let chain = |count: usize| {
        let mut bytes = [60, 0, 0, 0, 0, 0, 0, 0].repeat(count);
        bytes[(count - 1) * 8] = 6;
        bytes
    };
    assert!(walk_extensions(&chain(8), 60).is_some());
    assert!(walk_extensions(&chain(9), 60).is_none());
}

#[test]
fn later_fragment_ends_the_walk() {
    let bytes = [17, 0, 0, 8, 0, 0, 0, 9];
    let walk = walk_extensions(&bytes, 44).expect("well-formed");
    assert_eq!(walk, ExtensionWalk { protocol: 17, len: 8, fragment: Some(0) });
}

#[test]
fn options_of_length_zero_are_refused() {
    assert!(NdOptions::new(&[1, 0, 0, 0, 0, 0, 0, 0]).is_none());
    assert!(NdOptions::new(&[1, 2, 0, 0, 0, 0, 0, 0]).is_none());
    let good = NdOptions::new(&[1, 1, 2, 0, 0, 0, 0, 9]).expect("well-formed");
    assert_eq!(good.link_address(nd_option::SOURCE_LINK), Some(crate::MacAddr([2, 0, 0, 0, 0, 9])));
    assert_eq!(good.link_address(nd_option::TARGET_LINK), None);
}

#[test]
fn a_vlan_tag_keeps_its_priority() {
    let mut bytes = [0xe0, 0x01, 0x08, 0x00];
    let (tag, _) = VlanTag::split_mut(&mut bytes).expect("four bytes");
    tag.set_vlan(VlanId(4094));
    assert_eq!((tag.vlan(), tag.priority()), (VlanId(4094), 7));
}
