//! Checks of meaning: what types cannot say.

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::document::Document;

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
                key: label(&at, self.name_of(&at)),
                message,
                allowed,
                span: None,
            })
            .collect();
        if found.is_empty() { Ok(()) } else { Err(Diagnostics::new(found, "")) }
    }

    fn name_of(&self, at: &[Step]) -> Option<&str> {
        let [Step::Key(section), Step::Index(index), ..] = at else { return None };
        match section.as_str() {
            "network" => self.networks.get(*index).map(|network| network.name.as_str()),
            "port" => self.ports.get(*index).map(|port| port.name.as_str()),
            _ => None,
        }
    }

    /// Returns everything that is wrong, in the order of the tree.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        Vec::new()
    }
}
