//! Ports get devices and queues, and lose them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use config::{Network, Port};
use futures_util::future::join_all;
use packet::PortId;

use super::upkeep::Sample;
use super::{Attached, Condition, Manager, Waiting};
use crate::compile::{self, Overlay};
use crate::intent::Intent;
use crate::plug;

/// How long to wait before a port that could not be plugged in is tried again.
const AGAIN: Duration = Duration::from_secs(1);

impl Manager {
    /// Makes or adopts the port's device, opens its queues, and gives them to workers. Frames do not flow before
    /// the next snapshot.
    ///
    /// # Errors
    /// The device or its queues cannot be had; nothing is left of them.
    pub(super) async fn plug_in(&mut self, port: &Port, network: &Network) -> Result<(), plug::Error> {
        let waiting = self.waiting.remove(&port.name);
        let before = match &waiting {
            Some(waiting) => waiting.before.clone(),
            None => self.saved.ports.get(&port.name).cloned(),
        };
        let plugged = before.as_ref().map(|before| &before.plugged);
        let area = self.crew.area();
        let (plugged, opened) = match plug::plug(&self.devices, area, port, network, plugged, self.fill).await
        {
            Ok(done) => done,
            Err(error) => {
                self.waiting.extend(waiting.map(|waiting| (port.name.clone(), waiting)));
                return Err(error);
            }
        };
        let wanted = before.map(|before| before.id.0);
        let number = self.port_numbers.take(wanted).expect("the change was checked against [limits] ports");
        let id = PortId(number);
        let first = self.least_loaded();
        let workers = self.crew.add_port(id, opened.queues, first).await;
        let adopted = if plugged.device.adopted { "adopted" } else { "made" };
        self.journal.note(
            "port_up",
            format!("port {}", port.name),
            format!(
                "{} {} in {} {adopted}, worker {first}, {}",
                plugged.kind, plugged.far.ifname, plugged.device.netns, opened.mode
            ),
        );
        let base = Sample::take(self.crew.tables(), id);
        let notes = [plugged.device.notes.clone(), opened.notes].concat();
        self.ports.insert(
            port.name.clone(),
            Attached {
                id,
                mac: plug::far_mac(port, network),
                plugged,
                mode: opened.mode,
                notes,
                workers,
                condition: Condition::Up,
                last: base.clone(),
                base,
                sampled: Instant::now(),
                rates: config::api::Rates::default(),
            },
        );
        Ok(())
    }

    /// Sets the far end of an attached port to what is configured now.
    ///
    /// # Errors
    /// The kernel refuses; the far end may be half changed, and setting it back is up to the caller.
    pub(super) async fn adjust(&mut self, port: &Port, network: &Network) -> Result<(), plug::Error> {
        let Some(attached) = self.ports.get_mut(&port.name) else { return Ok(()) };
        attached.plugged = plug::adjust(&self.devices, port, network, &attached.plugged).await?;
        attached.mac = plug::far_mac(port, network);
        Ok(())
    }

    /// Takes ports away: no frame is decided for them any more, their queues are closed, and with `devices` what
    /// they stand on is removed.
    pub(super) async fn unplug(&mut self, names: &[String], devices: bool) {
        let leaving: Vec<(String, Attached)> =
            names.iter().filter_map(|name| self.ports.remove_entry(name)).collect();
        if leaving.is_empty() {
            return;
        }
        self.publish();
        let crew = &self.crew;
        let answers = join_all(leaving.iter().map(|(_, attached)| crew.remove_port(attached.id))).await;
        let ids: HashSet<PortId> = leaving.iter().map(|(_, attached)| attached.id).collect();
        crew.tables().fdb.remove(|station| ids.contains(&station.port));
        self.fixed.retain(|_, at| !ids.contains(&at.port));
        if devices {
            let removals = leaving.iter().map(|(name, attached)| async {
                let removed = self.devices.remove(attached.plugged.device.clone()).await;
                (name.clone(), removed)
            });
            for (name, removed) in join_all(removals).await {
                if let Err(error) = removed {
                    self.journal.note("device_stays", format!("port {name}"), error.to_string());
                }
            }
        }
        for ((name, attached), answer) in leaving.into_iter().zip(answers) {
            match answer {
                Some(stats) => {
                    self.closed_tx_errors += stats.tx_errors;
                    self.port_numbers.free(attached.id.0);
                }
                // The number stays taken: a worker may still use it.
                None => self.journal.note("port_stuck", format!("port {name}"), "a worker holds it"),
            }
        }
    }

    /// Takes a port whose device has vanished out of the switch; it is tried again until the device can be made
    /// anew.
    pub(super) async fn lose(&mut self, name: &str, reason: String) {
        let Some(attached) = self.ports.get(name) else { return };
        let before = crate::store::PortRecord { id: attached.id, plugged: attached.plugged.clone() };
        self.journal.note("port_gone", format!("port {name}"), reason.clone());
        self.unplug(&[name.to_owned()], true).await;
        let again = Instant::now();
        self.waiting.insert(name.to_owned(), Waiting { gone: true, reason, again, before: Some(before) });
    }

    /// Tries the ports again that have no device.
    pub(super) async fn retry_waiting(&mut self) {
        let now = Instant::now();
        let due: Vec<String> =
            self.waiting.iter().filter(|(_, w)| w.again <= now).map(|(name, _)| name.clone()).collect();
        let mut attached = false;
        for name in due {
            let Some((port, network)) = self.port_with_network(&name) else { continue };
            match self.plug_in(&port, &network).await {
                Ok(()) => attached = true,
                Err(error) => self.wait(&name, error.to_string()),
            }
        }
        if attached {
            self.publish();
            self.save_records();
        }
    }

    /// Notes that a port has no device, and why.
    pub(super) fn wait(&mut self, name: &str, reason: String) {
        let before = self.saved.ports.get(name).cloned();
        let entry = self.waiting.entry(name.to_owned()).or_insert_with(|| {
            let object = format!("port {name}");
            self.journal.note("port_pending", object, reason.clone());
            Waiting { gone: false, reason: reason.clone(), again: Instant::now(), before }
        });
        entry.reason = reason;
        entry.again = Instant::now() + AGAIN;
    }

    fn port_with_network(&self, name: &str) -> Option<(Port, Network)> {
        let port = &self.saved.intent.ports.get(name)?.object;
        let network = &self.saved.intent.networks.get(&port.network)?.object;
        Some((port.clone(), self.resolved(&self.saved.intent, network)))
    }

    /// Returns a network of `intent` as ports are made for it: with its MTU.
    pub(super) fn resolved(&self, intent: &Intent, network: &Network) -> Network {
        Overlay::of(intent).resolved(network, self.surroundings.underlay_mtu)
    }

    /// Sets the MTU of ports whose network follows the underlay, after that has changed.
    pub(super) async fn follow_mtu(&mut self) {
        let names: Vec<String> = self.ports.keys().cloned().collect();
        let mut changed = false;
        for name in names {
            let Some((port, network)) = self.port_with_network(&name) else { continue };
            let mtu = u32::from(compile::mtu(&port, &network));
            if self.ports.get(&name).is_none_or(|attached| attached.plugged.far.mtu == mtu) {
                continue;
            }
            changed = true;
            match self.adjust(&port, &network).await {
                Ok(()) => self.journal.note("mtu", format!("port {name}"), format!("is {mtu} now")),
                Err(error) => self.journal.note("mtu_stays", format!("port {name}"), error.to_string()),
            }
        }
        if changed {
            self.publish();
            self.save_records();
        }
    }

    /// Returns the worker with the fewest queues.
    fn least_loaded(&self) -> usize {
        let mut queues = vec![0_usize; self.crew.shared().len()];
        for worker in self.ports.values().flat_map(|attached| &attached.workers) {
            queues[*worker] += 1;
        }
        queues.iter().enumerate().min_by_key(|(_, count)| **count).map_or(0, |(worker, _)| worker)
    }
}
