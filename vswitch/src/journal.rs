//! What happened: the last events, for `vsctl log`, and a stream of new ones, for `vsctl watch`.
//!
//! Changes made by somebody carry who asked (the user id at the other end of the socket), which makes the
//! journal the audit trail as well. Events are also logged, but for those beyond [`LOGGED`] a second, which are
//! counted: a flood of changes must not fill the host's log.
//!
//! Capacity: [`KEPT`] events; the oldest goes. A follower that falls [`KEPT`] events behind loses the oldest.
//! Threads: any.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use config::api::Event;
use tokio::sync::broadcast;

/// Events that are kept.
pub const KEPT: usize = 1024;

/// Events a second that are logged.
pub const LOGGED: u32 = 100;

/// How many events of the present second were logged or not.
#[derive(Debug, Default)]
struct Budget {
    second: u64,
    logged: u32,
    left_out: u32,
}

impl Budget {
    /// Says whether an event at `second` is logged, and how many were not in the second that has just ended.
    fn take(&mut self, second: u64) -> (bool, u32) {
        let mut left_out = 0;
        if second != self.second {
            left_out = self.left_out;
            *self = Budget { second, ..Budget::default() };
        }
        let logged = self.logged < LOGGED;
        if logged {
            self.logged += 1;
        } else {
            self.left_out += 1;
        }
        (logged, left_out)
    }
}

/// The journal. See the module header.
#[derive(Debug)]
pub struct Journal {
    kept: Mutex<VecDeque<Event>>,
    budget: Mutex<Budget>,
    followers: broadcast::Sender<Event>,
}

impl Journal {
    /// Makes an empty journal.
    pub fn new() -> Self {
        Self {
            budget: Mutex::default(),
            kept: Mutex::new(VecDeque::with_capacity(KEPT)),
            followers: broadcast::channel(KEPT).0,
        }
    }

    /// Notes that something of `kind` happened to `object` (`port web`), told in one sentence.
    pub fn note(&self, kind: &str, object: impl Into<String>, text: impl Into<String>) {
        let event =
            Event { time_ms: unix_millis(), kind: kind.to_owned(), object: object.into(), text: text.into() };
        let budget =
            self.budget.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take(event.time_ms / 1000);
        if budget.1 > 0 {
            tracing::warn!("{} more events were not logged", budget.1);
        }
        if budget.0 {
            tracing::info!(kind = event.kind, object = event.object, "{}", event.text);
        }
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // An error means that nobody follows.
        let _ = self.followers.send(event);
    }

    /// Returns the last `limit` events, the oldest first.
    pub fn last(&self, limit: usize) -> Vec<Event> {
        let kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.iter().skip(kept.len().saturating_sub(limit)).cloned().collect()
    }

    /// Returns a stream of the events to come.
    pub fn follow(&self) -> broadcast::Receiver<Event> {
        self.followers.subscribe()
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the milliseconds since 1970.
pub fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_events_is_logged_in_part_and_the_rest_counted() {
        let mut budget = Budget::default();
        let logged = (0..250).filter(|_| budget.take(7).0).count();
        assert_eq!(logged, 100);
        assert_eq!(budget.take(8), (true, 150));
    }

    #[test]
    fn the_oldest_event_goes_and_followers_see_new_ones() {
        let journal = Journal::new();
        journal.note("first", "port a", "before anybody follows");
        let mut follower = journal.follow();
        for n in 0..KEPT {
            journal.note("next", format!("port {n}"), "");
        }
        assert_eq!(journal.last(usize::MAX).len(), KEPT);
        assert_eq!(
            journal.last(2).iter().map(|e| &*e.object).collect::<Vec<_>>(),
            ["port 1022", "port 1023"]
        );
        assert_eq!(follower.try_recv().expect("an event").object, "port 0");
    }
}
