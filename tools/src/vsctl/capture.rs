//! `vsctl capture`: the frames of a port, as pcapng or as a line each.
//!
//! The daemon sends pcapng (draft-ietf-opsawg-pcapng) for as long as we read. We cut the stream into its
//! blocks, which lets us count packets and stop at a whole block, so that a file is never torn: neither
//! after `-c` frames nor after Ctrl-C nor when the port goes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::client::with_query;
use crate::{Context, frame, output};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// A packet's time is in microseconds unless its interface says otherwise.
const MICROSECONDS: u64 = 1_000_000;
/// The largest block we hold: a 64 KiB GSO frame with its options is far smaller.
const BLOCK_MAX: usize = 1 << 20;

/// Shows the frames of a port, or writes them to a pcapng file.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl capture web -w web.pcapng\n  vsctl capture web -w - | tcpdump -nr -\n  vsctl capture web -c 10"
)]
pub(crate) struct Capture {
    /// The port
    port: String,
    /// Write pcapng to FILE, or to stdout for `-`; without it, a line a frame is shown
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Keep only the first BYTES of each frame
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=65_550))]
    snaplen: Option<u32>,
    /// Stop after COUNT frames
    #[arg(short, long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Which frames: rx came from the port, tx went to it
    #[arg(long, default_value = "both", value_parser = ["rx", "tx", "both"])]
    direction: String,
}

impl Capture {
    /// Captures until Ctrl-C, the count, or the end of the port.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let query = [
            ("port", Some(self.port.clone())),
            ("snaplen", self.snaplen.map(|bytes| bytes.to_string())),
            ("direction", Some(self.direction.clone())),
        ];
        // The port is asked for before the file is made: a typing error leaves no empty file.
        let mut stream = context.client.stream(&with_query("/v1/capture", &query)).await?;
        let mut sink = Sink::open(self.write.as_deref(), context.json)?;
        let mut blocks = Blocks::default();
        let mut frames = 0;
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        'capture: loop {
            let bytes = tokio::select! {
                bytes = stream.chunk() => bytes?,
                _ = &mut interrupt => break,
            };
            let Some(bytes) = bytes else { break };
            blocks.push(&bytes);
            while let Some(block) = blocks.next()? {
                sink.write(&block)?;
                if block.kind == ENHANCED_PACKET {
                    frames += 1;
                    if Some(frames) == self.count {
                        break 'capture;
                    }
                }
            }
            sink.flush()?;
        }
        sink.flush()?;
        if let Some(path) = &self.write {
            let place = if path == Path::new("-") { "stdout".to_owned() } else { path.display().to_string() };
            eprintln!(
                "{} written to {place}",
                output::plural(frames.try_into().unwrap_or(usize::MAX), "frame")
            );
        }
        Ok(())
    }
}

/// Where the blocks go.
enum Sink {
    File(File, PathBuf),
    Stdout,
    Text,
    Json,
}

impl Sink {
    fn open(path: Option<&Path>, json: bool) -> anyhow::Result<Self> {
        Ok(match path {
            None if json => Self::Json,
            None => Self::Text,
            Some(path) if path == Path::new("-") => Self::Stdout,
            Some(path) => Self::File(
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
                path.to_owned(),
            ),
        })
    }

    fn write(&mut self, block: &Block) -> anyhow::Result<()> {
        match self {
            Self::File(file, path) => {
                file.write_all(&block.bytes).with_context(|| format!("cannot write {}", path.display()))
            }
            Self::Stdout => Ok(io::stdout().write_all(&block.bytes)?),
            Self::Text => match block.packet() {
                Some(packet) => Ok(output::print(&packet.line())?),
                None => Ok(()),
            },
            Self::Json => match block.packet() {
                Some(packet) => Ok(output::print(&format!("{}\n", packet.json()))?),
                None => Ok(()),
            },
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().flush(),
            _ => Ok(()),
        }
    }
}

/// One block of a pcapng stream, whole, in the order of bytes that its writer chose.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    kind: u32,
    big_endian: bool,
    /// Units of a packet's time in a second.
    ticks: u64,
    bytes: Vec<u8>,
}

/// A captured frame with what its block says about it.
#[derive(Debug, PartialEq, Eq)]
struct Packet<'a> {
    microseconds: u64,
    len: u32,
    direction: &'static str,
    data: &'a [u8],
}

impl Packet<'_> {
    fn line(&self) -> String {
        let time = crate::events::clock(self.microseconds);
        format!("{time} {:<2} {:>5} {}\n", self.direction, self.len, frame::summary(self.data))
    }

    fn json(&self) -> serde_json::Value {
        let hex: String = self.data.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({
            "time_us": self.microseconds,
            "direction": self.direction,
            "len": self.len,
            "summary": frame::summary(self.data),
            "data": hex,
        })
    }
}

impl Block {
    /// Returns the frame of an enhanced packet block; every other block has none.
    fn packet(&self) -> Option<Packet<'_>> {
        if self.kind != ENHANCED_PACKET {
            return None;
        }
        let word = |at: usize| word(&self.bytes, at, self.big_endian);
        let time = u64::from(word(12)?) << 32 | u64::from(word(16)?);
        let microseconds = u128::from(time) * 1_000_000 / u128::from(self.ticks);
        let microseconds = u64::try_from(microseconds).ok()?;
        let captured = usize::try_from(word(20)?).ok()?;
        let data = self.bytes.get(28..28usize.checked_add(captured)?)?;
        Some(Packet { microseconds, len: word(24)?, direction: self.direction(captured), data })
    }

    /// Returns what the epb_flags option (code 2) says: bits 0 and 1 are 01 inbound, 10 outbound.
    fn direction(&self, captured: usize) -> &'static str {
        let flags = self.option(28 + captured.next_multiple_of(4), 2);
        match flags.and_then(|at| word(&self.bytes, at, self.big_endian)).unwrap_or(0) & 3 {
            1 => "rx",
            2 => "tx",
            _ => "",
        }
    }

    /// Returns what the if_tsresol option (code 9) of an interface says: a power of 10, or with bit 7 of 2.
    fn resolution(&self) -> u64 {
        match self.option(16, 9).and_then(|at| self.bytes.get(at)) {
            Some(&power) if power & 0x80 == 0 => 10_u64.saturating_pow(power.into()),
            Some(&power) => 1_u64.checked_shl((power & 0x7f).into()).unwrap_or(u64::MAX),
            None => MICROSECONDS,
        }
    }

    /// Returns where the value of the option `code` is, among the options that begin at `at`.
    fn option(&self, mut at: usize, code: u32) -> Option<usize> {
        loop {
            let head = word(&self.bytes, at, self.big_endian)?;
            // Code and length are 16 bits each; which half is first depends on the order of bytes.
            let (found, len) =
                if self.big_endian { (head >> 16, head & 0xffff) } else { (head & 0xffff, head >> 16) };
            match found {
                0 => return None,
                _ if found == code => return Some(at + 4),
                _ => at += 4 + usize::try_from(len).ok()?.next_multiple_of(4),
            }
        }
    }
}

/// Cuts a pcapng stream into its blocks.
#[derive(Debug)]
struct Blocks {
    waiting: Vec<u8>,
    big_endian: bool,
    /// Of the last interface; the switch describes one.
    ticks: u64,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { waiting: Vec::new(), big_endian: false, ticks: MICROSECONDS }
    }
}

impl Blocks {
    fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Returns the next whole block, `None` when more bytes are needed.
    fn next(&mut self) -> anyhow::Result<Option<Block>> {
        if self.waiting.len() < 12 {
            return Ok(None);
        }
        // The type of a section header reads the same in both orders; its magic tells the order.
        if word(&self.waiting, 0, false) == Some(SECTION_HEADER) {
            self.big_endian = match word(&self.waiting, 8, false) {
                Some(0x1a2b_3c4d) => false,
                Some(0x4d3c_2b1a) => true,
                _ => bail!("the switch sent no pcapng: the section header has no byte-order magic"),
            };
        }
        let kind = word(&self.waiting, 0, self.big_endian).unwrap_or(0);
        let len = word(&self.waiting, 4, self.big_endian).and_then(|len| usize::try_from(len).ok());
        let Some(len) = len.filter(|len| (12..=BLOCK_MAX).contains(len) && len % 4 == 0) else {
            bail!("the switch sent no pcapng: a block of type {kind:#x} has an impossible length");
        };
        if self.waiting.len() < len {
            return Ok(None);
        }
        let bytes = self.waiting.drain(..len).collect();
        let block = Block { kind, big_endian: self.big_endian, ticks: self.ticks, bytes };
        if kind == INTERFACE {
            self.ticks = block.resolution();
        }
        Ok(Some(block))
    }
}

/// Reads 32 bits at `at`, `None` beyond the end.
fn word(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section header, an interface and a packet that went out, as `big_endian` or little.
    fn stream(big_endian: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut block = |kind: u32, body: &[u32], data: &[u8], options: &[u32]| {
            let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let padded = data.len().next_multiple_of(4);
            let len = 12 + 4 * (body.len() + options.len()) + padded;
            let len = word(len.try_into().expect("small"));
            bytes.extend([word(kind), len].concat());
            body.iter().for_each(|value| bytes.extend(word(*value)));
            bytes.extend(data);
            bytes.extend(vec![0; padded - data.len()]);
            options.iter().for_each(|value| bytes.extend(word(*value)));
            bytes.extend(len);
        };
        block(SECTION_HEADER, &[0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX], &[], &[]);
        // Nanoseconds: option 9, one byte, then the end of options.
        let resolution = if big_endian { [0x0009_0001, 0x0900_0000, 0] } else { [0x0001_0009, 9, 0] };
        block(1, &[1, 0], &[], &resolution);
        let flags = if big_endian { 0x0002_0004 } else { 0x0004_0002 };
        block(ENHANCED_PACKET, &[0, 0x0005_0000, 7, 5, 60], &[1, 2, 3, 4, 5], &[flags, 2, 0]);
        bytes
    }

    #[test]
    fn stream_is_cut_into_blocks_wherever_it_is_torn() {
        for big_endian in [false, true] {
            let bytes = stream(big_endian);
            for tear in 0..bytes.len() {
                let mut blocks = Blocks::default();
                let mut kinds = Vec::new();
                let mut whole = Vec::new();
                for piece in [&bytes[..tear], &bytes[tear..]] {
                    blocks.push(piece);
                    while let Some(block) = blocks.next().expect("good blocks") {
                        kinds.push(block.kind);
                        whole.extend(block.bytes);
                    }
                }
                assert_eq!(kinds, [SECTION_HEADER, 1, ENHANCED_PACKET], "torn at {tear}");
                assert_eq!(whole, bytes);
            }
        }
    }

    #[test]
    fn packet_block_tells_time_direction_and_length() {
        for big_endian in [false, true] {
            let mut blocks = Blocks::default();
            blocks.push(&stream(big_endian));
            let mut packets = Vec::new();
            while let Some(block) = blocks.next().expect("good blocks") {
                if let Some(packet) = block.packet() {
                    packets.push((packet.microseconds, packet.len, packet.direction, packet.data.to_vec()));
                }
            }
            assert_eq!(packets, [(((5 << 48) + 7) / 1000, 60, "tx", vec![1, 2, 3, 4, 5])]);
        }
    }

    #[test]
    fn what_is_no_pcapng_is_refused() {
        for bytes in [&[0; 64][..], &[0xff; 64], b"\x0a\x0d\x0d\x0a\x10\0\0\0AAAA\x10\0\0\0"] {
            let mut blocks = Blocks::default();
            blocks.push(bytes);
            assert!(blocks.next().is_err());
        }
    }

    #[test]
    fn packet_that_claims_more_than_its_block_has_is_skipped() {
        let mut bytes = stream(false);
        let at = bytes.len() - 4 - 12 - 8 - 8;
        bytes[at..at + 4].copy_from_slice(&4000_u32.to_le_bytes());
        let mut blocks = Blocks::default();
        blocks.push(&bytes);
        let mut packets = 0;
        while let Some(block) = blocks.next().expect("good blocks") {
            packets += usize::from(block.packet().is_some());
        }
        assert_eq!(packets, 0);
    }
}
