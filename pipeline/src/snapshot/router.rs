//! What all routing domains share: the way from one network to another, translations, policies.

use std::sync::Arc;

use packet::{Address, NetworkId, Prefix};

use super::Translations;
use crate::fib::Fib;
use crate::policy::{Hits, PolicySet};

/// What the router is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterSpec {
    /// The network of the uplink devices.
    pub uplink: Option<NetworkId>,
    /// The network of the host.
    pub host: Option<NetworkId>,
    /// Which network a subnet is in. Subnets that overlap one another are not here.
    pub subnets: Vec<(Prefix, NetworkId)>,
    /// Where the host's relay for published ports sends from, IPv4 and IPv6. Connections from there show the
    /// gateway as their source.
    pub relay: Vec<Address>,
    /// The host's address, of each family, that gets what is sent to a gateway's address.
    pub host_service: Vec<Address>,
}

/// See the module header.
#[derive(Debug, Default)]
pub struct Router {
    spec: RouterSpec,
    directory: Fib,
    /// Who may reach whom.
    pub policy: Arc<PolicySet>,
    /// Which addresses stand for others.
    pub translations: Arc<Translations>,
    /// How often each policy decided.
    pub hits: Arc<Hits>,
}

impl Router {
    /// Builds the look-up structure of `spec`.
    pub fn new(
        spec: RouterSpec,
        policy: Arc<PolicySet>,
        translations: Arc<Translations>,
        hits: Arc<Hits>,
    ) -> Self {
        let mut directory = Fib::builder();
        for (prefix, network) in &spec.subnets {
            directory.insert(*prefix, u32::from(network.0));
        }
        Self { directory: directory.build(), spec, policy, translations, hits }
    }

    /// Returns what it was made from.
    pub fn spec(&self) -> &RouterSpec {
        &self.spec
    }

    /// Returns the network with the subnet that `destination` is in.
    #[expect(clippy::cast_possible_truncation, reason = "network numbers were put in")]
    pub fn network_of(&self, destination: Address) -> Option<NetworkId> {
        self.directory.lookup(destination).map(|n| NetworkId(n as u16))
    }
}
