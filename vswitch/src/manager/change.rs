//! Changes of the intent: all or nothing.
//!
//! 1. The new intent is checked as a whole. Nothing has happened yet.
//! 2. Devices are made and changed, each step with its reverse noted. A failure takes the steps back.
//! 3. The new intent is written to the store. A failure takes the steps back.
//! 4. It is published to the workers. From here on nothing can fail.
//! 5. Ports that went are taken away.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use config::api::{ApplyReply, ApplyRequest};
use config::{Change, Document, Network, Owner, Port};

use super::flows::asserts;
use super::{Manager, Unconfirmed};
use crate::intent::Intent;
use crate::plug;
use crate::refusal::Refusal;
use crate::store::Saved;

/// Who asks for a change, for the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The daemon itself.
    Daemon,
    /// The user with this number.
    User(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Daemon => f.write_str("the daemon"),
            Who::User(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// What to do about a port whose namespace is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Refuse the change.
    Refuse,
    /// Let the port wait. At a start: containers may come later than the switch.
    Wait,
}

/// The reverse of a step that was taken.
#[derive(Debug)]
enum Undo {
    Unplug(String),
    Adjust(Box<(Port, Network)>),
    PlugIn(Box<(Port, Network)>),
}

impl Manager {
    /// Makes the file's objects those of a configuration text.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing was changed.
    pub async fn apply(&mut self, request: ApplyRequest, who: Who) -> Result<ApplyReply, Refusal> {
        let path = if request.path.is_empty() { "(input)" } else { &request.path };
        let document = Document::parse(&request.toml, path)?;
        let next = self.saved.intent.replace(Owner::File, &document)?;
        next.document().validate()?;
        self.check_limits(&next)?;
        let looked = self.look_at_asserts(&next);
        asserts::hold(&looked)?;
        if request.dry_run {
            let changes = self.saved.intent.document().diff(&next.document());
            let generation = self.generation;
            return Ok(ApplyReply { changes, generation, confirm_deadline: None, asserts: looked });
        }
        let save_to = if request.save { Some(self.save_path()?) } else { None };
        let before = self.saved.intent.clone();
        let changes = self.change(next, Missing::Refuse, who).await?;
        // An apply without a confirmation also settles an earlier one that waits for it.
        let earlier = self.unconfirmed.take();
        if let Some(seconds) = request.confirm {
            self.unconfirmed = Some(Unconfirmed {
                deadline: Instant::now() + Duration::from_secs(u64::from(seconds)),
                // What was never confirmed is nothing to go back to.
                before: earlier.map_or(before, |earlier| earlier.before),
                save: save_to.map(|path| (path, request.toml)),
            });
        } else if let Some(path) = save_to {
            save_text(&path, &request.toml)
                .map_err(|e| Refusal::ours(format!("applied, but not saved to {}: {e}", path.display())))?;
        }
        Ok(ApplyReply {
            changes,
            generation: self.generation,
            confirm_deadline: request.confirm.map(u64::from),
            asserts: looked,
        })
    }

    fn save_path(&self) -> Result<std::path::PathBuf, Refusal> {
        self.config_file.clone().ok_or_else(|| {
            Refusal::conflict("there is no configuration file to save to: start vswitchd with --config")
        })
    }

    /// Keeps the last apply, and saves it if that was asked for.
    ///
    /// # Errors
    /// None waits to be confirmed, or the file cannot be written; the apply is kept then all the same.
    pub fn confirm(&mut self, who: Who) -> Result<(), Refusal> {
        let Some(unconfirmed) = self.unconfirmed.take() else {
            return Err(Refusal::conflict("no apply waits to be confirmed"));
        };
        self.journal.note("confirmed", "", format!("the last apply was confirmed by {who}"));
        if let Some((path, text)) = unconfirmed.save {
            save_text(&path, &text)
                .map_err(|e| Refusal::ours(format!("confirmed, but not saved to {}: {e}", path.display())))?;
        }
        Ok(())
    }

    /// Undoes the last apply if nobody confirmed it in time.
    pub(super) async fn undo_unconfirmed(&mut self) {
        if self.unconfirmed.as_ref().is_none_or(|waiting| waiting.deadline > Instant::now()) {
            return;
        }
        let Some(Unconfirmed { before, .. }) = self.unconfirmed.take() else { return };
        // What commands have made since then stays, unless it cannot do without what the apply brought.
        let file = before.owned_by(Owner::File);
        let undone = match self.saved.intent.replace(Owner::File, &file) {
            Ok(next) => self.change(next, Missing::Wait, Who::Daemon).await,
            Err(taken) => Err(taken.into()),
        };
        let undone = match undone {
            Ok(_) => Ok(()),
            Err(_) => self.change(before, Missing::Wait, Who::Daemon).await.map(drop),
        };
        let (kind, text) = match undone {
            Ok(()) => ("rolled_back", "the last apply was not confirmed in time and is undone".to_owned()),
            Err(refusal) => ("rollback_failed", refusal.to_string()),
        };
        self.journal.note(kind, "", text);
    }

    /// Makes `next` what users want, and what runs.
    ///
    /// # Errors
    /// What is wrong with it, or what could not be made; nothing was changed.
    pub(super) async fn change(
        &mut self,
        next: Intent,
        missing: Missing,
        who: Who,
    ) -> Result<Vec<Change>, Refusal> {
        let document = next.document();
        document.validate()?;
        self.check_limits(&next)?;
        let changes = self.saved.intent.document().diff(&document);
        if changes.is_empty() && next == self.saved.intent {
            return Ok(changes);
        }
        self.enact(next, missing).await?;
        for change in &changes {
            let object = format!("{} {}", change.kind, change.name);
            self.journal.note("changed", object.trim_end(), format!("{change}, by {who}"));
        }
        Ok(changes)
    }

    /// Makes what `next` needs, stores it, and takes away what it does not need.
    ///
    /// # Errors
    /// What could not be made or stored; nothing was changed.
    pub(super) async fn enact(&mut self, next: Intent, missing: Missing) -> Result<(), Refusal> {
        let mut undo = Vec::new();
        let mut made = self.make(&next, missing, &mut undo).await;
        if made.is_ok()
            && let Err(refusal) = self.hold_ports(&next).await
        {
            match missing {
                Missing::Refuse => made = Err(refusal),
                Missing::Wait => self.journal.note("publish_pending", "", refusal.to_string()),
            }
        }
        // At a start devices are used as they can be.
        let mut tried = false;
        if made.is_ok() && missing == Missing::Refuse {
            made = self.try_addresses(&next).await;
            if made.is_ok() {
                made = self.try_uplink(&next.settings.uplink).await;
            }
            tried = true;
        }
        let stored = made.and_then(|()| self.commit(next).map_err(Refusal::from));
        if let Err(refusal) = stored {
            self.take_back(undo).await;
            if tried {
                self.follow_outside().await;
            }
            return Err(refusal);
        }
        self.settle().await;
        Ok(())
    }

    /// Makes and changes the devices that `next` needs.
    async fn make(&mut self, next: &Intent, missing: Missing, undo: &mut Vec<Undo>) -> Result<(), Refusal> {
        let old = self.saved.intent.clone();
        let mut failures = Vec::new();
        for (name, port) in &next.ports {
            let port = &port.object;
            let Some(network) = next.networks.get(&port.network).map(|n| &n.object) else { continue };
            let network = &self.resolved(next, network);
            let was = old.ports.get(name).map(|o| &o.object);
            let was_in = was.and_then(|was| old.networks.get(&was.network)).map(|n| &n.object);
            let was_in = was_in.map(|network| self.resolved(&old, network));
            let done = match (was.zip(was_in.as_ref()), self.ports.contains_key(name)) {
                (Some((was, was_in)), true) => self.remake(was, was_in, port, network, undo).await,
                // It waits already, and nothing about it is new: it will be tried again in its time.
                (Some((was, _)), false) if was == port && self.waiting.contains_key(name) => Ok(()),
                _ => self.plug_in(port, network).await.map(|()| undo.push(Undo::Unplug(name.clone()))),
            };
            match done {
                Ok(()) => {}
                Err(error) if missing == Missing::Wait => self.wait(name, error.to_string()),
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let ours = failures.iter().any(|error| !error.is_missing_namespace());
        let details: Vec<String> = failures.iter().map(ToString::to_string).collect();
        let message = match details.as_slice() {
            [one] => one.clone(),
            more => format!("{} ports cannot be made", more.len()),
        };
        let refusal = if ours { Refusal::conflict(message) } else { Refusal::input(message) };
        Err(if details.len() > 1 { refusal.with_details(details) } else { refusal })
    }

    /// Brings an attached port from one configuration to another.
    async fn remake(
        &mut self,
        was: &Port,
        was_in: &Network,
        port: &Port,
        network: &Network,
        undo: &mut Vec<Undo>,
    ) -> Result<(), plug::Error> {
        let same_far = plug::far_end(was, was_in) == plug::far_end(port, network);
        if plug::needs_new_device(was, port) {
            self.unplug(std::slice::from_ref(&port.name), true).await;
            undo.push(Undo::PlugIn(Box::new((was.clone(), was_in.clone()))));
            self.plug_in(port, network).await?;
            undo.push(Undo::Unplug(port.name.clone()));
        } else if !same_far {
            undo.push(Undo::Adjust(Box::new((was.clone(), was_in.clone()))));
            self.adjust(port, network).await?;
        }
        Ok(())
    }

    /// Takes steps back, the last first.
    async fn take_back(&mut self, undo: Vec<Undo>) {
        for step in undo.into_iter().rev() {
            let (name, done) = match step {
                Undo::Unplug(name) => {
                    self.unplug(std::slice::from_ref(&name), true).await;
                    continue;
                }
                Undo::Adjust(old) => (old.0.name.clone(), self.adjust(&old.0, &old.1).await),
                Undo::PlugIn(old) => (old.0.name.clone(), self.plug_in(&old.0, &old.1).await),
            };
            if let Err(error) = done {
                self.wait(&name, error.to_string());
            }
        }
        // What waited before the change waits again.
        let lost: Vec<String> = self.saved.intent.ports.keys().cloned().collect();
        for name in lost {
            if !self.ports.contains_key(&name) && !self.waiting.contains_key(&name) {
                self.wait(&name, "a change that was taken back".to_owned());
            }
        }
        self.publish();
    }

    /// Writes the new intent to the store and takes it over.
    fn commit(&mut self, next: Intent) -> Result<(), crate::store::Error> {
        let saved = Saved { intent: next, ports: self.records() };
        self.store.save(&self.saved, &saved)?;
        self.saved = saved;
        Ok(())
    }

    /// Brings numbers, snapshot and devices in line with the intent that was taken over.
    async fn settle(&mut self) {
        let intent = &self.saved.intent;
        let gone: Vec<String> =
            self.networks.keys().filter(|name| !intent.networks.contains_key(*name)).cloned().collect();
        let new: Vec<String> =
            intent.networks.keys().filter(|name| !self.networks.contains_key(*name)).cloned().collect();
        let ports_gone: Vec<String> =
            self.ports.keys().filter(|name| !intent.ports.contains_key(*name)).cloned().collect();
        self.waiting.retain(|name, _| intent.ports.contains_key(name));
        for name in new {
            let number = self.network_numbers.take(None).expect("the change was checked against [limits]");
            self.networks.insert(name, packet::NetworkId(number));
        }
        self.unplug(&ports_gone, true).await;
        let numbers: BTreeSet<_> = gone.iter().filter_map(|name| self.networks.remove(name)).collect();
        self.publish();
        if !numbers.is_empty() {
            self.crew.tables().fdb.remove(|station| numbers.contains(&station.key.network));
            numbers.into_iter().for_each(|number| self.network_numbers.free(number.0));
        }
        self.save_records();
        self.apply_poll().await;
        self.follow_outside().await;
    }

    /// Refuses what the tables and the memory, sized when the daemon started, have no room for.
    pub(super) fn check_limits(&self, next: &Intent) -> Result<(), Refusal> {
        let limits = &self.limits;
        let full = |what: &str, wanted: usize, limit: usize| {
            Refusal::conflict(format!(
                "{wanted} {what} are more than [limits] allowed when vswitchd started: {limit}"
            ))
        };
        // Ports that leave keep their number until the new ones have theirs.
        let leaving = self.ports.keys().filter(|name| !next.ports.contains_key(*name)).count();
        let ports = next.ports.len() + leaving;
        if ports > usize::from(limits.ports) {
            return Err(full("ports", ports, limits.ports.into()));
        }
        let leaving = self.networks.keys().filter(|name| !next.networks.contains_key(*name)).count();
        let networks = next.networks.len() + leaving;
        if networks > usize::from(limits.networks) {
            return Err(full("networks", networks, limits.networks.into()));
        }
        let sockets = self.port_sockets(next) + self.uplink_sockets(&next.settings.uplink);
        if sockets > self.sockets.max(self.sockets_in_use()) {
            return Err(Refusal::conflict(format!(
                "{sockets} AF_XDP queues are more than the memory was shared out for at start ({}): the kernel \
                 keeps 128 bytes a chunk and socket; put the ports into the configuration file or raise [limits] \
                 memory, and restart vswitchd",
                self.sockets
            )));
        }
        Ok(())
    }

    /// Returns how many AF_XDP sockets the ports of `intent` take.
    pub(super) fn port_sockets(&self, intent: &Intent) -> usize {
        let afxdp = intent.ports.values().filter(|p| plug::kind(&p.object) == config::PortKind::Afxdp);
        afxdp.map(|p| usize::from(p.object.queues)).sum()
    }
}

/// Replaces a file as a whole: a reader finds the old text or the new one.
fn save_text(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
