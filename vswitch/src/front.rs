//! Front ends: what the outside talks to.

pub mod api;
pub mod pcapng;
pub mod streams;
