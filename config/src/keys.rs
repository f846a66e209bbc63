//! Every key of the file: its type, default, what is allowed, what it is for.
//!
//! Error texts name what is allowed from here, and docs/config.md shows the same rows (a test compares them).
//! Another test holds the names against the fields of the structs in `document.rs`.

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
pub const SECTIONS: [&str; 6] = ["daemon", "workers", "limits", "network", "port", "fdb"];

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

/// Every key.
#[rustfmt::skip]
pub const KEYS: [Key; 43] = [
    key("daemon", "name", "string", "the host's name", NAME, "Name of this switch."),
    key("daemon", "socket", "string", "\"/run/vswitch/vswitch.sock\"", "an absolute path of at most 107 bytes", "Unix socket of the API."),
    key("daemon", "state_dir", "string", "\"/var/lib/vswitch\"", "an absolute path", "Directory of the store."),
    key("daemon", "log", "string", "\"info\"", "\"error\", \"warn\", \"info\", \"debug\", \"trace\"", "The least important message that is logged."),

    key("workers", "cpus", "\"auto\" or list of integers", "\"auto\"", "\"auto\" or a list of 1 to 64 different CPU numbers, each 0 to 1023", "CPUs that workers are pinned to, one worker each. `\"auto\"` is one worker on the last CPU that the daemon may use."),
    key("workers", "poll", "string", "\"adaptive\"", "\"adaptive\", \"busy\", \"interrupt\"", "What a worker does without work: `adaptive` spins a little and then waits in the kernel, `busy` spins for ever (lowest latency, a whole core), `interrupt` waits at once (least CPU)."),
    key("workers", "budget", "integer", "64", "1 to 256", "Frames that one port may bring in before the next port has its turn."),

    key("limits", "memory", "size", "\"36 MiB\"", "\"8 MiB\" to \"1024 GiB\"", "Bytes for the frame area, the tables, and the kernel's bookkeeping of AF_XDP ports, together."),
    key("limits", "ports", "integer", "256", "1 to 4096", "Ports at the same time."),
    key("limits", "networks", "integer", "64", "1 to 4096", "Networks at the same time."),
    key("limits", "stations", "integer", "16384", "16 to 1048576", "Stations (MAC addresses) that all networks know together."),
    key("limits", "stations_per_port", "integer", "4096", "1 to 1048576", "Stations that may be learned on a port that has no `stations` of its own."),
    key("limits", "flows", "integer", "65536", "a power of two from 1024 to 16777216", "Entries of each worker's flow cache."),

    key("network", "name", "string", "required", NAME, "Unique name."),
    key("network", "subnets", "list of strings", "[]", "IPv4 prefixes up to /30 and IPv6 prefixes up to /126 without host bits, as in \"10.1.0.0/24\"; at most 64, no two overlap", "Address ranges of the network."),
    key("network", "gateways", "list of strings", "first address of each subnet", "addresses of the subnets, at most one each; [] for none", "The switch's own addresses in this network."),
    key("network", "isolated", "boolean", "false", "true, false", "Ports of this network never reach one another."),
    key("network", "mtu", "\"auto\" or integer", "\"auto\"", "\"auto\" or 68 to 65535, with IPv6 1280 to 65535", "Largest IP packet in bytes, for every port without an `mtu` of its own. `\"auto\"` is 1500."),
    key("network", "stations", "integer", "`[limits] stations`", COUNT, "Stations that may be learned in this network."),
    key("network", "ageing", "integer", "300", "1 to 1000000", "Seconds after which a learned station that sends nothing is forgotten."),
    key("network", "storm", "integer", "no limit", RATE, "Broadcast, multicast and unknown-unicast frames a second that each port may send."),
    key("network", "arp_proxy", "boolean", "true", "true, false", "The switch answers ARP and ND requests for addresses that it knows."),

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
    key("port", "queues", "integer", "1", "1 to 16; more than 1 with tap and afxdp only", "Queues of the device."),
    key("port", "labels", "table of strings", "{}", "at most 32; keys of 1 to 63 letters, digits, '.', '_', '-', '/'; values of at most 255 bytes", "Words for people and scripts, shown by `vsctl port show`."),

    key("fdb", "network", "string", "required", "the name of a [[network]]", "The network."),
    key("fdb", "mac", "string", "required", "a unicast address, as in \"02:00:0a:01:00:0a\"", "The station."),
    key("fdb", "port", "string", "required", "the name of a [[port]] of the network", "The port it is behind."),
    key("fdb", "vlan", "integer", "the port's own", "a VLAN from 1 to 4094 that the port carries", "The VLAN it is in."),
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
