//! The overlay: networks that reach over several hosts, packed in VXLAN (RFC 7348).
//!
//! A tunnel is a port without a device. What comes for it is opened before anything else looks at it ([`open`]): the batch
//! says that the frame came by the tunnel's port, the frame says which endpoint it came from, and stages, keys and caches
//! work on the inner packet as on any other. What leaves by a tunnel's port is packed ([`pack`], [`encap`]) and
//! leaves by the port of the underlay that leads to the endpoint. So a flow to or from another host is one
//! flow: one key, one look-up, one decision.
//!
//! ```text
//! uplink -> open: outer headers off, marks combined -> tunnel's port, endpoint -> the stages
//! the stages -> tunnel's port, endpoint -> pack: template of the endpoint, lengths, identifier -> uplink
//! ```
//!
//! What was decided about such a flow is kept as any other's is, and its packets are packed where they are found ([`away`]), as those from other hosts are opened by headers that are known ([`known`]).
//!
//! What is flooded into a tunnel goes to each endpoint of the network in a copy of its own; what came from a
//! tunnel goes into none, since its sender has done that. Packets between networks are routed at their source host and
//! cross the tunnel of the destination's network, with the source host's own MAC: the gateway's, which all hosts
//! have, is never seen in a tunnel. The host of the destination tracks such packets in the network they come
//! from, so that answers, which it routes in turn, belong to a connection on both hosts.
//!
//! Limits: a packet to our address that is a fragment is not opened (we never send any, RFC 7348, 4.3); tagged frames do
//! not cross; a packet from outside that is translated to an endpoint behind another host has no way back from there.

pub(crate) mod away;
pub(crate) mod encap;
mod hash;
pub(crate) mod known;
pub(crate) mod open;
pub(crate) mod outer;
mod pack;
