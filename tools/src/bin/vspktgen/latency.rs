//! `vspktgen latency`: ping-pong between a requester and a responder, as a histogram.
//!
//! The requester sends one frame and waits for it to come back; the next leaves at once or after an interval.
//! The report gives whole round trips and halves of them (the latter is what sockperf prints).

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use crate::device::{Device, Name, mac_of};
use crate::report::{Latency, histogram};
use crate::stop::{seconds, stop_after, stopped};
use crate::traffic::{Maker, Traffic, now, read_tag, turn_round};

/// Options of the command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Where to send and receive: KIND:NAME, see below.
    device: Name,
    /// Send every generated frame back instead of asking.
    #[arg(long)]
    respond: bool,
    #[command(flatten)]
    traffic: Traffic,
    /// Stop after this many round trips.
    #[arg(long)]
    count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_parser = seconds)]
    duration: Option<Duration>,
    /// Seconds from one round trip to the next.
    #[arg(long, value_parser = seconds, default_value = "0")]
    interval: Duration,
    /// Seconds after which an answer counts as lost.
    #[arg(long, value_parser = seconds, default_value = "0.1")]
    timeout: Duration,
    /// Round trips before counting begins.
    #[arg(long, default_value_t = 100)]
    warm_up: u64,
    /// Never sleep while waiting.
    #[arg(long)]
    busy: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub device: String,
    /// Frames sent back, when responding.
    pub answered: Option<u64>,
    pub lost: u64,
    pub round_trip: Option<Latency>,
    pub half_round_trip: Option<Latency>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(answered) = self.answered {
            return writeln!(f, "answered {answered} frames");
        }
        for (name, latency) in [("round trip", &self.round_trip), ("half", &self.half_round_trip)] {
            if let Some(latency) = latency {
                writeln!(f, "{name:10} {latency}")?;
            }
        }
        writeln!(f, "lost {}", self.lost)
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Report> {
    if matches!(options.device.kind.as_str(), "memory" | "pcap") {
        bail!("{} cannot answer: latency needs a device with something behind it", options.device);
    }
    let device = Device::open(&options.device, true)?;
    stop_after(options.duration);
    if options.respond { respond(options, device) } else { ask(options, device) }
}

fn respond(options: &Options, mut device: Device) -> Result<Report> {
    let mut answers: Vec<Vec<u8>> = Vec::new();
    let mut answered = 0;
    while !stopped() {
        let mut count = 0;
        let received = device.receive(|frame| {
            if read_tag(frame).is_none() || turn_round(frame).is_none() {
                return;
            }
            if count == answers.len() {
                answers.push(Vec::new());
            }
            answers[count].clear();
            answers[count].extend_from_slice(frame);
            count += 1;
        })?;
        for answer in &answers[..count] {
            device.push(answer.len(), |bytes| bytes.copy_from_slice(answer));
        }
        if count > 0 {
            answered += device.flush()?.0;
        } else if received == 0 && !options.busy {
            device.wait(20)?;
        }
    }
    let device = options.device.to_string();
    Ok(Report { device, answered: Some(answered), lost: 0, round_trip: None, half_round_trip: None })
}

fn ask(options: &Options, mut device: Device) -> Result<Report> {
    let mut maker = Maker::new(&options.traffic, mac_of(&options.device)).map_err(|e| anyhow!(e))?;
    let mut times = histogram();
    let (mut lost, mut asked) = (0, 0_u64);
    while !stopped() && options.count.is_none_or(|count| times.len() < count) {
        let stamp = now();
        let start = Instant::now();
        let len = maker.next_len();
        device.push(len, |bytes| maker.write(bytes, stamp));
        device.flush()?;
        asked += 1;
        let mut answer = None;
        while answer.is_none() && start.elapsed() < options.timeout && !stopped() {
            let count = device.receive(|frame| {
                // By its time of birth, a late answer to an earlier question is told from the right one.
                if read_tag(frame).is_some_and(|tag| tag.nanos == stamp) {
                    answer = Some(start.elapsed());
                }
            })?;
            if count == 0 && !options.busy {
                device.wait(20)?;
            }
        }
        match answer {
            Some(time) if asked > options.warm_up => {
                times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
            }
            Some(_) => {}
            None if asked > options.warm_up && !stopped() => lost += 1,
            None => {}
        }
        let rest = options.interval.saturating_sub(start.elapsed());
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
    }
    if times.is_empty() {
        bail!("no answer came: is a responder (vspktgen latency DEVICE --respond) on the other side?");
    }
    Ok(Report {
        device: options.device.to_string(),
        answered: None,
        lost,
        round_trip: Some(Latency::new(&times, 1.0)),
        half_round_trip: Some(Latency::new(&times, 2.0)),
    })
}
