//! Writes pcapng (IETF draft-ietf-opsawg-pcapng): one section, one interface description for each port, and an
//! enhanced packet block for each packet, times in nanoseconds. Everything in the host's byte order, which
//! the section header tells. Allocates nothing after `new`.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u32 = 1;
const OPTION_END: u16 = 0;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// `if_tsresol`: 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Which way a packet went, seen from the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Not told.
    Unknown,
    /// Received by the port.
    Inbound,
    /// Transmitted by the port.
    Outbound,
}

/// Writes packets to `W` as pcapng. Give it something buffered.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    interfaces: u32,
}

impl<W: Write> Writer<W> {
    /// Writes the headers: interface number *n* is called `interfaces[n]`, and its packets were cut to `snaplen`
    /// bytes (0: not at all).
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, interfaces: &[&str], snaplen: u32) -> io::Result<Self> {
        words(&mut out, &[SECTION_HEADER, 28, BYTE_ORDER])?;
        // Version 1.0, and a section of a length that is not told.
        out.write_all(&1_u16.to_ne_bytes())?;
        out.write_all(&0_u16.to_ne_bytes())?;
        out.write_all(&u64::MAX.to_ne_bytes())?;
        words(&mut out, &[28])?;
        for name in interfaces {
            let name = &name.as_bytes()[..name.len().min(255)];
            let len = 20 + 4 + padded(name.len()) + 8 + 4;
            // The upper half of the link type's word is reserved; in either order it is zero.
            words(&mut out, &[INTERFACE, len])?;
            out.write_all(&u16::try_from(ETHERNET).expect("1").to_ne_bytes())?;
            out.write_all(&0_u16.to_ne_bytes())?;
            words(&mut out, &[snaplen])?;
            option(&mut out, IF_NAME, name)?;
            option(&mut out, IF_TSRESOL, &[NANOSECONDS])?;
            option(&mut out, OPTION_END, &[])?;
            words(&mut out, &[len])?;
        }
        Ok(Self { out, interfaces: u32::try_from(interfaces.len()).unwrap_or(u32::MAX) })
    }

    /// Writes one packet: `bytes` of the `original_len` that it had, seen at `time` (nanoseconds since 1970).
    ///
    /// # Errors
    /// What the output says; `InvalidInput` for an interface that was not described, or 4 GiB.
    #[inline]
    pub fn write(
        &mut self,
        time: u64,
        interface: u32,
        direction: Direction,
        bytes: &[u8],
        original_len: usize,
    ) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let captured = u32::try_from(bytes.len()).ok().filter(|len| *len < 1 << 30).ok_or_else(invalid)?;
        let original = u32::try_from(original_len).map_err(|_| invalid())?;
        if interface >= self.interfaces {
            return Err(invalid());
        }
        let flags: u32 = match direction {
            Direction::Unknown => 0,
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        let options = if flags == 0 { 0 } else { 12 };
        let len = 32 + padded(bytes.len()) + options;
        let high = u32::try_from(time >> 32).expect("half of it");
        let low = u32::try_from(time & 0xffff_ffff).expect("half of it");
        words(&mut self.out, &[ENHANCED_PACKET, len, interface, high, low, captured, original])?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..padding(bytes.len())])?;
        if flags != 0 {
            option(&mut self.out, EPB_FLAGS, &flags.to_ne_bytes())?;
            option(&mut self.out, OPTION_END, &[])?;
        }
        words(&mut self.out, &[len])
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// What the output says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Returns the output, for who sends what was gathered in memory.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Returns the output.
    pub fn into_inner(self) -> W {
        self.out
    }
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

fn padded(len: usize) -> u32 {
    u32::try_from(len + padding(len)).expect("checked before")
}

fn words(out: &mut impl Write, words: &[u32]) -> io::Result<()> {
    words.iter().try_for_each(|word| out.write_all(&word.to_ne_bytes()))
}

fn option(out: &mut impl Write, code: u16, value: &[u8]) -> io::Result<()> {
    out.write_all(&code.to_ne_bytes())?;
    out.write_all(&u16::try_from(value.len()).expect("at most 255").to_ne_bytes())?;
    out.write_all(value)?;
    out.write_all(&[0; 3][..padding(value.len())])
}
