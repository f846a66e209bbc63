//! The one prefetch helper: asks for cache lines ahead of their use.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks the processor to bring the first cache line of `what` close. A hint: it never faults, and does
/// nothing where the architecture has none. PERF: benches/l2, 64 k stations.
#[inline(always)]
pub fn prefetch<T>(what: &T) {
    line(std::ptr::from_ref(what).cast());
}

/// Asks for all cache lines of one of `items`, which need not exist: a hint is not worth a check of bounds.
/// PERF: benches/flows, IPv6 entries have two lines.
#[inline(always)]
pub fn prefetch_at<T>(items: &[T], at: usize) {
    let first: *const u8 = items.as_ptr().wrapping_add(at).cast();
    for n in 0..size_of::<T>().div_ceil(LINE) {
        line(first.wrapping_add(n * LINE));
    }
}

#[inline(always)]
fn line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing as far as the program can tell, and faults at no address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
