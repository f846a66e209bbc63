//! `vsctl fip`, `publish` and `egress`: outside addresses, and whose they are.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use config::api::{EgressView, FloatingIpView, PublishView, route};
use config::{L4Range, Listen, Target};
use ipnet::IpNet;

use crate::output::{Table, join, pairs};
use crate::settings::{Patch, Setting};
use crate::{Context, object};

/// Adds, removes, moves and shows floating IPs: outside addresses that are a port's.
#[derive(Debug, Subcommand)]
pub(crate) enum Fip {
    Add(FipAdd),
    Rm(FipRm),
    Set(FipSet),
    List(FipList),
    Show(FipShow),
}

/// Makes an outside address a port's, both ways.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fip add 203.0.113.10 web")]
pub(crate) struct FipAdd {
    /// The outside address
    address: IpAddr,
    /// The port, which may come later
    port: String,
    /// Which of the port's addresses it stands for [default: the first of the family]
    #[arg(long, value_name = "IP")]
    to: Option<Setting<IpAddr>>,
}

/// Takes a floating IP away.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fip rm 203.0.113.10")]
pub(crate) struct FipRm {
    /// The outside address
    address: IpAddr,
}

/// Moves a floating IP to another port or address while it is used.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fip set 203.0.113.10 --port web2")]
pub(crate) struct FipSet {
    /// The outside address
    address: IpAddr,
    /// The port that it is to lead to
    #[arg(long)]
    port: Option<String>,
    /// Which of the port's addresses it stands for
    #[arg(long, value_name = "IP")]
    to: Option<Setting<IpAddr>>,
}

/// Lists the floating IPs.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fip list")]
pub(crate) struct FipList {}

/// Shows everything about a floating IP.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl fip show 203.0.113.10")]
pub(crate) struct FipShow {
    /// The outside address
    address: IpAddr,
}

impl Fip {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = Patch::default();
                patch.set("address", &add.address);
                patch.set("port", &add.port);
                patch.one("to", add.to.as_ref());
                object::add::<FloatingIpView>(context, route::FLOATING_IPS, patch).await
            }
            Self::Rm(rm) => {
                object::rm::<FloatingIpView>(context, route::FLOATING_IP, &rm.address.to_string()).await
            }
            Self::Set(set) => {
                let mut patch = Patch::default();
                if let Some(port) = &set.port {
                    patch.set("port", port);
                }
                patch.one("to", set.to.as_ref());
                let name = set.address.to_string();
                object::set::<FloatingIpView>(context, route::FLOATING_IP, &name, patch).await
            }
            Self::List(_) => context.show(&context.client.get(route::FLOATING_IPS).await?, floating_ips),
            Self::Show(show) => {
                let name = show.address.to_string();
                context.show(&object::get(context, route::FLOATING_IP, &name).await?, floating_ip)
            }
        }
    }
}

/// Adds, removes, changes and shows published ports: L4 ports of the host that lead to a port.
#[derive(Debug, Subcommand)]
pub(crate) enum Publish {
    Add(PublishAdd),
    Rm(PublishRm),
    Set(PublishSet),
    List(PublishList),
    Show(PublishShow),
}

/// Publishes L4 ports of a port.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl publish add 8080 web:80\n  vsctl publish add 203.0.113.2:10000-20000/udp pbx:10000-20000 --allow-from 192.0.2.0/24\n  vsctl publish add 0/tcp web:443 --name shop"
)]
pub(crate) struct PublishAdd {
    #[arg(help = "Where it is reached: [ADDRESS:]PORT[-PORT][/tcp|udp|sctp]; port 0 is one that is free")]
    listen: Listen,
    #[arg(help = "Where it leads: NAME[@ADDRESS]:PORT[-PORT]; the port may come later")]
    to: Target,
    /// Its name, unique among published ports [default: where it is reached]
    #[arg(long)]
    name: Option<String>,
    /// Who may reach it; may be given several times [default: `[daemon] publish_allow_from`]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_from: Vec<Setting<IpNet>>,
}

/// Takes a published port away; connections through it are cut.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl publish rm 8080/tcp")]
pub(crate) struct PublishRm {
    /// The published port
    name: String,
}

/// Changes a published port while it is used; what is not given stays, and `default` takes a value back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl publish set 8080/tcp --to web2:80")]
pub(crate) struct PublishSet {
    /// The published port
    name: String,
    /// Where it is reached
    #[arg(long)]
    listen: Option<Listen>,
    /// Where it leads
    #[arg(long, value_name = "TARGET")]
    to: Option<Target>,
    /// Who may reach it; may be given several times, and replaces all there were
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_from: Vec<Setting<IpNet>>,
}

/// Lists the published ports.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl publish list")]
pub(crate) struct PublishList {}

/// Shows everything about a published port.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl publish show 8080/tcp")]
pub(crate) struct PublishShow {
    /// The published port
    name: String,
}

impl Publish {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = Patch::default();
                patch.set("listen", &add.listen);
                patch.set("to", &add.to);
                if let Some(name) = &add.name {
                    patch.set("name", name);
                }
                patch.list("allow_from", &add.allow_from);
                object::add::<PublishView>(context, route::PUBLISHES, patch).await
            }
            Self::Rm(rm) => object::rm::<PublishView>(context, route::PUBLISH, &rm.name).await,
            Self::Set(set) => {
                let mut patch = Patch::default();
                if let Some(listen) = &set.listen {
                    patch.set("listen", listen);
                }
                if let Some(to) = &set.to {
                    patch.set("to", to);
                }
                patch.list("allow_from", &set.allow_from);
                object::set::<PublishView>(context, route::PUBLISH, &set.name, patch).await
            }
            Self::List(_) => context.show(&context.client.get(route::PUBLISHES).await?, published),
            Self::Show(show) => {
                context.show(&object::get(context, route::PUBLISH, &show.name).await?, publish)
            }
        }
    }
}

/// Adds, removes, changes and shows egress addresses: what a port's connections to the outside come from.
#[derive(Debug, Subcommand)]
pub(crate) enum Egress {
    Add(EgressAdd),
    Rm(EgressRm),
    Set(EgressSet),
    List(EgressList),
    Show(EgressShow),
}

/// Gives the connections of a port to the outside an address of their own.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl egress add mail --ip 203.0.113.7 --ip 2001:db8::7")]
pub(crate) struct EgressAdd {
    /// The port, which may come later
    port: String,
    /// The outside address; one of each family may be given
    #[arg(long, value_name = "IP", value_delimiter = ',', required = true)]
    ip: Vec<IpAddr>,
    /// L4 ports that the connections get [default: 1024-65535]
    #[arg(long, value_name = "RANGE")]
    ports: Option<Setting<L4Range>>,
}

/// Takes a port's egress addresses away: its connections are masqueraded like all others.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl egress rm mail")]
pub(crate) struct EgressRm {
    /// The port
    port: String,
}

/// Changes a port's egress addresses for new connections.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl egress set mail --ip 203.0.113.8")]
pub(crate) struct EgressSet {
    /// The port
    port: String,
    /// The outside address; one of each family may be given, and they replace all there were
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// L4 ports that the connections get
    #[arg(long, value_name = "RANGE")]
    ports: Option<Setting<L4Range>>,
}

/// Lists the egress addresses.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl egress list")]
pub(crate) struct EgressList {}

/// Shows everything about a port's egress addresses.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl egress show mail")]
pub(crate) struct EgressShow {
    /// The port
    port: String,
}

impl Egress {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = Patch::default();
                patch.set("port", &add.port);
                patch.set("address", &add.ip);
                patch.one("ports", add.ports.as_ref());
                object::add::<EgressView>(context, route::EGRESSES, patch).await
            }
            Self::Rm(rm) => object::rm::<EgressView>(context, route::EGRESS, &rm.port).await,
            Self::Set(set) => {
                let mut patch = Patch::default();
                if !set.ip.is_empty() {
                    patch.set("address", &set.ip);
                }
                patch.one("ports", set.ports.as_ref());
                object::set::<EgressView>(context, route::EGRESS, &set.port, patch).await
            }
            Self::List(_) => context.show(&context.client.get(route::EGRESSES).await?, egresses),
            Self::Show(show) => context.show(&object::get(context, route::EGRESS, &show.port).await?, egress),
        }
    }
}

fn floating_ips(views: &Vec<FloatingIpView>) -> String {
    let mut table = Table::new(&["ADDRESS", "PORT", "INSIDE", "STATE", "OWNER"]);
    for view in views {
        table.row([
            view.config.address.to_string(),
            view.config.port.clone(),
            view.inside.map_or_else(String::new, |inside| inside.to_string()),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or("No floating IPs. `vsctl fip add ADDRESS PORT` makes one.")
}

fn floating_ip(view: &FloatingIpView) -> String {
    pairs(&[
        ("floating ip", view.config.address.to_string()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("port", view.config.port.clone()),
        ("inside", view.inside.map_or_else(String::new, |inside| inside.to_string())),
    ])
}

/// Returns where a published port is reached, with the L4 port that was chosen by chance.
fn reached(view: &PublishView) -> String {
    match view.bound {
        Some(bound) if view.config.listen.is_random() => {
            let ports = L4Range::one(bound);
            format!("{} (by chance)", Listen { ports, ..view.config.listen })
        }
        _ => view.config.listen.to_string(),
    }
}

fn admitted(view: &PublishView) -> String {
    if view.config.allow_from.is_empty() { "default".to_owned() } else { join(&view.config.allow_from) }
}

fn published(views: &Vec<PublishView>) -> String {
    let mut table = Table::new(&["NAME", "LISTEN", "TO", "INSIDE", "ALLOW FROM", "STATE", "OWNER"]);
    for view in views {
        table.row([
            view.name.clone(),
            reached(view),
            view.config.to.to_string(),
            join(&view.inside),
            admitted(view),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or("No published ports. `vsctl publish add 8080 web:80` makes one.")
}

fn publish(view: &PublishView) -> String {
    pairs(&[
        ("publish", view.name.clone()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("listen", reached(view)),
        ("to", view.config.to.to_string()),
        ("inside", join(&view.inside)),
        ("allow from", admitted(view)),
    ])
}

fn egresses(views: &Vec<EgressView>) -> String {
    let mut table = Table::new(&["PORT", "ADDRESSES", "L4 PORTS", "STATE", "OWNER"]);
    for view in views {
        table.row([
            view.config.port.clone(),
            join(&view.config.address),
            view.config.ports.to_string(),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or("No egress addresses. `vsctl egress add PORT --ip ADDRESS` makes one.")
}

fn egress(view: &EgressView) -> String {
    pairs(&[
        ("port", view.config.port.clone()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("addresses", join(&view.config.address)),
        ("l4 ports", view.config.ports.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_show_a_line_an_object() {
        let views = serde_json::from_value(json!([
            {"name": "203.0.113.10", "config": {"address": "203.0.113.10", "port": "web"}, "owner": "file",
             "state": "active", "inside": "10.1.0.10"},
            {"name": "203.0.113.11", "config": {"address": "203.0.113.11", "port": "db"}, "owner": "cli",
             "state": "pending", "reason": "there is no port 'db' yet"},
        ]))
        .expect("floating IPs as the daemon sends them");
        assert_eq!(
            floating_ips(&views),
            "ADDRESS       PORT  INSIDE     STATE    OWNER\n\
             203.0.113.10  web   10.1.0.10  active   file\n\
             203.0.113.11  db    -          PENDING  cli\n"
        );
        assert!(floating_ip(&views[1]).contains("PENDING: there is no port 'db' yet\n"));
        let views = serde_json::from_value(json!([
            {"name": "shop", "config": {"name": "shop", "listen": "[::]:0/tcp", "to": "web:443",
             "allow_from": ["192.0.2.0/24"]}, "owner": "cli", "state": "active", "bound": 32768, "inside": ["fd00::2"]},
            {"name": "8080/tcp", "config": {"listen": "8080", "to": "web:80"}, "owner": "file", "state": "active",
             "bound": 8080, "inside": ["10.1.0.10", "fd00::2"]},
        ]))
        .expect("published ports as the daemon sends them");
        assert_eq!(
            published(&views),
            "NAME      LISTEN                      TO       INSIDE             ALLOW FROM    STATE   OWNER\n\
             shop      [::]:32768/tcp (by chance)  web:443  fd00::2            192.0.2.0/24  active  cli\n\
             8080/tcp  8080/tcp                    web:80   10.1.0.10 fd00::2  default       active  file\n"
        );
        let views = serde_json::from_value(json!([
            {"name": "mail", "config": {"port": "mail", "address": ["203.0.113.7", "2001:db8::7"]}, "owner": "file",
             "state": "active"},
        ]))
        .expect("egress addresses as the daemon sends them");
        assert_eq!(
            egresses(&views),
            "PORT  ADDRESSES                L4 PORTS    STATE   OWNER\n\
             mail  203.0.113.7 2001:db8::7  1024-65535  active  file\n"
        );
    }

    #[test]
    fn nothing_is_a_sentence() {
        assert!(floating_ips(&Vec::new()).starts_with("No floating IPs."));
        assert!(published(&Vec::new()).starts_with("No published ports."));
        assert!(egresses(&Vec::new()).starts_with("No egress addresses."));
    }
}
