//! What devices left undone goes through tunnels undone, and is right on the wire.

use packet::build::{Packet, eth};
use packet::segment::{Finish, segment};
use packet::{Checksum, Frame, Gso, GsoKind, Tunnel, Vni, checksum};
use pipeline::DropReason;
use tests::cluster::*;
use tests::lab::Received;

/// Returns the packet with the checksum left to its device: only the pseudo header's sum is there.
fn unfinished(packet: impl Into<Packet>, l4: u16, offset: u16) -> Received {
    let mut bytes = packet.into().bytes();
    let layout = packet::header::Layout::of(&bytes).expect("good");
    let at = usize::from(l4 + offset);
    let sum = checksum::pseudo(&bytes, &layout).expect("IP").fold();
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Received { bytes, checksum: Checksum::Partial { start: l4, offset }, gso: None }
}

fn frame(cluster: &mut Cluster, host: usize, received: &Received) -> Frame {
    let mut frame = cluster.hosts[host].pool.alloc_from(&received.bytes).expect("chunks");
    frame.set_checksum(received.checksum);
    frame.set_gso(received.gso);
    frame
}

fn send(cluster: &mut Cluster, received: &Received) {
    let frame = frame(cluster, 0, received);
    cluster.hosts[0].send_frame("a", frame);
}

/// Returns what a device makes of a packet: cut, and all checksums complete.
fn finished(cluster: &mut Cluster, received: &Received) -> Vec<Vec<u8>> {
    let frame = frame(cluster, 0, received);
    let pool = &mut cluster.hosts[0].pool;
    let mut pieces = Vec::new();
    segment(frame, pool, Finish::Now, |piece| pieces.push(piece)).expect("a good frame");
    pieces
        .into_iter()
        .map(|mut piece| {
            checksum::complete(&mut piece).expect("a good frame");
            let bytes = piece.bytes().to_vec();
            pool.free(piece);
            bytes
        })
        .collect()
}

/// Both checksums, as a receiver sees them.
#[track_caller]
fn right(bytes: &[u8], inner: usize) {
    assert_ne!(checksum::is_valid(bytes), Some(false), "outer {bytes:02x?}");
    assert_eq!(checksum::is_valid(&bytes[inner..]), Some(true), "inner {bytes:02x?}");
    if inner == 50 {
        assert_eq!(checksum::Sum::new().bytes(&bytes[14..34]).fold(), 0xffff, "the outer header");
    }
}

fn large(v6: bool, len: usize) -> Received {
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
    let (packet, l4, kind) = if v6 {
        (between6(1, 0, 1).tcp(1, 2).data(&data), 54, GsoKind::Tcp6)
    } else {
        (between(1, 0, 1).tcp(1, 2).data(&data), 34, GsoKind::Tcp4)
    };
    let gso = Gso { kind, size: 1300, header_len: l4 + 20, ecn: false, tunnel: None };
    Received { gso: Some(gso), ..unfinished(packet, l4, 16) }
}

#[test]
fn a_checksum_that_is_to_be_finished_is_finished_inside() {
    for (v6, full) in [(false, false), (false, true), (true, true)] {
        let overlay = if full {
            |overlay: &mut pipeline::OverlayInfo| overlay.checksum_v4 = true
        } else {
            |_: &mut pipeline::OverlayInfo| {}
        };
        let mut cluster = Cluster::with(2, Plan { known: true, v6, overlay, ..Plan::default() });
        for sent in [
            unfinished(between(1, 0, 1).tcp(1, 2).data(b"odd"), 34, 16),
            unfinished(between6(1, 0, 1).udp(1, 2).data(b"even"), 54, 6),
        ] {
            send(&mut cluster, &sent);
            let wire = cluster.on_wire(0).expect("a packet");
            let Checksum::Partial { start, offset } = sent.checksum else { panic!("made so") };
            let inner = if v6 { 70 } else { 50 };
            assert_eq!(wire.checksum, Checksum::Partial { start: start + inner, offset });
            let done = finished(&mut cluster, &wire).remove(0);
            right(&done, inner.into());
            // Another switch gets it as it was.
            cluster.arrive(1, &wire);
            assert_eq!(cluster.hosts[1].take_whole("a"), Some(sent));
        }
    }
}

#[test]
fn a_large_frame_crosses_whole_and_is_cut_right() {
    for (v6, inner6) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut cluster = Cluster::with(2, Plan { known: true, v6, ..Plan::default() });
        let sent = large(inner6, 40_000);
        send(&mut cluster, &sent);
        let wire = cluster.on_wire(0).expect("one frame");
        let (outer_l4, inner) = if v6 { (54, 70) } else { (34, 50) };
        let gso = sent.gso.expect("made so");
        let tunnel = Some(Tunnel { outer_l4, inner_l3: inner + 14, outer_checksum: v6 });
        assert_eq!(wire.gso, Some(Gso { header_len: gso.header_len + inner, tunnel, ..gso }));
        let pieces = finished(&mut cluster, &wire);
        assert_eq!(pieces.len(), 40_000usize.div_ceil(1300));
        for piece in &pieces {
            right(piece, inner.into());
        }
        // Opened whole, and opened piece by piece, it is the same.
        cluster.arrive(1, &wire);
        let whole = cluster.hosts[1].take_whole("a").expect("the frame");
        assert_eq!(whole, sent);
        let expected = finished(&mut cluster, &whole);
        for (piece, expected) in pieces.into_iter().zip(expected) {
            cluster.arrive(1, &Received { bytes: piece, checksum: Checksum::Unknown, gso: None });
            cluster.receive(1, "a", expected);
        }
        cluster.silent();
    }
}

#[test]
fn what_one_frame_cannot_say_is_cut_first() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    // Too long for an outer header.
    let sent = large(false, 65_535 - 40);
    let expected = finished(&mut cluster, &sent);
    send(&mut cluster, &sent);
    for piece in expected {
        let wire = cluster.on_wire(0).expect("a piece");
        assert_eq!((wire.gso, &wire.bytes[50..]), (None, &piece[..]));
    }
    // A station's own tunnel.
    let inner = between(2, 0, 1).tcp(1, 2).data(&[7; 4000]);
    let packet = between(1, 0, 1).udp(1, 4789).without_checksum().vxlan(Vni(7), inner);
    let tunnel = Some(Tunnel { outer_l4: 34, inner_l3: 64, outer_checksum: false });
    let gso = Gso { kind: GsoKind::Tcp4, size: 1200, header_len: 104, ecn: false, tunnel };
    let mut bytes = packet.bytes();
    let layout = packet::header::Layout::of(&bytes[50..]).expect("good");
    let sum = checksum::pseudo(&bytes[50..], &layout).expect("IP").fold();
    bytes[84 + 16..84 + 18].copy_from_slice(&sum.to_be_bytes());
    let sent = Received { bytes, checksum: Checksum::Partial { start: 84, offset: 16 }, gso: Some(gso) };
    let expected = finished(&mut cluster, &sent);
    assert_eq!(expected.len(), 4);
    send(&mut cluster, &sent);
    for piece in expected {
        let wire = cluster.on_wire(0).expect("a piece");
        right(&wire.bytes, 100);
        assert_eq!(&wire.bytes[50..], piece);
    }
    cluster.silent();
}

#[test]
fn datagrams_that_arrived_as_one_are_opened_one_by_one() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let inner = |n: u8| between(1, 1, 0).udp(1, 2).data(&[n; 20]).bytes();
    let mut payload = Vec::new();
    for n in 0..5 {
        payload.extend([8, 0, 0, 0, 0, 0, 101, 0]);
        payload.extend(inner(n));
    }
    let size = u16::try_from(payload.len() / 5).expect("small");
    let outer = eth(device(1), device(0)).ipv4([192, 0, 2, 2], [192, 0, 2, 1]);
    let bytes = outer.udp(50_000, 4789).without_checksum().data(&payload).bytes();
    let gso = Gso { kind: GsoKind::Udp, size, header_len: 42, ecn: false, tunnel: None };
    cluster.arrive(0, &Received { bytes, checksum: Checksum::Complete, gso: Some(gso) });
    for n in 0..5 {
        cluster.receive(0, "a", inner(n));
    }
    cluster.silent();
}

#[test]
fn a_frame_without_headroom_is_copied() {
    let mut cluster = Cluster::with(2, Plan { known: true, ..Plan::default() });
    let bytes = between(1, 0, 1).udp(1, 2).data(&[7; 1000]).bytes();
    let mut frame = cluster.hosts[0].pool.alloc_from(&bytes).expect("chunks");
    let spare = frame.headroom() - 10;
    frame.prepend(spare).expect("headroom").fill(0);
    frame.bytes_mut().copy_within(spare.., 0);
    frame.set_len(bytes.len());
    assert!(frame.headroom() < 50);
    cluster.hosts[0].send_frame("a", frame);
    assert_eq!(cluster.carry(), 1);
    cluster.receive(1, "a", bytes);
    assert_eq!(cluster.hosts[0].dropped(DropReason::NoMemory), 0);
}
