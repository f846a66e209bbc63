//! Single objects: added, changed and removed by commands, which own what they make.

use std::collections::BTreeSet;

use config::api::{ApplyRequest, AttachRequest, FdbQuery, Flushed};
use config::{Document, FdbEntry, Netns, Network, Owner, Port};
use pipeline::tables::connections::End;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Manager;
use super::change::{Missing, Who};
use crate::devices::Namespace;
use crate::intent::{Intent, Kind, Owned, fdb_key};
use crate::refusal::Refusal;

impl Manager {
    /// Adds an object, and returns its name.
    ///
    /// # Errors
    /// The name is taken, or the object is not valid.
    pub async fn add_object<T: Kind>(&mut self, object: T, who: Who) -> Result<String, Refusal> {
        let mut next = self.saved.intent.clone();
        let name = object.name();
        if T::of_mut(&mut next).insert(name.clone(), Owned { owner: Owner::Cli, object }).is_some() {
            return Err(taken(T::NOUN, &name));
        }
        self.change(next, Missing::Refuse, who).await?;
        Ok(name)
    }

    /// Changes fields of an object, and returns its name, which is another one when it was made from what changed.
    ///
    /// # Errors
    /// There is none of that name, it belongs to somebody else, it would not be valid, or its new name is taken.
    pub async fn change_object<T: Kind>(
        &mut self,
        name: &str,
        fields: Value,
        who: Who,
    ) -> Result<String, Refusal> {
        let mut next = self.saved.intent.clone();
        let objects = T::of_mut(&mut next);
        let Owned { owner, object } = objects.remove(name).ok_or_else(|| Refusal::unknown(T::NOUN, name))?;
        own(T::NOUN, name, owner)?;
        let object: T = patched(T::NOUN, &object, fields)?;
        let now = object.name();
        if objects.insert(now.clone(), Owned { owner, object }).is_some() {
            return Err(taken(T::NOUN, &now));
        }
        self.change(next, Missing::Refuse, who).await?;
        Ok(now)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// There is none of that name, or it belongs to somebody else.
    pub async fn remove_object<T: Kind>(&mut self, name: &str, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let owned = T::of_mut(&mut next).remove(name).ok_or_else(|| Refusal::unknown(T::NOUN, name))?;
        own(T::NOUN, name, owned.owner)?;
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Adds a network.
    ///
    /// # Errors
    /// The name is taken, or the network is not valid.
    pub async fn add_network(&mut self, network: Network, who: Who) -> Result<(), Refusal> {
        self.add_object(network, who).await.map(drop)
    }

    /// Changes fields of a network.
    ///
    /// # Errors
    /// There is none of that name, it belongs to somebody else, or it would not be valid.
    pub async fn change_network(&mut self, name: &str, fields: Value, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let owned = next.networks.get_mut(name).ok_or_else(|| Refusal::unknown("network", name))?;
        own("network", name, owned.owner)?;
        owned.object = patched("network", &owned.object, fields)?;
        keeps_name("network", name, &owned.object.name)?;
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Removes a network.
    ///
    /// # Errors
    /// There is none of that name, it belongs to somebody else, or something is in it or names it.
    pub async fn remove_network(&mut self, name: &str, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let owned = next.networks.remove(name).ok_or_else(|| Refusal::unknown("network", name))?;
        own("network", name, owned.owner)?;
        let ports: Vec<&str> = next
            .ports
            .values()
            .filter(|p| p.object.network == name)
            .map(|p| p.object.name.as_str())
            .collect();
        if !ports.is_empty() {
            let ports = ports.join(", ");
            return Err(Refusal::conflict(format!("network '{name}' is used by ports: {ports}")));
        }
        let users = next.users_of_network(name);
        if !users.is_empty() {
            return Err(Refusal::conflict(format!("network '{name}' is used by {}", users.join(", "))));
        }
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Adds a port.
    ///
    /// # Errors
    /// The name is taken, the port is not valid, or its device cannot be made.
    pub async fn add_port(&mut self, port: Port, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let name = port.name.clone();
        if !next.networks.contains_key(&port.network) {
            return Err(Refusal::unknown("network", &port.network));
        }
        if next.ports.insert(name.clone(), Owned { owner: Owner::Cli, object: port }).is_some() {
            return Err(taken("port", &name));
        }
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Changes fields of a port.
    ///
    /// # Errors
    /// There is none of that name, it belongs to somebody else, it would not be valid, or its device cannot be
    /// changed.
    pub async fn change_port(&mut self, name: &str, fields: Value, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let owned = next.ports.get_mut(name).ok_or_else(|| Refusal::unknown("port", name))?;
        own("port", name, owned.owner)?;
        owned.object = patched("port", &owned.object, fields)?;
        keeps_name("port", name, &owned.object.name)?;
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Removes a port.
    ///
    /// # Errors
    /// There is none of that name, or it belongs to somebody else.
    pub async fn remove_port(&mut self, name: &str, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let owned = next.ports.remove(name).ok_or_else(|| Refusal::unknown("port", name))?;
        own("port", name, owned.owner)?;
        // Static stations of a command's go with the port they were behind.
        next.fdb.retain(|_, entry| entry.object.port != name || entry.owner != Owner::Cli);
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Attaches a running container, process or namespace, and returns the name of the new port.
    ///
    /// # Errors
    /// As for [`Manager::add_port`].
    pub async fn attach(&mut self, request: AttachRequest, who: Who) -> Result<String, Refusal> {
        let AttachRequest { target, network, ifname, addresses, mac, vlan, kind, name } = request;
        let ifname = match ifname {
            Some(ifname) => ifname,
            None => free_ifname(&target)?,
        };
        let name = name.unwrap_or_else(|| format!("{}-{ifname}", short_name(&target)));
        let port = Port {
            kind,
            netns: Some(target),
            ifname: Some(ifname),
            addresses,
            mac,
            vlan,
            ..Port::new(name.clone(), network)
        };
        self.add_port(port, who).await?;
        Ok(name)
    }

    /// Adds a static station.
    ///
    /// # Errors
    /// It is there already, or it is not valid.
    pub async fn add_station(&mut self, entry: FdbEntry, who: Who) -> Result<(), Refusal> {
        let mut next = self.saved.intent.clone();
        let name = entry.mac.to_string();
        if next.fdb.insert(fdb_key(&entry), Owned { owner: Owner::Cli, object: entry }).is_some() {
            return Err(taken("fdb entry", &name));
        }
        self.change(next, Missing::Refuse, who).await.map(drop)
    }

    /// Removes the stations that match: learned ones, and static ones that a command added.
    ///
    /// # Errors
    /// There is no such network or port.
    pub async fn flush(&mut self, query: &FdbQuery, who: Who) -> Result<Flushed, Refusal> {
        let matches = self.station_filter(query)?;
        let learned = self
            .crew
            .tables()
            .fdb
            .remove(|station| station.kind == pipeline::tables::StationKind::Learned && matches(station));
        let mut next = self.saved.intent.clone();
        next.fdb.retain(|_, entry| {
            let entry_matches = query.network.as_ref().is_none_or(|n| *n == entry.object.network)
                && query.port.as_ref().is_none_or(|p| *p == entry.object.port)
                && query.mac.is_none_or(|mac| mac == entry.object.mac);
            entry.owner != Owner::Cli || !entry_matches
        });
        let fixed = self.saved.intent.fdb.len() - next.fdb.len();
        if fixed > 0 {
            self.change(next, Missing::Refuse, who).await?;
        }
        let entries = u32::try_from(learned + fixed).unwrap_or(u32::MAX);
        self.journal.note("fdb_flushed", "", format!("{entries} stations were flushed by {who}"));
        Ok(Flushed { entries })
    }

    /// Applies the configuration file anew.
    pub async fn reload(&mut self, who: Who) {
        let Some(path) = self.config_file.clone() else {
            self.journal.note("reload_failed", "", "there is no configuration file");
            return;
        };
        let path = path.display().to_string();
        let result = match std::fs::read_to_string(&path) {
            Ok(toml) => self.apply(ApplyRequest { toml, path, ..ApplyRequest::default() }, who).await,
            Err(error) => Err(Refusal::input(format!("cannot read {path}: {error}"))),
        };
        match result {
            Ok(reply) => {
                self.journal.note("reloaded", "", format!("{} objects changed", reply.changes.len()));
            }
            Err(refusal) => self.journal.note("reload_failed", "", refusal.to_string()),
        }
    }

    /// Removes everything that the switch ever made, and returns what that was.
    ///
    /// # Errors
    /// Ports are in use and `force` is not set, or the kernel refuses.
    pub async fn cleanup(&mut self, force: bool, who: Who) -> Result<Vec<String>, Refusal> {
        let names: Vec<String> = self.ports.keys().cloned().collect();
        if !names.is_empty() && !force {
            return Err(Refusal::conflict(format!(
                "{} ports are in use; 'force' removes them all the same",
                names.len()
            ))
            .with_details(names));
        }
        let mut removed: Vec<String> = names.iter().map(|name| format!("port {name}")).collect();
        removed.extend(self.saved.intent.networks.keys().map(|name| format!("network {name}")));
        let settings = Document { asserts: Vec::new(), ..self.saved.intent.settings.clone() };
        let next = Intent { settings, ..Intent::default() };
        self.change(next, Missing::Wait, who).await?;
        let leftovers = self.devices.leftovers().await.map_err(|e| Refusal::ours(e.to_string()))?;
        removed.extend(leftovers.iter().map(|leftover| format!("device {}", leftover.link.name)));
        self.devices.remove_all().await.map_err(|e| Refusal::ours(e.to_string()))?;
        self.crew.tables().connections.kill_where(packet::Instant::now(), |_| true, End::Flushed);
        self.restoring
            .forget()
            .map_err(|error| Refusal::ours(format!("the file of connections cannot be removed: {error}")))?;
        if let Some(outside) = &self.outside {
            outside.remove_all().await.map_err(|e| Refusal::ours(e.to_string()))?;
        }
        removed.push(format!("namespace {}", self.devices.namespace().name()));
        self.journal.note("cleaned_up", "", format!("everything was removed by {who}"));
        Ok(removed)
    }
}

fn taken(kind: &str, name: &str) -> Refusal {
    Refusal::conflict(format!("{kind} '{name}' exists already"))
}

/// Refuses to let a command change what the file or a runtime made.
fn own(kind: &str, name: &str, owner: Owner) -> Result<(), Refusal> {
    match owner {
        Owner::Cli => Ok(()),
        Owner::File => Err(Refusal::conflict(format!(
            "{kind} '{name}' is from the configuration file: change the file and apply it"
        ))),
        other => Err(Refusal::conflict(format!("{kind} '{name}' belongs to {other}"))),
    }
}

fn keeps_name(kind: &str, name: &str, now: &str) -> Result<(), Refusal> {
    if name == now {
        return Ok(());
    }
    Err(Refusal::input(format!("{kind} '{name}' cannot be renamed: remove it and add '{now}'")))
}

/// Returns `object` with `fields` in it; `null` stands for the default (RFC 7396).
fn patched<T: Serialize + DeserializeOwned>(kind: &str, object: &T, fields: Value) -> Result<T, Refusal> {
    let Value::Object(fields) = fields else {
        return Err(Refusal::input(format!("the changes of a {kind} are an object of its fields")));
    };
    let mut whole = serde_json::to_value(object).map_err(|e| Refusal::ours(e.to_string()))?;
    if let Value::Object(whole) = &mut whole {
        for (key, value) in fields {
            match value {
                Value::Null => whole.remove(&key),
                value => whole.insert(key, value),
            };
        }
    }
    serde_json::from_value(whole).map_err(|error| Refusal::input(format!("{kind}: {error}")))
}

/// Returns the first of `eth0`, `eth1`, ... that is free in the namespace.
fn free_ifname(target: &Netns) -> Result<String, Refusal> {
    let path = target.path().display().to_string();
    let namespace = Namespace::resolve(&path).map_err(|error| Refusal::input(error.to_string()))?;
    let names = namespace.run(|| -> BTreeSet<String> {
        let interfaces = nix::net::if_::if_nameindex();
        let names = interfaces.iter().flatten().map(|i| i.name().to_string_lossy().into_owned());
        names.collect()
    });
    let names = names.map_err(|error| Refusal::ours(error.to_string()))?;
    (0..=names.len())
        .map(|n| format!("eth{n}"))
        .find(|name| !names.contains(name))
        .ok_or_else(|| Refusal::conflict("no interface name is free"))
}

/// Returns what a namespace is called in the name of a port.
fn short_name(target: &Netns) -> String {
    match target {
        Netns::Name(name) => name.clone(),
        Netns::Pid(pid) => format!("pid{pid}"),
        Netns::Path(path) => {
            let last = path.file_name().unwrap_or_default().to_string_lossy();
            last.chars()
                .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
                .collect()
        }
    }
}
