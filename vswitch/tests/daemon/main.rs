//! The daemon on the real kernel: it runs in a network namespace that plays the host, and containers are
//! namespaces beside it.
//!
//! Needs root. Without it every test fails and says so.

mod changes;
mod host;
mod life;
mod load;
mod objects;
mod streams;
mod traffic;
