//! Why packets die. Every drop has exactly one reason; counters, `vsctl drops` and the docs list this enum.

macro_rules! drop_reasons {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped. The names are part of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $help])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)+];

            /// Returns the name that users see.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// Returns the sentence that explains it.
            pub const fn help(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($help),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header, or its source is a group address or all zero.
    Malformed = "malformed",
    /// The source MAC or IP address is not one that the port may use.
    Spoof = "spoof",
    /// The port does not carry the frame's VLAN.
    Vlan = "vlan",
    /// The port floods more than its storm limit allows.
    Storm = "storm",
    /// A link-local protocol (01:80:c2:00:00:0x: STP, LACP, LLDP) that a bridge does not forward.
    Reserved = "reserved",
    /// The destination is behind the port that the frame came in by.
    SamePort = "same_port",
    /// Both ports are isolated.
    Isolated = "isolated",
    /// One of our own loop probes came back: two ports of the network are wired together.
    Loop = "loop",
    /// There is no other port in the network and VLAN that the frame could be flooded to; or it is for nobody here, and the
    /// host has no part in the device that it came by.
    NoListener = "no_listener",
    /// No route leads to the destination, or it is for the gateway's MAC and the network is not routed.
    NoRoute = "no_route",
    /// A blackhole route leads to the destination.
    Blackhole = "blackhole",
    /// Its time to live or hop limit ran out.
    Ttl = "ttl",
    /// A policy, or the default between networks, forbids it.
    Policy = "policy",
    /// It belongs to no connection and cannot begin one: a TCP segment out of the blue, an error about nothing.
    InvalidState = "invalid_state",
    /// The table of connections is full, and no unanswered one could make room.
    TableFull = "table_full",
    /// The port has as many connections as it may have.
    Quota = "quota",
    /// The port has as many unanswered connections as it may have.
    HalfOpen = "half_open",
    /// Every port of the address it would leave by is taken.
    SnatExhausted = "snat_exhausted",
    /// A fragment that overlaps others, is too small, or for which there is no room or no first one in time.
    Fragment = "fragment",
    /// Nobody answered for the address of the next hop, or too many packets wait for it.
    Unresolved = "unresolved",
    /// A packet of the overlay that is cut off or inconsistent, has no valid identifier, or a wrong outer checksum.
    VxlanMalformed = "vxlan_malformed",
    /// A packet of the overlay whose network identifier is none of ours.
    UnknownVni = "unknown_vni",
    /// A packet of the overlay from an address that is no endpoint we know, where none may be learned.
    UnknownVtep = "unknown_vtep",
    /// A packet of the overlay with another one to our own endpoint inside.
    Nested = "nested",
    /// What came from another host has the source MAC of a local port, of another host's endpoint, or of the gateway.
    VtepSpoof = "vtep_spoof",
    /// Congestion was met on the way through a tunnel, and the packet's ends do not understand marks (RFC 6040).
    Ecn = "ecn",
    /// It came from a tunnel and would go into one: its sender has sent it there itself.
    SplitHorizon = "split_horizon",
    /// The endpoint that the destination is behind is not known (any more).
    NoVtep = "no_vtep",
    /// It is longer than the MTU of the port it would leave by.
    Mtu = "mtu",
    /// The port it came from or would leave by is down, disabled or gone.
    PortDown = "port_down",
    /// The queue before the output port, or the ring to the worker that owns it, is full.
    TxFull = "tx_full",
    /// No free chunk for a copy or a reply.
    NoMemory = "no_memory",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Returns the reason's number, its index in counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_and_names_are_unique() {
        for (n, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), n);
            assert!(DropReason::ALL[..n].iter().all(|other| other.name() != reason.name()));
            assert!(reason.help().ends_with('.'), "{reason}");
        }
    }
}
