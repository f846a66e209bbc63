use super::*;
use packet::{Area, Checksum, Gso, GsoKind, build};
use proptest::prelude::*;
use std::process::Command;

fn pool() -> FramePool {
    FramePool::new(Area::new(256, 8).expect("a small area"))
}

fn read_all(bytes: &[u8]) -> Result<Vec<(u64, Vec<u8>, u32)>, ReadError> {
    let mut reader = Reader::new(bytes)?;
    let mut records = Vec::new();
    while let Some(record) = reader.read()? {
        records.push((record.time, record.bytes.to_vec(), record.original_len));
    }
    Ok(records)
}

/// A pcap file with one packet, in the given byte order.
fn pcap(big: bool, nanos: bool, link: u32, packet: &[u8], len: u32) -> Vec<u8> {
    let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
    let magic = if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    let version = if big { 0x0002_0004 } else { 0x0004_0002 };
    let words = [magic, version, 0, 0, 65535, link, 1_700_000_000, 5, len, len];
    let mut file: Vec<u8> = words.into_iter().flat_map(word).collect();
    file.extend_from_slice(packet);
    file
}

#[test]
fn both_byte_orders_and_resolutions_of_pcap_are_read() {
    for big in [false, true] {
        for nanos in [false, true] {
            let records = read_all(&pcap(big, nanos, 1, b"abcdefg", 7)).expect("good");
            let time = 1_700_000_000_000_000_000 + if nanos { 5 } else { 5000 };
            assert_eq!(records, [(time, b"abcdefg".to_vec(), 7)]);
        }
    }
}

#[test]
fn what_was_written_is_read() {
    let mut writer = Writer::new(Vec::new(), &["web", "a-rather-long-name"], 96).expect("memory");
    for len in 0..9_usize {
        let direction = [Direction::Unknown, Direction::Inbound, Direction::Outbound][len % 3];
        let time = 1_700_000_000_123_456_789 + len as u64;
        let interface = u32::from(len % 2 == 1);
        writer.write(time, interface, direction, &vec![7; len], len + 100).expect("memory");
    }
    assert!(writer.write(0, 2, Direction::Unknown, b"", 0).is_err(), "no such interface");
    let records = read_all(&writer.into_inner()).expect("good");
    assert_eq!(records.len(), 9);
    for (len, (time, bytes, original)) in records.into_iter().enumerate() {
        assert_eq!(time, 1_700_000_000_123_456_789 + len as u64);
        assert_eq!(bytes, vec![7; len]);
        assert_eq!(original as usize, len + 100);
    }
}

#[test]
fn pcapng_of_the_other_byte_order_and_of_other_blocks_is_read() {
    let block = |kind: u32, body: &[u8]| {
        let len = u32::try_from(body.len() + 12).expect("small").to_be_bytes();
        [&kind.to_be_bytes()[..], &len, body, &len].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_be_bytes()[..], &[0, 1, 0, 0], &[0xff; 8]].concat();
    let file = [
        block(0x0a0d_0d0a, &section),
        // Ethernet, microseconds by default; then 2^-10 s; then loopback, which is left out.
        block(1, &[0, 1, 0, 0, 0, 0, 0, 0]),
        block(1, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0x8a, 0, 0, 0]),
        block(1, &[0, 0, 0, 0, 0, 0, 0, 0]),
        block(0x0bad, b"whatever"),
        block(6, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2, b'h', b'i', 0, 0]),
        block(6, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'x', 0, 0, 0]),
        block(6, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'l', 0, 0, 0]),
        block(3, &[0, 0, 0, 3, b'y', b'e', b's', 0]),
    ]
    .concat();
    let records = read_all(&file).expect("good");
    let expected = [(9000, b"hi".to_vec(), 2), (1_000_000_000, b"x".to_vec(), 1), (0, b"yes".to_vec(), 3)];
    assert_eq!(records, expected);
}

#[test]
fn hostile_files_are_errors() {
    assert!(matches!(read_all(b""), Err(ReadError::Magic)));
    assert!(matches!(read_all(b"not a capture at all"), Err(ReadError::Magic)));
    assert!(matches!(read_all(&pcap(false, false, 113, b"", 0)), Err(ReadError::LinkType(113))));
    assert!(matches!(read_all(&pcap(false, false, 1, b"abc", 4)), Err(ReadError::Truncated)));
    assert!(matches!(read_all(&pcap(false, false, 1, b"abc", u32::MAX)), Err(ReadError::Length(u32::MAX))));
}

#[test]
fn a_port_replays_one_file_and_writes_another() {
    let directory = std::env::temp_dir().join(format!("vsp-pcap-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (input, output) = (directory.join("in.pcapng"), directory.join("out.pcapng"));
    let (a, b) = (packet::MacAddr([2, 0, 0, 0, 0, 1]), packet::MacAddr([2, 0, 0, 0, 0, 2]));
    let packets: Vec<_> = [10, 1400, 3000]
        .map(|len| {
            build::eth(a, b).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(80, 81).data(&vec![5; len]).bytes()
        })
        .into();
    let mut writer = Writer::new(Vec::new(), &["x"], 0).expect("memory");
    for packet in &packets {
        writer.write(now(), 0, Direction::Inbound, packet, packet.len()).expect("memory");
    }
    std::fs::write(&input, writer.into_inner()).expect("written");

    let mut pool = pool();
    let mut port = open("replay", Some(&input), Some(&output)).expect("opens").queues.remove(0);
    assert!(port.wants_turn());
    let mut queue = FrameQueue::new(8);
    assert_eq!(port.receive(&mut pool, 2, |frame| queue.push(frame).expect("room")), 2);
    assert_eq!(port.receive(&mut pool, 8, |frame| queue.push(frame).expect("room")), 1);
    assert!(!port.wants_turn(), "the file is read");
    // The last as a large frame: it must be cut in the file.
    let frame = queue.iter_mut().nth(2).expect("three");
    frame.set_checksum(Checksum::Partial { start: 34, offset: 16 });
    frame.set_gso(Some(Gso { kind: GsoKind::Tcp4, size: 1000, header_len: 54, ecn: false, tunnel: None }));
    port.transmit(&mut queue, &mut pool);
    let stats = port.stats();
    assert_eq!((stats.rx_frames, stats.tx_frames, stats.tx_segmented, stats.tx_errors), (3, 5, 1, 0));
    port.close(&mut pool);

    let written = read_all(&std::fs::read(&output).expect("there")).expect("good");
    assert_eq!(written.len(), 5);
    assert_eq!((&written[0].1, &written[1].1), (&packets[0], &packets[1]));
    for (_, bytes, _) in &written {
        assert_eq!(packet::checksum::is_valid(bytes), Some(true));
    }
    match Command::new("tcpdump").args(["-nn", "-v", "-r"]).arg(&output).output() {
        Ok(tcpdump) => {
            let text = String::from_utf8_lossy(&tcpdump.stdout);
            assert!(tcpdump.status.success(), "{}", String::from_utf8_lossy(&tcpdump.stderr));
            assert_eq!(text.matches("10.0.0.1.80 > 10.0.0.2.81").count(), 5, "{text}");
            assert!(!text.contains("incorrect"), "{text}");
        }
        Err(error) => panic!("tcpdump is needed: {error}"),
    }
    std::fs::remove_dir_all(&directory).expect("ours");
}

#[test]
fn a_damaged_file_ends_and_counts_one_error() {
    let path = std::env::temp_dir().join(format!("vsp-damaged-{}.pcap", std::process::id()));
    let mut file = pcap(false, false, 1, b"abcdefghijklmnopqrst", 20);
    file.extend_from_slice(&[0xff; 16]);
    std::fs::write(&path, file).expect("written");
    let mut pool = pool();
    let mut port = open("replay", Some(&path), None).expect("opens").queues.remove(0);
    let mut queue = FrameQueue::new(8);
    assert_eq!(port.receive(&mut pool, 8, |frame| queue.push(frame).expect("room")), 1);
    assert_eq!(port.stats().rx_errors, 1);
    assert!(!port.wants_turn());
    port.transmit(&mut queue, &mut pool);
    port.close(&mut pool);
    std::fs::remove_file(&path).expect("ours");
    let error = open("replay", Some(&path), None).expect_err("not there").to_string();
    assert!(error.starts_with("port 'replay': cannot open capture"), "{error}");
}

proptest! {
    #[test]
    fn noise_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        start in 0_usize..5,
        damage in proptest::collection::vec((0_usize..200, any::<u8>()), 0..6),
    ) {
        let good = match start {
            0 => noise.clone(),
            1 => pcap(false, true, 1, &noise, u32::try_from(noise.len()).expect("small")),
            2 => pcap(true, false, 1, &noise, u32::try_from(noise.len()).expect("small")),
            _ => {
                let mut writer = Writer::new(Vec::new(), &["a"], 0).expect("memory");
                writer.write(5, 0, Direction::Inbound, &noise, noise.len()).expect("memory");
                writer.into_inner()
            }
        };
        let mut bytes = good;
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let _ = read_all(&bytes);
    }
}
