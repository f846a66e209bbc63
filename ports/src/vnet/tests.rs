use super::*;
use packet::{Area, FramePool};
use proptest::prelude::*;

fn pool() -> FramePool {
    FramePool::new(Area::new(64, 8).expect("a small area"))
}

/// Headers of a packet with `payload` bytes behind them, and where its transport header starts.
fn packet(tags: usize, v6: bool, tcp: bool, payload: usize) -> (Vec<u8>, usize) {
    let mut bytes = vec![2; 12];
    for _ in 0..tags {
        bytes.extend_from_slice(&[0x81, 0x00, 0, 7]);
    }
    let (l4, _) = ip(&mut bytes, v6, if tcp { TCP } else { UDP });
    transport(&mut bytes, tcp);
    bytes.resize(bytes.len() + payload, 0xab);
    (bytes, l4)
}

fn ip(bytes: &mut Vec<u8>, v6: bool, protocol: u8) -> (usize, usize) {
    bytes.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    let at = bytes.len();
    if v6 {
        bytes.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, 64]);
        bytes.resize(at + 40, 0xfd);
    } else {
        bytes.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        bytes.resize(at + 20, 10);
    }
    (bytes.len(), at)
}

fn transport(bytes: &mut Vec<u8>, tcp: bool) {
    let at = bytes.len();
    if tcp {
        bytes.resize(at + 20, 1);
        bytes[at + 12] = 0x50;
    } else {
        bytes.resize(at + 8, 1);
    }
}

/// A packet inside VXLAN: bytes, outer transport, inner IP, inner transport.
fn tunnelled(v6: bool, inner_v6: bool, payload: usize) -> (Vec<u8>, usize, usize, usize) {
    let mut bytes = vec![2; 12];
    let (outer_l4, _) = ip(&mut bytes, v6, UDP);
    transport(&mut bytes, false);
    bytes.extend_from_slice(&[8, 0, 0, 0, 0, 0, 101, 0]);
    bytes.extend_from_slice(&[4; 12]);
    let (l4, inner_l3) = ip(&mut bytes, inner_v6, TCP);
    transport(&mut bytes, true);
    bytes.resize(bytes.len() + payload, 0xcd);
    (bytes, outer_l4, inner_l3, l4)
}

fn header(flags: u8, gso_type: u8, size: u16, start: usize, offset: u16) -> [u8; TUNNEL_LEN] {
    let mut header = [0; TUNNEL_LEN];
    header[FLAGS] = flags;
    header[GSO_TYPE] = gso_type;
    put_native(&mut header, GSO_SIZE, size);
    put_native(&mut header, CSUM_START, u16::try_from(start).expect("small"));
    put_native(&mut header, CSUM_OFFSET, offset);
    header
}

fn decoded(header: &[u8], bytes: &[u8]) -> Result<(Checksum, Option<Gso>), BadHeader> {
    let mut pool = pool();
    let mut frame = pool.alloc_from(bytes).expect("a chunk");
    let result = decode(header, &mut frame).map(|()| (frame.checksum(), frame.gso()));
    pool.free(frame);
    result
}

#[test]
fn every_combination_of_flags_survives_the_round_trip() {
    let mut pool = pool();
    for tags in 0..3 {
        for v6 in [false, true] {
            for tcp in [false, true] {
                for ecn in [0, GSO_ECN] {
                    for partial in [0, NEEDS_CSUM] {
                        for large in [false, true] {
                            for len in [LEN, MERGED_LEN, TUNNEL_LEN] {
                                let (bytes, l4) = packet(tags, v6, tcp, 4000);
                                let gso = match (large, tcp, v6) {
                                    (false, ..) => GSO_NONE,
                                    (true, false, _) => GSO_UDP_L4 | ecn,
                                    (true, true, false) => GSO_TCPV4 | ecn,
                                    (true, true, true) => GSO_TCPV6 | ecn,
                                };
                                let offset = if tcp { 16 } else { 6 };
                                let size = if large { 1448 } else { 0 };
                                let (start, at) = if partial != 0 { (l4, offset) } else { (0, 0) };
                                let mut sent = header(partial, gso, size, start, at);
                                if large {
                                    let headers = l4 + if tcp { 20 } else { 8 };
                                    put_native(&mut sent, HDR_LEN, u16::try_from(headers).expect("small"));
                                }
                                let mut frame = pool.alloc_from(&bytes).expect("a chunk");
                                decode(&sent[..len], &mut frame).expect("a good header");
                                let mut again = [0xff; TUNNEL_LEN];
                                encode(&frame, &mut again[..len]);
                                if large && partial == 0 {
                                    // It gained the partial checksum that a large frame must have.
                                    sent = header(NEEDS_CSUM, gso, size, l4, offset);
                                    sent[HDR_LEN..][..2].copy_from_slice(&again[HDR_LEN..][..2]);
                                }
                                assert_eq!(sent[..len], again[..len], "{tags} {v6} {tcp} {gso:#x} {partial}");
                                pool.free(frame);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_tunnel_survives_the_round_trip() {
    let mut pool = pool();
    for (v6, inner_v6, sum) in
        [(false, false, 0), (false, true, UDP_TUNNEL_CSUM), (true, false, UDP_TUNNEL_CSUM), (true, true, 0)]
    {
        let (bytes, outer_l4, inner_l3, l4) = tunnelled(v6, inner_v6, 30_000);
        let kind = if inner_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        let outer = if v6 { GSO_TUNNEL_IPV6 } else { GSO_TUNNEL_IPV4 };
        let mut sent = header(NEEDS_CSUM | sum, kind | outer, 1398, l4, 16);
        put_native(&mut sent, HDR_LEN, u16::try_from(l4 + 20).expect("small"));
        sent[20..22].copy_from_slice(&u16::try_from(outer_l4).expect("small").to_le_bytes());
        sent[22..24].copy_from_slice(&u16::try_from(inner_l3).expect("small").to_le_bytes());
        let mut frame = pool.alloc_from(&bytes).expect("a chunk");
        decode(&sent, &mut frame).expect("a good header");
        let tunnel = frame.gso().and_then(|gso| gso.tunnel).expect("a tunnel");
        assert_eq!(usize::from(tunnel.outer_l4), outer_l4);
        assert_eq!(usize::from(tunnel.inner_l3), inner_l3);
        assert_eq!(tunnel.outer_checksum, sum != 0);
        let mut again = [0xff; TUNNEL_LEN];
        encode(&frame, &mut again);
        assert_eq!(sent, again);
        pool.free(frame);
        assert_eq!(decoded(&sent[..LEN], &bytes), Err(BadHeader::Tunnel), "no room for the offsets");
    }
}

#[test]
fn a_tunnel_that_the_header_cannot_tell_of_is_found() {
    for (v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        let (bytes, outer_l4, inner_l3, l4) = tunnelled(v6, inner_v6, 9000);
        let kind = if inner_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        let header = header(NEEDS_CSUM, kind, 1398, l4, 16);
        let (_, gso) = decoded(&header[..LEN], &bytes).expect("found");
        let gso = gso.expect("large");
        assert_eq!(usize::from(gso.header_len), l4 + 20);
        let tunnel = gso.tunnel.expect("found");
        assert_eq!((usize::from(tunnel.outer_l4), usize::from(tunnel.inner_l3)), (outer_l4, inner_l3));
        assert!(tunnel.outer_checksum);
    }
}

#[test]
fn hostile_headers_are_refused() {
    let (bytes, l4) = packet(0, false, true, 3000);
    let len = bytes.len();
    let tcp = |flags, gso, size, start, offset| decoded(&header(flags, gso, size, start, offset), &bytes);
    assert_eq!(tcp(NEEDS_CSUM, 0, 0, len, 0), Err(BadHeader::Checksum));
    assert_eq!(tcp(NEEDS_CSUM, 0, 0, len - 2, 1), Err(BadHeader::Checksum));
    assert_eq!(tcp(NEEDS_CSUM, 0, 0, l4, u16::MAX), Err(BadHeader::Checksum));
    assert_eq!(tcp(NEEDS_CSUM, 0, 0, 13, 4), Err(BadHeader::Checksum));
    assert!(tcp(NEEDS_CSUM, 0, 0, len - 2, 0).is_ok());
    assert_eq!(tcp(NEEDS_CSUM, GSO_TCPV4, 0, l4, 16), Err(BadHeader::GsoSize));
    assert_eq!(tcp(NEEDS_CSUM, GSO_TCPV6, 1000, l4, 16), Err(BadHeader::GsoType));
    assert_eq!(tcp(NEEDS_CSUM, GSO_UDP_L4, 1000, l4, 6), Err(BadHeader::GsoType));
    for unknown in [2, 3, 6, 7, 0x10, 0x1f, GSO_ECN, GSO_TUNNEL_IPV4, GSO_ECN | GSO_TUNNEL] {
        assert_eq!(tcp(NEEDS_CSUM, unknown, 1000, l4, 16), Err(BadHeader::GsoType), "{unknown:#x}");
    }
    assert_eq!(tcp(NEEDS_CSUM, GSO_TCPV4, 1000, l4 + 2, 16), Err(BadHeader::GsoType));
    let mut short = bytes.clone();
    short.truncate(l4 + 19);
    assert_eq!(decoded(&header(NEEDS_CSUM, GSO_TCPV4, 9, l4, 16), &short), Err(BadHeader::HeaderLen));
    let mut small_offset = bytes.clone();
    small_offset[l4 + 12] = 0x40;
    let good = header(NEEDS_CSUM, GSO_TCPV4, 1000, l4, 16);
    assert_eq!(decoded(&good, &small_offset), Err(BadHeader::HeaderLen));
    let (tunnel, outer_l4, inner_l3, inner_l4) = tunnelled(false, false, 3000);
    for (outer, inner) in [(0, inner_l3), (outer_l4, outer_l4 + 7), (outer_l4, 60_000), (60_000, inner_l3)] {
        let mut bad = header(NEEDS_CSUM, GSO_TCPV4 | GSO_TUNNEL_IPV4, 1000, inner_l4, 16);
        bad[20..22].copy_from_slice(&u16::try_from(outer).expect("small").to_le_bytes());
        bad[22..24].copy_from_slice(&u16::try_from(inner).expect("small").to_le_bytes());
        assert_eq!(decoded(&bad, &tunnel), Err(BadHeader::Tunnel), "{outer} {inner}");
    }
}

#[test]
fn the_length_of_the_headers_comes_from_the_packet() {
    let (mut bytes, l4) = packet(0, true, true, 3000);
    bytes[l4 + 12] = 0x80;
    for hint in [0, 14, 74, u16::MAX] {
        let mut header = header(NEEDS_CSUM, GSO_TCPV6, 1000, l4, 16);
        put_native(&mut header, HDR_LEN, hint);
        let (_, gso) = decoded(&header, &bytes).expect("a good header");
        assert_eq!(usize::from(gso.expect("large").header_len), l4 + 32);
    }
}

#[test]
fn a_large_frame_that_fits_one_segment_is_an_ordinary_packet() {
    let (bytes, l4) = packet(0, false, true, 1000);
    let (checksum, gso) = decoded(&header(NEEDS_CSUM, GSO_TCPV4, 1000, l4, 16), &bytes).expect("good");
    assert_eq!(gso, None);
    assert!(matches!(checksum, Checksum::Partial { .. }));
}

proptest! {
    #[test]
    fn noise_is_an_error_or_a_state_within_the_packet(
        noise in any::<[u8; TUNNEL_LEN]>(),
        len in 0_usize..300,
        tags in 0_usize..2,
        v6: bool,
        tcp: bool,
        tame: bool,
    ) {
        let (mut bytes, l4) = packet(tags, v6, tcp, 200);
        bytes.truncate(len);
        let mut noise = noise;
        if tame {
            noise[FLAGS] |= NEEDS_CSUM;
            noise[GSO_TYPE] = [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4][usize::from(noise[GSO_TYPE]) % 3];
            put_native(&mut noise, CSUM_START, u16::try_from(l4).expect("small"));
            noise[CSUM_OFFSET + 1] = 0;
            noise[GSO_SIZE + 1] = 0;
        }
        for header_len in [LEN, MERGED_LEN, TUNNEL_LEN] {
            if let Ok((checksum, gso)) = decoded(&noise[..header_len], &bytes) {
                if let Checksum::Partial { start, offset } = checksum {
                    prop_assert!(usize::from(start) + usize::from(offset) + 2 <= bytes.len());
                }
                if let Some(gso) = gso {
                    prop_assert!(gso.size > 0 && usize::from(gso.header_len) < bytes.len());
                }
            }
        }
    }
}
