//! Ends a run: by a signal, after a time, or after a count.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

/// Set by the first SIGINT or SIGTERM; the loops read it every pass.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT and SIGTERM end the run with a report; a second one ends the process.
pub(crate) fn catch_signals() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        let _ = signals.wait();
        STOP.store(true, Ordering::Relaxed);
        let _ = signals.wait();
        std::process::exit(130);
    });
    Ok(())
}

/// Sets [`STOP`] after `duration`, if one is given.
pub(crate) fn stop_after(duration: Option<Duration>) {
    if let Some(duration) = duration {
        thread::spawn(move || {
            thread::sleep(duration);
            STOP.store(true, Ordering::Relaxed);
        });
    }
}

/// Says whether the run has been ended.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Prints a line to stderr every second, when asked to.
#[derive(Debug)]
pub(crate) struct Progress {
    next: Option<Instant>,
    last: u64,
}

impl Progress {
    pub(crate) fn new(wanted: bool) -> Self {
        Self { next: wanted.then(|| Instant::now() + Duration::from_secs(1)), last: 0 }
    }

    /// Tells how far the run is: `frames` in all.
    pub(crate) fn tell(&mut self, frames: u64) {
        let Some(next) = self.next else { return };
        if Instant::now() >= next {
            eprintln!("{frames} frames, {} in the last second", frames - self.last);
            self.last = frames;
            self.next = Some(next + Duration::from_secs(1));
        }
    }
}

/// Reads seconds with a fraction, as `--duration` takes them.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number of seconds"))?;
    Duration::try_from_secs_f64(value).map_err(|error| error.to_string())
}
