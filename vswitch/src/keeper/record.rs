//! What a connection looks like in the file: records of 128 bytes, each with its checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 0-7 | checksum of the rest (FNV-1a, 64 bits) |
//! | 8-39 | names, hashed: the networks of both keys, the owner, the port at the other side |
//! | 40-103 | addresses: source and destination, as the first packet had them and as answers do |
//! | 104-111 | ports in the same order |
//! | 112-114 | protocol, state, flags (1: holds a NAT port) |
//! | 115-127 | zero |
//!
//! Integers are little-endian. A record of zeros is a place that is not in use. The file's first record is its header: magic,
//! version, length of a record, and a number for the host's present boot, after which no connection of before is left.
//!
//! Names are hashed so that a record says all by itself and has one length. Numbers of networks differ from run to run.

use packet::hash::fnv1a;
use packet::{Address, Tuple};
use pipeline::tables::connections::State;

/// Length of a record, and of the header.
pub const LEN: usize = 128;
const MAGIC: [u8; 8] = *b"vswconn\n";
const VERSION: u32 = 1;
const LEASED: u8 = 1;
const STATES: [State; 10] = [
    State::Unreplied,
    State::Replied,
    State::SynSent,
    State::SynReceived,
    State::PickedUp,
    State::Established,
    State::HalfClosed,
    State::Closed,
    State::Doubted,
    State::Reset,
];

/// The bytes of a record.
pub type Bytes = [u8; LEN];

/// A name of a network or a port, hashed; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(u64);

impl Name {
    /// Hashes the name of something of `kind`, which keeps names of different kinds apart.
    pub fn of(kind: &str, name: &str) -> Self {
        let bytes = kind.bytes().chain([0]).chain(name.bytes());
        Self(fnv1a(bytes).max(1))
    }
}

/// A connection in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The network that its first packet came from,
    pub from: Name,
    /// and the one that answers come from.
    pub to: Name,
    /// The port that it counts for.
    pub owner: Name,
    /// The port at the other side.
    pub peer: Name,
    /// As its first packet came.
    pub original: Tuple,
    /// As answers come.
    pub reply: Tuple,
    /// How far it has come.
    pub state: State,
    /// It holds a NAT port: the one that answers come to.
    pub leased: bool,
}

/// What is in a place of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Empty,
    /// A connection.
    Taken(Record),
    /// Something else than was written.
    Damaged,
}

/// Why a file is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It is of something else, or its beginning is damaged.
    Unknown,
    /// Another version wrote it.
    Version(u32),
    /// It is from before the host was started.
    Boot,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Foreign::Unknown => f.write_str("it is damaged, or no list of connections"),
            Foreign::Version(other) => write!(f, "it has version {other}, and this vswitchd reads {VERSION}"),
            Foreign::Boot => f.write_str("it is from before the host was started"),
        }
    }
}

/// Makes a header.
pub fn header(boot: u64) -> Bytes {
    let mut bytes = [0; LEN];
    let mut to = Writer(&mut bytes, 8);
    to.put(MAGIC);
    to.put(VERSION.to_le_bytes());
    to.put([128, 0, 0, 0]);
    to.put(boot.to_le_bytes());
    sealed(bytes)
}

/// Reads a header.
///
/// # Errors
/// Says why the rest is not to be read.
pub fn check_header(bytes: &Bytes, boot: u64) -> Result<(), Foreign> {
    let mut from = Reader(bytes, 8);
    if from.take() != MAGIC {
        return Err(Foreign::Unknown);
    }
    let version = u32::from_le_bytes(from.take());
    if version != VERSION {
        return Err(Foreign::Version(version));
    }
    let expected = header(boot);
    let _len: [u8; 4] = from.take();
    match *bytes == expected {
        true => Ok(()),
        false if !is_sound(bytes) => Err(Foreign::Unknown),
        false => Err(Foreign::Boot),
    }
}

impl Record {
    /// Returns its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = [0; LEN];
        let mut to = Writer(&mut bytes, 8);
        for name in [self.from, self.to, self.owner, self.peer] {
            to.put(name.0.to_le_bytes());
        }
        let (original, reply) = (&self.original, &self.reply);
        for address in [original.source, original.destination, reply.source, reply.destination] {
            to.put(address.to_bits().to_le_bytes());
        }
        let ports =
            [original.source_port, original.destination_port, reply.source_port, reply.destination_port];
        for port in ports {
            to.put(port.to_le_bytes());
        }
        let state = STATES.iter().position(|state| *state == self.state).unwrap_or(0);
        to.put([original.protocol, u8::try_from(state).unwrap_or(0), if self.leased { LEASED } else { 0 }]);
        sealed(bytes)
    }

    /// Reads what is in a place.
    pub fn decode(bytes: &Bytes) -> Place {
        if bytes.iter().all(|byte| *byte == 0) {
            return Place::Empty;
        }
        if !is_sound(bytes) {
            return Place::Damaged;
        }
        let mut from = Reader(bytes, 8);
        let [a, b, c, d] = [0; 4].map(|_: u8| Name(u64::from_le_bytes(from.take())));
        let addresses = [0; 4].map(|_: u8| Address::from_bits(u128::from_le_bytes(from.take())));
        let ports = [0; 4].map(|_: u8| u16::from_le_bytes(from.take()));
        let [protocol, state, flags] = from.take();
        let Some(state) = STATES.get(usize::from(state)) else { return Place::Damaged };
        let tuple = |n: usize| Tuple {
            source: addresses[n],
            destination: addresses[n + 1],
            source_port: ports[n],
            destination_port: ports[n + 1],
            protocol,
        };
        Place::Taken(Record {
            from: a,
            to: b,
            owner: c,
            peer: d,
            original: tuple(0),
            reply: tuple(2),
            state: *state,
            leased: flags & LEASED != 0,
        })
    }
}

/// Returns what a record's bytes are told apart by: their checksum.
pub fn checksum(bytes: &Bytes) -> u64 {
    u64::from_le_bytes(Reader(bytes, 0).take())
}

fn sealed(mut bytes: Bytes) -> Bytes {
    let sum = fnv1a(bytes[8..].iter().copied());
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn is_sound(bytes: &Bytes) -> bool {
    checksum(bytes) == fnv1a(bytes[8..].iter().copied())
}

struct Writer<'b>(&'b mut Bytes, usize);

impl Writer<'_> {
    fn put<const N: usize>(&mut self, value: [u8; N]) {
        self.0[self.1..self.1 + N].copy_from_slice(&value);
        self.1 += N;
    }
}

struct Reader<'b>(&'b Bytes, usize);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.0[self.1..self.1 + N]);
        self.1 += N;
        value
    }
}
