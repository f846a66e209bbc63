//! The uplink and the host's side of the switch, with the real kernel: an outside host, the host, and this test in the
//! place of the switch. Needs root.

mod follow;
mod host;
mod lab;
mod relay;
mod steer;
