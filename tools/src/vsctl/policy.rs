//! `vsctl policy`: who may reach whom.

use clap::{Args, Subcommand};
use config::api::{PolicyView, route};
use config::{Peer, Service};

use crate::output::{Table, join, pairs, yes_no};
use crate::settings::{Patch, Setting};
use crate::{Context, UsageError, object, units};

/// Adds, removes, changes and shows policies.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    Add(Add),
    Rm(Rm),
    Set(Set),
    List(List),
    Show(Show),
}

/// Makes a policy: who may, or may not, open connections to whom.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl policy add front mgmt --allow tcp/514,udp/514,icmp\n  vsctl policy add any port:db --reject any --priority 2000 --name nobody-else --log"
)]
pub(crate) struct Add {
    /// Who opens the connection: a network, port:NAME, labels as tier=web, a prefix, host, outside, any
    from: Peer,
    /// Who is asked, likewise
    to: Peer,
    /// Its name, unique among policies [default: made from the rest]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// Removes a policy; connections that only it allowed are cut.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl policy rm 'front->mgmt'")]
pub(crate) struct Rm {
    /// The policy
    name: String,
}

/// Changes a policy; it holds for connections that are open, too.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl policy set 'front->mgmt' --allow tcp/514 --log")]
pub(crate) struct Set {
    /// The policy
    name: String,
    /// Who opens the connection
    #[arg(long, value_name = "PEER")]
    from: Option<Peer>,
    /// Who is asked
    #[arg(long, value_name = "PEER")]
    to: Option<Peer>,
    #[command(flatten)]
    settings: Settings,
}

/// Lists the policies in the order in which they are asked.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl policy list")]
pub(crate) struct List {}

/// Shows everything about a policy, and which ports it means now.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl policy show 'front->mgmt'")]
pub(crate) struct Show {
    /// The policy
    name: String,
}

/// The keys of a policy but for its name and sides.
#[derive(Args, Debug)]
struct Settings {
    /// What is allowed: tcp/514, udp/1000-2000, icmp/echo-request, any, ...; may be given several times
    #[arg(long, value_name = "SERVICE", value_delimiter = ',', conflicts_with_all = ["deny", "reject"])]
    allow: Vec<Service>,
    /// What is dropped
    #[arg(long, value_name = "SERVICE", value_delimiter = ',', conflicts_with = "reject")]
    deny: Vec<Service>,
    /// What is refused with an answer
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    reject: Vec<Service>,
    /// It holds for connections the other way as well
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    both_ways: Option<Setting<bool>>,
    /// The policy with the smallest number decides [default: 1000]
    #[arg(long, value_name = "NUMBER")]
    priority: Option<Setting<u16>>,
    /// Tell new connections that it decides in the log
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log: Option<Setting<bool>>,
}

impl Settings {
    fn patch(&self) -> Patch {
        let mut patch = Patch::default();
        let lists = [("allow", &self.allow), ("deny", &self.deny), ("reject", &self.reject)];
        if lists.iter().any(|(_, services)| !services.is_empty()) {
            // One of them holds: the one that is given takes the place of what there was.
            for (key, services) in lists {
                match services.is_empty() {
                    true => patch.one::<bool>(key, Some(&Setting::Default)),
                    false => patch.set(key, services),
                }
            }
        }
        patch.one("both_ways", self.both_ways.as_ref());
        patch.one("priority", self.priority.as_ref());
        patch.one("log", self.log.as_ref());
        patch
    }

    fn says_what(&self) -> bool {
        !(self.allow.is_empty() && self.deny.is_empty() && self.reject.is_empty())
    }
}

impl Policy {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                if !add.settings.says_what() {
                    return Err(UsageError("one of --allow, --deny and --reject is needed").into());
                }
                let mut patch = add.settings.patch();
                patch.set("from", &add.from);
                patch.set("to", &add.to);
                if let Some(name) = &add.name {
                    patch.set("name", name);
                }
                object::add::<PolicyView>(context, route::POLICIES, patch).await
            }
            Self::Rm(rm) => object::rm::<PolicyView>(context, route::POLICY, &rm.name).await,
            Self::Set(set) => {
                let mut patch = set.settings.patch();
                for (key, peer) in [("from", &set.from), ("to", &set.to)] {
                    if let Some(peer) = peer {
                        patch.set(key, peer);
                    }
                }
                object::set::<PolicyView>(context, route::POLICY, &set.name, patch).await
            }
            Self::List(_) => {
                let answer = context.client.get(route::POLICIES).await?;
                context.show(&answer, |policies: &Vec<PolicyView>| list(policies))
            }
            Self::Show(show) => {
                context.show(&object::get(context, route::POLICY, &show.name).await?, details)
            }
        }
    }
}

fn hits(view: &PolicyView) -> String {
    view.hits.map_or_else(String::new, units::count)
}

fn list(policies: &[PolicyView]) -> String {
    let mut policies: Vec<&PolicyView> = policies.iter().collect();
    policies
        .sort_by_key(|view| (view.config.priority, std::cmp::Reverse(view.config.action().0), &view.name));
    let mut table = Table::new(&[
        ">PRIORITY",
        "POLICY",
        "FROM",
        "TO",
        "ACTION",
        "SERVICES",
        "LOG",
        ">HITS",
        "STATE",
        "OWNER",
    ]);
    for view in policies {
        let config = &view.config;
        let (action, services) = config.action();
        let to = if config.both_ways { format!("{} (both ways)", config.to) } else { config.to.to_string() };
        table.row([
            config.priority.to_string(),
            view.name.clone(),
            config.from.to_string(),
            to,
            action.to_string(),
            join(services),
            yes_no(config.log),
            hits(view),
            object::state(view),
            view.owner.to_string(),
        ]);
    }
    table.or("No policies: networks do not reach one another. `vsctl policy add FROM TO --allow tcp/80` makes one.")
}

fn details(view: &PolicyView) -> String {
    let config = &view.config;
    let (action, services) = config.action();
    pairs(&[
        ("policy", view.name.clone()),
        ("owner", view.owner.to_string()),
        ("state", object::state_with_reason(view)),
        ("from", config.from.to_string()),
        ("to", config.to.to_string()),
        ("both ways", yes_no(config.both_ways)),
        ("action", action.to_string()),
        ("services", join(services)),
        ("priority", config.priority.to_string()),
        ("log", yes_no(config.log)),
        ("from ports", join(&view.from_ports)),
        ("to ports", join(&view.to_ports)),
        ("hits", hits(view)),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn list_is_in_the_order_in_which_policies_are_asked() {
        let views: Vec<PolicyView> = serde_json::from_value(json!([
            {"name": "front->mgmt", "config": {"from": "front", "to": "mgmt", "allow": ["514/tcp", "icmp"]},
             "owner": "file", "state": "active", "hits": 12345},
            {"name": "no", "config": {"from": "any", "to": "port:db", "reject": ["any"], "both_ways": true},
             "owner": "cli", "state": "pending", "reason": "there is no port 'db' yet"},
            {"name": "first", "config": {"from": "tier=web", "to": "outside", "deny": ["udp/53"], "priority": 10, "log": true},
             "owner": "cli", "state": "active"},
        ]))
        .expect("policies as the daemon sends them");
        assert_eq!(
            list(&views),
            "PRIORITY  POLICY       FROM      TO                   ACTION  SERVICES      LOG    HITS  STATE    OWNER\n\
             \x20     10  first        tier=web  outside              deny    udp/53        yes       -  active   cli\n\
             \x20   1000  no           any       port:db (both ways)  reject  any           no        -  PENDING  cli\n\
             \x20   1000  front->mgmt  front     mgmt                 allow   tcp/514 icmp  no   12.3 k  active   file\n"
        );
        assert!(list(&[]).starts_with("No policies"));
        assert!(
            details(&views[1]).contains("state       PENDING: there is no port 'db' yet\n"),
            "{}",
            details(&views[1])
        );
    }

    #[test]
    fn another_action_takes_the_place_of_the_first() {
        let settings = Settings {
            allow: Vec::new(),
            deny: vec![Service::Any],
            reject: Vec::new(),
            both_ways: None,
            priority: Some(Setting::To(7)),
            log: None,
        };
        let expected = json!({"allow": null, "deny": ["any"], "reject": null, "priority": 7});
        assert_eq!(settings.patch().into_value(), expected);
    }
}
