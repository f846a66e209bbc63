//! Which addresses stand for others: published ports, floating IPs, and what connections leave as.
//!
//! A published port is looked up before a floating IP, so that one address may be shared: some of its ports
//! published to one container, the rest floating to another. A range of ports is one entry.

use std::sync::Arc;

use hashbrown::HashMap;
use packet::{Address, NetworkId, PortId, Prefix};

use crate::tables::Pool;

/// One destination that stands for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What users call it, for drops and traces.
    pub name: Arc<str>,
    /// The address that packets come for; `0.0.0.0` or `::`: any address of the host in that family.
    pub listen: Address,
    /// The ports of a published port, with their protocol. `None`: a floating IP, all protocols and ports.
    pub service: Option<Service>,
    /// The network of the real destination.
    pub network: NetworkId,
    /// The real destination.
    pub to: Address,
    /// The port it is behind.
    pub port: PortId,
    /// Who may use it. Empty: everybody.
    pub allow_from: Vec<Prefix>,
}

/// A range of ports that is published to another of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The protocol number.
    pub protocol: u8,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
    /// The real first port.
    pub to: u16,
}

/// What connections of an inside address leave the switch as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A floating IP: ports stay as they are.
    Floating(Address),
    /// An address that others may share, with a port of its range.
    Masquerade(Pool),
}

/// All of them. See the module header.
#[derive(Debug, Default)]
pub struct Translations {
    list: Vec<Translation>,
    sources: HashMap<(NetworkId, Address), Source>,
    /// The ports of the uplink's own addresses that connections may leave by.
    range: (u16, u16),
    floating: HashMap<Address, u32>,
    /// By address and protocol: entries in the order of their first port.
    published: HashMap<(Address, u8), Vec<u32>>,
}

impl Translations {
    /// Indexes `list`. `sources` says what inside addresses leave as, where it is not an uplink's address;
    /// `range` which ports connections on that take.
    pub fn new(
        list: Vec<Translation>,
        sources: HashMap<(NetworkId, Address), Source>,
        range: (u16, u16),
    ) -> Self {
        let (mut floating, mut published) = (HashMap::new(), HashMap::<_, Vec<u32>>::new());
        for (n, translation) in (0..).zip(&list) {
            match translation.service {
                None => {
                    floating.insert(translation.listen, n);
                }
                Some(service) => {
                    published.entry((translation.listen, service.protocol)).or_default().push(n);
                }
            }
        }
        for entries in published.values_mut() {
            entries.sort_by_key(|n| list[*n as usize].service.map(|service| service.first));
        }
        Self { list, sources, range, floating, published }
    }

    /// Returns the translation of a destination, and its number. `is_host`: the address is one of the host's.
    pub fn find(
        &self,
        destination: Address,
        protocol: u8,
        port: u16,
        is_host: bool,
    ) -> Option<(u32, &Translation)> {
        let n = self
            .published(destination, protocol, port)
            .or_else(|| is_host.then(|| self.published(any_of(destination), protocol, port)).flatten())
            .or_else(|| self.floating.get(&destination).copied())?;
        Some((n, &self.list[n as usize]))
    }

    fn published(&self, address: Address, protocol: u8, port: u16) -> Option<u32> {
        let entries = self.published.get(&(address, protocol))?;
        let service = |n: u32| self.list[n as usize].service;
        let after = entries.partition_point(|n| service(*n).is_some_and(|s| s.first <= port));
        let n = entries[..after].last().copied()?;
        (port <= service(n)?.last).then_some(n)
    }

    /// Returns a translation by its number.
    pub fn get(&self, n: u32) -> Option<&Translation> {
        self.list.get(n as usize)
    }

    /// Returns all translations, in the order of their numbers.
    pub fn list(&self) -> &[Translation] {
        &self.list
    }

    /// Returns what an inside address leaves as, when it has something of its own.
    pub fn source(&self, network: NetworkId, address: Address) -> Option<Source> {
        self.sources.get(&(network, address)).copied()
    }

    /// Returns the pool of an uplink's own address.
    pub fn shared_pool(&self, address: Address) -> Pool {
        Pool { address, first: self.range.0, last: self.range.1 }
    }
}

/// Returns what stands for all addresses of the family of `address`.
fn any_of(address: Address) -> Address {
    if address.is_v4() { Address::v4([0; 4]) } else { Address::UNSPECIFIED }
}

impl Translation {
    /// Returns the real port for `port`: for a published range the one at the same place, else the same.
    pub fn port_for(&self, port: u16) -> u16 {
        self.service.map_or(port, |service| port - service.first + service.to)
    }

    /// Says whether `source` may use it.
    pub fn admits(&self, source: Address) -> bool {
        self.allow_from.is_empty() || self.allow_from.iter().any(|prefix| prefix.contains(source))
    }
}

impl PartialEq for Translations {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list && self.sources == other.sources && self.range == other.range
    }
}

impl Eq for Translations {}
