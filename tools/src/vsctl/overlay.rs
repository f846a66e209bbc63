//! `vsctl peer` and `remote`: other hosts of the overlay, and what is behind them.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use config::PeerMode;
use config::api::{PeerOrigin, PeerView, RemoteView, route};
use ipnet::IpNet;
use packet::MacAddr;

use crate::output::{Table, join, pairs};
use crate::settings::{Patch, Setting};
use crate::{Context, object};

/// Adds, removes, changes and shows other hosts of the overlay.
#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    Add(PeerAdd),
    Rm(PeerRm),
    Set(PeerSet),
    List(PeerList),
    Show(PeerShow),
}

/// Has another host take part in the networks that have a vni.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl peer add 192.0.2.2\n  vsctl peer add 192.0.2.4 --network pods --subnet 10.5.52.0/24 --mac 8e:1d:3c:aa:00:04\n  vsctl peer add 192.0.2.5 --mode routed --subnet 10.9.0.0/16"
)]
pub(crate) struct PeerAdd {
    #[command(flatten)]
    which: WhichPeer,
    #[command(flatten)]
    settings: PeerSettings,
}

/// Takes a host out of the overlay; what is behind it is forgotten.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl peer rm 192.0.2.2")]
pub(crate) struct PeerRm {
    #[command(flatten)]
    which: WhichPeer,
}

/// Changes what is known of a peer; what is not given stays, and `default` takes a value back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl peer set 192.0.2.4 --network pods --mac 8e:1d:3c:aa:00:05")]
pub(crate) struct PeerSet {
    #[command(flatten)]
    which: WhichPeer,
    #[command(flatten)]
    settings: PeerSettings,
}

/// Lists the other hosts, those that were learned from traffic among them.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl peer list")]
pub(crate) struct PeerList {}

/// Shows everything about a peer.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl peer show 192.0.2.2")]
pub(crate) struct PeerShow {
    #[command(flatten)]
    which: WhichPeer,
}

/// Which peer is meant.
#[derive(Args, Debug)]
struct WhichPeer {
    /// Its address in the underlay
    address: IpAddr,
    /// The network that it takes part in [default: every network with a vni]
    #[arg(long)]
    network: Option<String>,
}

impl WhichPeer {
    fn name(&self) -> String {
        match &self.network {
            Some(network) => format!("{network}/{}", self.address),
            None => self.address.to_string(),
        }
    }
}

/// The keys of a peer but for those it is known by.
#[derive(Args, Debug)]
struct PeerSettings {
    /// What is behind it and reached by routing; may be given several times
    #[arg(long = "subnet", value_name = "CIDR", value_delimiter = ',')]
    subnets: Vec<Setting<IpNet>>,
    /// The MAC address that packets to these are sent to in the tunnel [default: made from its address]
    #[arg(long)]
    mac: Option<Setting<MacAddr>>,
    /// How it is reached: vxlan or routed
    #[arg(long)]
    mode: Option<Setting<PeerMode>>,
}

impl PeerSettings {
    fn patch(&self) -> Patch {
        let mut patch = Patch::default();
        patch.list("subnets", &self.subnets);
        patch.one("mac", self.mac.as_ref());
        patch.one("mode", self.mode.as_ref());
        patch
    }
}

impl Peer {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = add.settings.patch();
                patch.set("address", &add.which.address);
                if let Some(network) = &add.which.network {
                    patch.set("network", network);
                }
                object::add::<PeerView>(context, route::PEERS, patch).await
            }
            Self::Rm(rm) => object::rm::<PeerView>(context, route::PEER, &rm.which.name()).await,
            Self::Set(set) => {
                object::set::<PeerView>(context, route::PEER, &set.which.name(), set.settings.patch()).await
            }
            Self::List(_) => context.show(&context.client.get(route::PEERS).await?, peers),
            Self::Show(show) => {
                // Not every one is an object: they are found in the list.
                let all = context.client.get(route::PEERS).await?;
                let name = show.which.name();
                let found = all.as_array().into_iter().flatten().find(|view| view["name"] == *name);
                match found {
                    Some(view) => context.show(view, peer),
                    None => context.show(&object::get(context, route::PEER, &name).await?, peer),
                }
            }
        }
    }
}

/// Adds, removes, changes and shows stations that are known to be behind other hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum Remote {
    Add(RemoteAdd),
    Rm(RemoteRm),
    Set(RemoteSet),
    List(RemoteList),
    Show(RemoteShow),
}

/// Tells where a station is, so that nobody has to be asked.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  vsctl remote add front 10.1.0.77 --mac 02:00:0a:01:00:4d --vtep 192.0.2.2"
)]
pub(crate) struct RemoteAdd {
    #[command(flatten)]
    which: WhichRemote,
    /// Its MAC address
    #[arg(long)]
    mac: MacAddr,
    /// The host that it is behind, by its address in the underlay
    #[arg(long)]
    vtep: IpAddr,
}

/// Forgets where a station is.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl remote rm front 10.1.0.77")]
pub(crate) struct RemoteRm {
    #[command(flatten)]
    which: WhichRemote,
}

/// Tells that a station is behind another host now.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl remote set front 10.1.0.77 --vtep 192.0.2.3")]
pub(crate) struct RemoteSet {
    #[command(flatten)]
    which: WhichRemote,
    /// Its MAC address
    #[arg(long)]
    mac: Option<MacAddr>,
    /// The host that it is behind, by its address in the underlay
    #[arg(long)]
    vtep: Option<IpAddr>,
}

/// Lists the stations that are known to be behind other hosts.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl remote list")]
pub(crate) struct RemoteList {}

/// Shows everything about such a station.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl remote show front 10.1.0.77")]
pub(crate) struct RemoteShow {
    #[command(flatten)]
    which: WhichRemote,
}

/// Which station is meant.
#[derive(Args, Debug)]
struct WhichRemote {
    /// The network that it is in
    network: String,
    /// Its address
    address: IpAddr,
}

impl WhichRemote {
    fn name(&self) -> String {
        format!("{}/{}", self.network, self.address)
    }
}

impl Remote {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = Patch::default();
                patch.set("network", &add.which.network);
                patch.set("address", &add.which.address);
                patch.set("mac", &add.mac);
                patch.set("vtep", &add.vtep);
                object::add::<RemoteView>(context, route::REMOTES, patch).await
            }
            Self::Rm(rm) => object::rm::<RemoteView>(context, route::REMOTE, &rm.which.name()).await,
            Self::Set(set) => {
                let mut patch = Patch::default();
                if let Some(mac) = &set.mac {
                    patch.set("mac", mac);
                }
                if let Some(vtep) = &set.vtep {
                    patch.set("vtep", vtep);
                }
                object::set::<RemoteView>(context, route::REMOTE, &set.which.name(), patch).await
            }
            Self::List(_) => context.show(&context.client.get(route::REMOTES).await?, remotes),
            Self::Show(show) => {
                context.show(&object::get(context, route::REMOTE, &show.which.name()).await?, remote)
            }
        }
    }
}

const fn origin(view: &PeerView) -> &'static str {
    match view.origin {
        PeerOrigin::Peer => "peer",
        PeerOrigin::Overlay => "overlay",
        PeerOrigin::Remote => "remote",
        PeerOrigin::Learned => "learned",
    }
}

fn text(value: Option<&impl ToString>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

fn peers(views: &Vec<PeerView>) -> String {
    let mut table =
        Table::new(&["ADDRESS", "NETWORK", "MODE", "SUBNETS", "DEVICE", "STATIONS", "KNOWN BY", "STATE"]);
    for view in views {
        table.row([
            view.config.address.to_string(),
            view.config.network.clone().unwrap_or_else(|| "every".to_owned()),
            view.config.mode.to_string(),
            join(&view.config.subnets),
            text(view.device.as_ref()),
            view.stations.to_string(),
            origin(view).to_owned(),
            object::state(view),
        ]);
    }
    table.or("No other hosts. `vsctl peer add ADDRESS` has one take part in the networks that have a vni.")
}

fn peer(view: &PeerView) -> String {
    let mac = match view.config.mode {
        PeerMode::Vxlan => view.config.router_mac().to_string(),
        PeerMode::Routed => String::new(),
    };
    pairs(&[
        ("peer", view.config.address.to_string()),
        ("network", view.config.network.clone().unwrap_or_else(|| "every network with a vni".to_owned())),
        ("known by", origin(view).to_owned()),
        ("owner", text(view.owner.as_ref())),
        ("state", object::state_with_reason(view)),
        ("mode", view.config.mode.to_string()),
        ("subnets", join(&view.config.subnets)),
        ("router mac", mac),
        ("our end", text(view.local.as_ref())),
        ("device", text(view.device.as_ref())),
        ("stations", view.stations.to_string()),
    ])
}

fn remotes(views: &Vec<RemoteView>) -> String {
    let mut table = Table::new(&["NETWORK", "ADDRESS", "MAC", "BEHIND", "STATE", "OWNER"]);
    for view in views {
        table.row([
            view.config.network.clone(),
            view.config.address.to_string(),
            view.config.mac.to_string(),
            view.config.vtep.to_string(),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or("No stations of other hosts are given; they are found by asking.")
}

fn remote(view: &RemoteView) -> String {
    pairs(&[
        ("remote", view.config.address.to_string()),
        ("network", view.config.network.clone()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("mac", view.config.mac.to_string()),
        ("behind", view.config.vtep.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_show_a_line_an_object() {
        let views = serde_json::from_value(json!([
            {"name": "192.0.2.2", "config": {"address": "192.0.2.2"}, "owner": "file", "origin": "overlay",
             "state": "active", "device": "eth1", "stations": 3},
            {"name": "pods/192.0.2.4", "config": {"address": "192.0.2.4", "network": "pods",
             "subnets": ["10.5.52.0/24"]}, "owner": "cli", "state": "pending", "reason": "no route leads to it"},
        ]))
        .expect("peers as the daemon sends them");
        assert_eq!(
            peers(&views),
            "ADDRESS    NETWORK  MODE   SUBNETS       DEVICE  STATIONS  KNOWN BY  STATE\n\
             192.0.2.2  every    vxlan  -             eth1    3         overlay   active\n\
             192.0.2.4  pods     vxlan  10.5.52.0/24  -       0         peer      PENDING\n"
        );
        assert!(peer(&views[1]).contains("PENDING: no route leads to it\n"));
        assert!(peer(&views[0]).contains("0a:76:c0:00:02:02"));
        let views = serde_json::from_value(json!([
            {"name": "front/10.1.0.77", "config": {"network": "front", "address": "10.1.0.77",
             "mac": "02:00:0a:01:00:4d", "vtep": "192.0.2.2"}, "owner": "file", "state": "active"},
        ]))
        .expect("remotes as the daemon sends them");
        assert_eq!(
            remotes(&views),
            "NETWORK  ADDRESS    MAC                BEHIND     STATE   OWNER\n\
             front    10.1.0.77  02:00:0a:01:00:4d  192.0.2.2  active  file\n"
        );
    }

    #[test]
    fn nothing_is_a_sentence() {
        assert!(peers(&Vec::new()).starts_with("No other hosts."));
        assert!(remotes(&Vec::new()).starts_with("No stations"));
    }
}
