//! The switch daemon: workers that move frames, and the manager that decides what they do.
//!
//! `worker` is the packet's way in and out; `crew` starts workers and talks to them; `compile` makes of the
//! `intent` what they work by; `devices` makes the interfaces that ports stand on.

pub mod compile;
pub mod crew;
pub mod devices;
pub mod intent;
pub mod journal;
pub mod worker;
