//! What users want: every configured object with its owner.
//!
//! The intent is data: a change makes a new one, which is checked as a whole before anything happens, and
//! either replaces the old one or is dropped. Objects are known by their names across all owners, so a file
//! cannot redefine what a command made.

use std::collections::BTreeMap;

use config::{Document, FdbEntry, Network, Owner, Port};
use packet::MacAddr;
use serde::{Deserialize, Serialize};

/// An object with its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned<T> {
    /// Who made it, and so who may take it away.
    pub owner: Owner,
    /// The object.
    pub object: T,
}

/// What a static station is known by: network, VLAN, address.
pub type FdbKey = (String, Option<u16>, MacAddr);

/// All objects. See the module header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// The networks by name.
    pub networks: BTreeMap<String, Owned<Network>>,
    /// The ports by name.
    pub ports: BTreeMap<String, Owned<Port>>,
    /// The static stations.
    pub fdb: BTreeMap<FdbKey, Owned<FdbEntry>>,
    /// The sections that there are once, from the file.
    pub settings: Document,
}

/// The change would take over an object of another owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{name}' exists already and belongs to {owner}")]
pub struct Taken {
    /// Kind of object.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Returns what a static station is known by.
pub fn fdb_key(entry: &FdbEntry) -> FdbKey {
    (entry.network.clone(), entry.vlan, entry.mac)
}

impl Intent {
    /// Returns all objects of all owners as one tree, with the settings.
    pub fn document(&self) -> Document {
        self.select(|_| true)
    }

    /// Returns the objects of one owner as a tree, with the settings.
    pub fn owned_by(&self, owner: Owner) -> Document {
        self.select(|other| other == owner)
    }

    fn select(&self, wanted: impl Fn(Owner) -> bool) -> Document {
        fn pick<K, T: Clone>(map: &BTreeMap<K, Owned<T>>, wanted: &impl Fn(Owner) -> bool) -> Vec<T> {
            map.values().filter(|o| wanted(o.owner)).map(|o| o.object.clone()).collect()
        }
        Document {
            networks: pick(&self.networks, &wanted),
            ports: pick(&self.ports, &wanted),
            fdb: pick(&self.fdb, &wanted),
            ..self.settings.clone()
        }
    }

    /// Returns the intent with all objects of `owner` replaced by those of `document`. Settings are taken over
    /// from a file only.
    ///
    /// # Errors
    /// Names the first object that belongs to somebody else.
    pub fn replace(&self, owner: Owner, document: &Document) -> Result<Self, Taken> {
        let mut next = self.clone();
        next.networks.retain(|_, o| o.owner != owner);
        next.ports.retain(|_, o| o.owner != owner);
        next.fdb.retain(|_, o| o.owner != owner);
        for network in &document.networks {
            put(&mut next.networks, "network", network.name.clone(), owner, network)?;
        }
        for port in &document.ports {
            put(&mut next.ports, "port", port.name.clone(), owner, port)?;
        }
        for entry in &document.fdb {
            put(&mut next.fdb, "fdb entry", fdb_key(entry), owner, entry)?;
        }
        if owner == Owner::File {
            next.settings =
                Document { networks: Vec::new(), ports: Vec::new(), fdb: Vec::new(), ..document.clone() };
        }
        Ok(next)
    }
}

/// Adds an object, or replaces the owner's own of that name.
///
/// # Errors
/// It belongs to somebody else.
fn put<K: Ord + Name, T: Clone>(
    map: &mut BTreeMap<K, Owned<T>>,
    kind: &'static str,
    key: K,
    owner: Owner,
    object: &T,
) -> Result<(), Taken> {
    if let Some(other) = map.get(&key)
        && other.owner != owner
    {
        return Err(Taken { kind, name: key.name(), owner: other.owner });
    }
    map.insert(key, Owned { owner, object: object.clone() });
    Ok(())
}

trait Name {
    fn name(&self) -> String;
}

impl Name for String {
    fn name(&self) -> String {
        self.clone()
    }
}

impl Name for FdbKey {
    fn name(&self) -> String {
        format!("{}/{}", self.0, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(networks: &[&str], ports: &[(&str, &str)]) -> Document {
        Document {
            networks: networks.iter().map(|name| Network::new(*name)).collect(),
            ports: ports.iter().map(|(name, network)| Port::new(*name, *network)).collect(),
            ..Document::default()
        }
    }

    #[test]
    fn an_apply_replaces_only_its_owners_objects() {
        let intent = Intent::default();
        let intent = intent.replace(Owner::File, &document(&["a", "b"], &[("p", "a")])).expect("free names");
        let intent = intent.replace(Owner::Cli, &document(&["c"], &[("q", "a")])).expect("free names");
        let intent = intent.replace(Owner::File, &document(&["a"], &[])).expect("own names");
        assert_eq!(intent.networks.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(intent.ports.keys().collect::<Vec<_>>(), ["q"]);
        assert_eq!(intent.owned_by(Owner::File), document(&["a"], &[]));
    }

    #[test]
    fn an_object_of_another_owner_is_not_taken_over() {
        let intent = Intent::default().replace(Owner::Cli, &document(&["a"], &[])).expect("free names");
        let refused = intent.replace(Owner::File, &document(&["a"], &[])).expect_err("taken");
        assert_eq!(refused.to_string(), "network 'a' exists already and belongs to cli");
    }
}
