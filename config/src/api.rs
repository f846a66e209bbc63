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

use packet::MacAddr;
use serde::{Deserialize, Serialize};

use crate::diff::Change;
use crate::document::PortKind;
use crate::values::Netns;

mod flow;
mod overlay;
pub mod route;
mod view;

pub use flow::*;
pub use overlay::*;
pub use view::*;

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
    /// What was found about what the file asserts.
    pub asserts: Vec<AssertView>,
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

/// How many entries were taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Entries.
    pub entries: u32,
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
    use crate::Port;

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
