//! A number line cut into ranges, each with a value.
//!
//! Immutable; looked up by halving, behind an index once there are more than [`UNINDEXED`] steps. The index covers
//! the numbers between the second step and the last one, not the whole line, so that it also tells apart what shares
//! its upper bits.

use std::hint::select_unpredictable;

/// The value of what is in no range.
pub(crate) const NONE: u32 = u32::MAX >> 1;

/// So many steps are found by halving alone.
const UNINDEXED: usize = 32;
/// Steps for each place of the index: fewer cost memory, more cost halvings. PERF: `fib::tests::clocks`.
const STEPS_A_PLACE: usize = 8;

/// A number that can be looked up.
pub(crate) trait Key: Copy + Ord + Default {
    /// Returns the number as 64 bits.
    fn bits(self) -> u64;
    /// Returns the next number, if there is one.
    fn next(self) -> Option<Self>;
}

impl Key for u32 {
    #[inline(always)]
    fn bits(self) -> u64 {
        self.into()
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Key for u64 {
    #[inline(always)]
    fn bits(self) -> u64 {
        self
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Only to be flattened: an index reads its upper half.
impl Key for u128 {
    fn bits(self) -> u64 {
        (self >> 64) as u64
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// From `first` on, up to the next step, the value is `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step<K> {
    pub(crate) first: K,
    pub(crate) value: u32,
}

/// Steps in ascending order.
///
/// INVARIANT: the first begins at 0, each begins behind the one before it and has another value.
#[derive(Clone, Debug)]
pub(crate) struct Steps<K>(Vec<Step<K>>);

impl<K: Key> Default for Steps<K> {
    fn default() -> Self {
        Self(vec![Step { first: K::default(), value: NONE }])
    }
}

impl<K> std::ops::Deref for Steps<K> {
    type Target = [Step<K>];
    fn deref(&self) -> &[Step<K>] {
        &self.0
    }
}

impl<K: Key> Steps<K> {
    /// Begins a step at `first`, which is not before that of the last call; at the same place, it replaces that.
    pub(crate) fn push(&mut self, first: K, value: u32) {
        let steps = &mut self.0;
        if steps.last().is_some_and(|last| last.first == first) {
            steps.pop();
        }
        if steps.last().is_none_or(|last| last.value != value) {
            steps.push(Step { first, value });
        }
    }
}

/// Numbers from `first` to `last`, and their value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<K> {
    pub(crate) first: K,
    pub(crate) last: K,
    pub(crate) value: u32,
}

/// Lays spans over one another, shorter ones above, of equals the one that comes last. Any two are nested or apart.
pub(crate) fn flatten<K: Key>(mut spans: Vec<Span<K>>) -> Steps<K> {
    // The sort keeps the order of equals.
    spans.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
    let mut steps = Steps::default();
    let mut open: Vec<Span<K>> = Vec::new();
    let close = |open: &mut Vec<Span<K>>, steps: &mut Steps<K>| {
        if let Some(after) = open.pop().and_then(|span| span.last.next()) {
            steps.push(after, open.last().map_or(NONE, |span| span.value));
        }
    };
    for span in spans {
        while open.last().is_some_and(|top| top.last < span.first) {
            close(&mut open, &mut steps);
        }
        steps.push(span.first, span.value);
        open.push(span);
    }
    while !open.is_empty() {
        close(&mut open, &mut steps);
    }
    steps
}

/// Steps to look up in. See the module header.
#[derive(Clone, Debug)]
pub(crate) struct Ranges<K> {
    /// Empty when everything is [`NONE`].
    steps: Box<[Step<K>]>,
    /// For each place, the last step that begins at or before it, and one place more.
    index: Box<[u32]>,
    /// Where the first place begins.
    start: u64,
    shift: u32,
}

impl<K> Default for Ranges<K> {
    fn default() -> Self {
        Self { steps: Box::new([]), index: Box::new([]), start: 0, shift: 0 }
    }
}

impl<K: Key> Ranges<K> {
    /// Makes steps fit to be looked up in.
    pub(crate) fn new(steps: Steps<K>) -> Self {
        let steps = steps.0.into_boxed_slice();
        match &*steps {
            [Step { value: NONE, .. }] => Self::default(),
            [_, second, .., last] if steps.len() > UNINDEXED => {
                let (start, span) = (second.first.bits(), last.first.bits() - second.first.bits());
                let places = (steps.len() / STEPS_A_PLACE).next_power_of_two() as u64;
                let shift = (0..64).find(|shift| span >> shift < places).unwrap_or(63);
                let mut index = vec![0];
                let mut step = 0;
                for place in 1..=span >> shift {
                    let begin = start + (place << shift);
                    step += steps[step + 1..].iter().take_while(|next| next.first.bits() <= begin).count();
                    index.push(u32::try_from(step).expect("fewer steps than 2^32"));
                }
                index.push(u32::try_from(steps.len() - 1).expect("fewer steps than 2^32"));
                Self { steps, index: index.into(), start, shift }
            }
            _ => Self { steps, ..Self::default() },
        }
    }

    /// Returns the value at `key`.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "where usize is 32 bits, a place too far is still too far"
    )]
    pub(crate) fn value(&self, key: K) -> u32 {
        let place = (key.bits().saturating_sub(self.start) >> self.shift) as usize;
        let (mut base, end) = match self.index.get(place..place.saturating_add(2)) {
            Some(&[from, to]) => (from as usize, to as usize + 1),
            // Behind the last step, or there is no index.
            _ if self.index.is_empty() => (0, self.steps.len()),
            _ => (self.steps.len() - 1, self.steps.len()),
        };
        let mut len = end - base;
        while len > 1 {
            let half = len / 2;
            let middle = base + half;
            base = select_unpredictable(self.steps[middle].first <= key, middle, base);
            len -= half;
        }
        self.steps.get(base).map_or(NONE, |step| step.value)
    }

    /// Returns how many bytes it takes, its own fields aside.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.steps) + size_of_val(&*self.index)
    }
}
