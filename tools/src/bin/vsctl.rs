//! vsctl
fn main() {}
