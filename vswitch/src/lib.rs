//! vswitch

pub mod devices;
