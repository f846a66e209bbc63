//! Rate meters that workers share.
//!
//! The generic cell rate algorithm: a meter is one number, the time at which the bucket would be empty again
//! (ITU-T I.371, virtual scheduling). Any worker may ask and take; taking is one compare-and-swap, in the slow
//! path only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use packet::Instant;

/// How much may come at once, as time at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// One meter, full of tokens at first.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Says whether a frame would be within `rate` frames a second; takes nothing.
    pub fn has_token(&self, rate: u32, now: Instant) -> bool {
        let Some((_, tolerance)) = Self::parameters(rate) else { return false };
        self.0.load(Ordering::Relaxed) <= now.as_nanos().saturating_add(tolerance)
    }

    /// Takes the token of one frame, and says whether there was one.
    pub fn take(&self, rate: u32, now: Instant) -> bool {
        let Some((interval, tolerance)) = Self::parameters(rate) else { return false };
        let now = now.as_nanos();
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |theoretical| {
                (theoretical <= now.saturating_add(tolerance)).then(|| theoretical.max(now) + interval)
            })
            .is_ok()
    }

    /// Returns a frame's share of a second and the tolerance, in nanoseconds; `None` for a rate of zero.
    fn parameters(rate: u32) -> Option<(u64, u64)> {
        let interval = 1_000_000_000u64.checked_div(u64::from(rate))?;
        let burst = u64::try_from(BURST.as_nanos()).expect("a tenth of a second");
        Some((interval, burst.saturating_sub(interval)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(meter: &Meter, rate: u32, offered: u64, from_second: u64) -> u64 {
        let step = 1_000_000_000 / offered;
        let start = from_second * 1_000_000_000;
        (0..offered).filter(|n| meter.take(rate, Instant::from_nanos(start + n * step))).count() as u64
    }

    #[test]
    fn a_meter_passes_its_rate_and_one_burst() {
        let meter = Meter::default();
        // The last token comes free at the end of the second, when nothing asks for it any more.
        assert_eq!(passed(&meter, 1000, 100_000, 1), 1099);
        assert_eq!(passed(&meter, 1000, 100_000, 2), 1000);
    }

    #[test]
    fn a_meter_below_its_rate_passes_everything_and_zero_nothing() {
        assert_eq!(passed(&Meter::default(), 1000, 900, 1), 900);
        assert_eq!(passed(&Meter::default(), 0, 900, 1), 0);
        assert_eq!(passed(&Meter::default(), 1, 50, 1), 1);
    }
}
