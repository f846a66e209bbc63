//! Who may reach whom: `[[policy]]`, and what must be so: `[[assert]]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::document::{Object, is_default};
use crate::peer::{Destination, Peer};
use crate::services::Service;
use crate::values::ValueError;

/// `[[policy]]`: who may, or may not, open connections to whom. Answers need none.
///
/// Of the policies that a new connection matches, the one with the smallest `priority` decides; of several with
/// the same, reject goes before deny, and deny before allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Unique name; `None` stands for one that is made from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who opens the connection.
    pub from: Peer,
    /// Who is asked.
    pub to: Peer,
    /// What is allowed. Exactly one of `allow`, `deny` and `reject` is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Service>,
    /// What is dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Service>,
    /// What is refused with an answer: RST for TCP, ICMP for the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reject: Vec<Service>,
    /// It holds for connections from `to` to `from` as well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub both_ways: bool,
    /// The smaller the sooner.
    #[serde(default = "Policy::default_priority", skip_serializing_if = "Policy::has_default_priority")]
    pub priority: u16,
    /// Every new connection that it decides is told in the log.
    #[serde(default, skip_serializing_if = "is_default")]
    pub log: bool,
}

impl Policy {
    /// The priority unless the file says otherwise.
    pub const DEFAULT_PRIORITY: u16 = 1000;

    /// Returns the policy with defaults.
    pub fn new(from: Peer, to: Peer, action: Action, services: Vec<Service>) -> Self {
        let mut policy = Self {
            name: None,
            from,
            to,
            allow: Vec::new(),
            deny: Vec::new(),
            reject: Vec::new(),
            both_ways: false,
            priority: Self::DEFAULT_PRIORITY,
            log: false,
        };
        match action {
            Action::Allow => policy.allow = services,
            Action::Deny => policy.deny = services,
            Action::Reject => policy.reject = services,
        }
        policy
    }

    /// Returns what it does, and with what.
    pub fn action(&self) -> (Action, &[Service]) {
        if !self.reject.is_empty() {
            (Action::Reject, &self.reject)
        } else if !self.deny.is_empty() {
            (Action::Deny, &self.deny)
        } else {
            (Action::Allow, &self.allow)
        }
    }

    fn default_priority() -> u16 {
        Self::DEFAULT_PRIORITY
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn has_default_priority(priority: &u16) -> bool {
        *priority == Self::DEFAULT_PRIORITY
    }
}

impl Object for Policy {
    const SECTION: &'static str = "policy";

    /// `front->mgmt`, or `front<->mgmt` both ways, with `:deny` or `:reject` when it does not allow, and `@10` when it has a priority
    fn name(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let arrow = if self.both_ways { "<->" } else { "->" };
        let mut name = format!("{}{arrow}{}", self.from, self.to);
        match self.action().0 {
            Action::Allow => {}
            action => name.push_str(&format!(":{action}")),
        }
        if self.priority != Self::DEFAULT_PRIORITY {
            name.push_str(&format!("@{}", self.priority));
        }
        name
    }
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Allow,
    /// Its packets are dropped.
    Deny,
    /// Its packets are dropped, and their sender is told.
    Reject,
}

impl Action {
    /// Returns the action as the file spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Reject => "reject",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Action {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        [Action::Allow, Action::Deny, Action::Reject]
            .into_iter()
            .find(|action| action.name() == text)
            .ok_or_else(|| ValueError::new(text, "action", "allow, deny, reject"))
    }
}

/// `[[assert]]`: what must become of a connection; checked before a configuration is taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assert {
    /// The port that opens the connection.
    pub from: String,
    /// Where it goes, and what it is about.
    pub to: Destination,
    /// What must become of it.
    pub expect: Action,
}

impl Object for Assert {
    const SECTION: &'static str = "assert";

    /// `web->mgmt:22/tcp`
    fn name(&self) -> String {
        format!("{}->{}", self.from, self.to)
    }
}
