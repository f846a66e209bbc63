//! `vspktgen loop`: the bare forwarding loops of [`ports::bare`] over two devices of one kind, or between a packet socket
//! and a device that is shared by redirecting all of it into a tap.
//!
//! With `--ports` the same loop runs over the switch's ports instead, of any two kinds, and without a pipeline
//! between them: what a port costs is its distance to the bare loop, what the pipeline and the worker cost is
//! the switch's distance to this one.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use packet::FramePool;
use ports::bare::shared::Redirect;
use ports::bare::{self, Totals};
use serde::Serialize;

use crate::device::{Device, Name, area};
use crate::report::Volume;
use crate::stop::{STOP, seconds, stop_after, stopped};

/// The tap that a shared device is redirected into.
const SHARING: &str = "vspktgen";

/// What to do when no frame waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    /// Look again at once.
    Busy,
    /// Sleep until a device is readable.
    Poll,
}

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// One device: veth:NAME, tap:NAME or afxdp:NAME. Taps are made; move them where they should be.
    first: Name,
    /// The other, of the same kind; or, beside veth:NAME, shared:NAME: any device, all of whose traffic is redirected.
    second: Name,
    /// What to do when no frame waits.
    #[arg(long, value_enum, default_value = "poll")]
    wait: Wait,
    /// Run over the switch's ports, not barely.
    #[arg(long)]
    ports: bool,
    /// Stop after this many seconds.
    #[arg(long, value_parser = seconds)]
    duration: Option<Duration>,
}

/// What the loop has moved.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub kind: String,
    /// Both directions.
    pub forwarded: Volume,
    pub refused: u64,
    pub busy_turns: u64,
    pub idle_turns: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "forwarded {}", self.forwarded)?;
        writeln!(
            f,
            "refused {}  turns with frames {}, without {}",
            self.refused, self.busy_turns, self.idle_turns
        )
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let (first, second) = (&options.first, &options.second);
    let shared = first.kind == "veth" && second.kind == "shared";
    if first.kind != second.kind && !options.ports && !shared {
        bail!("a bare loop is between two devices of one kind, not {} and {}", first.kind, second.kind);
    }
    if first.device == second.device {
        bail!("a loop needs two devices");
    }
    let wait = if options.wait == Wait::Busy { bare::Wait::Busy } else { bare::Wait::Poll };
    let devices = [first.device.as_str(), second.device.as_str()];
    let mut totals = Totals::default();
    stop_after(options.duration);
    let start = Instant::now();
    let result = match first.kind.as_str() {
        _ if options.ports => return through_ports(options),
        "veth" if shared => bare::shared::forward(devices[0], devices[1], SHARING, wait, &STOP, &mut totals),
        "veth" | "packet" => bare::packet::forward(devices, wait, &STOP, &mut totals),
        "tap" => bare::tap::forward(devices, wait, &STOP, &mut totals, || ()),
        "afxdp" => bare::xdp::forward(devices, wait, &STOP, &mut totals),
        other => bail!("there is no bare loop over {other}: veth, tap or afxdp"),
    };
    result.with_context(|| format!("cannot forward between {first} and {second}"))?;
    Ok(Report {
        kind: first.kind.clone(),
        forwarded: Volume::new(totals.frames, totals.bytes, start.elapsed()),
        refused: totals.refused,
        busy_turns: totals.busy_turns,
        idle_turns: totals.idle_turns,
    })
}

/// The loop over ports: what one has received, the other transmits.
fn through_ports(options: &Options) -> Result<Report> {
    let area = area()?;
    let mut pool = FramePool::new(Arc::clone(&area));
    let mut a = Device::open_in(&area, &options.first, true)?;
    let shared = options.second.kind == "shared";
    let tap = Name { kind: "tap".to_owned(), device: SHARING.to_owned() };
    let mut b = Device::open_in(&area, if shared { &tap } else { &options.second }, true)?;
    let outside = &options.second.device;
    let _redirect = shared
        .then(|| Redirect::between(outside, SHARING).with_context(|| format!("cannot redirect {outside}")))
        .transpose()?;
    let (mut frames, mut busy_turns, mut idle_turns) = (0, 0, 0);
    let start = Instant::now();
    while !stopped() {
        let moved = a.forward_to(&mut b, &mut pool)? + b.forward_to(&mut a, &mut pool)?;
        frames += moved as u64;
        if moved > 0 {
            busy_turns += 1;
            continue;
        }
        idle_turns += 1;
        if options.wait == Wait::Poll {
            Device::wait_for_either(&a, &b, 100)?;
        }
    }
    let time = start.elapsed();
    let (stats_a, stats_b) = (a.stats(), b.stats());
    Ok(Report {
        kind: format!("{} to {} as ports", options.first.kind, options.second.kind),
        forwarded: Volume::new(frames, stats_a.tx_bytes + stats_b.tx_bytes, time),
        refused: stats_a.tx_errors + stats_b.tx_errors,
        busy_turns,
        idle_turns,
    })
}
