//! Rows of bits that share their pages.
//!
//! A row is a list of page numbers, a page is 512 bits: one cache line. Equal pages are kept once, and so are equal
//! rows; rows of neighbouring port ranges or prefixes differ in one page or two. Page 0 is empty, and a summary says
//! which pages of a row are not, so an AND of rows touches only pages that all of them have.

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

const WORDS: usize = 8;
const PAGE_BITS: usize = WORDS * 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(align(64))]
struct Page([u64; WORDS]);

/// Immutable rows. See the module header.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pages: Vec<Page>,
    /// Pages of a row.
    width: usize,
    /// Page numbers, `width` for each row.
    numbers: Vec<u32>,
    /// One bit for a page that is not empty, `width / 64` words for each row, rounded up.
    summary: Vec<u64>,
}

impl Rows {
    /// The row without bits.
    pub(super) const EMPTY: u32 = 0;

    fn summary(&self, row: u32) -> &[u64] {
        let width = self.width.div_ceil(64);
        &self.summary[row as usize * width..][..width]
    }

    fn numbers(&self, row: u32) -> &[u32] {
        &self.numbers[row as usize * self.width..][..self.width]
    }

    /// Returns the first bit that is in one of `from`, in one of `to`, and in `service`.
    #[inline]
    pub(super) fn first_common(&self, from: [u32; 2], to: [u32; 2], service: u32) -> Option<usize> {
        let rows = [from[0], from[1], to[0], to[1], service];
        let summaries = rows.map(|row| self.summary(row));
        let numbers = rows.map(|row| self.numbers(row));
        for word in 0..summaries[0].len() {
            let [a, b, c, d, e] = summaries.map(|summary| summary[word]);
            let mut candidates = (a | b) & (c | d) & e;
            while candidates != 0 {
                let number = word * 64 + candidates.trailing_zeros() as usize;
                candidates &= candidates - 1;
                let [a, b, c, d, e] = numbers.map(|numbers| &self.pages[numbers[number] as usize].0);
                let mut common = [0; WORDS];
                for (n, common) in common.iter_mut().enumerate() {
                    *common = (a[n] | b[n]) & (c[n] | d[n]) & e[n];
                }
                if let Some(n) = common.iter().position(|bits| *bits != 0) {
                    return Some(number * PAGE_BITS + n * 64 + common[n].trailing_zeros() as usize);
                }
            }
        }
        None
    }

    /// Returns how many bytes the rows take.
    pub(super) fn memory(&self) -> usize {
        size_of_val(&*self.pages) + size_of_val(&*self.numbers) + size_of_val(&*self.summary)
    }
}

/// Makes rows: a row is drawn bit by bit, and kept; the next one starts from there.
pub(super) struct Drawing {
    rows: Rows,
    /// Finds a page or a row among those that are kept.
    page_index: HashTable<u32>,
    row_index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// The row as it is drawn, and the numbers its pages had when it was last kept.
    pages: Vec<Page>,
    numbers: Vec<u32>,
    /// Pages drawn on since.
    touched: Vec<usize>,
}

impl Drawing {
    /// Starts with an empty row of `bits` bits, which is kept as [`Rows::EMPTY`].
    pub(super) fn new(bits: usize) -> Self {
        let width = bits.div_ceil(PAGE_BITS);
        let rows = Rows { width, ..Rows::default() };
        let mut drawing = Self {
            rows,
            page_index: HashTable::new(),
            row_index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            pages: vec![Page::default(); width],
            numbers: vec![0; width],
            touched: (0..width).collect(),
        };
        drawing.keep_page(Page::default());
        drawing.keep();
        drawing
    }

    /// Sets or clears a bit.
    pub(super) fn draw(&mut self, bit: usize, on: bool) {
        let (number, bit) = (bit / PAGE_BITS, bit % PAGE_BITS);
        let word = &mut self.pages[number].0[bit / 64];
        let mask = 1 << (bit % 64);
        *word = if on { *word | mask } else { *word & !mask };
        if self.touched.last() != Some(&number) {
            self.touched.push(number);
        }
    }

    /// Clears all bits.
    pub(super) fn clear(&mut self) {
        self.pages.fill(Page::default());
        self.touched = (0..self.rows.width).collect();
    }

    /// Keeps the row as it is and returns its number.
    pub(super) fn keep(&mut self) -> u32 {
        self.touched.sort_unstable();
        self.touched.dedup();
        for number in std::mem::take(&mut self.touched) {
            self.numbers[number] = self.keep_page(self.pages[number]);
        }
        let (rows, hasher) = (&mut self.rows, &self.hasher);
        let hash = hasher.hash_one(&self.numbers);
        let same = |row: &u32| rows.numbers(*row) == self.numbers;
        match self.row_index.entry(hash, same, |row| hasher.hash_one(rows.numbers(*row))) {
            Entry::Occupied(row) => *row.get(),
            Entry::Vacant(place) => {
                let row = rows.numbers.len().checked_div(rows.width).unwrap_or(0);
                let row = u32::try_from(row).expect("fewer rows than 2^32");
                place.insert(row);
                rows.numbers.extend_from_slice(&self.numbers);
                rows.summary.extend(self.numbers.chunks(64).map(|numbers| {
                    numbers.iter().rev().fold(0, |bits, number| bits << 1 | u64::from(*number != 0))
                }));
                row
            }
        }
    }

    fn keep_page(&mut self, page: Page) -> u32 {
        let (pages, hasher) = (&mut self.rows.pages, &self.hasher);
        let hash = hasher.hash_one(page);
        let entry = self.page_index.entry(
            hash,
            |number| pages[*number as usize] == page,
            |number| hasher.hash_one(pages[*number as usize]),
        );
        match entry {
            Entry::Occupied(number) => *number.get(),
            Entry::Vacant(place) => {
                let number = u32::try_from(pages.len()).expect("fewer pages than 2^32");
                place.insert(number);
                pages.push(page);
                number
            }
        }
    }

    /// Returns the rows kept.
    pub(super) fn finish(mut self) -> Rows {
        self.rows.pages.shrink_to_fit();
        self.rows.numbers.shrink_to_fit();
        self.rows.summary.shrink_to_fit();
        self.rows
    }
}
