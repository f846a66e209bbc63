//! What the tests of the whole switch share.

pub mod cluster;
pub mod lab;
pub mod model;
pub mod net;
pub mod sctp;
pub mod site;
pub mod traffic;

pub use lab::Lab;
pub use net::Net;
pub use sctp::SctpPacket;
