//! The four rings that an AF_XDP socket shares with the kernel.
//!
//! A ring is a power of two of slots and two indices that only grow, modulo 2^32: the producer's and the
//! consumer's. One side writes slots and then publishes its index (release); the other side reads the index
//! (acquire) and then the slots. `producer - consumer`, wrapping, is what is filled.
//!
//! Three layers, so that each can be tested alone: [`Cursors`] is the arithmetic; [`Memory`] is where slots and
//! indices live; [`Producer`] and [`Consumer`] are our side of a ring over any memory. The kernel's rings are
//! [`Mapped`]; the tests use memory that a model checker watches.
//!
//! Capacity is the number of slots. A full ring takes nothing ([`Producer::room`] says 0). One thread owns our
//! side of a ring.

use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Both ends of a ring as one side knows them; the other side may be further already.
///
/// INVARIANT: `head - tail`, wrapping, is at most `size`, a power of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursors {
    head: u32,
    tail: u32,
    size: u32,
}

impl Cursors {
    fn new(size: u32, head: u32, tail: u32) -> Self {
        assert!(size.is_power_of_two(), "the kernel takes powers of two only");
        Self { head, tail, size }
    }

    #[inline]
    fn filled(self) -> u32 {
        // The cap keeps an index that nobody sane has written from leading us out of the ring.
        self.head.wrapping_sub(self.tail).min(self.size)
    }

    #[inline]
    fn room(self) -> u32 {
        self.size - self.filled()
    }

    /// Takes the slot at the head.
    #[inline]
    fn push(&mut self) -> u32 {
        debug_assert!(self.room() > 0, "room was asked for before");
        let slot = self.head & (self.size - 1);
        self.head = self.head.wrapping_add(1);
        slot
    }

    /// Gives up the slot at the tail.
    #[inline]
    fn pop(&mut self) -> u32 {
        debug_assert!(self.filled() > 0, "what is filled was asked for before");
        let slot = self.tail & (self.size - 1);
        self.tail = self.tail.wrapping_add(1);
        slot
    }
}

/// Where the slots and the indices of a ring live.
///
/// `load_*` have acquire and `store_*` have release ordering. A slot is only written between the consumer's
/// release of it and the producer's publication, and only read between that and the next release.
pub(super) trait Memory {
    /// What a slot holds.
    type Item: Copy;

    fn load_producer(&self) -> u32;
    fn store_producer(&self, index: u32);
    fn load_consumer(&self) -> u32;
    fn store_consumer(&self, index: u32);
    fn read(&self, slot: u32) -> Self::Item;
    fn write(&mut self, slot: u32, item: Self::Item);
}

/// The producing side: fill and transmit rings.
#[derive(Debug)]
pub(super) struct Producer<M> {
    memory: M,
    cursors: Cursors,
}

impl<M: Memory> Producer<M> {
    pub(super) fn new(memory: M, size: u32) -> Self {
        let cursors = Cursors::new(size, memory.load_producer(), memory.load_consumer());
        Self { memory, cursors }
    }

    /// Returns how many slots are free, looking at the other side only when fewer than `wanted` seem to be.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        if self.cursors.room() < wanted {
            self.cursors.tail = self.memory.load_consumer();
        }
        self.cursors.room()
    }

    /// Writes a slot that [`Producer::room`] promised; the other side sees it after [`Producer::publish`].
    #[inline]
    pub(super) fn push(&mut self, item: M::Item) {
        let slot = self.cursors.push();
        self.memory.write(slot, item);
    }

    #[inline]
    pub(super) fn publish(&self) {
        self.memory.store_producer(self.cursors.head);
    }

    /// Returns how many published slots the other side has not consumed yet.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.cursors.tail = self.memory.load_consumer();
        self.cursors.filled()
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }
}

/// The consuming side: receive and completion rings.
#[derive(Debug)]
pub(super) struct Consumer<M> {
    memory: M,
    cursors: Cursors,
}

impl<M: Memory> Consumer<M> {
    pub(super) fn new(memory: M, size: u32) -> Self {
        let cursors = Cursors::new(size, memory.load_producer(), memory.load_consumer());
        Self { memory, cursors }
    }

    /// Returns how many slots wait, looking at the other side only when none seems to.
    #[inline]
    pub(super) fn available(&mut self) -> u32 {
        if self.cursors.filled() == 0 { self.refresh() } else { self.cursors.filled() }
    }

    /// Returns how many slots wait, as the other side says now.
    #[inline]
    pub(super) fn refresh(&mut self) -> u32 {
        self.cursors.head = self.memory.load_producer();
        self.cursors.filled()
    }

    /// Reads the slot `ahead` of the next one; `ahead` is less than [`Consumer::available`] said.
    #[inline]
    pub(super) fn peek(&self, ahead: u32) -> M::Item {
        debug_assert!(ahead < self.cursors.filled(), "what is filled was asked for before");
        self.memory.read(self.cursors.tail.wrapping_add(ahead) & (self.cursors.size - 1))
    }

    /// Reads the next slot; the other side may reuse it after [`Consumer::release`].
    #[inline]
    pub(super) fn pop(&mut self) -> M::Item {
        let slot = self.cursors.pop();
        self.memory.read(slot)
    }

    #[inline]
    pub(super) fn release(&self) {
        self.memory.store_consumer(self.cursors.tail);
    }
}

/// A ring in memory that the kernel shares with us. Unmapped when dropped.
///
/// INVARIANT: the mapping of `len` bytes at `base` holds the three words and all slots, and lives as long as
/// the value. The kernel is the other side: it only writes its own index, and slots that are its to write.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    base: NonNull<u8>,
    len: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    items: PhantomData<T>,
}

// SAFETY: the mapping belongs to the value alone on our side, and the kernel does not care which thread.
unsafe impl<T: Send> Send for Mapped<T> {}

/// The ring's place in the socket's file, and where its words are (`struct xdp_ring_offset`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) page_offset: libc::off_t,
    pub(super) producer: u64,
    pub(super) consumer: u64,
    pub(super) flags: u64,
    pub(super) slots: u64,
}

impl<T: Copy> Mapped<T> {
    /// Maps the ring of `size` slots at `place` of the socket `fd`.
    ///
    /// # Errors
    /// What `mmap` says.
    pub(super) fn new(fd: RawFd, place: Place, size: u32) -> io::Result<Self> {
        let offset = |value: u64| usize::try_from(value).map_err(|_| io::ErrorKind::InvalidData);
        let slots = offset(place.slots)?;
        let len = slots + size as usize * size_of::<T>();
        let words = [offset(place.producer)?, offset(place.consumer)?, offset(place.flags)?];
        if words.iter().any(|word| word + 4 > slots || word % align_of::<AtomicU32>() != 0)
            || slots % align_of::<T>() != 0
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                place.page_offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the offsets were checked to lie within the `len` bytes of the mapping.
        let at = |offset: usize| unsafe { base.add(offset) };
        let [producer, consumer, flags] = words.map(|word| at(word).cast());
        let slots = at(slots).cast();
        Ok(Self { base, len, producer, consumer, flags, slots, items: PhantomData })
    }

    /// Says whether the kernel wants a system call before it looks at the ring again.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        // SAFETY: INVARIANT of the type.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

impl<T: Copy> Memory for Mapped<T> {
    type Item = T;

    #[inline]
    fn load_producer(&self) -> u32 {
        // SAFETY: INVARIANT of the type.
        let word = unsafe { self.producer.as_ref() };
        word.load(Ordering::Acquire)
    }

    #[inline]
    fn store_producer(&self, index: u32) {
        // SAFETY: INVARIANT of the type.
        let word = unsafe { self.producer.as_ref() };
        word.store(index, Ordering::Release);
    }

    #[inline]
    fn load_consumer(&self) -> u32 {
        // SAFETY: INVARIANT of the type.
        let word = unsafe { self.consumer.as_ref() };
        word.load(Ordering::Acquire)
    }

    #[inline]
    fn store_consumer(&self, index: u32) {
        // SAFETY: INVARIANT of the type.
        let word = unsafe { self.consumer.as_ref() };
        word.store(index, Ordering::Release);
    }

    #[inline]
    fn read(&self, slot: u32) -> T {
        // SAFETY: `Cursors` masks slots with the size that the mapping was made for.
        let slot = unsafe { self.slots.add(slot as usize) };
        // SAFETY: the slot is inside the mapping, and the kernel has published it.
        unsafe { slot.read() }
    }

    #[inline]
    fn write(&mut self, slot: u32, item: T) {
        // SAFETY: `Cursors` masks slots with the size that the mapping was made for.
        let slot = unsafe { self.slots.add(slot as usize) };
        // SAFETY: the slot is inside the mapping, and the kernel has released it.
        unsafe { slot.write(item) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that points into it outlives the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests;
