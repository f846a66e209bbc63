//! Keeps a rate: says how many frames are due.
//!
//! Frames leave in bursts of a fixed size, evenly spaced. A sender that falls more than [`CATCH_UP`] behind
//! gives the lost time up rather than flood afterwards; what was given up shows as a rate below the target.

use std::thread;
use std::time::{Duration, Instant};

/// How far behind a sender may fall and still make up for it.
const CATCH_UP: Duration = Duration::from_millis(10);
/// Waits longer than this are slept, all but this much; shorter ones are spun away.
const SPIN: Duration = Duration::from_micros(120);

/// Frames a second, or as many as the device takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    Max,
    PerSecond(f64),
}

/// Reads `max`, `1000`, `10k`, `1.5M`.
pub(crate) fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let (number, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(Rate::PerSecond(value * factor)),
        _ => Err(format!("'{text}' is not a rate: frames a second such as 5000, 100k, 1.5M, or max")),
    }
}

/// See the module header.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Rate,
    burst: usize,
    interval: Duration,
    next: Instant,
}

impl Pace {
    /// Bursts of `burst` things that stand for `each` frames.
    pub(crate) fn new(rate: Rate, burst: usize, each: u64) -> Self {
        let interval = match rate {
            Rate::Max => Duration::ZERO,
            Rate::PerSecond(rate) => Duration::from_secs_f64(burst as f64 * each as f64 / rate),
        };
        Self { rate, burst, interval, next: Instant::now() }
    }

    /// Waits until a burst is due and returns its size.
    pub(crate) fn wait(&mut self) -> usize {
        if self.rate == Rate::Max {
            return self.burst;
        }
        loop {
            let now = Instant::now();
            let early = self.next.saturating_duration_since(now);
            if early.is_zero() {
                if now.saturating_duration_since(self.next) > CATCH_UP {
                    self.next = now;
                }
                self.next += self.interval;
                return self.burst;
            }
            if early > SPIN {
                // Not longer than a signal may wait for an answer.
                thread::sleep((early - SPIN).min(Duration::from_millis(50)));
                if super::stop::stopped() {
                    return 0;
                }
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_suffixes() {
        assert_eq!(rate("max"), Ok(Rate::Max));
        assert_eq!(rate("250"), Ok(Rate::PerSecond(250.0)));
        assert_eq!(rate("1.5M"), Ok(Rate::PerSecond(1_500_000.0)));
        for bad in ["", "k", "-3", "0", "fast", "nan", "inf"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(Rate::PerSecond(10_000.0), 10, 1);
        for _ in 0..50 {
            assert_eq!(pace.wait(), 10);
        }
        // The first burst is due at once, so 49 intervals of 1 ms pass.
        assert!(start.elapsed() >= Duration::from_millis(48), "{:?}", start.elapsed());
    }
}
