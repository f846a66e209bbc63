//! A network as the pipeline sees it: a broadcast domain, and the routing domain of the same name.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use packet::{MacAddr, PortId};

use super::Domain;
use crate::answer::RouterAdvert;

/// A network's own router address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The MAC that all its addresses answer with.
    pub mac: MacAddr,
    /// Its addresses, one a subnet.
    pub addresses: Vec<IpAddr>,
}

/// A network as the pipeline sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInfo {
    /// The router address, when it has one.
    pub gateway: Option<Gateway>,
    /// ARP and neighbour solicitations for known addresses are answered and not flooded.
    pub neighbor_proxy: bool,
    /// How long a learned station lives without sending.
    pub ageing: Duration,
    /// Most stations learned in it.
    pub stations: u32,
    /// Who has which address, as far as the manager knows; answered from here.
    pub neighbors: HashMap<IpAddr, Neighbor>,
    /// What stations that look for an IPv6 router are told.
    pub router_advert: Option<RouterAdvert>,
    /// The routing domain; `None`: the network is only bridged.
    pub domain: Option<Arc<Domain>>,
}

impl NetworkInfo {
    /// Returns a network with everything at its default: no gateway, ageing 300 s (IEEE 802.1Q-2022, 8.8.3).
    pub fn new() -> Self {
        Self {
            gateway: None,
            neighbor_proxy: true,
            ageing: Duration::from_secs(300),
            stations: u32::MAX,
            neighbors: HashMap::new(),
            router_advert: None,
            domain: None,
        }
    }
}

impl Default for NetworkInfo {
    fn default() -> Self {
        Self::new()
    }
}

/// An address whose owner is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// The owner's MAC.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: PortId,
}
