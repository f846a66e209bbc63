//! Why a request was refused, as its sender is told.

use config::Diagnostics;

/// Whose fault it is; decides the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong: 400.
    Input,
    /// There is no such object: 404.
    Unknown,
    /// It collides with what is there: 409.
    Conflict,
    /// The switch failed: 500.
    Ours,
}

/// A refused request: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", details.iter().map(|line| format!("\n  {line}")).collect::<String>())]
pub struct Refusal {
    /// Whose fault it is.
    pub fault: Fault,
    /// One sentence.
    pub message: String,
    /// One line a finding.
    pub details: Vec<String>,
}

impl Refusal {
    /// The request is wrong.
    pub fn input(message: impl Into<String>) -> Self {
        Self { fault: Fault::Input, message: message.into(), details: Vec::new() }
    }

    /// There is no such object.
    pub fn unknown(kind: &str, name: &str) -> Self {
        Self { fault: Fault::Unknown, message: format!("there is no {kind} '{name}'"), details: Vec::new() }
    }

    /// It collides with what is there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { fault: Fault::Conflict, message: message.into(), details: Vec::new() }
    }

    /// The switch failed.
    pub fn ours(message: impl Into<String>) -> Self {
        Self { fault: Fault::Ours, message: message.into(), details: Vec::new() }
    }

    /// Adds the findings.
    pub fn with_details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}

impl From<Diagnostics> for Refusal {
    fn from(found: Diagnostics) -> Self {
        Refusal::input("the configuration is not valid").with_details(found.lines())
    }
}

impl From<crate::intent::Taken> for Refusal {
    fn from(taken: crate::intent::Taken) -> Self {
        Refusal::conflict(taken.to_string())
    }
}

impl From<crate::store::Error> for Refusal {
    fn from(error: crate::store::Error) -> Self {
        Refusal::ours(error.to_string())
    }
}
