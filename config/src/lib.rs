//! What an operator means: the TOML tree, the API types, and their validation.
//!
//! [`Document`] is the tree of one file, plain data that reads and prints as TOML and as JSON.
//! [`Document::parse`] reads a file and checks it; everything that is wrong with it comes back at once as
//! [`Diagnostics`], each with file, line, column, key, what was wrong and what is allowed. The same checks
//! run over a tree that was changed through the API ([`Document::validate`]), where there is no line to name.
//!
//! [`api`] holds what travels over the daemon's socket. [`diff`] tells what an apply would change, [`sizing`]
//! what `[limits]` makes of the memory. No I/O: the caller reads the file and hands its text over.

pub mod api;
pub mod diagnostics;
pub mod diff;
pub mod document;
pub mod expression;
pub mod keys;
pub mod nat;
pub mod overlay;
mod parse;
pub mod peer;
pub mod policy;
pub mod probe;
pub mod routing;
pub mod services;
pub mod sizing;
mod validate;
pub mod values;

pub use diagnostics::{Diagnostic, Diagnostics};
pub use diff::{Change, ChangeKind};
pub use document::{
    Daemon, Document, FdbEntry, Limits, LogLevel, Network, Object, Owner, Poll, Port, PortKind, Workers,
};
pub use expression::Expression;
pub use nat::{Egress, FloatingIp, Listen, Publish, Target};
pub use overlay::{OuterChecksum, OuterDscp, Overlay, OverlayPeer, PeerMode, Remote, router_mac};
pub use peer::{Destination, Peer};
pub use policy::{Action, Assert, Policy};
pub use probe::Probe;
pub use routing::{Route, RouteKind, RouteTo, Uplink, UplinkDevice, UplinkMode};
pub use services::{IcmpName, IcmpType, L4Protocol, L4Range, Service, Term};
pub use sizing::Sizing;
pub use validate::is_name;
pub use values::{ByteSize, Cpus, Mtu, Netns, VlanRange};
