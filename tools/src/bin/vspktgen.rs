//! vspktgen
fn main() {}
