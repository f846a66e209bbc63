//! Checks of meaning: what types cannot say.
//!
//! Pure functions of the tree: whether a device, CPU or namespace exists is the daemon's to find out. Each
//! check reports and goes on, so one run finds everything. Checks of one section are in the file of its name;
//! a value that is wrong by itself is reported once and left out of comparisons with others where it would
//! only be reported again.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::document::{Document, Object};
use crate::keys;

mod fdb;
mod nat;
mod network;
mod overlay;
mod policy;
mod port;
mod process;
mod routing;

/// One step from the root of the tree to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl Step {
    pub(crate) fn key(name: &str) -> Self {
        Step::Key(name.to_owned())
    }
}

/// Something that is wrong, with the path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) at: Vec<Step>,
    pub(crate) message: String,
    pub(crate) allowed: Option<String>,
}

/// Spells a path for people: `port 'web': addresses[1]`; `name` is the object's, when it has one.
pub(crate) fn label(at: &[Step], name: Option<&str>) -> String {
    let (mut text, rest) = match (at, name) {
        ([Step::Key(section), Step::Index(_), rest @ ..], Some(name)) => {
            (format!("{section} '{name}'"), rest)
        }
        ([Step::Key(section), Step::Index(index), rest @ ..], None) => {
            (format!("{section} number {}", index + 1), rest)
        }
        ([Step::Key(section), rest @ ..], _) => (section.clone(), rest),
        _ => return String::new(),
    };
    for (n, step) in rest.iter().enumerate() {
        match step {
            Step::Key(key) => text.push_str(&format!("{}{key}", if n == 0 { ": " } else { "." })),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

impl Document {
    /// Checks a tree that did not come from a file; the findings have no line.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Result<(), Diagnostics> {
        let found: Vec<Diagnostic> = self
            .findings()
            .into_iter()
            .map(|Finding { at, message, allowed }| Diagnostic {
                path: None,
                position: None,
                key: label(&at, self.name_of(&at).as_deref()),
                message,
                allowed,
                span: None,
            })
            .collect();
        if found.is_empty() { Ok(()) } else { Err(Diagnostics::new(found, "")) }
    }

    pub(crate) fn name_of(&self, at: &[Step]) -> Option<String> {
        fn of<T: Object>(objects: &[T], index: usize) -> Option<String> {
            objects.get(index).map(Object::name)
        }
        let [Step::Key(section), Step::Index(index), ..] = at else { return None };
        match section.as_str() {
            "network" => of(&self.networks, *index),
            "port" => of(&self.ports, *index),
            "peer" => of(&self.peers, *index),
            "remote" => of(&self.remotes, *index),
            "route" => of(&self.routes, *index),
            "floating_ip" => of(&self.floating_ips, *index),
            "publish" => of(&self.publishes, *index),
            "egress" => of(&self.egresses, *index),
            "policy" => of(&self.policies, *index),
            "assert" => of(&self.asserts, *index),
            _ => None,
        }
    }

    /// Returns how many objects `section` has.
    pub(crate) fn count(&self, section: &str) -> usize {
        match section {
            "network" => self.networks.len(),
            "port" => self.ports.len(),
            "fdb" => self.fdb.len(),
            "peer" => self.peers.len(),
            "remote" => self.remotes.len(),
            "route" => self.routes.len(),
            "floating_ip" => self.floating_ips.len(),
            "publish" => self.publishes.len(),
            "egress" => self.egresses.len(),
            "policy" => self.policies.len(),
            "assert" => self.asserts.len(),
            _ => 0,
        }
    }

    /// Returns everything that is wrong.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut checker = Checker { document: self, findings: Vec::new() };
        process::check(&mut checker);
        network::check(&mut checker);
        port::check(&mut checker);
        fdb::check(&mut checker);
        overlay::check(&mut checker);
        routing::check(&mut checker);
        nat::check(&mut checker);
        policy::check(&mut checker);
        checker.findings
    }
}

/// The tree, and what was found so far.
struct Checker<'d> {
    document: &'d Document,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    /// Reports the value at `at`; what is allowed comes from the table of keys.
    fn wrong(&mut self, at: &At, message: impl Into<String>) {
        let allowed = match at.0.as_slice() {
            [Step::Key(section), Step::Index(_), Step::Key(key), ..]
            | [Step::Key(section), Step::Key(key), ..] => keys::find(section, key),
            _ => None,
        };
        self.wrong_but(at, message, allowed.map(|key| key.allowed.to_owned()));
    }

    /// Reports the value at `at`, and says what is allowed here.
    fn wrong_but(&mut self, at: &At, message: impl Into<String>, allowed: Option<String>) {
        self.findings.push(Finding { at: at.0.clone(), message: message.into(), allowed });
    }

    fn range<T: PartialOrd + fmt::Display>(&mut self, at: &At, value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            let side = if value < *range.start() { "small" } else { "large" };
            let allowed = format!("{} to {}", range.start(), range.end());
            self.wrong_but(at, format!("{value} is too {side}"), Some(allowed));
        }
    }

    fn name(&mut self, at: &At, name: &str) {
        if !is_name(name) {
            self.wrong(at, format!("'{}' is no valid name", name));
        }
    }

    /// Reports a name that an earlier object of the same section has.
    fn unique<'n>(&mut self, section: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for (index, name) in names.enumerate() {
            if !seen.insert(name) {
                let message = format!("'{}' is the name of another {section}", name);
                self.wrong_but(
                    &At::item(section, index).key("name"),
                    message,
                    Some("a unique name".to_owned()),
                );
            }
        }
    }

    /// Reports a list of more than `most` items, and says whether it is none.
    fn few<T>(&mut self, at: &At, list: &[T], most: usize) -> bool {
        if list.len() > most {
            self.wrong_but(at, format!("{} are too many", list.len()), Some(format!("at most {most}")));
        }
        list.len() <= most
    }

    fn vlan(&mut self, at: &At, vlan: Option<u16>) {
        if let Some(vlan) = vlan {
            self.range(at, vlan, 1..=4094);
        }
    }

    fn stations(&mut self, at: &At, stations: Option<u32>) {
        if let Some(stations) = stations {
            self.range(at, stations, 1..=self.document.limits.stations.max(1));
        }
    }

    fn connections(&mut self, at: &At, connections: Option<u32>) {
        if let Some(connections) = connections {
            self.range(at, connections, 1..=self.document.limits.connections.max(1));
        }
    }

    /// Checks a list of prefixes that someone may come from.
    fn prefixes(&mut self, at: &At, prefixes: &[IpNet]) {
        self.few(at, prefixes, 256);
        for (index, net) in prefixes.iter().enumerate() {
            self.host_bits(&at.index(index), net);
        }
    }

    /// Reports bits behind the prefix, and says whether there are none.
    fn host_bits(&mut self, at: &At, net: &IpNet) -> bool {
        let clean = net.trunc() == *net;
        if !clean {
            self.wrong_but(at, format!("{net} has host bits set"), Some(net.trunc().to_string()));
        }
        clean
    }

    /// Reports an object whose name, given or made, an earlier object of its kind has.
    fn unique_objects<T: Object>(&mut self, objects: &[T], key: &str, allowed: &str) {
        let mut seen = HashMap::new();
        for (index, object) in objects.iter().enumerate() {
            if let Some(other) = seen.insert(object.name(), index) {
                let message = format!("'{}' is {} number {} already", object.name(), T::SECTION, other + 1);
                self.wrong_but(&At::item(T::SECTION, index).key(key), message, Some(allowed.to_owned()));
            }
        }
    }

    fn storm(&mut self, at: &At, storm: Option<u32>) {
        if let Some(storm) = storm {
            self.range(at, storm, 1..=u32::MAX);
        }
    }

    /// Reports a reference to an object that is not there, and guesses what was meant.
    fn dangling<'n>(&mut self, at: &At, section: &str, name: &str, known: impl Iterator<Item = &'n str>) {
        let known: Vec<&str> = known.collect();
        let mut message = format!("there is no {section} '{}'", name);
        if let Some(meant) = keys::nearest(name, known.iter().copied()) {
            message.push_str(&format!(", did you mean '{meant}'?"));
        }
        // A long list would bury the message.
        let allowed = match known.len() {
            0 => format!("the name of a [[{section}]], and there is none"),
            1..=16 => known.join(", "),
            more => format!("{}, ... ({more} in all)", known[..16].join(", ")),
        };
        self.wrong_but(at, message, Some(allowed));
    }
}

/// A path that is being spelled.
#[derive(Clone)]
struct At(Vec<Step>);

impl At {
    fn item(section: &str, index: usize) -> Self {
        Self(vec![Step::key(section), Step::Index(index)])
    }

    fn of(section: &str, key: &str) -> Self {
        Self(vec![Step::key(section), Step::key(key)])
    }

    fn key(&self, key: &str) -> Self {
        let mut at = self.clone();
        at.0.push(Step::key(key));
        at
    }

    fn index(&self, index: usize) -> Self {
        let mut at = self.clone();
        at.0.push(Step::Index(index));
        at
    }
}

/// Says whether `name` may name an object.
pub fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=63).contains(&name.len())
        && name.chars().all(good)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}
