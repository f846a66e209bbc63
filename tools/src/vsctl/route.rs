//! `vsctl route`: where packets go that leave their network.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use config::api::{RouteView, route};
use config::{RouteKind, RouteTo};

use crate::output::{Table, join, pairs};
use crate::settings::{Patch, Setting};
use crate::{Context, object};

/// Adds, removes, changes and shows routes.
#[derive(Debug, Subcommand)]
pub(crate) enum Route {
    Add(Add),
    Rm(Rm),
    Set(Set),
    List(List),
    Show(Show),
}

/// Makes a route of a network.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl route add front 10.9.0.0/16 --via 10.1.0.8 --via 10.1.0.9\n  vsctl route add front 198.51.100.0/24 --kind blackhole"
)]
pub(crate) struct Add {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    settings: Settings,
}

/// Removes a route.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl route rm front 10.9.0.0/16")]
pub(crate) struct Rm {
    #[command(flatten)]
    which: Which,
}

/// Changes a route while it is used; what is not given stays, and `default` takes a value back.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl route set front default --via 10.1.0.9")]
pub(crate) struct Set {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    settings: Settings,
}

/// Lists the routes.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl route list --network front")]
pub(crate) struct List {
    /// Only the routes of this network
    #[arg(long)]
    network: Option<String>,
}

/// Shows everything about a route.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl route show front default")]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
}

/// Which route is meant.
#[derive(Args, Debug)]
struct Which {
    /// The network whose packets it is for
    network: String,
    /// The destinations: a prefix, or `default`
    to: RouteTo,
}

impl Which {
    fn name(&self) -> String {
        format!("{}/{}", self.network, self.to)
    }
}

/// The keys of a route but for those it is known by.
#[derive(Args, Debug)]
struct Settings {
    /// A next hop; may be given several times, and flows are spread over all
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    via: Vec<Setting<IpAddr>>,
    /// What becomes of the packets: unicast, blackhole, unreachable or prohibit
    #[arg(long)]
    kind: Option<Setting<RouteKind>>,
}

impl Settings {
    fn patch(&self) -> Patch {
        let mut patch = Patch::default();
        patch.list("via", &self.via);
        patch.one("kind", self.kind.as_ref());
        patch
    }
}

impl Route {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let mut patch = add.settings.patch();
                patch.set("network", &add.which.network);
                patch.set("to", &add.which.to);
                object::add::<RouteView>(context, route::ROUTES, patch).await
            }
            Self::Rm(rm) => object::rm::<RouteView>(context, route::ROUTE, &rm.which.name()).await,
            Self::Set(set) => {
                object::set::<RouteView>(context, route::ROUTE, &set.which.name(), set.settings.patch()).await
            }
            Self::List(only) => {
                let mut answer = context.client.get(route::ROUTES).await?;
                if let (Some(network), Some(routes)) = (&only.network, answer.as_array_mut()) {
                    routes.retain(|view| view["config"]["network"].as_str() == Some(network));
                }
                context.show(&answer, list)
            }
            Self::Show(show) => {
                context.show(&object::get(context, route::ROUTE, &show.which.name()).await?, details)
            }
        }
    }
}

fn list(routes: &Vec<RouteView>) -> String {
    let mut table = Table::new(&["NETWORK", "TO", "VIA", "KIND", "STATE", "OWNER"]);
    for view in routes {
        let config = &view.config;
        table.row([
            config.network.clone(),
            config.to.to_string(),
            join(&config.via),
            config.kind.to_string(),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or(
        "No routes. `vsctl route add NETWORK PREFIX --via IP` makes one; without any, packets go outside.",
    )
}

fn details(view: &RouteView) -> String {
    let config = &view.config;
    pairs(&[
        ("route", view.name.clone()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("network", config.network.clone()),
        ("to", config.to.to_string()),
        ("via", join(&config.via)),
        ("kind", config.kind.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn list_shows_a_line_a_route() {
        let views: Vec<RouteView> = serde_json::from_value(json!([
            {"name": "front/default", "config": {"network": "front", "to": "default", "via": ["10.1.0.8", "10.1.0.9"]},
             "owner": "file", "state": "active"},
            {"name": "front/10.9.0.0/16", "config": {"network": "front", "to": "10.9.0.0/16", "kind": "blackhole"},
             "owner": "cli", "state": "active"},
        ]))
        .expect("routes as the daemon sends them");
        assert_eq!(
            list(&views),
            "NETWORK  TO           VIA                KIND       STATE   OWNER\n\
             front    default      10.1.0.8 10.1.0.9  unicast    active  file\n\
             front    10.9.0.0/16  -                  blackhole  active  cli\n"
        );
        assert!(list(&Vec::new()).starts_with("No routes."));
        assert!(details(&views[0]).contains("via      10.1.0.8 10.1.0.9\n"), "{}", details(&views[0]));
    }
}
