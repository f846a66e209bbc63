//! `vspktgen replay`: the frames of a capture, at a rate.
//!
//! The capture is read into memory first, so that the rate does not hang on the disk. Frames are sent as they
//! are; recorded times are not kept.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::device::{Device, Name};
use crate::send::{Report, Schedule, drive};
use crate::stop::STOP;

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The capture, pcap or pcapng.
    file: PathBuf,
    /// Where to send: KIND:NAME, see below.
    device: Name,
    /// Send the whole capture this many times.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    #[command(flatten)]
    schedule: Schedule,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let frames = load(&options.file)?;
    let mut device = Device::open(&options.device, true)?;
    let mut schedule = options.schedule.clone();
    let all = options.repeat.saturating_mul(frames.len() as u64);
    schedule.count = Some(schedule.count.map_or(all, |count| count.min(all)));
    let mut next = 0;
    drive(&options.device, &mut device, &schedule, 1, |device, _| {
        let frame = &frames[next];
        let pushed = device.push(frame.len(), |bytes| bytes.copy_from_slice(frame));
        if pushed {
            next = (next + 1) % frames.len();
        }
        pushed
    })
}

fn load(file: &std::path::Path) -> Result<Vec<Vec<u8>>> {
    let name = Name { kind: "pcap".to_owned(), device: file.display().to_string() };
    let mut device = Device::open(&name, false)?;
    let mut frames = Vec::new();
    loop {
        let count = device.receive(|frame| frames.push(frame.to_vec()))?;
        if count == 0 || STOP.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
    }
    if frames.is_empty() {
        bail!("{} holds no frames", file.display());
    }
    Ok(frames)
}
