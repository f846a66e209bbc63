//! The file byte by byte, and a table that goes through it.

use packet::header::protocol::{TCP, UDP};
use packet::{Address, Instant, Tuple};
use pipeline::Limits;
use pipeline::tables::connections::{Details, End, Key};

use super::record::{Bytes, Foreign, check_header, header};
use super::*;

const BOOT: u64 = 77;

fn tuple(n: u32) -> Tuple {
    Tuple {
        source: Address::v4((0x0a01_0000 | n).to_be_bytes()),
        destination: Address::v6(std::array::from_fn(|at| u8::try_from(at).expect("small"))),
        source_port: 40_000,
        destination_port: 443,
        protocol: if n.is_multiple_of(2) { TCP } else { UDP },
    }
}

fn record(n: u32) -> Record {
    Record {
        from: Name::of("network", "front"),
        to: Name::of("outside", ""),
        owner: Name::of("port", &format!("web{n}")),
        peer: Name::of("outside", "eth1"),
        original: tuple(n),
        reply: Tuple { destination_port: 50_000, ..tuple(n).inverted() },
        state: if n.is_multiple_of(2) { State::Established } else { State::Unreplied },
        leased: n.is_multiple_of(3),
    }
}

fn file(count: u32) -> Vec<u8> {
    let mut bytes = header(BOOT).to_vec();
    for n in 0..count {
        bytes.extend(record(n).encode());
        bytes.extend([0; LEN]);
    }
    bytes
}

fn loaded(bytes: &[u8]) -> Loaded {
    let mut loaded = Loaded::default();
    read(bytes, BOOT, &mut loaded);
    loaded
}

#[test]
fn what_is_written_is_read() {
    let read = loaded(&file(20));
    assert_eq!(read.records, (0..20).map(record).collect::<Vec<_>>());
    assert_eq!((read.damaged, read.trouble), (0, None));
}

#[test]
fn a_file_cut_anywhere_gives_what_is_whole() {
    let bytes = file(3);
    for len in 0..bytes.len() {
        let read = loaded(&bytes[..len]);
        let whole = len.saturating_sub(LEN) / LEN;
        let expected: Vec<_> = (0..u32::try_from(whole.div_ceil(2)).expect("small")).map(record).collect();
        assert_eq!(read.records, expected, "cut at {len}");
        assert_eq!(read.trouble.is_some(), len < LEN, "cut at {len}");
        assert_eq!(read.damaged, usize::from(len >= LEN && !len.is_multiple_of(LEN)), "cut at {len}");
    }
}

#[test]
fn no_bit_flips_unseen() {
    let bytes = file(2);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let read = loaded(&flipped);
        if bit / 8 < LEN {
            assert!(read.trouble.is_some() && read.records.is_empty(), "bit {bit}");
        } else {
            assert_eq!(read.damaged, 1, "bit {bit}");
            assert!(read.records.iter().all(|r| *r == record(0) || *r == record(1)), "bit {bit}");
        }
    }
}

#[test]
fn files_of_others_are_told_and_not_read() {
    let mut other: Bytes = header(BOOT);
    other[16] = 2;
    assert_eq!(check_header(&other, BOOT), Err(Foreign::Version(2)));
    assert_eq!(check_header(&header(BOOT + 1), BOOT), Err(Foreign::Boot));
    assert_eq!(check_header(&[0; LEN], BOOT), Err(Foreign::Unknown));
    for bytes in [&b""[..], b"[[network]]", &[0xff; 3 * LEN]] {
        let read = loaded(bytes);
        assert!(read.trouble.is_some() && read.records.is_empty());
    }
}

fn tables() -> Arc<Tables> {
    Tables::new(Limits { connections: 1000, ports: 4, workers: 1, ..Limits::default() }, [1, 2, 3])
}

fn saved(n: u32, is_translated: bool, state: State) -> Saved {
    let original = Tuple { protocol: TCP, ..tuple(n) };
    let shift = u16::from(is_translated);
    Saved {
        original: Key { network: NetworkId(0), tuple: original },
        reply: Key {
            network: NetworkId(1),
            tuple: Tuple { destination_port: 40_000 + shift, ..original.inverted() },
        },
        owner: PortId(0),
        state,
        details: Details { peer_port: PortId(1), ..Details::default() },
    }
}

#[test]
fn the_file_follows_the_table_and_survives_a_keeper_that_just_ends() {
    let directory = std::env::temp_dir().join(format!("vswitch-keeper-{}", std::process::id()));
    let tables = tables();
    let names = Names {
        networks: [(NetworkId(0), Name::of("network", "a")), (NetworkId(1), Name::of("network", "b"))].into(),
        ports: [(PortId(0), Name::of("port", "p")), (PortId(1), Name::of("port", "q"))].into(),
    };
    let (before, keeper) = Keeper::start(&directory, "x", Arc::clone(&tables));
    let mut keeper = keeper.expect("a directory for temporary files");
    assert_eq!((before.records.len(), before.trouble), (0, None));
    keeper.name(names);
    let now = Instant::from_nanos(1_000_000_000);
    let import = |saved: &Saved| tables.connections.import(saved, now).expect("room");
    let first = import(&saved(1, true, State::Established));
    import(&saved(2, true, State::SynSent));
    import(&saved(3, false, State::Established));
    import(&saved(4, false, State::SynSent));
    let path = directory.join("x.connections");
    let count = || load(&path, boot()).records.len();
    let wait = |wanted: usize| {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while count() != wanted {
            assert!(std::time::Instant::now() < end, "{} records, not {wanted}", count());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // All but the last one, which nobody has translated or answered.
    wait(3);
    keeper.settled();
    tables.connections.kill(first, End::Flushed);
    wait(2);
    assert!(path.exists() && !new_path(&path).exists());
    // Another one starts, as after `kill -9`, and is killed before it has settled: what the first has left is not lost.
    let (left, other) = Keeper::start(&directory, "x", Arc::clone(&tables));
    assert_eq!(left.records.len(), 2);
    assert!(left.records.iter().all(|record| record.owner == Name::of("port", "p") && !record.leased));
    drop(other);
    let (left, _) = Keeper::start(&directory, "x", Arc::clone(&tables));
    assert_eq!(left.records.len(), 2);
    // A stop writes what came last.
    import(&saved(5, true, State::Established));
    keeper.stop();
    assert_eq!(load(&path, boot()).records.len(), 3);
    fs::remove_dir_all(&directory).expect("ours");
}
