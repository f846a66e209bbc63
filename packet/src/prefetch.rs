//! The one prefetch helper: asks for a cache line ahead of its use.

/// Asks the processor to bring the first cache line of `what` close. A hint: it never faults, and does
/// nothing where the architecture has none. PERF: benches/l2, 64 k stations.
#[inline(always)]
pub fn prefetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing as far as the program can tell, and the address is that of a live value.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(what).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}
