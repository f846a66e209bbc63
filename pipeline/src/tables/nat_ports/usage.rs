//! How much of each pool is in use. A pool is known by its hash alone, which is 64 bits of a secret function; it is
//! counted from its first mapping on. There is room for [`POOLS`]; further ones are not counted, and never share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Pools and protocols that are counted.
const POOLS: usize = 4096;
/// How far a pool may be from where its hash says.
const REACH: usize = 32;

/// How much of a pool is in use, for one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Ports in use,
    pub used: u32,
    /// of how many.
    pub total: u32,
    /// How many connections found none.
    pub refused: u64,
}

#[derive(Debug)]
struct Usage {
    /// 0: free.
    pool: AtomicU64,
    refused: AtomicU64,
    used: AtomicU32,
}

#[derive(Debug)]
pub(super) struct Usages(Box<[Usage]>);

impl Usages {
    pub(super) fn new() -> Self {
        let usage = || Usage { pool: AtomicU64::new(0), refused: AtomicU64::new(0), used: AtomicU32::new(0) };
        Self((0..POOLS).map(|_| usage()).collect())
    }

    pub(super) fn add(&self, pool: u64) {
        self.with(pool, |usage| usage.used.fetch_add(1, Ordering::Relaxed));
    }

    pub(super) fn remove(&self, pool: u64) {
        self.with(pool, |usage| usage.used.fetch_sub(1, Ordering::Relaxed));
    }

    pub(super) fn refuse(&self, pool: u64) {
        self.with(pool, |usage| usage.refused.fetch_add(1, Ordering::Relaxed));
    }

    pub(super) fn read(&self, pool: u64, total: u32) -> PoolUsage {
        let usage = self.places(pool).find(|usage| usage.pool.load(Ordering::Relaxed) == pool.max(1));
        usage.map_or(PoolUsage { used: 0, total, refused: 0 }, |usage| PoolUsage {
            used: usage.used.load(Ordering::Relaxed),
            total,
            refused: usage.refused.load(Ordering::Relaxed),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Finds the pool's count, or begins one. A place once taken stays: so a pool is counted always or never.
    fn with<R>(&self, pool: u64, change: impl FnOnce(&Usage) -> R) {
        let pool = pool.max(1);
        let own = self.places(pool).find(|usage| {
            let known = usage.pool.load(Ordering::Relaxed);
            let take = || usage.pool.compare_exchange(0, pool, Ordering::Relaxed, Ordering::Relaxed);
            known == pool || known == 0 && take().map_or_else(|was| was == pool, |_| true)
        });
        if let Some(usage) = own {
            change(usage);
        }
    }

    fn places(&self, pool: u64) -> impl Iterator<Item = &Usage> {
        let first = usize::try_from(pool >> 32).unwrap_or(0);
        (0..REACH).map(move |step| &self.0[(first + step) % POOLS])
    }
}
