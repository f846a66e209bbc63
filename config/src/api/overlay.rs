//! What is known of other hosts and of what is behind them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ObjectState;
use crate::document::Owner;
use crate::overlay::{OverlayPeer, Remote};

/// How a peer came to be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerOrigin {
    /// An object of its own, `[[peer]]`.
    #[default]
    Peer,
    /// One of `[overlay] peers`.
    Overlay,
    /// A `[[remote]]` is behind it.
    Remote,
    /// It has sent.
    Learned,
}

/// Another host, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// What it is known by: its address, with the network's name before it when it takes part in one only.
    pub name: String,
    /// What is configured; of one that is not an object of its own, what follows from that.
    pub config: OverlayPeer,
    /// Who made it; `None`: nobody, it was learned.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// How it came to be known.
    #[serde(default)]
    pub origin: PeerOrigin,
    /// Whether packets can be sent to it.
    pub state: ObjectState,
    /// Why not.
    #[serde(default)]
    pub reason: Option<String>,
    /// Our own end towards it.
    #[serde(default)]
    pub local: Option<IpAddr>,
    /// The device that leads there.
    #[serde(default)]
    pub device: Option<String>,
    /// Stations known to be behind it.
    #[serde(default)]
    pub stations: u32,
}

/// A station behind another host, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteView {
    /// What it is known by: network and address.
    pub name: String,
    /// What is configured.
    pub config: Remote,
    /// Who made it.
    pub owner: Owner,
    /// Whether packets can be sent to the host that it is behind.
    pub state: ObjectState,
    /// Why not.
    #[serde(default)]
    pub reason: Option<String>,
}
