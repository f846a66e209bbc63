//! The forwarding information base of a network: longest-prefix match for IPv4 and IPv6.

use packet::{Address, Prefix};

/// An immutable set of routes. See the module header.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    routes: Vec<(Prefix, u32)>,
}

/// Collects the routes of a [`Fib`].
#[derive(Clone, Debug, Default)]
pub struct FibBuilder {
    routes: Vec<(Prefix, u32)>,
}

impl Fib {
    /// The largest target a route may have.
    pub const MAX_TARGET: u32 = (1 << 24) - 1;

    /// Returns a builder without routes.
    pub fn builder() -> FibBuilder {
        FibBuilder::default()
    }

    /// Returns the target of the longest prefix that `address` is in.
    #[inline]
    pub fn lookup(&self, address: Address) -> Option<u32> {
        let route = self.routes.iter().filter(|(prefix, _)| prefix.contains(address));
        route.max_by_key(|(prefix, _)| prefix.len()).map(|(_, target)| *target)
    }
}

impl FibBuilder {
    /// Adds a route. Of two with the same prefix, the one inserted last is used.
    ///
    /// # Panics
    /// When the target is beyond [`Fib::MAX_TARGET`].
    pub fn insert(&mut self, prefix: Prefix, target: u32) -> &mut Self {
        assert!(target <= Fib::MAX_TARGET, "route targets end at {}", Fib::MAX_TARGET);
        self.routes.push((prefix, target));
        self
    }

    /// Makes the table.
    pub fn build(self) -> Fib {
        Fib { routes: self.routes }
    }
}
