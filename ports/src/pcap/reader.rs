//! Reads pcap (either byte order, micro- and nanoseconds) and pcapng (enhanced, simple and the old packet
//! blocks; other blocks are skipped). Nothing in the file is believed: lengths are bounded before memory is
//! taken for them, so the largest buffer is [`MAX_BLOCK`].

use std::io::{self, Read};

/// The longest block or packet that is taken for real.
const MAX_BLOCK: u32 = 1 << 20;
/// The most interfaces of a section.
const MAX_INTERFACES: usize = 1 << 16;

const PCAP_MICRO: u32 = 0xa1b2_c3d4;
const PCAP_NANO: u32 = 0xa1b2_3c4d;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const IF_TSRESOL: u16 = 9;
const ETHERNET: u16 = 1;

/// Why a capture cannot be read (on).
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Neither pcap nor pcapng.
    #[error("this is no pcap or pcapng file")]
    Magic,
    /// Frames of another kind than Ethernet.
    #[error("link type {0} is not Ethernet")]
    LinkType(u16),
    /// A length that cannot be.
    #[error("a record says it has {0} bytes")]
    Length(u32),
    /// The file ends within a record.
    #[error("the file ends within a record")]
    Truncated,
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// One packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was seen, in nanoseconds since 1970; 0 where the file does not tell.
    pub time: u64,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// How long it was.
    pub original_len: u32,
}

/// Reads packets from `R`. Give it something buffered.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    swapped: bool,
    format: Format,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Format {
    Pcap {
        nanos: bool,
    },
    Pcapng {
        /// Link type and resolution of each interface of the section.
        interfaces: Vec<(u16, u8)>,
    },
    /// An error was reported; there is no way to find the next record.
    Ended,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When `input` is no capture, or no capture of Ethernet.
    pub fn new(mut input: R) -> Result<Self, ReadError> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic).map_err(|_| ReadError::Magic)?;
        let magic = u32::from_ne_bytes(magic);
        let mut reader = Self { input, swapped: false, format: Format::Ended, buffer: Vec::new() };
        if magic == SECTION_HEADER {
            reader.section()?;
            return Ok(reader);
        }
        let nanos = match (magic, magic.swap_bytes()) {
            (PCAP_MICRO, _) | (_, PCAP_MICRO) => false,
            (PCAP_NANO, _) | (_, PCAP_NANO) => true,
            _ => return Err(ReadError::Magic),
        };
        reader.swapped = magic != PCAP_MICRO && magic != PCAP_NANO;
        reader.fill(20)?;
        // The upper bits tell of a frame check sequence.
        let link = reader.word(16) & 0xffff;
        let link = u16::try_from(link).expect("16 bits");
        if link != ETHERNET {
            return Err(ReadError::LinkType(link));
        }
        reader.format = Format::Pcap { nanos };
        Ok(reader)
    }

    /// Returns the next packet, or `None` at the end of the file. Packets of interfaces that are not Ethernet
    /// are left out.
    ///
    /// # Errors
    /// When the file is damaged; after that there are no more packets.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        let found = match self.format {
            Format::Pcap { nanos } => self.pcap(nanos),
            Format::Pcapng { .. } => self.pcapng(),
            Format::Ended => Ok(None),
        };
        match found {
            Ok(Some(found)) => Ok(Some(Record {
                time: found.time,
                bytes: &self.buffer[found.start..found.start + found.len],
                original_len: found.original_len,
            })),
            Ok(None) => {
                self.format = Format::Ended;
                Ok(None)
            }
            Err(error) => {
                self.format = Format::Ended;
                Err(error)
            }
        }
    }

    fn pcap(&mut self, nanos: bool) -> Result<Option<Found>, ReadError> {
        if !self.fill_or_end(16)? {
            return Ok(None);
        }
        let (seconds, part) = (self.word(0), self.word(4));
        let (len, original_len) = (self.word(8), self.word(12));
        if len > MAX_BLOCK {
            return Err(ReadError::Length(len));
        }
        self.fill(len as usize)?;
        let nanoseconds = u64::from(part) * if nanos { 1 } else { 1000 };
        let time = u64::from(seconds) * 1_000_000_000 + nanoseconds;
        Ok(Some(Found { time, start: 0, len: len as usize, original_len }))
    }

    fn pcapng(&mut self) -> Result<Option<Found>, ReadError> {
        loop {
            if !self.fill_or_end(4)? {
                return Ok(None);
            }
            let kind = self.word(0);
            if kind == SECTION_HEADER {
                self.section()?;
                continue;
            }
            self.fill(4)?;
            let total = self.word(0);
            if !(12..=MAX_BLOCK).contains(&total) || !total.is_multiple_of(4) {
                return Err(ReadError::Length(total));
            }
            // The body, and the length once more.
            self.fill(total as usize - 8)?;
            let body = total as usize - 12;
            match kind {
                INTERFACE => self.interface(body)?,
                OLD_PACKET | SIMPLE_PACKET | ENHANCED_PACKET => {
                    if let Some(found) = self.packet(kind, body)? {
                        return Ok(Some(found));
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads a section header whose type is already read: from here on its byte order holds.
    fn section(&mut self) -> Result<(), ReadError> {
        self.fill(8)?;
        self.swapped =
            match u32::from_ne_bytes([self.buffer[4], self.buffer[5], self.buffer[6], self.buffer[7]]) {
                BYTE_ORDER => false,
                other if other.swap_bytes() == BYTE_ORDER => true,
                _ => return Err(ReadError::Magic),
            };
        let total = self.word(0);
        if !(28..=MAX_BLOCK).contains(&total) || !total.is_multiple_of(4) {
            return Err(ReadError::Length(total));
        }
        self.fill(total as usize - 12)?;
        self.format = Format::Pcapng { interfaces: Vec::new() };
        Ok(())
    }

    /// Takes an interface description of `body` bytes in.
    fn interface(&mut self, body: usize) -> Result<(), ReadError> {
        if body < 8 {
            return Err(ReadError::Truncated);
        }
        let link = self.half(0);
        let mut resolution = 6;
        let mut at = 8;
        while at + 4 <= body {
            let (code, len) = (self.half(at), usize::from(self.half(at + 2)));
            if code == 0 {
                break;
            }
            if code == IF_TSRESOL && len == 1 && at + 4 < body {
                resolution = self.buffer[at + 4];
            }
            at += 4 + len.next_multiple_of(4);
        }
        if let Format::Pcapng { interfaces } = &mut self.format
            && interfaces.len() < MAX_INTERFACES
        {
            interfaces.push((link, resolution));
        }
        Ok(())
    }

    /// Finds the packet in a packet block of `body` bytes; `None` when its interface is not Ethernet.
    fn packet(&self, kind: u32, body: usize) -> Result<Option<Found>, ReadError> {
        let header = if kind == SIMPLE_PACKET { 4 } else { 20 };
        if body < header {
            return Err(ReadError::Truncated);
        }
        let interface = match kind {
            SIMPLE_PACKET => 0,
            OLD_PACKET => usize::from(self.half(0)),
            _ => self.word(0) as usize,
        };
        let Format::Pcapng { interfaces } = &self.format else { return Ok(None) };
        let Some((ETHERNET, resolution)) = interfaces.get(interface).copied() else { return Ok(None) };
        let (time, len, original_len) = if kind == SIMPLE_PACKET {
            let original_len = self.word(0);
            (0, original_len.min(u32::try_from(body - header).unwrap_or(u32::MAX)), original_len)
        } else {
            let units = u64::from(self.word(4)) << 32 | u64::from(self.word(8));
            (nanoseconds(units, resolution), self.word(12), self.word(16))
        };
        if len as usize > body - header {
            return Err(ReadError::Length(len));
        }
        Ok(Some(Found { time, start: header, len: len as usize, original_len }))
    }

    /// Reads `count` bytes into the buffer.
    fn fill(&mut self, count: usize) -> Result<(), ReadError> {
        if self.fill_or_end(count)? || count == 0 { Ok(()) } else { Err(ReadError::Truncated) }
    }

    /// As [`Reader::fill`]; `false` when the file ends before the first byte.
    fn fill_or_end(&mut self, count: usize) -> Result<bool, ReadError> {
        self.buffer.resize(count, 0);
        let mut at = 0;
        while at < count {
            match self.input.read(&mut self.buffer[at..]) {
                Ok(0) if at == 0 => return Ok(false),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(read) => at += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = [self.buffer[at], self.buffer[at + 1], self.buffer[at + 2], self.buffer[at + 3]];
        let word = u32::from_ne_bytes(bytes);
        if self.swapped { word.swap_bytes() } else { word }
    }

    fn half(&self, at: usize) -> u16 {
        let half = u16::from_ne_bytes([self.buffer[at], self.buffer[at + 1]]);
        if self.swapped { half.swap_bytes() } else { half }
    }
}

/// Where in the buffer a packet is.
struct Found {
    time: u64,
    start: usize,
    len: usize,
    original_len: u32,
}

/// Converts a time of resolution `if_tsresol`: 10^-n seconds, or 2^-n with the highest bit set.
fn nanoseconds(units: u64, resolution: u8) -> u64 {
    let exponent = u32::from(resolution & 0x7f);
    let per_second =
        if resolution & 0x80 != 0 { 1_u128.checked_shl(exponent) } else { 10_u128.checked_pow(exponent) };
    // Finer than the number can say: every time is 0.
    let time = per_second.map_or(0, |per_second| u128::from(units) * 1_000_000_000 / per_second);
    u64::try_from(time).unwrap_or(u64::MAX)
}
