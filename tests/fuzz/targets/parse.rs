//! Any bytes into every view, and any offload state into resolve, complete and segment.
#![no_main]

use fuzz::{HEADER_LEN, Reader};
use libfuzzer_sys::fuzz_target;
use packet::header::{
    Arp, EthernetHeader, Header, Icmp, Ipv4, Ipv4Header, Ipv6, Layout, NdOptions, NeighborAdvert,
    NeighborSolicit, Tcp, Udp, VlanTag, Vxlan, walk_extensions,
};
use packet::segment::{Finish, segment};
use packet::{Checksum, Frame, FramePool, Gso, GsoKind, Tunnel, checksum};

fuzz_target!(|data: &[u8]| {
    let (control, bytes) = data.split_at(HEADER_LEN.min(data.len()));
    let layout = Layout::of(bytes);
    if let Ok(layout) = layout {
        assert!(layout.l3 <= layout.l4 && u32::from(layout.l4) <= layout.end);
        assert!(layout.end as usize <= bytes.len());
    }
    let l3 = layout.map_or(14, |layout| layout.l3);
    for at in [0, usize::from(l3), layout.map_or(34, |layout| usize::from(layout.l4))] {
        views(bytes.get(at..).unwrap_or_default());
    }
    fuzz::with_pool(|pool| offloads(&mut Reader(control), bytes, pool));
});

/// Makes every view there is of `bytes`.
fn views(bytes: &[u8]) {
    let _ = (EthernetHeader::split(bytes), VlanTag::split(bytes), Tcp::new(bytes), Vxlan::new(bytes));
    let _ = Arp::new(bytes).map(|arp| (arp.operation(), arp.sender_ip(), arp.target_ip()));
    let _ = Icmp::new(bytes).map(|icmp| (icmp.is_error4(), icmp.is_error6()));
    let _ = NdOptions::new(bytes).map(|options| (options.link_address(1), options.count()));
    if let Some(ip) = Ipv4::new(bytes) {
        let _ = (ip.checksum_is_valid(), ip.pseudo(), Udp::new(ip.payload));
        let mut copy = bytes.to_vec();
        Ipv4Header::fill_checksum(&mut copy).expect("the view found a whole header");
        assert!(Ipv4::new(&copy).expect("only the checksum changed").checksum_is_valid());
        let header = Ipv4Header::at_mut(&mut copy, 0).expect("as above");
        header.decrement_ttl();
        header.set_src([192, 0, 2, 1].into());
        header.set_dst([198, 51, 100, 2].into());
        assert!(Ipv4::new(&copy).expect("lengths are the same").checksum_is_valid());
    }
    if let Some(ip) = Ipv6::new(bytes) {
        let _ = (ip.pseudo(), Udp::new(ip.payload));
        let _ = NeighborSolicit::new(&ip).map(|solicit| solicit.options.count());
        let _ = NeighborAdvert::new(&ip).map(|advert| advert.options.link_address(2));
    }
    for next in [0, 43, 44, 51, 60] {
        let _ = walk_extensions(bytes, next);
    }
}

/// Reads an offload state from the control bytes, without any check, and has it carried out.
fn offloads(control: &mut Reader<'_>, bytes: &[u8], pool: &mut FramePool) {
    let Some(mut frame) = pool.alloc_from(bytes) else { return };
    let (flags, kind, hint, size) = (control.u8(), control.u8(), control.u16(), control.u16());
    let (start, offset) = (control.u16(), control.u16());
    frame.set_checksum(match flags & 3 {
        0 => Checksum::Complete,
        1 => Checksum::Partial { start, offset },
        _ => Checksum::Unknown,
    });
    let gso_kind = match kind & 7 {
        0 => return finish_checksum(frame, pool),
        1 => GsoKind::Tcp4,
        4 => GsoKind::Tcp6,
        _ => GsoKind::Udp,
    };
    let tunnel = (kind & 0x60 != 0).then_some(Tunnel {
        outer_l4: hint & 0xff,
        inner_l3: hint >> 8,
        outer_checksum: flags & 8 != 0,
    });
    frame.set_gso(Some(Gso { kind: gso_kind, size, header_len: hint, ecn: kind & 0x80 != 0, tunnel }));
    let finish = if flags & 4 == 0 { Finish::Now } else { Finish::Later };
    let is_partial = matches!(frame.checksum(), Checksum::Partial { .. });
    let mut segments = Vec::new();
    let result = segment(frame, pool, finish, |segment| segments.push(segment));
    assert_eq!(result.unwrap_or(0), segments.len(), "all segments, or none");
    for mut segment in segments {
        checksum::complete(&mut segment).expect("a segment's checksum is inside it");
        if tunnel.is_none() {
            let right = checksum::is_valid(segment.bytes());
            assert!(right == Some(true) || (right.is_none() && !is_partial), "{right:?}");
            let layout = Layout::of(segment.bytes()).expect("segments are well-formed");
            assert_eq!(layout.end as usize, segment.len());
        }
        pool.free(segment);
    }
}

fn finish_checksum(mut frame: Frame, pool: &mut FramePool) {
    let before = frame.checksum();
    let len = frame.len();
    let result = checksum::complete(&mut frame);
    match before {
        Checksum::Partial { start, offset } => {
            let field = if offset == checksum::SCTP_CHECKSUM_AT { 4 } else { 2 };
            assert_eq!(result.is_ok(), usize::from(start) + usize::from(offset) + field <= len);
        }
        _ => result.expect("what was resolved can be completed"),
    }
    let _ = checksum::is_valid(frame.bytes());
    pool.free(frame);
}
