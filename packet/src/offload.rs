//! What a device or a sender left undone in a frame, and the output port must finish or pass on.
//!
//! The vocabulary is that of `struct virtio_net_hdr` (virtio 1.3, 5.1.6; Linux `uapi/linux/virtio_net.h`),
//! because taps and packet sockets speak it. Offsets count from the first byte of the Ethernet header.

/// What is known of a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The checksum in the packet is complete; nobody has to touch it.
    #[default]
    Complete,
    /// The field at `start + offset` holds the folded pseudo-header sum only; the sum from `start` to the end
    /// of the packet is still to be added (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial {
        /// First byte that is summed.
        start: u16,
        /// Where the checksum goes, from `start`.
        offset: u16,
    },
    /// The port could not tell which of the two it is (AF_XDP passes no checksum state).
    Unknown,
}

/// How a large frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, each segment a datagram of its own (USO, `VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// The tunnel around a large frame, when segments are cut inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Offset of the outer UDP header.
    pub outer_l4: u16,
    /// Offset of the inner IP header.
    pub inner_l3: u16,
    /// The outer UDP checksum is used (not zero).
    pub outer_checksum: bool,
}

/// A frame that stands for several packets on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How it is cut.
    pub kind: GsoKind,
    /// Transport payload bytes of each segment but the last; at least 1.
    pub size: u16,
    /// Bytes of headers that every segment repeats, Ethernet to transport.
    pub header_len: u16,
    /// CWR is set on the first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Set when the packet is inside a UDP tunnel.
    pub tunnel: Option<Tunnel>,
}
