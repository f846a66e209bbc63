//! What the switch tells about its objects: networks, ports, stations, drops, workers.

use std::net::IpAddr;

use packet::{MacAddr, PortId};
use serde::{Deserialize, Serialize};

use crate::document::{Network, Owner, Poll, Port, PortKind};

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
    /// The largest IP packet in it.
    #[serde(default)]
    pub mtu: u16,
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
    /// Small packets that left as parts of a large one.
    pub tx_joined: u64,
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
    /// The other host that it is behind, by its address in the underlay.
    #[serde(default)]
    pub peer: Option<IpAddr>,
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
    /// It is given, behind another host.
    Remote,
}

/// An IP address that the switch answers ARP or ND for, or knows the station of, or asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborView {
    /// The network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// Its station; `None` while nobody has answered.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// The port it is behind; `None` for the switch itself.
    #[serde(default)]
    pub port: Option<String>,
    /// How it is known.
    pub source: NeighborSource,
    /// How sure that is.
    #[serde(default)]
    pub state: NeighborState,
    /// Seconds since it last told; 0 when it need not.
    #[serde(default)]
    pub age_seconds: u64,
    /// The other host that it is behind, by its address in the underlay.
    #[serde(default)]
    pub peer: Option<IpAddr>,
}

/// How sure the station of an IP address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeighborState {
    /// It was configured.
    #[default]
    Fixed,
    /// It has told by ARP or ND.
    Reachable,
    /// It has not told for long, and is asked again.
    Probed,
    /// It is asked for, and has not told yet.
    Incomplete,
    /// It does not answer.
    Failed,
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
    /// It is given, behind another host.
    Remote,
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
    /// The policy that dropped it, when one did.
    #[serde(default)]
    pub rule: Option<String>,
    /// Its length, in bytes.
    pub len: u32,
    /// Its first bytes, at most 96, in hex.
    pub head: String,
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
