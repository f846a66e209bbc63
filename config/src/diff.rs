//! What an apply would change: two trees compared object by object.
//!
//! Objects are known by their name, given or made ([`Object::name`]), so their order in a file does not
//! matter. A changed object is told field by field, as the file would spell the values.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::document::{Document, Object};

/// One object that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happens to it.
    pub action: ChangeKind,
    /// Its section: `daemon`, `workers`, `limits`, `uplink`, `network`, `port`, `fdb`, `route`, ...
    pub kind: String,
    /// Its name; empty for a section that there is once.
    pub name: String,
    /// Its fields: `mtu: 1500 -> 9000; guard: true (new)`. Empty when it is removed.
    #[serde(default)]
    pub detail: String,
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Add,
    /// Fields of it differ.
    Change,
    /// It goes.
    Remove,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            ChangeKind::Add => '+',
            ChangeKind::Change => '~',
            ChangeKind::Remove => '-',
        };
        write!(f, "{sign} {}", self.kind)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl Document {
    /// Returns what turns `self` into `new`: removals first (ports before networks), then additions and
    /// changes (networks before ports), so that doing them in this order never refers to what is not there.
    pub fn diff(&self, new: &Document) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut sections = Vec::new();
        section(&mut sections, "daemon", one(&self.daemon), one(&new.daemon));
        section(&mut sections, "workers", one(&self.workers), one(&new.workers));
        section(&mut sections, "limits", one(&self.limits), one(&new.limits));
        section(&mut sections, "uplink", one(&self.uplink), one(&new.uplink));
        section(&mut sections, "overlay", one(&self.overlay), one(&new.overlay));
        objects(&mut sections, &self.networks, &new.networks);
        objects(&mut sections, &self.ports, &new.ports);
        objects(&mut sections, &self.fdb, &new.fdb);
        objects(&mut sections, &self.peers, &new.peers);
        objects(&mut sections, &self.remotes, &new.remotes);
        objects(&mut sections, &self.routes, &new.routes);
        objects(&mut sections, &self.floating_ips, &new.floating_ips);
        objects(&mut sections, &self.publishes, &new.publishes);
        objects(&mut sections, &self.egresses, &new.egresses);
        objects(&mut sections, &self.policies, &new.policies);
        objects(&mut sections, &self.asserts, &new.asserts);

        changes.extend(sections.iter().rev().filter(|c| c.action == ChangeKind::Remove).cloned());
        changes.extend(sections.into_iter().filter(|c| c.action != ChangeKind::Remove));
        changes
    }
}

fn table(object: &impl Serialize) -> Table {
    Table::try_from(object).expect("every object of the tree is a table")
}

fn one(object: &impl Serialize) -> BTreeMap<String, Table> {
    BTreeMap::from([(String::new(), table(object))])
}

fn objects<T: Object>(changes: &mut Vec<Change>, old: &[T], new: &[T]) {
    let named = |objects: &[T]| objects.iter().map(|object| (object.name(), table(object))).collect();
    section(changes, T::SECTION, named(old), named(new));
}

fn section(
    changes: &mut Vec<Change>,
    kind: &str,
    old: BTreeMap<String, Table>,
    new: BTreeMap<String, Table>,
) {
    let mut tell = |action, name: &str, detail| {
        changes.push(Change { action, kind: kind.to_owned(), name: name.to_owned(), detail });
    };
    for (name, _) in old.iter().rev().filter(|(name, _)| !new.contains_key(*name)) {
        tell(ChangeKind::Remove, name, String::new());
    }
    for (name, fields) in &new {
        match old.get(name) {
            None => tell(ChangeKind::Add, name, added(fields)),
            Some(before) if before != fields => tell(ChangeKind::Change, name, changed(before, fields)),
            Some(_) => {}
        }
    }
}

/// Spells the fields of a new object, but for the name it is called by.
fn added(fields: &Table) -> String {
    let fields = fields.iter().filter(|(key, _)| *key != "name");
    fields.map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join("; ")
}

fn changed(old: &Table, new: &Table) -> String {
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let spell = |value: Option<&Value>| value.map_or_else(|| "default".to_owned(), Value::to_string);
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("{key}: {} -> {}", spell(old.get(key)), spell(new.get(key))))
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mtu, Network, Port};

    fn lines(old: &Document, new: &Document) -> Vec<String> {
        old.diff(new).iter().map(Change::to_string).collect()
    }

    #[test]
    fn equal_trees_have_no_difference_whatever_their_order() {
        let ab = Document { networks: vec![Network::new("a"), Network::new("b")], ..Document::default() };
        let ba = Document { networks: vec![Network::new("b"), Network::new("a")], ..Document::default() };
        assert_eq!(lines(&ab, &ba), Vec::<String>::new());
    }

    #[test]
    fn removals_come_first_and_ports_before_networks() {
        let old = Document {
            networks: vec![Network::new("a"), Network::new("b")],
            ports: vec![Port::new("p", "a")],
            ..Document::default()
        };
        let new = Document {
            networks: vec![Network { mtu: Mtu::Bytes(9000), ..Network::new("b") }, Network::new("c")],
            ports: vec![Port { addresses: vec!["10.0.0.2".parse().expect("good")], ..Port::new("q", "c") }],
            ..Document::default()
        };
        assert_eq!(
            lines(&old, &new),
            [
                "- port p",
                "- network a",
                "~ network b: mtu: default -> 9000",
                "+ network c",
                "+ port q: addresses: [\"10.0.0.2\"]; network: \"c\"",
            ]
        );
    }
}
