//! What the commands print: rates and latencies, as text and as JSON.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Frames over a time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Volume {
    pub frames: u64,
    pub bytes: u64,
    pub seconds: f64,
    pub frames_per_second: f64,
    pub gigabits_per_second: f64,
}

impl Volume {
    pub(crate) fn new(frames: u64, bytes: u64, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        let per_second = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        Self {
            frames,
            bytes,
            seconds,
            frames_per_second: per_second(frames as f64),
            gigabits_per_second: per_second(bytes as f64 * 8e-9),
        }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames in {:.3} s: {:.0} frames/s, {:.3} Gbit/s",
            self.frames, self.seconds, self.frames_per_second, self.gigabits_per_second
        )
    }
}

/// Percentiles of a histogram of nanoseconds, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub count: u64,
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Latency {
    /// Returns the percentiles, each divided by `parts` (2 for half a round trip).
    pub(crate) fn new(histogram: &Histogram<u64>, parts: f64) -> Self {
        let us = |nanos: u64| nanos as f64 / 1000.0 / parts;
        Self {
            count: histogram.len(),
            min_us: us(if histogram.is_empty() { 0 } else { histogram.min() }),
            mean_us: histogram.mean() / 1000.0 / parts,
            p50_us: us(histogram.value_at_quantile(0.5)),
            p90_us: us(histogram.value_at_quantile(0.9)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            p999_us: us(histogram.value_at_quantile(0.999)),
            max_us: us(histogram.max()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "min {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1} us  ({} samples)",
            self.min_us, self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us, self.count
        )
    }
}

/// Makes a histogram of nanoseconds up to a minute, three digits exact.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constants")
}
