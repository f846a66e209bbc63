//! A mapping as the table keeps it.

use std::sync::Mutex;

use packet::{Address, NetworkId};

use super::Inside;

/// 56 bytes: addresses alone would align it to 16. With its lock it is a cache line ([`Slot`]).
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(8))]
pub(super) struct Mapping {
    pub(super) inside: Address,
    pub(super) address: Address,
    /// Hash of the pool, to count it there.
    pub(super) pool: u64,
    /// Connections that hold it; none: it is not in use.
    pub(super) leases: u32,
    pub(super) network: NetworkId,
    pub(super) inside_port: u16,
    pub(super) port: u16,
    pub(super) protocol: u8,
}

#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Slot(pub(super) Mutex<Mapping>);

const _: () = assert!(size_of::<Slot>() == 64);

impl Mapping {
    pub(super) fn inside(&self) -> Inside {
        Inside { network: self.network, address: self.inside, port: self.inside_port }
    }

    #[inline]
    pub(super) fn is_of(&self, inside: &Inside, external: Address, protocol: u8) -> bool {
        self.leases > 0 && self.inside() == *inside && (self.address, self.protocol) == (external, protocol)
    }
}
