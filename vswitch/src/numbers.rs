//! Numbers of ports and networks: small, and used again as late as possible.
//!
//! A number that was freed goes to the end of the line: whatever still carries it (a line of a log, a frame of
//! a worker that was stuck) finds nothing before it finds somebody else.

use std::collections::VecDeque;

/// The numbers 0 to a capacity, each free or taken.
#[derive(Debug)]
pub struct Numbers {
    free: VecDeque<u16>,
}

impl Numbers {
    /// Makes the numbers below `capacity`, all free.
    pub fn new(capacity: u16) -> Self {
        Self { free: (0..capacity).collect() }
    }

    /// Takes the number that has been free for longest, or `wanted` if that is free.
    pub fn take(&mut self, wanted: Option<u16>) -> Option<u16> {
        let position = wanted.and_then(|wanted| self.free.iter().position(|number| *number == wanted));
        match position {
            Some(position) => self.free.remove(position),
            None => self.free.pop_front(),
        }
    }

    /// Frees a number.
    pub fn free(&mut self, number: u16) {
        debug_assert!(!self.free.contains(&number), "a number is freed once");
        self.free.push_back(number);
    }

    /// Returns how many are free.
    pub fn available(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_number_is_the_last_to_be_used_again() {
        let mut numbers = Numbers::new(3);
        assert_eq!([numbers.take(None), numbers.take(Some(2))], [Some(0), Some(2)]);
        numbers.free(0);
        assert_eq!([numbers.take(Some(2)), numbers.take(None), numbers.take(None)], [Some(1), Some(0), None]);
        assert_eq!(numbers.available(), 0);
    }
}
