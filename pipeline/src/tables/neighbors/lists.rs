//! Lists of slots, threaded through the slots, so that nothing is allocated and any slot leaves its list at once.

/// No slot.
pub(super) const NIL: u32 = u32::MAX;

/// Where a slot is in its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    before: u32,
    after: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { before: NIL, after: NIL }
    }
}

/// Slots in the order in which they were added.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
    len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NIL, last: NIL, len: 0 }
    }
}

impl List {
    /// Returns the slot added first.
    pub(super) fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// Returns how many slots there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a slot that is in no list.
    pub(super) fn push(&mut self, links: &mut [Link], slot: u32) {
        links[slot as usize] = Link { before: self.last, after: NIL };
        match self.last {
            NIL => self.first = slot,
            last => links[last as usize].after = slot,
        }
        self.last = slot;
        self.len += 1;
    }

    /// Takes out a slot, which is in this list.
    pub(super) fn remove(&mut self, links: &mut [Link], slot: u32) {
        let Link { before, after } = std::mem::take(&mut links[slot as usize]);
        match before {
            NIL => self.first = after,
            before => links[before as usize].after = after,
        }
        match after {
            NIL => self.last = before,
            after => links[after as usize].before = before,
        }
        self.len -= 1;
    }
}
