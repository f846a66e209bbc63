//! `vspktgen receive`: counts frames, and finds loss, reordering and duplicates by their numbers.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::device::{Device, Name};
use crate::report::{Latency, Volume, histogram};
use crate::stop::{Progress, seconds, stop_after, stopped};
use crate::traffic::{Tag, now, read_tag};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Where to receive: KIND:NAME, see below.
    device: Name,
    /// Stop after this many generated frames.
    #[arg(long)]
    count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_parser = seconds)]
    duration: Option<Duration>,
    /// Stop when nothing generated has come for this many seconds after the first frame.
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    idle: Option<Duration>,
    /// Report the time from sender to receiver, by the machine's clock.
    #[arg(long)]
    latency: bool,
    /// Never sleep.
    #[arg(long)]
    busy: bool,
    /// Print a line every second to stderr.
    #[arg(long)]
    progress: bool,
}

/// What was received.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub device: String,
    /// Generated frames, over the time from the first to the last.
    pub received: Volume,
    pub flows: u64,
    /// Numbers that never came, below the highest that did.
    pub lost: u64,
    /// Came after a higher number of their flow.
    pub reordered: u64,
    pub duplicates: u64,
    /// Frames that vspktgen did not make.
    pub foreign: u64,
    /// Dropped by the kernel because this receiver was too slow.
    pub kernel_drops: u64,
    pub latency: Option<Latency>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "received  {}", self.received)?;
        writeln!(
            f,
            "lost {}  reordered {}  duplicates {}  flows {}  foreign {}  kernel drops {}",
            self.lost, self.reordered, self.duplicates, self.flows, self.foreign, self.kernel_drops
        )?;
        match &self.latency {
            Some(latency) => writeln!(f, "one way   {latency}"),
            None => Ok(()),
        }
    }
}

/// What has come of one flow.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    seen: bool,
    first: u64,
    highest: u64,
    received: u64,
    /// The 64 numbers up to `highest`, the highest in bit 0.
    window: u64,
}

/// Loss, reordering and duplicates of all flows. Grows with the highest flow number.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    flows: Vec<Flow>,
    reordered: u64,
    duplicates: u64,
}

impl Ledger {
    /// Enters one frame.
    pub(crate) fn enter(&mut self, tag: &Tag) {
        let index = tag.flow as usize;
        if index >= self.flows.len() {
            self.flows.resize(index + 1, Flow::default());
        }
        let flow = &mut self.flows[index];
        if !flow.seen {
            *flow = Flow { seen: true, first: tag.number, highest: tag.number, received: 1, window: 1 };
            return;
        }
        if tag.number > flow.highest {
            let ahead = u32::try_from(tag.number - flow.highest).unwrap_or(u32::MAX);
            flow.window = flow.window.checked_shl(ahead).unwrap_or(0) | 1;
            flow.highest = tag.number;
            flow.received += 1;
            return;
        }
        let behind = flow.highest - tag.number;
        // Older than the window: taken for late, not for a duplicate.
        let bit = if behind < 64 { 1 << behind } else { 0 };
        if flow.window & bit != 0 {
            self.duplicates += 1;
            return;
        }
        flow.window |= bit;
        flow.first = flow.first.min(tag.number);
        flow.received += 1;
        self.reordered += 1;
    }

    /// Returns how many numbers never came.
    fn lost(&self) -> u64 {
        let missing = |flow: &Flow| (flow.highest - flow.first + 1).saturating_sub(flow.received);
        self.flows.iter().filter(|flow| flow.seen).map(missing).sum()
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut device = Device::open(&options.device, false)?;
    stop_after(options.duration);
    let mut ledger = Ledger::default();
    let mut times: Histogram<u64> = histogram();
    let mut progress = Progress::new(options.progress);
    let (mut frames, mut bytes, mut foreign) = (0_u64, 0_u64, 0_u64);
    let (mut first, mut last) = (None, Instant::now());
    while !stopped() && options.count.is_none_or(|count| frames < count) {
        let before = frames;
        let clock = if options.latency { now() } else { 0 };
        let count = device.receive(|frame| match read_tag(frame) {
            Some(tag) => {
                frames += 1;
                bytes += frame.len() as u64;
                ledger.enter(&tag);
                if options.latency {
                    times.saturating_record(clock.saturating_sub(tag.nanos).max(1));
                }
            }
            None => foreign += 1,
        })?;
        if frames > before {
            last = Instant::now();
            first.get_or_insert(last);
            progress.tell(frames);
        }
        if count == 0 {
            let quiet = first.is_some() && options.idle.is_some_and(|idle| last.elapsed() > idle);
            if quiet || options.device.kind == "pcap" {
                break;
            }
            if !options.busy {
                device.wait(20)?;
            }
        }
    }
    Ok(Report {
        device: options.device.to_string(),
        received: Volume::new(frames, bytes, first.map_or(Duration::ZERO, |first| last - first)),
        flows: ledger.flows.iter().filter(|flow| flow.seen).count() as u64,
        lost: ledger.lost(),
        reordered: ledger.reordered,
        duplicates: ledger.duplicates,
        foreign,
        kernel_drops: device.take_drops(),
        latency: options.latency.then(|| Latency::new(&times, 1.0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(ledger: &mut Ledger, flow: u32, numbers: &[u64]) {
        for number in numbers {
            ledger.enter(&Tag { flow, number: *number, nanos: 0 });
        }
    }

    #[test]
    fn loss_reordering_and_duplicates_are_told_apart() {
        let mut ledger = Ledger::default();
        enter(&mut ledger, 0, &[5, 6, 8, 7, 7, 10]);
        assert_eq!((ledger.lost(), ledger.reordered, ledger.duplicates), (1, 1, 1));
        enter(&mut ledger, 3, &[0, 1000, 1]);
        assert_eq!((ledger.lost(), ledger.reordered, ledger.duplicates), (1 + 998, 2, 1));
    }

    #[test]
    fn a_late_first_frame_is_not_lost() {
        let mut ledger = Ledger::default();
        enter(&mut ledger, 0, &[1, 0, 2]);
        assert_eq!((ledger.lost(), ledger.reordered, ledger.duplicates), (0, 1, 0));
    }
}
