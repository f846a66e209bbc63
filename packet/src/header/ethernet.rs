//! Ethernet and its VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).

use zerocopy::big_endian::U16;

use super::header;
use crate::addr::{MacAddr, VlanId};

header! {
    /// The 14 bytes that every frame starts with.
    pub struct EthernetHeader {
        /// Who it is for.
        pub dst: MacAddr,
        /// Who sent it.
        pub src: MacAddr,
        /// What follows: an EtherType, or below 0x600 the length of an 802.3 frame.
        pub ethertype: U16,
    }
}

header! {
    /// The four bytes of a tag, from its control information on: the EtherType that announces the tag is the
    /// field before it.
    pub struct VlanTag {
        /// Priority (3 bits), drop eligible (1), identifier (12).
        pub tci: U16,
        /// What follows the tag.
        pub ethertype: U16,
    }
}

impl VlanTag {
    /// Returns the identifier.
    #[inline]
    pub fn vlan(&self) -> VlanId {
        VlanId(self.tci.get() & 0x0fff)
    }

    /// Returns the priority, 0 to 7.
    pub fn priority(&self) -> u8 {
        self.tci.as_ref()[0] >> 5
    }

    /// Changes the identifier and keeps priority and drop eligibility.
    #[inline]
    pub fn set_vlan(&mut self, vlan: VlanId) {
        self.tci.set(self.tci.get() & 0xf000 | vlan.0 & 0x0fff);
    }
}
