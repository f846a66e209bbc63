//! What travels over the API socket: the routes, and the JSON of requests and replies.
//!
//! HTTP/1.1 over a unix socket, JSON bodies. The daemon serves [`route`] and `vsctl` asks for it;
//! docs/openapi.json describes the same, and a test keeps both equal. Objects that a user configures travel
//! as the structs of the TOML tree; views wrap them with what the switch knows about them.
//!
//! Durations and times carry their unit in the field's name. Times are milliseconds since 1970-01-01 UTC.
//! Counters only grow while an object lives. A reply may gain fields: clients must skip what they do not know.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use packet::{MacAddr, PortId};
use serde::{Deserialize, Serialize};

use crate::diff::Change;
use crate::document::{Network, Owner, Poll, Port, PortKind};
use crate::values::Netns;

/// The paths of the API. `{name}` is the name of an object, percent-encoded.
pub mod route {
    /// GET: [`Status`](super::Status).
    pub const STATUS: &str = "/v1/status";
    /// GET: the whole intent, a [`Document`](crate::Document); `?format=toml` for text.
    pub const CONFIG: &str = "/v1/config";
    /// POST [`ApplyRequest`](super::ApplyRequest): [`ApplyReply`](super::ApplyReply).
    pub const APPLY: &str = "/v1/apply";
    /// POST: keeps the last apply that waits for it; 409 when none waits.
    pub const CONFIRM: &str = "/v1/confirm";
    /// GET: list of [`NetworkView`](super::NetworkView). POST [`Network`](crate::Network): the view.
    pub const NETWORKS: &str = "/v1/networks";
    /// GET: [`NetworkView`](super::NetworkView). PATCH (fields of [`Network`](crate::Network), null for the
    /// default): the view. DELETE.
    pub const NETWORK: &str = "/v1/networks/{name}";
    /// GET: list of [`PortView`](super::PortView). POST [`Port`](crate::Port): the view.
    pub const PORTS: &str = "/v1/ports";
    /// GET: [`PortView`](super::PortView). PATCH (fields of [`Port`](crate::Port), null for the default):
    /// the view. DELETE.
    pub const PORT: &str = "/v1/ports/{name}";
    /// POST [`AttachRequest`](super::AttachRequest): [`PortView`](super::PortView).
    pub const ATTACH: &str = "/v1/attach";
    /// DELETE: takes the attached port away.
    pub const DETACH: &str = "/v1/attach/{name}";
    /// GET [`FdbQuery`](super::FdbQuery): list of [`FdbView`](super::FdbView). POST
    /// [`FdbEntry`](crate::FdbEntry): adds a static one. DELETE [`FdbQuery`](super::FdbQuery):
    /// [`Flushed`](super::Flushed).
    pub const FDB: &str = "/v1/fdb";
    /// GET: list of [`Neighbor`](super::Neighbor).
    pub const NEIGHBORS: &str = "/v1/neighbors";
    /// GET: [`Drops`](super::Drops).
    pub const DROPS: &str = "/v1/drops";
    /// GET: a line of JSON, [`DropRecord`](super::DropRecord), for each dropped frame that is sampled.
    pub const DROPS_FOLLOW: &str = "/v1/drops/follow";
    /// GET [`CaptureQuery`](super::CaptureQuery): pcapng until the client closes.
    pub const CAPTURE: &str = "/v1/capture";
    /// GET: list of [`WorkerView`](super::WorkerView).
    pub const WORKERS: &str = "/v1/workers";
    /// GET: list of [`Check`](super::Check).
    pub const DOCTOR: &str = "/v1/doctor";
    /// GET: a line of JSON, [`Event`](super::Event), for each thing that happens.
    pub const EVENTS: &str = "/v1/events";
    /// GET [`LogQuery`](super::LogQuery): list of the last [`Event`](super::Event)s, oldest first.
    pub const LOG: &str = "/v1/log";
    /// POST [`CleanupRequest`](super::CleanupRequest): [`CleanupReply`](super::CleanupReply).
    pub const CLEANUP: &str = "/v1/cleanup";

    /// Every route with the methods it answers.
    pub const ALL: [(&str, &[&str]); 20] = [
        (STATUS, &["get"]),
        (CONFIG, &["get"]),
        (APPLY, &["post"]),
        (CONFIRM, &["post"]),
        (NETWORKS, &["get", "post"]),
        (NETWORK, &["get", "patch", "delete"]),
        (PORTS, &["get", "post"]),
        (PORT, &["get", "patch", "delete"]),
        (ATTACH, &["post"]),
        (DETACH, &["delete"]),
        (FDB, &["get", "post", "delete"]),
        (NEIGHBORS, &["get"]),
        (DROPS, &["get"]),
        (DROPS_FOLLOW, &["get"]),
        (CAPTURE, &["get"]),
        (WORKERS, &["get"]),
        (DOCTOR, &["get"]),
        (EVENTS, &["get"]),
        (LOG, &["get"]),
        (CLEANUP, &["post"]),
    ];

    /// Returns `route` with `name` in the place of `{name}`, percent-encoded (RFC 3986, 2.1).
    pub fn with_name(route: &str, name: &str) -> String {
        let mut encoded = String::with_capacity(name.len());
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        route.replace("{name}", &encoded)
    }
}

/// Returns `object` with the fields of `patch` in the place of its own (RFC 7396): `null` stands for the
/// default.
///
/// # Errors
/// What serde says about a field that is unknown or does not fit.
pub fn merge_patch<T>(object: &T, patch: &serde_json::Value) -> Result<T, serde_json::Error>
where
    T: Serialize + serde::de::DeserializeOwned,
{
    fn merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
        let serde_json::Value::Object(patch) = patch else {
            target.clone_from(patch);
            return;
        };
        if !target.is_object() {
            *target = serde_json::Value::Object(serde_json::Map::new());
        }
        let fields = target.as_object_mut().expect("it was made one above");
        for (key, value) in patch {
            if value.is_null() {
                fields.remove(key);
            } else {
                merge(fields.entry(key.clone()).or_insert(serde_json::Value::Null), value);
            }
        }
    }
    let mut target = serde_json::to_value(object)?;
    merge(&mut target, patch);
    serde_json::from_value(target)
}

/// Body of every reply whose status is 4xx or 5xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong. 400: bad input; 404: unknown object; 409: conflict with what is there; 500: our fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One sentence.
    pub message: String,
    /// One line a finding, `file:line:column: ...` when a file is at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// The daemon at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of the switch.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// The configuration file, when there is one.
    pub config_file: Option<PathBuf>,
    /// What runs is not what the file says.
    pub config_differs: bool,
    /// Raised by every change of the configuration.
    pub generation: u64,
    /// Seconds until the last apply is rolled back unless it is confirmed.
    pub confirm_seconds: Option<u64>,
    /// Workers that run.
    pub workers: u32,
    /// How many of each there are.
    pub counts: Counts,
    /// Where memory is.
    pub memory: MemoryView,
    /// The kernel, and what it can do.
    pub kernel: KernelView,
}

/// How many of each there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Networks.
    pub networks: u32,
    /// Ports.
    pub ports: u32,
    /// Ports that move frames.
    pub ports_up: u32,
    /// Stations known.
    pub stations: u32,
    /// Entries in all flow caches.
    pub flows: u64,
}

/// Where memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryView {
    /// Resident bytes of the daemon.
    pub rss_bytes: u64,
    /// `[limits] memory`.
    pub limit_bytes: u64,
    /// 4 KiB chunks of the frame area.
    pub small_chunks: u32,
    /// Those that wait in the depot.
    pub small_free: u32,
    /// 68 KiB chunks of the frame area.
    pub large_chunks: u32,
    /// Those that wait in the depot.
    pub large_free: u32,
    /// The area lies in huge pages.
    pub huge_pages: bool,
}

/// The kernel, and what it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelView {
    /// `uname -r`.
    pub release: String,
    /// Gift -> there: `tap_uso`, `xdp_multi_buffer`, `xdp_tx_checksum`, ...
    pub features: BTreeMap<String, bool>,
}

/// A configuration to become what runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyRequest {
    /// The text of the file.
    pub toml: String,
    /// Its path, for messages and for `save`.
    pub path: String,
    /// Tells what would change, and changes nothing.
    pub dry_run: bool,
    /// The next start takes this configuration too: it is written to the daemon's configuration file.
    pub save: bool,
    /// Seconds after which the change is undone unless it is confirmed.
    pub confirm: Option<u32>,
}

/// What an apply changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplyReply {
    /// One an object; empty when nothing changes.
    pub changes: Vec<Change>,
    /// The generation that runs now.
    pub generation: u64,
    /// Seconds until the change is undone unless it is confirmed.
    pub confirm_deadline: Option<u64>,
}

/// A network, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// What is configured.
    pub config: Network,
    /// Who made it.
    pub owner: Owner,
    /// The switch's own addresses in it.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Names of its ports.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Stations known in it.
    #[serde(default)]
    pub stations: u32,
}

/// A port, and what the switch knows about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortView {
    /// What is configured.
    pub config: Port,
    /// Its number in the switch; `None` while it is pending.
    #[serde(default)]
    pub id: Option<PortId>,
    /// Who made it.
    pub owner: Owner,
    /// Whether frames move.
    pub state: PortState,
    /// Why they do not, when they do not.
    #[serde(default)]
    pub reason: Option<String>,
    /// The kind that was taken, never `auto`.
    pub kind: PortKind,
    /// How the device is used: `vnet_hdr,tso4,tso6,uso`.
    #[serde(default)]
    pub mode: String,
    /// Why a better mode was not taken, one sentence each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Name of our end.
    #[serde(default)]
    pub device: String,
    /// The far end.
    #[serde(default)]
    pub peer: String,
    /// The far end's MAC.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// The far end's MTU, in bytes.
    #[serde(default)]
    pub mtu: u16,
    /// The worker of each queue.
    #[serde(default)]
    pub workers: Vec<u32>,
    /// What it has counted.
    #[serde(default)]
    pub counters: PortCounters,
    /// How fast it goes now.
    #[serde(default)]
    pub rates: Rates,
}

/// Whether a port moves frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Frames move.
    Up,
    /// The device is down.
    Down,
    /// The device vanished.
    Gone,
    /// Not made yet: something it needs is missing.
    Pending,
}

/// What a port has counted since it was opened; frames unless the name says bytes. `rx` is into the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortCounters {
    /// Came in.
    pub rx_frames: u64,
    /// Came in, in bytes.
    pub rx_bytes: u64,
    /// Came in and could not be accepted.
    pub rx_errors: u64,
    /// The kernel dropped them before we could read them.
    pub rx_kernel_drops: u64,
    /// No free chunk when one was needed.
    pub rx_no_memory: u64,
    /// Went out.
    pub tx_frames: u64,
    /// Went out, in bytes.
    pub tx_bytes: u64,
    /// Refused by the device.
    pub tx_errors: u64,
    /// Large frames cut in software.
    pub tx_segmented: u64,
    /// Checksums finished in software.
    pub tx_checksummed: u64,
    /// Came in here and were dropped by the pipeline, all reasons together.
    pub dropped: u64,
    /// System calls that moved or announced frames.
    pub syscalls: u64,
    /// Chunks lent to the kernel right now.
    pub lent_chunks: u64,
}

/// Frames and bits a second, over the last second or so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Frames a second in.
    pub rx_frames: f64,
    /// Bits a second in.
    pub rx_bits: f64,
    /// Frames a second out.
    pub tx_frames: f64,
    /// Bits a second out.
    pub tx_bits: f64,
}

/// A running container, process or namespace to attach to a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name or path of the namespace, or `pid:N`.
    pub target: Netns,
    /// The network.
    pub network: String,
    /// Name of the interface inside; `None` stands for the first free `ethN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// Addresses of the interface, from the network's subnets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The interface's MAC; `None` stands for one that the switch makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The access VLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The kind of port.
    #[serde(default)]
    pub kind: PortKind,
    /// The port's name; `None` stands for one made from target and interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Which stations are meant; all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FdbQuery {
    /// Of this network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Behind this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// This one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
}

/// A station that the switch knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbView {
    /// The network.
    pub network: String,
    /// The VLAN, 0 for untagged.
    pub vlan: u16,
    /// The station.
    pub mac: MacAddr,
    /// The port it is behind.
    pub port: String,
    /// How it is known.
    pub kind: FdbKind,
    /// Seconds since it last sent; 0 when it is not learned.
    pub age_seconds: u64,
    /// How often it went from one port to another.
    pub moves: u32,
}

/// How a station is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdbKind {
    /// It sent a frame.
    Learned,
    /// It was configured.
    Static,
    /// It is the far end of a port that we made.
    Port,
}

/// How many entries were taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Entries.
    pub entries: u32,
}

/// An IP address that the switch answers ARP or ND for, or knows the station of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbor {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// Its station.
    pub mac: MacAddr,
    /// The port it is behind; `None` for the switch itself.
    #[serde(default)]
    pub port: Option<String>,
    /// How it is known.
    pub source: NeighborSource,
}

/// How a neighbour is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeighborSource {
    /// An address of a port.
    Port,
    /// The switch's own address.
    Gateway,
    /// It said so by ARP or ND.
    Learned,
}

/// Every drop, and whether the books balance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drops {
    /// One a reason and port that has any.
    pub drops: Vec<DropCount>,
    /// All frames of the switch.
    pub ledger: Ledger,
}

/// Frames dropped for one reason on one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason's name.
    pub reason: String,
    /// What it means, one sentence.
    #[serde(default)]
    pub help: String,
    /// The port they came in by; `None` when they did not come by a port.
    #[serde(default)]
    pub port: Option<String>,
    /// How many.
    pub frames: u64,
}

/// Frames are conserved: received + created = sent + dropped + consumed + queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// Came in.
    pub received: u64,
    /// Made by the switch: replies and copies.
    pub created: u64,
    /// Handed to the kernel.
    pub sent: u64,
    /// Dropped, with a reason.
    pub dropped: u64,
    /// Ended here on purpose: answered or taken in.
    pub consumed: u64,
    /// On their way inside.
    pub queued: u64,
}

impl Ledger {
    /// Says whether every frame is accounted for.
    pub fn balances(&self) -> bool {
        self.received.wrapping_add(self.created)
            == self.sent.wrapping_add(self.dropped).wrapping_add(self.consumed).wrapping_add(self.queued)
    }
}

/// A frame that was dropped. Sampled: a flood of drops is not all told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropRecord {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The port it came in by.
    #[serde(default)]
    pub port: Option<String>,
    /// The reason's name.
    pub reason: String,
    /// Its length, in bytes.
    pub len: u32,
    /// Its first bytes, at most 96, in hex.
    pub head: String,
}

/// What to capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureQuery {
    /// The port.
    pub port: String,
    /// Bytes kept of each frame; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// Which way.
    #[serde(default)]
    pub direction: Direction,
}

/// Which way a frame goes, as the switch sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the switch.
    Rx,
    /// Out of it.
    Tx,
    /// Either.
    #[default]
    Both,
}

/// A thread that moves frames.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerView {
    /// Its number.
    pub id: u32,
    /// The CPU it is pinned to.
    pub cpu: u32,
    /// What it does while nothing is to be done.
    pub poll: Poll,
    /// Part of the last second that it worked, 0 to 1.
    pub busy: f64,
    /// Turns since it started.
    pub turns: u64,
    /// Turns that moved no frame.
    pub idle_turns: u64,
    /// Times it waited in the kernel.
    pub waits: u64,
    /// Turns by frames moved: 1, 2-3, 4-7, ..., 128-255, 256 and more.
    pub batches: Vec<u64>,
    /// Names of the ports whose queues it owns.
    pub ports: Vec<String>,
    /// How fast it goes now.
    pub rates: Rates,
    /// Packets whose flow was in its cache.
    pub cache_hits: u64,
    /// Packets that walked the stages.
    pub cache_misses: u64,
    /// Entries in its cache.
    pub cache_entries: u64,
}

/// Something that the host must have, or had better have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// It is as it should be.
    pub ok: bool,
    /// What was found.
    #[serde(default)]
    pub detail: String,
    /// What to do about it, when it is not.
    #[serde(default)]
    pub fix: Option<String>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// What kind: `port_up`, `port_gone`, `station_moved`, `applied`, ...
    pub kind: String,
    /// The object, as `port web`.
    #[serde(default)]
    pub object: String,
    /// One sentence.
    #[serde(default)]
    pub text: String,
}

/// How much of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogQuery {
    /// At most this many events; `None`: all that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Takes everything away that the switch ever made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CleanupRequest {
    /// Even while ports are in use.
    pub force: bool,
}

/// What a cleanup took away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CleanupReply {
    /// One a thing, as `port web`.
    pub removed: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_route_is_percent_encoded() {
        assert_eq!(route::with_name(route::PORT, "web/1 ä"), "/v1/ports/web%2F1%20%C3%A4");
    }

    #[test]
    fn a_patch_changes_what_it_names_and_null_restores_the_default() {
        let port = Port { mtu: Some(9000), vlan: Some(3), ..Port::new("web", "front") };
        let patch = serde_json::json!({"mtu": null, "storm": 10, "labels": {"tier": "web"}});
        let patched = merge_patch(&port, &patch).expect("fits");
        assert_eq!((patched.mtu, patched.vlan, patched.storm), (None, Some(3), Some(10)));
        assert_eq!(patched.labels["tier"], "web");
        assert!(merge_patch(&port, &serde_json::json!({"mut": 3})).is_err());
        assert!(merge_patch(&port, &serde_json::json!([])).is_err());
    }

    #[test]
    fn a_ledger_balances_when_every_frame_is_accounted_for() {
        let mut ledger = Ledger { received: 5, created: 2, sent: 3, dropped: 1, consumed: 2, queued: 1 };
        assert!(ledger.balances());
        ledger.queued = 0;
        assert!(!ledger.balances());
    }

    #[test]
    fn a_reply_with_unknown_fields_is_read() {
        let status: Status = serde_json::from_str(r#"{"version": "9", "new": 1}"#).expect("skips it");
        assert_eq!(status.version, "9");
    }
}
