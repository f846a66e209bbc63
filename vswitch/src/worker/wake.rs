//! How a worker goes to sleep and how others wake it, without a lost wake-up and without a system call while
//! it is awake.
//!
//! The sleeper raises a flag, looks once more whether there is work, and only then waits. Whoever brings work
//! puts it where the sleeper looks, then takes the flag; who took it rings the bell (an eventfd). Both sides
//! do "write mine, then read the other's" with a sequentially consistent fence between, so at least one of
//! them sees the other: either the sleeper finds the work or the bringer finds the flag.
//!
//! The bell is edge-triggered and never read: a write while nobody waits makes the next wait return at once,
//! which costs one turn and loses nothing.
//!
//! Threads: any number may ring; one sleeps.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// The flag of the protocol; a trait so that the test can run it on a scheduler that tries all interleavings.
trait Flag {
    /// Says "I am about to sleep". What the caller reads afterwards is not older than this.
    fn raise(&self);
    /// Says "I am awake".
    fn lower(&self);
    /// Lowers the flag and returns whether it was up. Not earlier than what the caller wrote before.
    fn take(&self) -> bool;
}

impl Flag for AtomicBool {
    fn raise(&self) {
        self.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn lower(&self) {
        self.store(false, Ordering::SeqCst);
    }

    fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain read first: a worker that is awake must not have its flag's cache line pulled away.
        self.load(Ordering::Relaxed) && self.swap(false, Ordering::SeqCst)
    }
}

/// Waits if there is nothing to do; returns whether it did.
fn sleep(flag: &impl Flag, idle: impl FnOnce() -> bool, wait: impl FnOnce()) -> bool {
    flag.raise();
    let idle = idle();
    if idle {
        wait();
    }
    flag.lower();
    idle
}

/// Rings if the other sleeps. The work must be in its place before the call.
fn wake(flag: &impl Flag, ring: impl FnOnce()) {
    if flag.take() {
        ring();
    }
}

/// One worker's flag and bell.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    eventfd: EventFd,
}

impl Bell {
    /// Makes a bell whose owner is awake.
    ///
    /// # Errors
    /// What `eventfd` says.
    pub fn new() -> io::Result<Self> {
        let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { asleep: AtomicBool::new(false), eventfd })
    }

    /// Wakes the owner if it sleeps; a fence and a read if it does not.
    pub fn ring(&self) {
        wake(&self.asleep, || {
            // The counter would have to reach 2^64 - 1 for this to fail.
            let _ = self.eventfd.write(1);
        });
    }

    /// Runs `wait` unless `idle`, asked after the flag is up, finds work. To be called by the owner only.
    /// Returns whether it waited.
    pub fn sleep(&self, idle: impl FnOnce() -> bool, wait: impl FnOnce()) -> bool {
        sleep(&self.asleep, idle, wait)
    }

    /// Returns the descriptor to wait on, edge-triggered.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// Says whether the owner sleeps.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}

/// The flag and bell of the manager, which sleeps in its runtime and not here.
#[derive(Debug)]
pub struct Doorbell {
    armed: AtomicBool,
    pipe: PipeWriter,
}

impl Doorbell {
    /// Makes a doorbell, not armed, and the pipe to listen at.
    ///
    /// # Errors
    /// What `pipe` says.
    pub fn new() -> io::Result<(Self, PipeReader)> {
        let (reader, pipe) = io::pipe()?;
        Ok((Self { armed: AtomicBool::new(false), pipe }, reader))
    }

    /// Asks to be rung, once, by whoever brings work from now on. The owner arms the bell, looks for work, and
    /// only then listens.
    pub fn arm(&self) {
        self.armed.raise();
    }

    /// Puts a byte into the pipe if the bell is armed. There is never more than a few, so it does not block.
    pub fn ring(&self) {
        wake(&self.armed, || {
            // Nobody listens any more when this fails.
            let _ = (&self.pipe).write(&[1]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shuttle::sync::atomic::{AtomicBool as ShuttleBool, AtomicUsize as ShuttleCount};
    use shuttle::sync::{Arc, Condvar, Mutex};

    impl Flag for ShuttleBool {
        fn raise(&self) {
            self.store(true, Ordering::SeqCst);
        }
        fn lower(&self) {
            self.store(false, Ordering::SeqCst);
        }
        fn take(&self) -> bool {
            self.load(Ordering::SeqCst) && self.swap(false, Ordering::SeqCst)
        }
    }

    /// An edge-triggered eventfd: a ring is remembered until one wait has returned.
    #[derive(Default)]
    struct ModelBell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl ModelBell {
        fn ring(&self) {
            *self.rung.lock().expect("not poisoned") = true;
            self.changed.notify_one();
        }
        fn wait(&self) {
            let mut rung = self.rung.lock().expect("not poisoned");
            while !*rung {
                rung = self.changed.wait(rung).expect("not poisoned");
            }
            *rung = false;
        }
    }

    /// Two bringers, one sleeper. A lost wake-up leaves the sleeper waiting for ever, which the scheduler
    /// reports as a deadlock.
    fn bringers_and_sleeper() {
        const EACH: usize = 3;
        let flag = Arc::new(ShuttleBool::new(false));
        let work = Arc::new(ShuttleCount::new(0));
        let bell = Arc::new(ModelBell::default());
        let bringers: Vec<_> = (0..2)
            .map(|_| {
                let (flag, work, bell) = (Arc::clone(&flag), Arc::clone(&work), Arc::clone(&bell));
                shuttle::thread::spawn(move || {
                    for _ in 0..EACH {
                        work.fetch_add(1, Ordering::SeqCst);
                        wake(&*flag, || bell.ring());
                    }
                })
            })
            .collect();
        let mut done = 0;
        while done < 2 * EACH {
            let found = work.swap(0, Ordering::SeqCst);
            done += found;
            if found == 0 {
                sleep(&*flag, || work.load(Ordering::SeqCst) == 0, || bell.wait());
            }
        }
        for bringer in bringers {
            bringer.join().expect("did not panic");
        }
    }

    #[test]
    fn no_wake_up_is_lost() {
        shuttle::check_random(bringers_and_sleeper, 2000);
        shuttle::check_pct(bringers_and_sleeper, 2000, 3);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn a_sleeper_that_does_not_look_again_loses_a_wake_up() {
        shuttle::check_random(
            || {
                let flag = Arc::new(ShuttleBool::new(false));
                let work = Arc::new(ShuttleCount::new(0));
                let bell = Arc::new(ModelBell::default());
                let bringer = {
                    let (flag, work, bell) = (Arc::clone(&flag), Arc::clone(&work), Arc::clone(&bell));
                    shuttle::thread::spawn(move || {
                        work.fetch_add(1, Ordering::SeqCst);
                        wake(&*flag, || bell.ring());
                    })
                };
                if work.load(Ordering::SeqCst) == 0 {
                    sleep(&*flag, || true, || bell.wait());
                }
                bringer.join().expect("did not panic");
            },
            2000,
        );
    }

    #[test]
    fn a_bell_rings_only_for_a_sleeper() {
        let bell = Bell::new().expect("an eventfd");
        bell.ring();
        assert!(bell.eventfd.read().is_err(), "nobody slept, so nothing was written");
        assert!(bell.sleep(|| true, || bell.ring()));
        assert_eq!(bell.eventfd.read().expect("rung"), 1);
        assert!(!bell.is_asleep());
    }
}
