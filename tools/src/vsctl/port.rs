//! `vsctl port`: the places where namespaces, containers and machines are attached.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use config::api::{PortState, PortView, route};
use config::{Netns, PortKind, VlanRange};
use packet::MacAddr;

use crate::output::{Table, join, pairs, yes_no};
use crate::settings::{Patch, Setting, parse_label};
use crate::{Context, units};

/// Adds, removes, changes and shows ports.
#[derive(Debug, Subcommand)]
pub(crate) enum Port {
    Add(Add),
    Rm(Rm),
    Set(Set),
    List(List),
    Show(Show),
}

/// Makes a port and the device behind it.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl port add web --network front --netns web --ip 10.1.0.10\n  vsctl port add vm1 --network front --kind tap --ifname vm1"
)]
pub(crate) struct Add {
    /// Its name, unique among ports
    name: String,
    /// The network it is attached to
    #[arg(long)]
    network: String,
    #[command(flatten)]
    settings: Settings,
}

/// Removes a port and the device behind it; other ports lose nothing.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl port rm web")]
pub(crate) struct Rm {
    /// The port
    name: String,
}

/// Changes a port while it runs; what is not given stays, and `default` takes a value back.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  vsctl port set web --kind afxdp\n  vsctl port set web --storm 500 --guard=default"
)]
pub(crate) struct Set {
    /// The port
    name: String,
    /// The network it is attached to
    #[arg(long)]
    network: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// Lists the ports with their counters.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl port list --network front")]
pub(crate) struct List {
    /// Only the ports of this network
    #[arg(long)]
    network: Option<String>,
}

/// Shows everything about a port: its keys, its device, how frames move, its counters.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  vsctl port show web")]
pub(crate) struct Show {
    /// The port
    name: String,
}

/// The keys of a port but for its name and network.
#[derive(Args, Debug)]
struct Settings {
    /// How frames get in and out: auto, veth, tap or afxdp
    #[arg(long)]
    kind: Option<Setting<PortKind>>,
    /// Where the far end is put: a name, a path, or pid:N [default: the host's own namespace]
    #[arg(long, value_name = "NETNS")]
    netns: Option<Setting<Netns>>,
    /// Name of the far end's interface [default: eth0 in a namespace, vsw-NAME in the host's]
    #[arg(long, value_name = "NAME")]
    ifname: Option<Setting<String>>,
    /// An address of the far end, from a subnet of the network; may be given several times
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    ip: Vec<Setting<IpAddr>>,
    /// The far end's MAC address
    #[arg(long)]
    mac: Option<Setting<MacAddr>>,
    /// The far end's MTU, in bytes [default: the network's]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<Setting<u16>>,
    /// Access port: its untagged frames belong to this VLAN
    #[arg(long)]
    vlan: Option<Setting<u16>>,
    /// Trunk port: frames tagged with these VLANs pass, as in 10,100-199
    #[arg(long, value_name = "VLANS", value_delimiter = ',')]
    trunk: Vec<Setting<VlanRange>>,
    /// The VLAN of a trunk port's untagged frames
    #[arg(long, value_name = "VLAN")]
    native: Option<Setting<u16>>,
    /// Drop frames with a foreign source MAC or IP address [default: when the port has addresses]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    guard: Option<Setting<bool>>,
    /// Never reaches another isolated port of the network
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    isolated: Option<Setting<bool>>,
    /// Broadcast, multicast and unknown-unicast frames a second that it may send
    #[arg(long, value_name = "FRAMES")]
    storm: Option<Setting<u32>>,
    /// How many stations may be learned here
    #[arg(long, value_name = "COUNT")]
    stations: Option<Setting<u32>>,
    /// How many connections it may have
    #[arg(long, value_name = "COUNT")]
    quota: Option<Setting<u32>>,
    /// How many connections of it may be unanswered
    #[arg(long, value_name = "COUNT")]
    half_open: Option<Setting<u32>>,
    /// Queues of the device; more than one for tap and afxdp only
    #[arg(long, value_name = "COUNT")]
    queues: Option<Setting<u16>>,
    /// A label, KEY=VALUE; may be given several times, and replaces all there were
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
}

impl Settings {
    fn patch(&self) -> Patch {
        let mut patch = Patch::default();
        patch.one("kind", self.kind.as_ref());
        patch.one("netns", self.netns.as_ref());
        patch.one("ifname", self.ifname.as_ref());
        patch.list("addresses", &self.ip);
        patch.one("mac", self.mac.as_ref());
        patch.one("mtu", self.mtu.as_ref());
        patch.one("vlan", self.vlan.as_ref());
        patch.list("trunk", &self.trunk);
        patch.one("native", self.native.as_ref());
        patch.one("guard", self.guard.as_ref());
        patch.one("isolated", self.isolated.as_ref());
        patch.one("storm", self.storm.as_ref());
        patch.one("stations", self.stations.as_ref());
        patch.one("quota", self.quota.as_ref());
        patch.one("half_open", self.half_open.as_ref());
        patch.one("queues", self.queues.as_ref());
        if !self.label.is_empty() {
            patch.set("labels", &self.label.iter().cloned().collect::<std::collections::BTreeMap<_, _>>());
        }
        patch
    }
}

impl Port {
    /// Does what was asked for.
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Self::Add(add) => {
                let mut patch = add.settings.patch();
                patch.drop_defaults();
                patch.set("name", &add.name);
                patch.set("network", &add.network);
                let answer = client.post(route::PORTS, &patch.into_value()).await?;
                context.show(&answer, |port| outcome(port, "added"))
            }
            Self::Rm(rm) => {
                let answer = client.delete(&route::with_name(route::PORT, &rm.name)).await?;
                context.done(&answer, &format!("port {} removed", rm.name))
            }
            Self::Set(set) => {
                let mut patch = set.settings.patch();
                if let Some(network) = &set.network {
                    patch.set("network", network);
                }
                patch.must_say_something()?;
                let path = route::with_name(route::PORT, &set.name);
                let answer = client.patch(&path, &patch.into_value()).await?;
                context.show(&answer, |port| outcome(port, "changed"))
            }
            Self::List(only) => {
                let mut answer = client.get(route::PORTS).await?;
                if let (Some(network), Some(ports)) = (&only.network, answer.as_array_mut()) {
                    ports.retain(|port| port["config"]["network"].as_str() == Some(network));
                }
                context.show(&answer, list)
            }
            Self::Show(show) => {
                context.show(&client.get(&route::with_name(route::PORT, &show.name)).await?, details)
            }
        }
    }
}

/// Returns what became of a port, as `port web added: veth, eth0 in web, 10.1.0.10`.
pub(crate) fn outcome(port: &PortView, done: &str) -> String {
    let name = &port.config.name;
    if port.state == PortState::Pending {
        let reason = port.reason.as_deref().unwrap_or("something it needs is missing");
        return format!("port {name} {done}, and waits: {reason}\n");
    }
    let mut words = vec![port.kind.to_string()];
    if !port.peer.is_empty() {
        words.push(far_end(port));
    }
    words.extend(port.config.addresses.iter().map(ToString::to_string));
    let notes: String = port.notes.iter().map(|note| format!("  note: {note}\n")).collect();
    format!("port {name} {done}: {}\n{notes}", words.join(", "))
}

/// Returns the far end as people call it: a namespace that has a name by its name.
fn far_end(port: &PortView) -> String {
    port.peer.replace(" /run/netns/", " ").replace(" /var/run/netns/", " ")
}

/// Returns the state as a word, `UP` being what nobody has to look at.
fn state(port: &PortView) -> &'static str {
    match port.state {
        PortState::Up => "up",
        PortState::Down => "DOWN",
        PortState::Gone => "GONE",
        PortState::Pending => "PENDING",
    }
}

fn list(ports: &Vec<PortView>) -> String {
    let mut table = Table::new(&[
        "PORT",
        "NETWORK",
        "KIND",
        "STATE",
        "FAR END",
        "ADDRESSES",
        ">RX",
        ">RX BYTES",
        ">TX",
        ">TX BYTES",
        ">DROPS",
    ]);
    for port in ports {
        let counters = &port.counters;
        table.row([
            port.config.name.clone(),
            port.config.network.clone(),
            port.kind.to_string(),
            state(port).to_owned(),
            far_end(port),
            join(&port.config.addresses),
            units::count(counters.rx_frames),
            units::bytes(counters.rx_bytes),
            units::count(counters.tx_frames),
            units::bytes(counters.tx_bytes),
            units::count(lost(port)),
        ]);
    }
    table.or("No ports. `vsctl port add NAME --network NETWORK` makes one.")
}

/// Returns all frames of the port that came to nothing, wherever that was.
fn lost(port: &PortView) -> u64 {
    let c = &port.counters;
    c.dropped + c.rx_errors + c.rx_kernel_drops + c.rx_no_memory + c.tx_errors
}

fn details(port: &PortView) -> String {
    let (config, c, rates) = (&port.config, &port.counters, &port.rates);
    let or = |number: Option<u32>, none: &str| number.map_or_else(|| none.to_owned(), |n| n.to_string());
    let state = match &port.reason {
        Some(reason) => format!("{}: {reason}", state(port)),
        None => state(port).to_owned(),
    };
    let vlans = match (config.vlan, config.trunk.is_empty(), config.native) {
        (Some(vlan), ..) => format!("access {vlan}"),
        (None, true, _) => String::new(),
        (None, false, None) => format!("trunk {}", join(&config.trunk)),
        (None, false, Some(native)) => format!("trunk {}, native {native}", join(&config.trunk)),
    };
    let labels: Vec<String> = config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let way = |frames: u64, bytes: u64, packets: f64, bits: f64| {
        format!(
            "{frames} frames, {}; now {}/s, {}",
            units::bytes(bytes),
            units::rate(packets),
            units::bits(bits)
        )
    };
    pairs(&[
        ("port", config.name.clone()),
        ("id", port.id.map_or_else(String::new, |id| id.0.to_string())),
        ("network", config.network.clone()),
        ("owner", port.owner.to_string()),
        ("state", state),
        ("kind", format!("{} (asked for: {})", port.kind, config.kind)),
        ("mode", port.mode.clone()),
        ("notes", port.notes.join("\n")),
        ("our end", port.device.clone()),
        ("far end", far_end(port)),
        ("mac", port.mac.map_or_else(String::new, |mac| mac.to_string())),
        ("addresses", join(&config.addresses)),
        ("mtu", port.mtu.to_string()),
        ("vlan", vlans),
        ("guard", yes_no(config.guarded())),
        ("isolated", yes_no(config.isolated)),
        ("storm limit", or(config.storm, "the network's")),
        ("station limit", or(config.stations, "[limits] stations_per_port")),
        ("quota", or(config.quota, "[limits] per_port")),
        ("half open", or(config.half_open, "[limits] half_open")),
        ("labels", labels.join(" ")),
        ("workers", join(&port.workers)),
        ("rx", way(c.rx_frames, c.rx_bytes, rates.rx_frames, rates.rx_bits)),
        ("tx", way(c.tx_frames, c.tx_bytes, rates.tx_frames, rates.tx_bits)),
        (
            "rx lost",
            format!(
                "{} dropped by the pipeline, {} errors, {} by the kernel, {} without memory",
                c.dropped, c.rx_errors, c.rx_kernel_drops, c.rx_no_memory
            ),
        ),
        ("tx lost", format!("{} errors", c.tx_errors)),
        (
            "in software",
            format!("{} segmented, {} joined, {} checksummed", c.tx_segmented, c.tx_joined, c.tx_checksummed),
        ),
        ("system calls", c.syscalls.to_string()),
        ("lent chunks", c.lent_chunks.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> PortView {
        serde_json::from_value(json!({
            "config": {"name": "web", "network": "front", "netns": "web", "addresses": ["10.1.0.10"],
                       "trunk": ["10", "100-199"], "native": 5, "labels": {"tier": "web"}},
            "id": 3, "owner": "cli", "state": "up", "kind": "veth", "mode": "vnet_hdr,tso4",
            "notes": ["no USO: kernel 6.1"], "device": "p3", "peer": "eth0 in /run/netns/web",
            "mac": "02:00:0a:01:00:0a", "mtu": 1500, "workers": [0],
            "counters": {"rx_frames": 12345, "rx_bytes": 2048, "tx_frames": 7, "tx_bytes": 700,
                         "rx_errors": 1, "dropped": 2},
            "rates": {"rx_frames": 1000.0, "rx_bits": 8e6, "tx_frames": 0.0, "tx_bits": 0.0},
        }))
        .expect("a port as the daemon sends it")
    }

    #[test]
    fn list_shows_a_line_a_port_with_what_it_lost() {
        assert_eq!(
            list(&vec![view()]),
            "PORT  NETWORK  KIND  STATE  FAR END      ADDRESSES      RX  RX BYTES  TX  TX BYTES  DROPS\n\
             web   front    veth  up     eth0 in web  10.1.0.10  12.3 k  2.00 KiB   7     700 B      3\n"
        );
        assert!(list(&Vec::new()).starts_with("No ports."));
    }

    #[test]
    fn details_show_keys_device_and_counters() {
        let text = details(&view());
        for line in [
            "state          up",
            "kind           veth (asked for: auto)",
            "vlan           trunk 10 100-199, native 5",
            "guard          yes",
            "labels         tier=web",
            "rx             12345 frames, 2.00 KiB; now 1.00 k/s, 8.00 Mbit/s",
            "rx lost        2 dropped by the pipeline, 1 errors, 0 by the kernel, 0 without memory",
        ] {
            assert!(text.lines().any(|have| have == line), "no '{line}' in\n{text}");
        }
    }

    #[test]
    fn outcome_names_the_far_end_or_what_is_waited_for() {
        let mut port = view();
        assert_eq!(
            outcome(&port, "added"),
            "port web added: veth, eth0 in web, 10.1.0.10\n  note: no USO: kernel 6.1\n"
        );
        port.state = PortState::Pending;
        port.reason = Some("no namespace 'web'".to_owned());
        assert_eq!(outcome(&port, "added"), "port web added, and waits: no namespace 'web'\n");
    }
}
