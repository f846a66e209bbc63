//! A port over capture files: frames come from one, and go to another.
//!
//! For replay and offline runs: it reads as fast as it is asked, so its file system calls may block a turn, and
//! it has no descriptor to wait for. Frames are written as they would be on a wire: cut and with complete
//! checksums. [`Reader`] and [`Writer`] serve others, too (`vsctl capture`, `vspktgen`).
//!
//! A file that is damaged in the middle ends there, and counts one `rx_errors`; a packet too long for a chunk
//! counts one and is left out.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use packet::{Checksum, Frame, FramePool, FrameQueue};

pub use reader::{ReadError, Reader, Record};
pub use writer::{Direction, Writer};

use crate::finish::{Can, Next, Pieces};
use crate::{Error, Opened, Port, Stats};

mod reader;
mod writer;

/// Both files. See the module header.
#[derive(Debug)]
pub struct Pcap {
    input: Option<Reader<BufReader<File>>>,
    output: Output,
    pieces: Pieces,
}

#[derive(Debug)]
struct Output {
    writer: Option<Writer<BufWriter<File>>>,
    stats: Stats,
}

/// Opens the files; without one, nothing is received, or what is transmitted is thrown away.
///
/// # Errors
/// A file cannot be opened, made or written, or the input is no capture of Ethernet.
pub fn open(port: &str, input: Option<&Path>, output: Option<&Path>) -> Result<Opened, Error> {
    let failed = |operation: &str, path: &Path| {
        let operation = format!("{operation} {}", path.display());
        move |source: io::Error| Error { port: port.to_owned(), operation, source }
    };
    let input = input
        .map(|path| {
            let file = File::open(path).map_err(failed("open capture", path))?;
            Reader::new(BufReader::with_capacity(1 << 18, file))
                .map_err(|error| failed("read capture", path)(error.into()))
        })
        .transpose()?;
    let writer = output
        .map(|path| {
            let file = File::create(path).map_err(failed("make capture", path))?;
            Writer::new(BufWriter::with_capacity(1 << 18, file), &[port], 0)
                .map_err(failed("write capture", path))
        })
        .transpose()?;
    let mode = match (&input, &writer) {
        (Some(_), Some(_)) => "read,write",
        (Some(_), None) => "read",
        (None, Some(_)) => "write",
        (None, None) => "discard",
    };
    let output = Output { writer, stats: Stats::default() };
    let pcap = Pcap { input, output, pieces: Pieces::default() };
    Ok(Opened { queues: vec![Port::Pcap(Box::new(pcap))], mode: mode.to_owned(), notes: Vec::new() })
}

impl Pcap {
    /// See [`Port::receive`].
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, mut sink: impl FnMut(Frame)) -> usize {
        let stats = &mut self.output.stats;
        let mut done = 0;
        while done < budget {
            let Some(input) = &mut self.input else { break };
            match input.read() {
                Ok(Some(record)) if record.bytes.len() > packet::pool::LARGE_ROOM => stats.rx_errors += 1,
                Ok(Some(record)) => match pool.alloc_from(record.bytes) {
                    Some(mut frame) => {
                        // A capture of a local sender has partial checksums, and nothing that says so.
                        frame.set_checksum(Checksum::Unknown);
                        stats.rx_frames += 1;
                        stats.rx_bytes += frame.len() as u64;
                        done += 1;
                        sink(frame);
                    }
                    None => stats.rx_no_memory += 1,
                },
                Ok(None) => self.input = None,
                Err(_) => {
                    stats.rx_errors += 1;
                    self.input = None;
                }
            }
        }
        done
    }

    /// See [`Port::transmit`].
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        if queue.is_empty() {
            return;
        }
        let time = now();
        while let Some(mut frame) = queue.pop() {
            match Can::default().prepare(&mut frame, &mut self.output.stats) {
                Next::Send => self.output.write(frame, time, pool),
                Next::Cut => {
                    self.pieces.cut(frame, &Can::default(), pool, &mut self.output.stats);
                    while let Some(piece) = self.pieces.queue().pop() {
                        self.output.write(piece, time, pool);
                    }
                }
                Next::Drop => {
                    self.output.stats.tx_errors += 1;
                    pool.free(frame);
                }
            }
        }
    }

    /// See [`Port::wants_turn`].
    pub fn wants_turn(&mut self) -> bool {
        self.input.is_some()
    }

    /// See [`Port::stats`].
    pub fn stats(&self) -> Stats {
        self.output.stats
    }

    /// See [`Port::close`]. What was written reaches the file.
    pub fn close(mut self, pool: &mut FramePool) {
        self.pieces.clear(pool);
        if let Some(writer) = &mut self.output.writer {
            // Nobody is left to be told; the writes before have counted their errors.
            let _ = writer.flush();
        }
    }
}

impl Output {
    fn write(&mut self, frame: Frame, time: u64, pool: &mut FramePool) {
        let written = match &mut self.writer {
            Some(writer) => writer.write(time, 0, Direction::Unknown, frame.bytes(), frame.len()).is_ok(),
            None => true,
        };
        if written {
            self.stats.tx_frames += 1;
            self.stats.tx_bytes += frame.len() as u64;
        } else {
            self.stats.tx_errors += 1;
        }
        pool.free(frame);
    }
}

/// Returns the time of day in nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
