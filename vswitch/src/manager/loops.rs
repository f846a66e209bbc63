//! Loops: two ports that are wired together outside the switch.
//!
//! The sign is stations that move to and fro. When a network sees `SUSPICIOUS` moves within a second, a probe
//! is sent by each of the two ports; one that comes back proves the loop, and the port it came in by is
//! disabled. After a while it is enabled again; if the loop is still there, it is soon seen anew, and the port
//! stays disabled twice as long.
//!
//! No probe is sent without suspicion, and no port is disabled without proof: a station that roams between two
//! access points costs nobody a port.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use packet::{NetworkId, PortId};
use pipeline::stages::loops::Probe;
use pipeline::tables::StationKey;

use super::{Condition, Manager};
use crate::compile::made_mac;

/// Moves within a second that raise suspicion.
const SUSPICIOUS: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);
/// How often the manager looks for storms, and how many frames in that time make one: of all ports together by the
/// slow path, and in by one port. A loop makes hundreds of thousands a second.
pub(super) const LOOK: Duration = Duration::from_millis(250);
const STORM: u64 = 500;
/// How long a port is disabled at first, and at most.
const DISABLED: Duration = Duration::from_secs(30);
const DISABLED_MOST: Duration = Duration::from_secs(3600);
/// A port that was up for so long after it was enabled again starts from the beginning.
const FORGIVEN: Duration = Duration::from_secs(300);

/// What is known of loops.
#[derive(Debug, Default)]
pub struct LoopGuard {
    moves: HashMap<NetworkId, (Instant, u32)>,
    /// Frames by the slow path, and frames in by each port, at the last look.
    slow: u64,
    received: HashMap<PortId, u64>,
    /// When each port was last enabled again, and how long it had been disabled.
    history: HashMap<String, (Instant, Duration)>,
}

impl LoopGuard {
    /// Counts a move and says whether it is time to probe.
    fn is_suspicious(&mut self, network: NetworkId, now: Instant) -> bool {
        let (start, moves) = self.moves.entry(network).or_insert((now, 0));
        if now.duration_since(*start) > WINDOW {
            (*start, *moves) = (now, 0);
        }
        *moves += 1;
        // Once a window: each round of probes answers the question.
        *moves == SUSPICIOUS
    }

    /// Returns for how long to disable a port.
    fn sentence(&mut self, port: &str, now: Instant) -> Duration {
        let length = match self.history.get(port) {
            Some((enabled, length)) if now.saturating_duration_since(*enabled) < FORGIVEN => {
                (*length * 2).min(DISABLED_MOST)
            }
            _ => DISABLED,
        };
        self.history.insert(port.to_owned(), (now + length, length));
        length
    }
}

impl Manager {
    /// Notes that a station moved; probes when stations move too often.
    pub(super) async fn station_moved(&mut self, station: StationKey, from: PortId, to: PortId) {
        let network = station.network;
        if !self.loops.is_suspicious(network, Instant::now()) {
            return;
        }
        let name = self.network_name(network).unwrap_or("?").to_owned();
        self.journal.note(
            "station_moves",
            format!("network {name}"),
            format!(
                "stations move to and fro, the last one {} from port {} to {}: probing for a loop",
                station.mac,
                self.port_name(from).unwrap_or("?"),
                self.port_name(to).unwrap_or("?")
            ),
        );
        for port in [from, to] {
            self.probe(network, port).await;
        }
    }

    /// Sends a probe out of a port.
    async fn probe(&self, network: NetworkId, port: PortId) {
        let Some(attached) = self.ports.values().find(|attached| attached.id == port) else { return };
        let Some(worker) = attached.workers.first() else { return };
        let source = made_mac("probe", &self.name);
        let probe = Probe { network, port }.encode(self.crew.tables().cookie(), source);
        self.crew.inject(port, *worker, &probe).await;
    }

    /// Probes the ports that may be part of a storm.
    pub(super) async fn look_for_storms(&mut self) {
        let tables = std::sync::Arc::clone(self.crew.tables());
        let slow =
            tables.all_counters().iter().map(|counters| counters.ledger.cache_misses.get()).sum::<u64>();
        let is_storm = slow.wrapping_sub(std::mem::replace(&mut self.loops.slow, slow)) > STORM;
        let mut suspects = Vec::new();
        let mut received = HashMap::with_capacity(self.ports.len());
        for (name, attached) in &self.ports {
            let id = attached.id;
            let now =
                tables.all_counters().iter().map(|counters| counters.port(id).rx_frames.get()).sum::<u64>();
            received.insert(id, now);
            // A number that was another port's before has no last look.
            let before = self.loops.received.get(&id).copied().unwrap_or(now);
            if is_storm && now.wrapping_sub(before) > STORM / 2 {
                let port = self.intent().ports.get(name);
                suspects.extend(port.and_then(|port| Some((*self.networks.get(&port.object.network)?, id))));
            }
        }
        self.loops.received = received;
        for (network, port) in suspects {
            self.probe(network, port).await;
        }
    }

    /// Disables the port where a probe came back, or the one that sent it when it came back by another host.
    pub(super) fn loop_seen(&mut self, network: NetworkId, sent_by: PortId, seen_at: PortId) {
        let (place, other) = match self.port_name(seen_at) {
            Some(_) => (seen_at, sent_by),
            None => (sent_by, seen_at),
        };
        let Some(name) = self.port_name(place).map(str::to_owned) else { return };
        let other = self.called_port(other).unwrap_or_else(|| "?".to_owned());
        let network = self.network_name(network).unwrap_or("?").to_owned();
        // The probe of a port that is disabled already may still be on its way.
        if self
            .ports
            .values()
            .any(|a| [seen_at, sent_by].contains(&a.id) && matches!(a.condition, Condition::Disabled { .. }))
        {
            return;
        }
        let now = Instant::now();
        let length = self.loops.sentence(&name, now);
        let seconds = length.as_secs();
        let reason = if place == seen_at {
            format!(
                "loop: what port {other} of network {network} sends comes back here; enabled again after {seconds} s"
            )
        } else {
            format!("loop: what it sends comes back by the {other}; enabled again after {seconds} s")
        };
        self.journal.note("port_disabled", format!("port {name}"), reason.clone());
        if let Some(attached) = self.ports.get_mut(&name) {
            attached.condition = Condition::Disabled { reason, until: now + length };
        }
        self.publish();
    }

    /// Enables ports again whose time is over.
    pub(super) fn enable_again(&mut self) {
        let now = Instant::now();
        let mut enabled = Vec::new();
        for (name, attached) in &mut self.ports {
            if matches!(attached.condition, Condition::Disabled { until, .. } if until <= now) {
                attached.condition = Condition::Up;
                enabled.push(name.clone());
            }
        }
        for name in &enabled {
            self.journal.note("port_enabled", format!("port {name}"), "enabled again");
        }
        if !enabled.is_empty() {
            self.publish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_suspicious_only_within_a_second() {
        let mut guard = LoopGuard::default();
        let start = Instant::now();
        let slow =
            (0..20).filter(|n| guard.is_suspicious(NetworkId(1), start + Duration::from_millis(300 * n)));
        assert_eq!(slow.count(), 0);
        let later = start + Duration::from_secs(60);
        let fast =
            (0..20).filter(|n| guard.is_suspicious(NetworkId(1), later + Duration::from_millis(10 * n)));
        assert_eq!(fast.count(), 1);
    }

    #[test]
    fn a_loop_that_stays_disables_the_port_for_longer_each_time() {
        let mut guard = LoopGuard::default();
        let mut now = Instant::now();
        let mut lengths = Vec::new();
        for _ in 0..9 {
            let length = guard.sentence("p", now);
            lengths.push(length.as_secs());
            now += length + Duration::from_secs(2);
        }
        assert_eq!(lengths, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(guard.sentence("p", now + Duration::from_secs(4000)).as_secs(), 30);
    }
}
