//! `vsctl fdb` and `neighbor`: which station is behind which port, and which address belongs to it.

use std::net::IpAddr;

use anyhow::bail;
use clap::{Args, Subcommand};
use config::FdbEntry;
use config::api::{FdbKind, FdbView, Flushed, NeighborSource, NeighborState, NeighborView, route};
use packet::MacAddr;

use crate::client::{read, with_query};
use crate::output::{Table, plural};
use crate::{Context, units};

/// Shows and changes the stations (MAC addresses) of the networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Fdb {
    List(List),
    Flush(Flush),
    Add(Add),
    Rm(Rm),
}

/// Shows the IP addresses that the switch knows, and forgets those that it learned.
#[derive(Debug, Subcommand)]
pub(crate) enum Neighbor {
    List(Neighbors),
    Flush(Forget),
}

/// Lists the stations.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fdb list --network front")]
pub(crate) struct List {
    #[command(flatten)]
    only: Only,
}

/// Forgets learned stations: all, or those that match; they are learned again when they send.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fdb flush --port web")]
pub(crate) struct Flush {
    #[command(flatten)]
    only: Only,
}

/// Adds a station that is never learned elsewhere, moved or aged.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fdb add 02:00:0a:01:00:4d --network front --port web")]
pub(crate) struct Add {
    /// The station
    mac: MacAddr,
    /// The network
    #[arg(long)]
    network: String,
    /// The port it is behind
    #[arg(long)]
    port: String,
    /// The VLAN it is in [default: the port's own]
    #[arg(long)]
    vlan: Option<u16>,
}

/// Removes a station, static or learned.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fdb rm 02:00:0a:01:00:4d --network front")]
pub(crate) struct Rm {
    /// The station
    mac: MacAddr,
    /// The network
    #[arg(long)]
    network: String,
}

/// Lists the addresses that the switch answers ARP and ND requests for, and those that it was told or asks for.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl neighbor list --network front")]
pub(crate) struct Neighbors {
    #[command(flatten)]
    only: Whose,
}

/// Forgets learned neighbours: all, or those that match; they are asked for again when they are needed.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl neighbor flush --network front --ip 10.1.0.9")]
pub(crate) struct Forget {
    #[command(flatten)]
    only: Whose,
}

/// Which neighbours are meant; all that is given must match.
#[derive(Args, Debug)]
struct Whose {
    /// Only of this network; `outside` and `host` are the switch's own
    #[arg(long)]
    network: Option<String>,
    /// Only this address
    #[arg(long)]
    ip: Option<IpAddr>,
}

impl Whose {
    fn path(self) -> String {
        let address = self.ip.map(|ip| ip.to_string());
        with_query(route::NEIGHBORS, &[("network", self.network), ("address", address)])
    }
}

/// Which stations are meant; all that is given must match.
#[derive(Args, Debug)]
struct Only {
    /// Only stations of this network
    #[arg(long)]
    network: Option<String>,
    /// Only stations behind this port
    #[arg(long)]
    port: Option<String>,
    /// Only this station
    #[arg(long)]
    mac: Option<MacAddr>,
}

impl Only {
    fn path(self) -> String {
        let mac = self.mac.map(|mac| mac.to_string());
        with_query(route::FDB, &[("network", self.network), ("port", self.port), ("mac", mac)])
    }
}

impl Fdb {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Self::List(list) => context.show(&client.get(&list.only.path()).await?, stations),
            Self::Flush(flush) => {
                context.show(&client.delete(&flush.only.path()).await?, |flushed: &Flushed| {
                    format!(
                        "{} forgotten\n",
                        plural(flushed.entries.try_into().unwrap_or(usize::MAX), "station")
                    )
                })
            }
            Self::Add(Add { mac, network, port, vlan }) => {
                let entry = FdbEntry { network, mac, port, vlan };
                let answer = client.post(route::FDB, &serde_json::to_value(&entry)?).await?;
                context.done(&answer, &format!("station {mac} added behind port {}", entry.port))
            }
            Self::Rm(Rm { mac, network }) => {
                let only = Only { network: Some(network.clone()), port: None, mac: Some(mac) };
                let answer = client.delete(&only.path()).await?;
                if read::<Flushed>(&answer)?.entries == 0 {
                    bail!("network {network} has no station {mac}; `vsctl fdb list` shows those it has");
                }
                context.done(&answer, &format!("station {mac} removed"))
            }
        }
    }
}

impl Neighbor {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::List(list) => context.show(&context.client.get(&list.only.path()).await?, neighbors),
            Self::Flush(flush) => {
                let answer = context.client.delete(&flush.only.path()).await?;
                context.show(&answer, |flushed: &Flushed| {
                    let count = flushed.entries.try_into().unwrap_or(usize::MAX);
                    format!("{} forgotten\n", plural(count, "neighbour"))
                })
            }
        }
    }
}

fn stations(stations: &Vec<FdbView>) -> String {
    let mut table = Table::new(&["NETWORK", ">VLAN", "MAC", "PORT", "KIND", ">LAST SENT", ">MOVES"]);
    for station in stations {
        let (kind, age) = match station.kind {
            FdbKind::Learned => ("learned", format!("{} ago", units::seconds(station.age_seconds))),
            FdbKind::Static => ("static", String::new()),
            FdbKind::Port => ("port", String::new()),
            FdbKind::Remote => ("remote", String::new()),
        };
        table.row([
            station.network.clone(),
            if station.vlan == 0 { String::new() } else { station.vlan.to_string() },
            station.mac.to_string(),
            place(Some(&station.port), station.peer),
            kind.to_owned(),
            age,
            station.moves.to_string(),
        ]);
    }
    table.or("No stations.")
}

/// Returns where something is: behind a port, or another host.
fn place(port: Option<&String>, peer: Option<IpAddr>) -> String {
    match peer {
        Some(peer) => format!("peer {peer}"),
        None => port.cloned().unwrap_or_default(),
    }
}

fn neighbors(neighbors: &Vec<NeighborView>) -> String {
    let mut table = Table::new(&["NETWORK", "ADDRESS", "MAC", "PORT", "KNOWN BY", "STATE", ">TOLD"]);
    for neighbor in neighbors {
        let source = match neighbor.source {
            NeighborSource::Port => "the port's configuration",
            NeighborSource::Gateway => "being the switch itself",
            NeighborSource::Learned => "ARP or ND",
            NeighborSource::Remote => "[[remote]] or [[peer]]",
        };
        table.row([
            neighbor.network.clone(),
            neighbor.address.to_string(),
            neighbor.mac.map_or_else(String::new, |mac| mac.to_string()),
            place(neighbor.port.as_ref(), neighbor.peer),
            source.to_owned(),
            match neighbor.state {
                NeighborState::Fixed => "",
                NeighborState::Reachable => "reachable",
                NeighborState::Probed => "probed",
                NeighborState::Incomplete => "incomplete",
                NeighborState::Failed => "FAILED",
            }
            .to_owned(),
            match neighbor.state {
                NeighborState::Fixed => String::new(),
                _ => format!("{} ago", units::seconds(neighbor.age_seconds)),
            },
        ]);
    }
    table.or("No neighbours.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stations_show_how_they_are_known() {
        let views: Vec<FdbView> = serde_json::from_value(json!([
            {"network": "front", "vlan": 0, "mac": "02:00:00:00:00:01", "port": "a", "kind": "learned",
             "age_seconds": 75, "moves": 2},
            {"network": "front", "vlan": 10, "mac": "02:00:00:00:00:02", "port": "b", "kind": "static",
             "age_seconds": 0, "moves": 0},
        ]))
        .expect("stations as the daemon sends them");
        assert_eq!(
            stations(&views),
            "NETWORK  VLAN  MAC                PORT  KIND          LAST SENT  MOVES\n\
             front       -  02:00:00:00:00:01  a     learned  1 min 15 s ago      2\n\
             front      10  02:00:00:00:00:02  b     static                -      0\n"
        );
    }

    #[test]
    fn neighbours_show_where_the_address_is() {
        let views: Vec<NeighborView> = serde_json::from_value(json!([
            {"network": "front", "address": "10.1.0.1", "mac": "02:00:00:00:00:01", "source": "gateway"},
            {"network": "front", "address": "10.1.0.9", "source": "learned", "state": "incomplete", "age_seconds": 2},
        ]))
        .expect("neighbours as the daemon sends them");
        assert_eq!(
            neighbors(&views),
            "NETWORK  ADDRESS   MAC                PORT  KNOWN BY                 STATE          TOLD\n\
             front    10.1.0.1  02:00:00:00:00:01  -     being the switch itself  -                 -\n\
             front    10.1.0.9  -                  -     ARP or ND                incomplete  2 s ago\n"
        );
    }

    #[test]
    fn filters_become_the_query() {
        let only =
            Only { network: Some("a b".to_owned()), port: None, mac: Some(MacAddr([2, 0, 0, 0, 0, 1])) };
        assert_eq!(only.path(), "/v1/fdb?network=a%20b&mac=02%3A00%3A00%3A00%3A00%3A01");
    }
}
