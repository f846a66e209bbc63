//! Every key of the file: its type, default, what is allowed, what it is for.
//!
//! Error texts name what is allowed from here, and docs/config.md shows the same rows (a test compares them).
//! Another test holds the names against the fields of the structs in `document.rs`.

use crate::nat::{Listen, Target};
use crate::overlay::{OuterDscp, PeerMode};
use crate::peer::{Destination, Peer};
use crate::routing::{RouteTo, UplinkDevice};
use crate::services::Service;

/// One key of one section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section, as in `[section]` or `[[section]]`.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// What holds when it is left out; "required" when it must not be.
    pub default: &'static str,
    /// Which values are allowed.
    pub allowed: &'static str,
    /// What it is for.
    pub help: &'static str,
}

/// The sections in the order of the documentation.
pub const SECTIONS: [&str; 16] = [
    "daemon",
    "workers",
    "limits",
    "uplink",
    "overlay",
    "network",
    "port",
    "fdb",
    "peer",
    "remote",
    "route",
    "floating_ip",
    "publish",
    "egress",
    "policy",
    "assert",
];

/// Returns the keys of `section`.
pub fn of(section: &str) -> impl Iterator<Item = &'static Key> + Clone + '_ {
    KEYS.iter().filter(move |key| key.section == section)
}

/// Returns the key `name` of `section`.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

/// Returns which of `known` was meant by `found`, when one is near enough.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong; more and the guess would puzzle rather than help.
    let most = (found.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| (distance(found, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

/// Counts the letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

const fn key(
    section: &'static str,
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    allowed: &'static str,
    help: &'static str,
) -> Key {
    Key { section, name, kind, default, allowed, help }
}

const NAME: &str = "1 to 63 letters, digits, '.', '_', '-'; a letter or digit first";
const RATE: &str = "1 to 4294967295";
const COUNT: &str = "1 to `[limits] stations`";
const VLAN: &str = "1 to 4094";
const PREFIXES: &str = "up to 256 prefixes without host bits, as in \"192.0.2.0/24\" or \"2001:db8::7/128\"";
const OUTSIDE: &str = "an address of one station that nothing else has, as in \"203.0.113.10\"";
const HOSTS: &str = "addresses of hosts in the underlay, as in \"192.0.2.2\" or \"2001:db8::2\"";
const PENDING: &str = "the name of a [[port]], which may come later";

/// Every key.
#[rustfmt::skip]
pub const KEYS: [Key; 105] = [
    key("daemon", "name", "string", "the host's name", NAME, "Name of this switch."),
    key("daemon", "socket", "string", "\"/run/vswitch/vswitch.sock\"", "an absolute path of at most 107 bytes", "Unix socket of the API."),
    key("daemon", "state_dir", "string", "\"/var/lib/vswitch\"", "an absolute path", "Directory of the store."),
    key("daemon", "log", "string", "\"info\"", "\"error\", \"warn\", \"info\", \"debug\", \"trace\"", "The least important message that is logged."),
    key("daemon", "publish_allow_from", "list of strings", "[]", PREFIXES, "Who may reach published ports that have no `allow_from` of their own. None: everybody."),

    key("workers", "cpus", "\"auto\" or list of integers", "\"auto\"", "\"auto\" or a list of 1 to 64 different CPU numbers, each 0 to 1023", "CPUs that workers are pinned to, one worker each. `\"auto\"` is one worker on the last CPU that the daemon may use."),
    key("workers", "poll", "string", "\"adaptive\"", "\"adaptive\", \"busy\", \"interrupt\"", "What a worker does without work: `adaptive` spins a little and then waits in the kernel, `busy` spins for ever (lowest latency, a whole core), `interrupt` waits at once (least CPU)."),
    key("workers", "budget", "integer", "64", "1 to 256", "Frames that one port may bring in before the next port has its turn."),

    key("limits", "memory", "size", "\"46 MiB\"", "\"8 MiB\" to \"1024 GiB\"", "Bytes for the frame area, the tables, and the kernel's bookkeeping of AF_XDP ports, together."),
    key("limits", "ports", "integer", "256", "1 to 4078, with `networks` at most 4079", "Ports at the same time."),
    key("limits", "networks", "integer", "64", "1 to 4078, with `ports` at most 4079", "Networks at the same time."),
    key("limits", "stations", "integer", "16384", "16 to 1048576", "Stations (MAC addresses) that all networks know together."),
    key("limits", "stations_per_port", "integer", "4096", "1 to 1048576", "Stations that may be learned on a port that has no `stations` of its own."),
    key("limits", "flows", "integer", "32768", "a power of two from 1024 to 16777216", "Entries of each worker's flow cache; a flow of IPv6 takes two."),
    key("limits", "connections", "integer", "32768", "1024 to 16777216", "Connections at the same time."),
    key("limits", "per_port", "integer", "8192", "1 to 16777216", "Connections of a port that has no `quota` of its own."),
    key("limits", "half_open", "integer", "4096", "1 to 16777216", "Connections of a port that nobody has answered yet, for every port that has no `half_open` of its own."),
    key("limits", "neighbors", "integer", "8192", "64 to 1048576", "IP addresses whose stations are known by ARP and ND."),
    key("limits", "vteps", "integer", "256", "0 to 32767", "Endpoints of other hosts (VTEPs) that are known, over all networks."),

    key("uplink", "device", "string or list of strings", "\"auto\"", UplinkDevice::ALLOWED, "Devices that lead outside. `\"auto\"`: those that the host's routes use, as they change; without a default route there is no outside. `\"none\"` makes an island."),
    key("uplink", "mode", "string", "\"steer\"", "\"steer\", \"afxdp\"", "How packets get from a shared device to the switch: `steer` takes what is the switch's into a tap, with large frames whole; `afxdp` takes it by AF_XDP, for the highest packet rate, where the driver has XDP."),
    key("uplink", "dedicated", "boolean", "false", "true, false", "The device is the switch's alone, by AF_XDP: the host receives nothing there. Only with devices that are named."),
    key("uplink", "addresses", "list of strings", "the device's own", "up to 16 different addresses with their prefix length, as in \"203.0.113.2/24\"", "The switch's own addresses at its dedicated device."),
    key("uplink", "gateway", "string or list of strings", "those of the host's routes", "at most one IPv4 and one IPv6 address, of the subnets of `addresses` when these are given", "The next routers at the dedicated device."),
    key("uplink", "ports", "integer or string", "\"49152-65535\"", "a range of at least 64 L4 ports from 1024 to 65535, as in \"49152-65535\"", "L4 ports that masqueraded connections get; the host's own programs are kept from them."),

    key("overlay", "local", "string or list of strings", "the host's addresses towards its peers", "at most one IPv4 and one IPv6 address of the host, as in \"192.0.2.1\"", "This host's ends of the tunnels."),
    key("overlay", "peers", "string or list of strings", "[]", HOSTS, "The other hosts, which take part in every network with a `vni`."),
    key("overlay", "port", "integer", "4789", "1 to 65535", "UDP port of the tunnels, where a network has no `vxlan_port`."),
    key("overlay", "learn", "integer", "0", "0 to `[limits] vteps`", "Endpoints that each network may learn from traffic. 0: only peers may send."),
    key("overlay", "checksum", "string", "\"auto\"", "\"auto\", \"full\", \"none\"", "UDP checksum of outer packets: `auto` is none over IPv4 and full over IPv6."),
    key("overlay", "dscp", "string or integer", "\"inherit\"", OuterDscp::ALLOWED, "Type of service of outer packets: the inner packet's, or always this. Congestion marks are always carried over (RFC 6040)."),
    key("overlay", "ttl", "integer", "64", "1 to 255", "Time to live of outer packets."),
    key("overlay", "source_ports", "integer or string", "\"49152-65535\"", "a range of UDP ports from 1024 to 65535", "UDP ports that outer packets come from; each flow has one of them."),

    key("network", "name", "string", "required", NAME, "Unique name."),
    key("network", "subnets", "list of strings", "[]", "IPv4 prefixes up to /30 and IPv6 prefixes up to /126 without host bits, as in \"10.1.0.0/24\"; at most 64, no two overlap", "Address ranges of the network."),
    key("network", "gateways", "list of strings", "first address of each subnet", "addresses of the subnets, at most one each; [] for none", "The switch's own addresses in this network."),
    key("network", "vni", "integer", "none: it stays on this host", "0 to 16777215, one a network and UDP port", "Its identifier in the tunnels to other hosts (VXLAN)."),
    key("network", "vxlan_port", "integer", "`[overlay] port`", "1 to 65535", "UDP port of its tunnels. Only with `vni`."),
    key("network", "isolated", "boolean", "false", "true, false", "Ports of this network never reach one another."),
    key("network", "mtu", "\"auto\" or integer", "\"auto\"", "\"auto\" or 68 to 65535, with IPv6 1280 to 65535", "Largest IP packet in bytes, for every port without an `mtu` of its own. `\"auto\"` is 1500, and with a `vni` what the uplink leaves room for: its MTU less 50 over IPv4, 70 over IPv6."),
    key("network", "stations", "integer", "`[limits] stations`", COUNT, "Stations that may be learned in this network."),
    key("network", "ageing", "integer", "300", "1 to 1000000", "Seconds after which a learned station that sends nothing is forgotten."),
    key("network", "storm", "integer", "no limit", RATE, "Broadcast, multicast and unknown-unicast frames a second that each port may send."),
    key("network", "arp_proxy", "boolean", "true", "true, false", "The switch answers ARP and ND requests for addresses that it knows."),
    key("network", "masquerade", "boolean", "true", "true, false", "Connections to the outside come from an address of the uplink."),
    key("network", "internal", "boolean", "false", "true, false", "Nothing goes outside or to the host, and nothing comes from there."),
    key("network", "host", "boolean", "true", "true, false", "The host and the ports reach one another. Never so on an `internal` or `isolated` network."),

    key("port", "name", "string", "required", NAME, "Unique name."),
    key("port", "network", "string", "required", "the name of a [[network]]", "The network it is attached to."),
    key("port", "kind", "string", "\"auto\"", "\"auto\", \"veth\", \"tap\", \"afxdp\"", "How frames get in and out: a veth pair with packet sockets, a tap device, or a veth pair with AF_XDP sockets. `\"auto\"` is `\"veth\"`."),
    key("port", "netns", "string or integer", "the host's namespace", "the name of a namespace, an absolute path, \"pid:N\", or a process id", "Namespace that the far end is put into."),
    key("port", "ifname", "string", "\"eth0\", or \"vsw-NAME\" in the host's namespace", "1 to 15 bytes without '/', ':', '%' and spaces; in the host's namespace \"vsw\" first", "Name of the far end's interface."),
    key("port", "addresses", "list of strings", "[]", "addresses of the network's subnets that nobody else has, at most 64, as in \"10.1.0.10\"", "Addresses of the far end; the prefix length is the subnet's."),
    key("port", "mac", "string", "made from the name", "a unicast address, unique in the network, as in \"02:00:0a:01:00:0a\"", "MAC address of the far end."),
    key("port", "mtu", "integer", "the network's", "68 to 65535, with IPv6 addresses from 1280, with afxdp up to 9216", "MTU of the far end, in bytes."),
    key("port", "vlan", "integer", "none", VLAN, "Access port: its frames are untagged and belong to this VLAN. Not together with `trunk`."),
    key("port", "trunk", "list of integers and strings", "[]", "VLANs from 1 to 4094 and ranges as in \"100-199\"; at most 256, no two overlap", "Trunk port: frames tagged with these VLANs pass."),
    key("port", "native", "integer", "untagged frames are dropped", VLAN, "VLAN of a trunk port's untagged frames. Only with `trunk`."),
    key("port", "guard", "boolean", "true if it has addresses", "true, false", "Frames with a source MAC or IP address that is not the port's are dropped."),
    key("port", "isolated", "boolean", "false", "true, false", "Never reaches another isolated port of the network."),
    key("port", "storm", "integer", "the network's", RATE, "Broadcast, multicast and unknown-unicast frames a second that it may send."),
    key("port", "stations", "integer", "`[limits] stations_per_port`", COUNT, "Stations that may be learned on it."),
    key("port", "quota", "integer", "`[limits] per_port`", "1 to `[limits] connections`", "Connections that it may have."),
    key("port", "half_open", "integer", "`[limits] half_open`", "1 to `[limits] connections`", "Connections of it that nobody has answered yet."),
    key("port", "queues", "integer", "1", "1 to 16; more than 1 with tap and afxdp only", "Queues of the device."),
    key("port", "labels", "table of strings", "{}", "at most 32; keys of 1 to 63 letters, digits, '.', '_', '-', '/'; values of at most 255 bytes", "Words for people, scripts and policies, shown by `vsctl port show`."),

    key("fdb", "network", "string", "required", "the name of a [[network]]", "The network."),
    key("fdb", "mac", "string", "required", "a unicast address, as in \"02:00:0a:01:00:0a\"", "The station."),
    key("fdb", "port", "string", "required", "the name of a [[port]] of the network", "The port it is behind."),
    key("fdb", "vlan", "integer", "the port's own", "a VLAN from 1 to 4094 that the port carries", "The VLAN it is in."),

    key("peer", "address", "string", "required", HOSTS, "Its address."),
    key("peer", "network", "string", "every network with a `vni`", "the name of a [[network]]", "The network that it takes part in."),
    key("peer", "subnets", "list of strings", "[]", "prefixes without host bits, as in \"10.5.52.0/24\"; in a tunnel only with `network`", "What is behind it and reached by routing: by the tunnel, as flannel does, or without."),
    key("peer", "mac", "string", "made from the address", "a unicast address", "MAC address that packets to `subnets` are sent to in the tunnel."),
    key("peer", "mode", "string", "\"vxlan\"", PeerMode::ALLOWED, "How it is reached: by tunnel, or as a router for `subnets` on a segment of the uplink."),

    key("remote", "network", "string", "required", "the name of a [[network]] with a `vni`", "The network that the station is in."),
    key("remote", "address", "string", "required", "an address of the network's subnets that no [[port]] has", "Its address."),
    key("remote", "mac", "string", "required", "a unicast address that no [[port]] of the network has", "Its MAC address."),
    key("remote", "vtep", "string", "required", HOSTS, "The host that it is behind."),

    key("route", "network", "string", "required", "the name of a [[network]]", "The network whose packets it is for."),
    key("route", "to", "string", "required", RouteTo::ALLOWED, "The destinations."),
    key("route", "via", "string or list of strings", "none", "up to 64 different addresses of the network's subnets or outside, of the family of `to`", "The next hops. Flows are spread over them."),
    key("route", "kind", "string", "\"unicast\"", "\"unicast\", \"blackhole\", \"unreachable\", \"prohibit\"", "What becomes of the packets: they go to the next hops; are dropped; are dropped and answered with 'unreachable', or with 'prohibited'."),

    key("floating_ip", "address", "string", "required", OUTSIDE, "The outside address."),
    key("floating_ip", "port", "string", "required", PENDING, "The port it leads to, and whose connections to the outside come from it."),
    key("floating_ip", "to", "string", "the port's first address of the family", "an address of the port, of the family of `address`", "Which of the port's addresses it stands for."),

    key("publish", "name", "string", "`listen`, or `to` with a port by chance", NAME, "Unique name."),
    key("publish", "listen", "string", "required", Listen::ALLOWED, "Where it is reached: an address of the host or a floating IP, `0.0.0.0` or `[::]`, or all of the host's."),
    key("publish", "to", "string", "required", Target::ALLOWED, "Where it leads: a [[port]], which may come later, and as many L4 ports as are listened on."),
    key("publish", "allow_from", "list of strings", "`[daemon] publish_allow_from`", PREFIXES, "Who may reach it."),

    key("egress", "port", "string", "required", PENDING, "The port whose connections to the outside are meant."),
    key("egress", "address", "string or list of strings", "required", "at most one IPv4 and one IPv6 address, as in \"203.0.113.7\"", "The outside addresses that they come from."),
    key("egress", "ports", "integer or string", "\"1024-65535\"", "a range of L4 ports from 1 to 65535", "L4 ports that they get."),

    key("policy", "name", "string", "made from the rest", NAME, "Unique name."),
    key("policy", "from", "string", "required", Peer::ALLOWED, "Who opens the connection."),
    key("policy", "to", "string", "required", Peer::ALLOWED, "Who is asked."),
    key("policy", "allow", "list of strings", "[]", Service::ALLOWED, "What is allowed. One of `allow`, `deny`, `reject` is given."),
    key("policy", "deny", "list of strings", "[]", Service::ALLOWED, "What is dropped."),
    key("policy", "reject", "list of strings", "[]", Service::ALLOWED, "What is refused with an answer: RST for TCP, ICMP for the rest."),
    key("policy", "both_ways", "boolean", "false", "true, false", "It holds for connections from `to` to `from` as well."),
    key("policy", "priority", "integer", "1000", "0 to 65535", "Of the policies that a new connection matches the one with the smallest number decides; of several with the same, reject goes before deny before allow."),
    key("policy", "log", "boolean", "false", "true, false", "New connections that it decides are told in the log."),

    key("assert", "from", "string", "required", PENDING, "The port that opens a connection. While there is none, nothing is checked."),
    key("assert", "to", "string", "required", Destination::ALLOWED, "Where it goes, and what it is about. To a network: to every port of it."),
    key("assert", "expect", "string", "required", "\"allow\", \"deny\", \"reject\"", "What must become of it."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_guessed_and_far_ones_are_not() {
        let known = ["front", "back", "management"];
        for (found, meant) in [
            ("frnot", Some("front")),
            ("bakc", Some("back")),
            ("managment", Some("management")),
            ("dmz", None),
        ] {
            assert_eq!(nearest(found, known), meant, "{found}");
        }
    }
}
