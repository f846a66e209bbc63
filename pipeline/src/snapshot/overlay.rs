//! The overlay as the pipeline sees it: our own end of its tunnels, and how their outer headers are made.
//!
//! Every network of the overlay has one port that is its tunnel ([`TunnelInfo`]), a port like any other without a device:
//! what comes out of a packet from another host came by that port, and what leaves by it leaves, packed, by the
//! uplink. [`OverlayInfo`] is what all tunnels have in common.

use packet::{Address, NetworkId, PortId, Vni};

use super::PortInfo;

/// What a packet in VXLAN has before it: Ethernet, IPv4, UDP and VXLAN.
pub const OVERHEAD_V4: usize = 14 + 20 + 8 + 8;
/// The same over IPv6.
pub const OVERHEAD_V6: usize = 14 + 40 + 8 + 8;

/// What makes a port a tunnel.
///
/// Such a port has no queue: what leaves by it is packed and leaves by the uplink. Its [`PortInfo`] has the MTU of the
/// underlay less what the outer headers take ([`mtu_within`]), no guard, the VLAN that its network's untagged
/// frames have, and in `router_mac` a MAC that is this host's alone: the gateway's, which all hosts share, is never seen
/// in a tunnel. All hosts of an overlay take these MACs from one block of 2^32, those with the same first two
/// bytes: by them a packet that a peer has routed is told from one that is bridged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelInfo {
    /// The network's identifier in the tunnel.
    pub vni: Vni,
    /// The UDP port that peers listen on, and we: 4789, or 8472 where flannel or an old kernel is the peer. Not 0.
    pub udp_port: u16,
    /// Most endpoints learned from packets. 0: only those that the manager knows may send.
    pub learned_vteps: u32,
}

/// The type of service in outer headers, the congestion mark aside, which is always the inner packet's (RFC 6040).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dscp {
    /// That of the inner packet.
    #[default]
    Inherit,
    /// Always this, 0 to 63.
    Fixed(u8),
}

/// What all tunnels have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayInfo {
    /// The network that is the underlay: its ports bring packets of the overlay, its routes lead to the other hosts.
    pub network: NetworkId,
    /// Our addresses in it. The first of a family is the source of what we send.
    pub locals: Vec<Address>,
    /// Time to live or hop limit of outer headers.
    pub ttl: u8,
    /// Type of service of outer headers.
    pub dscp: Dscp,
    /// Outer UDP checksums are filled in over IPv4; else they are 0, as RFC 7348 has it.
    pub checksum_v4: bool,
    /// The same over IPv6, where receivers refuse packets without, unless they are told not to (RFC 6935).
    pub checksum_v6: bool,
    /// First and last of the UDP ports that outer packets come from, chosen by the inner flow (RFC 7348, 5).
    pub source_ports: (u16, u16),
}

impl OverlayInfo {
    /// Returns an overlay over `network` with everything at its default.
    pub fn new(network: NetworkId, locals: Vec<Address>) -> Self {
        Self {
            network,
            locals,
            ttl: 64,
            dscp: Dscp::Inherit,
            checksum_v4: false,
            checksum_v6: true,
            source_ports: (49152, 65535),
        }
    }

    /// Returns our address that is the source of what goes to `remote`.
    pub fn local_for(&self, remote: Address) -> Option<Address> {
        self.locals.iter().copied().find(|local| local.is_v4() == remote.is_v4())
    }
}

/// Returns the MTU of a tunnel over an underlay whose MTU is `underlay` and that has peers of that family.
pub fn mtu_within(underlay: u32, v6: bool) -> u32 {
    // The inner packet has an Ethernet header of its own; the outer one is not counted.
    let overhead = if v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    underlay.saturating_sub(u32::try_from(overhead).expect("50 or 70"))
}

/// The overlay, ready for use.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) info: Option<OverlayInfo>,
    /// Differs from that of a snapshot whose way to any endpoint is another.
    pub(crate) generation: u32,
    /// The UDP ports that tunnels use.
    udp_ports: Vec<u16>,
    /// A bit for each, several of which may have one. PERF: most packets need not be compared with the list (benches/overlay).
    some_ports: u64,
    /// Which port is the tunnel of which identifier: open addressing, half full at most. A word is UDP port (16 bits),
    /// identifier (24), and port (16); 0 is free.
    tunnels: Box<[u64]>,
}

impl Overlay {
    pub(crate) fn new<'a>(
        info: Option<OverlayInfo>,
        generation: u32,
        ports: impl Iterator<Item = (PortId, &'a PortInfo)>,
    ) -> Self {
        let tunnels: Vec<_> = ports.filter_map(|(id, port)| Some((id, port.tunnel?))).collect();
        let size = (2 * tunnels.len()).next_power_of_two().max(2);
        let mut overlay = Self {
            info,
            generation,
            udp_ports: Vec::new(),
            some_ports: 0,
            tunnels: vec![0; size].into_boxed_slice(),
        };
        for (id, TunnelInfo { vni, udp_port, .. }) in tunnels {
            if !overlay.udp_ports.contains(&udp_port) {
                overlay.udp_ports.push(udp_port);
                overlay.some_ports |= bit(udp_port);
            }
            let key = key(udp_port, vni);
            let mut at = overlay.place(key);
            while overlay.tunnels[at] != 0 && overlay.tunnels[at] >> 16 != key {
                at = (at + 1) & (size - 1);
            }
            overlay.tunnels[at] = key << 16 | u64::from(id.0);
        }
        overlay
    }

    /// Returns the port that is the tunnel of an identifier.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bit fields")]
    pub(crate) fn tunnel(&self, udp_port: u16, vni: Vni) -> Option<PortId> {
        let key = key(udp_port, vni);
        let mut at = self.place(key);
        loop {
            let word = *self.tunnels.get(at)?;
            if word >> 16 == key {
                return Some(PortId(word as u16));
            }
            if word == 0 {
                return None;
            }
            at = (at + 1) & (self.tunnels.len() - 1);
        }
    }

    /// Says whether packets to that UDP port may be the overlay's.
    #[inline(always)]
    pub(crate) fn listens_on(&self, udp_port: u16) -> bool {
        self.some_ports & bit(udp_port) != 0 && self.udp_ports.contains(&udp_port)
    }

    /// Says whether an address is one of ours.
    #[inline]
    pub(crate) fn is_local(&self, address: Address) -> bool {
        self.info.as_ref().is_some_and(|info| info.locals.contains(&address))
    }

    #[inline]
    fn place(&self, key: u64) -> usize {
        // The identifiers are configured: no one picks them so that they collide.
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & self.tunnels.len().wrapping_sub(1)
    }
}

#[inline(always)]
fn bit(udp_port: u16) -> u64 {
    1 << ((udp_port ^ udp_port >> 6) & 63)
}

#[inline]
fn key(udp_port: u16, vni: Vni) -> u64 {
    u64::from(udp_port) << 24 | u64::from(vni.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_identifiers_are_found_and_no_other() {
        let info = |n: u16| PortInfo {
            tunnel: Some(TunnelInfo {
                vni: Vni(u32::from(n) * 7),
                udp_port: if n.is_multiple_of(2) { 4789 } else { 8472 },
                learned_vteps: 0,
            }),
            ..PortInfo::new(NetworkId(n))
        };
        let ports: Vec<_> = (0..1000).map(|n| (PortId(n), info(n))).collect();
        let overlay = Overlay::new(None, 0, ports.iter().map(|(id, port)| (*id, port)));
        for n in 0..7000 {
            for udp_port in [4789, 8472, 1] {
                let is_one = n % 7 == 0 && udp_port == if (n / 7) % 2 == 0 { 4789 } else { 8472 };
                let expected = is_one.then(|| PortId(u16::try_from(n / 7).expect("below 1000")));
                assert_eq!(overlay.tunnel(udp_port, Vni(n)), expected, "{udp_port} {n}");
            }
        }
        assert!(overlay.listens_on(4789) && overlay.listens_on(8472) && !overlay.listens_on(4790));
        assert_eq!(Overlay::default().tunnel(4789, Vni(1)), None);
    }

    #[test]
    fn the_mtu_leaves_room_for_the_outer_headers() {
        assert_eq!(
            [mtu_within(1500, false), mtu_within(1500, true), mtu_within(9000, false)],
            [1450, 1430, 8950]
        );
    }
}
