//! `vspktgen send`: generated frames at a rate.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use crate::device::{BATCH, Device, Name, mac_of};
use crate::pace::{Pace, Rate, rate};
use crate::report::Volume;
use crate::stop::{Progress, seconds, stop_after, stopped};
use crate::traffic::{Maker, Traffic, now};

/// How fast, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Schedule {
    /// Frames a second (5000, 100k, 1.5M), or max.
    #[arg(long, default_value = "max", value_parser = rate)]
    pub rate: Rate,
    /// Frames that leave together.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub burst: u16,
    /// Stop after this many frames.
    #[arg(long)]
    pub count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Print a line every second to stderr.
    #[arg(long)]
    pub progress: bool,
}

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Where to send: KIND:NAME, see below.
    device: Name,
    #[command(flatten)]
    traffic: Traffic,
    #[command(flatten)]
    schedule: Schedule,
}

/// What was sent.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub device: String,
    /// Handed to the device.
    pub sent: Volume,
    /// Made, and not taken by the device.
    pub refused: u64,
    /// What was asked for, when not all that is possible.
    pub target_frames_per_second: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sent      {}", self.sent)?;
        if let Some(target) = self.target_frames_per_second {
            writeln!(f, "target    {target:.0} frames/s")?;
        }
        writeln!(f, "refused   {} frames", self.refused)
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut device = Device::open(&options.device, true)?;
    let mut maker = Maker::new(&options.traffic, mac_of(&options.device)).map_err(|e| anyhow!(e))?;
    let (gso, each) = (maker.gso(), maker.frames_each());
    if gso.is_some() && options.device.kind == "packet" {
        bail!("--gso needs a device with a virtio_net_hdr: veth or tap");
    }
    drive(&options.device, &mut device, &options.schedule, each, |device, nanos| {
        let len = maker.next_len();
        device.push_gso(len, gso, |bytes| maker.write(bytes, nanos))
    })
}

/// Sends what `push` makes, as scheduled. `push` says whether the device had room; what it adds stands for
/// `each` frames.
pub(crate) fn drive(
    name: &Name,
    device: &mut Device,
    schedule: &Schedule,
    each: u64,
    mut push: impl FnMut(&mut Device, u64) -> bool,
) -> Result<Report> {
    stop_after(schedule.duration);
    let burst = match schedule.rate {
        Rate::Max => BATCH,
        // A large frame is a burst.
        Rate::PerSecond(_) if each > 1 => 1,
        Rate::PerSecond(_) => usize::from(schedule.burst),
    };
    let limit = schedule.count.unwrap_or(u64::MAX);
    let (mut made, mut frames, mut bytes) = (0_u64, 0, 0);
    let mut progress = Progress::new(schedule.progress);
    let mut pace = Pace::new(schedule.rate, burst, each);
    let start = Instant::now();
    while made < limit && !stopped() {
        let due = (pace.wait() as u64).min((limit - made).div_ceil(each));
        let nanos = now();
        for _ in 0..due {
            if !push(device, nanos) {
                break;
            }
            made += each;
        }
        let (took, took_bytes) = device.flush()?;
        frames += took * each;
        bytes += took_bytes;
        progress.tell(frames);
    }
    let sent = Volume::new(frames, bytes, start.elapsed());
    // A ring may still hold the last frames.
    let patience = Instant::now() + Duration::from_millis(100);
    let mut late = 0;
    while frames + late < made && Instant::now() < patience {
        let (took, took_bytes) = device.flush()?;
        late += took * each;
        bytes += took_bytes;
    }
    Ok(Report {
        device: name.to_string(),
        sent: Volume { frames: frames + late, bytes, ..sent },
        refused: made.saturating_sub(frames + late),
        target_frames_per_second: match schedule.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(rate),
        },
    })
}
