//! Lists of slots, threaded through the slots, so that nothing is allocated and any slot leaves its list at once.

/// No slot.
const NIL: u32 = u32::MAX;

/// Where a slot is in its list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
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
pub(crate) struct List {
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
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// Returns how many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the slots in their order.
    pub(crate) fn iter(&self, links: &[Link]) -> impl Iterator<Item = u32> {
        std::iter::successors(self.first(), |slot| {
            let after = links[*slot as usize].after;
            (after != NIL).then_some(after)
        })
    }

    /// Adds a slot that is in no list.
    pub(crate) fn push(&mut self, links: &mut [Link], slot: u32) {
        links[slot as usize] = Link { before: self.last, after: NIL };
        match self.last {
            NIL => self.first = slot,
            last => links[last as usize].after = slot,
        }
        self.last = slot;
        self.len += 1;
    }

    /// Adds a slot that is in no list, before all others.
    pub(crate) fn push_first(&mut self, links: &mut [Link], slot: u32) {
        links[slot as usize] = Link { before: NIL, after: self.first };
        match self.first {
            NIL => self.last = slot,
            first => links[first as usize].before = slot,
        }
        self.first = slot;
        self.len += 1;
    }

    /// Takes out a slot, which is in this list.
    pub(crate) fn remove(&mut self, links: &mut [Link], slot: u32) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots from the first to the last, and that the way back is the same.
    fn slots(list: &List, links: &[Link]) -> Vec<u32> {
        let mut slots = Vec::new();
        let (mut slot, mut before) = (list.first, NIL);
        while slot != NIL {
            assert_eq!(links[slot as usize].before, before);
            slots.push(slot);
            (before, slot) = (slot, links[slot as usize].after);
        }
        assert_eq!((list.last, list.len), (before, slots.len()));
        assert_eq!(list.iter(links).collect::<Vec<_>>(), slots);
        slots
    }

    #[test]
    fn slots_come_and_go_at_either_end_and_between() {
        let (mut list, mut links) = (List::default(), [Link::default(); 5]);
        for slot in [2, 0, 4] {
            list.push(&mut links, slot);
        }
        list.push_first(&mut links, 3);
        assert_eq!(slots(&list, &links), [3, 2, 0, 4]);
        for (gone, left) in [(0, vec![3, 2, 4]), (4, vec![3, 2]), (3, vec![2]), (2, vec![])] {
            list.remove(&mut links, gone);
            assert_eq!(slots(&list, &links), left);
        }
        list.push_first(&mut links, 1);
        list.push(&mut links, 0);
        assert_eq!(slots(&list, &links), [1, 0]);
    }
}
