//! Large tables, in memory that the processor finds quickly.
//!
//! A look-up in a table of many megabytes touches a page that the processor has not seen for long, and where that page is
//! takes it several dependent reads, in a virtual machine two dozen, before it can fetch the cache line. Pages of 2 MiB make
//! that rare. The kernel gives them to whom asks when `/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` or
//! `always`; a table asks and is aligned for it, and works the same without.
//!
//! Capacity is fixed. All of a table is resident from the start.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// Bytes of a huge page on x86-64 and, with pages of 4 KiB, on 64-bit ARM.
const HUGE: usize = 2 << 20;

/// A slice on the heap. See the module header.
///
/// INVARIANT: `items` is an allocation of `layout(len)` with `len` values in it, and this is its only owner.
pub struct Table<T> {
    items: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its values like a `Box<[T]>`.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// Makes a table of `len` values, each made by `value` from its index.
    ///
    /// # Panics
    /// When `len` is 0, or the table would be larger than the address space.
    pub fn new(len: usize, mut value: impl FnMut(usize) -> T) -> Self {
        const { assert!(size_of::<T>() > 0 && !std::mem::needs_drop::<T>()) };
        assert!(len > 0, "a table has values");
        let layout = Self::layout(len);
        // SAFETY: neither the values nor their number are zero.
        let start = unsafe { alloc(layout) };
        let Some(items) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        if layout.align() == HUGE {
            // SAFETY: advice changes nothing that the program sees, and the range is ours.
            unsafe { libc::madvise(start.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        for n in 0..len {
            // SAFETY: within the allocation.
            let place = unsafe { items.add(n) };
            // SAFETY: as above, and nothing was there.
            unsafe { place.write(value(n)) };
        }
        Self { items, len }
    }

    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<T>(len).expect("tables are smaller than the address space");
        if layout.size() < HUGE {
            return layout;
        }
        layout.align_to(HUGE).expect("tables are smaller than the address space")
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: INVARIANT of the type.
        unsafe { slice::from_raw_parts(self.items.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: INVARIANT of the type, and `&mut self` is exclusive.
        unsafe { slice::from_raw_parts_mut(self.items.as_ptr(), self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: INVARIANT of the type; the values need no drop.
        unsafe { dealloc(self.items.as_ptr().cast(), Self::layout(self.len)) };
    }
}

impl<T> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_made_and_what_is_written() {
        for len in [1, 1000, HUGE / 8, HUGE / 8 + 1, 3 * HUGE / 8] {
            let mut table = Table::new(len, |n| n as u64 * 3);
            assert_eq!(table.len(), len);
            assert!(table.iter().enumerate().all(|(n, value)| *value == n as u64 * 3));
            table[len - 1] = 7;
            assert_eq!(table.last(), Some(&7));
        }
    }

    #[test]
    fn a_large_one_is_aligned_for_huge_pages() {
        let table = Table::new(HUGE / 8, |_| 0u64);
        assert_eq!(table.as_ptr() as usize % HUGE, 0);
    }
}
