//! What can go wrong with devices and namespaces, in words that name the object.

use std::io;

use super::netlink::Refusal;

/// A device or namespace could not be made, found or changed. Nothing half-made is left behind.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The namespace of a port is not there (any more).
    #[error("network namespace '{target}' not found: tried {tried}")]
    NamespaceNotFound {
        /// As the configuration names it.
        target: String,
        /// The paths that were opened, each with the kernel's reason.
        tried: String,
    },
    /// The path leads to something else.
    #[error("'{path}' is no network namespace")]
    NotANamespace {
        /// The path that was opened.
        path: String,
    },
    /// An interface of another owner has the name.
    #[error("interface '{ifname}' exists already in namespace '{netns}'")]
    IfnameTaken {
        /// Name that was wanted.
        ifname: String,
        /// Namespace where it is taken.
        netns: String,
    },
    /// The kernel would refuse the name.
    #[error("'{ifname}' is no interface name: {reason}")]
    BadIfname {
        /// Name that was wanted.
        ifname: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The kernel refused an operation.
    #[error("cannot {operation}: {reason}")]
    Kernel {
        /// What was tried, in the infinitive, with its object.
        operation: String,
        /// The kernel's reason, with its own explanation where it gave one.
        reason: String,
        /// The error number, for callers that tell cases apart; 0 when there is none.
        errno: i32,
    },
}

impl Error {
    /// Returns the refusal of `operation` with what the operating system said.
    pub fn kernel(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let errno = source.raw_os_error().unwrap_or(0);
        Self::Kernel { operation: operation.into(), reason: source.to_string(), errno }
    }

    pub(super) fn refused(operation: impl Into<String>, refusal: &Refusal) -> Self {
        Self::Kernel { operation: operation.into(), reason: refusal.to_string(), errno: refusal.errno }
    }
}
