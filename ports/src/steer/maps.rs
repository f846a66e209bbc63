//! The tables of the steering programs: what they are, and how the rules are written into them.
//!
//! | map | key | value |
//! |---|---|---|
//! | `addresses` | address | 1: floating; 2: shared with the host |
//! | `ports` | address, protocol | 65536 bits, one a port (for ICMP: an echo identifier) |
//! | `tunnels` | address, UDP port, VNI | |
//! | | address, UDP port, all ones | the port has such networks |
//! | `routed` | prefix | |
//! | `fragments` | source, destination, identification, protocol | time, and whose the packet is |
//! | `counters` | reason | packets, one number a CPU |
//!
//! Addresses have 16 bytes, IPv4 ones mapped. Full: a change that does not fit
//! is refused; `fragments` forgets the oldest. All maps are written by one thread of the daemon, but for `fragments` and
//! `counters`, which the programs write.
//!
//! The maps outlive the daemon. What was written last is read back when they are adopted, so a change to the rules is
//! always the difference to what the kernel has, and nothing that stays is ever absent for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use packet::Address;

use super::decide::{ANY_VNI, FLOATING, ICMP, ICMPV6, SCTP, TCP, UDP};
use super::{REASONS, Rules};
use crate::bpf::{
    F_NO_PREALLOC, MAP_TYPE_HASH, MAP_TYPE_LPM_TRIE, MAP_TYPE_LRU_HASH, MAP_TYPE_PERCPU_ARRAY, Map, MapSpec,
};

const SHARED: u32 = 2;
const BITMAP_LEN: usize = 8192;

const ADDRESSES: MapSpec = hash("vsw_addresses", 16, 4, 16384);
const PORTS: MapSpec = hash("vsw_ports", 20, 8192, 4096);
const TUNNELS: MapSpec = hash("vsw_tunnels", 24, 4, 16384);
const ROUTED: MapSpec = MapSpec { kind: MAP_TYPE_LPM_TRIE, ..hash("vsw_routed", 20, 4, 4096) };
const FRAGMENTS: MapSpec =
    MapSpec { kind: MAP_TYPE_LRU_HASH, flags: 0, ..hash("vsw_fragments", 40, 8, 8192) };
const COUNTERS: MapSpec =
    MapSpec { kind: MAP_TYPE_PERCPU_ARRAY, flags: 0, ..hash("vsw_counters", 4, 8, REASONS) };

const fn hash(name: &'static str, key_len: u32, value_len: u32, entries: u32) -> MapSpec {
    MapSpec { name, kind: MAP_TYPE_HASH, key_len, value_len, entries, flags: F_NO_PREALLOC }
}

/// The maps, for the programs.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) addresses: Map,
    pub(super) ports: Map,
    pub(super) tunnels: Map,
    pub(super) routed: Map,
    pub(super) fragments: Map,
    pub(super) counters: Map,
}

impl Maps {
    /// Opens the maps in a directory of a bpffs, and makes those that are not there.
    pub(super) fn adopt(pins: &Path) -> io::Result<Self> {
        let adopt = |spec: MapSpec| Map::adopt(spec, &pins.join(spec.name));
        Ok(Self {
            addresses: adopt(ADDRESSES)?,
            ports: adopt(PORTS)?,
            tunnels: adopt(TUNNELS)?,
            routed: adopt(ROUTED)?,
            fragments: adopt(FRAGMENTS)?,
            counters: adopt(COUNTERS)?,
        })
    }

    #[cfg(test)]
    pub(super) fn create() -> io::Result<Self> {
        Ok(Self {
            addresses: Map::create(ADDRESSES)?,
            ports: Map::create(PORTS)?,
            tunnels: Map::create(TUNNELS)?,
            routed: Map::create(ROUTED)?,
            fragments: Map::create(FRAGMENTS)?,
            counters: Map::create(COUNTERS)?,
        })
    }
}

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// A map's content as it should be, or is.
#[derive(Debug, Default)]
pub(super) struct Tables {
    addresses: Table,
    ports: Table,
    tunnels: Table,
    routed: Table,
}

impl Tables {
    /// Reads what the kernel has.
    pub(super) fn read(maps: &Maps) -> io::Result<Self> {
        Ok(Self {
            addresses: read(&maps.addresses, 4)?,
            ports: read(&maps.ports, BITMAP_LEN)?,
            tunnels: read(&maps.tunnels, 4)?,
            routed: read(&maps.routed, 4)?,
        })
    }

    /// Writes the rules as the programs want them.
    pub(super) fn of(rules: &Rules) -> Self {
        let mut tables = Self::default();
        let mut shared = BTreeSet::new();
        let mut claim = |address: Address, protocol: i32, ports: &std::ops::RangeInclusive<u16>| {
            shared.insert(address);
            let bits = tables
                .ports
                .entry(selected(address, protocol.cast_unsigned()))
                .or_insert_with(|| vec![0; BITMAP_LEN]);
            for port in ports.clone() {
                bits[usize::from(port / 8)] |= 1 << (port % 8);
            }
        };
        for (address, protocol, ports) in &rules.published {
            claim(*address, i32::from(*protocol), ports);
        }
        for (address, ports) in &rules.snat {
            let echo = if address.is_v4() { ICMP } else { ICMPV6 };
            for protocol in [TCP, UDP, SCTP, echo] {
                claim(*address, protocol, ports);
            }
        }
        for (address, port, vni) in &rules.tunnels {
            shared.insert(*address);
            for vni in [*vni, ANY_VNI] {
                let mut key = selected(*address, u32::from(*port));
                key.extend(vni.to_ne_bytes());
                tables.tunnels.insert(key, 1_u32.to_ne_bytes().to_vec());
            }
        }
        for address in shared {
            tables.addresses.insert(address.octets().to_vec(), SHARED.to_ne_bytes().to_vec());
        }
        for address in &rules.floating {
            tables.addresses.insert(address.octets().to_vec(), FLOATING.to_ne_bytes().to_vec());
        }
        for prefix in &rules.routed {
            let len = u32::from(prefix.len()) + if prefix.is_v4() { 96 } else { 0 };
            let mut key = len.to_ne_bytes().to_vec();
            key.extend(prefix.address().octets());
            tables.routed.insert(key, 1_u32.to_ne_bytes().to_vec());
        }
        tables
    }

    /// Changes the maps, which have what `self` says, to what `wanted` says. Returns how many elements were written or
    /// removed.
    pub(super) fn change(&mut self, maps: &Maps, wanted: &Self) -> io::Result<usize> {
        // An address is known after what is known about it, and forgotten before.
        let order = [
            (&maps.ports, &mut self.ports, &wanted.ports),
            (&maps.tunnels, &mut self.tunnels, &wanted.tunnels),
            (&maps.routed, &mut self.routed, &wanted.routed),
            (&maps.addresses, &mut self.addresses, &wanted.addresses),
        ];
        let mut changes = 0;
        let mut removals = Vec::with_capacity(order.len());
        for (map, is, wanted) in order {
            for (key, value) in wanted {
                if is.get(key) != Some(value) {
                    map.set(key, value)?;
                    is.insert(key.clone(), value.clone());
                    changes += 1;
                }
            }
            removals.push((map, is, wanted));
        }
        for (map, is, wanted) in removals.into_iter().rev() {
            let gone: Vec<_> = is.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
            for key in gone {
                map.remove(&key)?;
                is.remove(&key);
                changes += 1;
            }
        }
        Ok(changes)
    }
}

fn selected(address: Address, selector: u32) -> Vec<u8> {
    let mut key = address.octets().to_vec();
    key.extend(selector.to_ne_bytes());
    key
}

fn read(map: &Map, len: usize) -> io::Result<Table> {
    let mut table = Table::new();
    for key in map.keys()? {
        let mut value = vec![0; len];
        if map.read(&key, &mut value)? {
            table.insert(key, value);
        }
    }
    Ok(table)
}
