//! Monotonic time as a plain number, so that the pipeline can be given any clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in monotonic time: nanoseconds since an arbitrary start. Eight bytes, `Copy`, never read from a
/// clock by the pipeline: a worker passes one a turn, a test winds its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of time; the first instant a hand-wound clock shows.
    pub const ZERO: Instant = Instant(0);

    /// Returns the instant `nanos` after the start of time.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the start of time.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Reads `CLOCK_MONOTONIC`. Costs about 20 ns (vDSO): a worker calls it once a turn.
    pub fn now() -> Self {
        use std::sync::OnceLock;
        static START: OnceLock<std::time::Instant> = OnceLock::new();
        let start = *START.get_or_init(|| {
            // One second before the first call, so that no live instant equals `ZERO`.
            let now = std::time::Instant::now();
            now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
        });
        Self(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the time since `earlier`, or zero when `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}
