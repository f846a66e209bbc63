//! `vsctl attach` and `detach`: hot-plugging what runs already.

use std::net::IpAddr;

use clap::Args;
use config::api::{AttachRequest, route};
use config::{Netns, PortKind};
use packet::MacAddr;

use crate::Context;
use crate::port::outcome;

/// Attaches a running process or namespace to a network.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl attach web --network front --ip 10.1.0.9\n  vsctl attach pid:4711 --network back --ifname eth1"
)]
pub(crate) struct Attach {
    /// The namespace: its name, its path, or pid:N of a process in it
    target: Netns,
    /// The network
    #[arg(long)]
    network: String,
    /// An address of the interface, from a subnet of the network; may be given several times
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// Name of the interface inside [default: the first free ethN]
    #[arg(long, value_name = "NAME")]
    ifname: Option<String>,
    /// Its MAC address
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Access VLAN
    #[arg(long)]
    vlan: Option<u16>,
    /// How frames get in and out: auto, veth, tap or afxdp
    #[arg(long, default_value = "auto")]
    kind: PortKind,
    /// Name of the port [default: made from target and interface]
    #[arg(long)]
    name: Option<String>,
}

/// Takes an attached port away again.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl detach web-eth0")]
pub(crate) struct Detach {
    /// The port, as `vsctl attach` named it
    port: String,
}

impl Attach {
    /// Attaches, and tells the port's name.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = AttachRequest {
            target: self.target,
            network: self.network,
            ifname: self.ifname,
            addresses: self.ip,
            mac: self.mac,
            vlan: self.vlan,
            kind: self.kind,
            name: self.name,
        };
        let answer = context.client.post(route::ATTACH, &serde_json::to_value(&request)?).await?;
        context.show(&answer, |port| outcome(port, "attached"))
    }
}

impl Detach {
    /// Detaches.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = context.client.delete(&route::with_name(route::DETACH, &self.port)).await?;
        context.done(&answer, &format!("port {} detached", self.port))
    }
}
