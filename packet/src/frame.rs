//! A frame: the bytes of one packet in a chunk that it owns.
//!
//! 32 bytes, contiguous, not `Clone`. It carries its offload state ([`Checksum`], [`Gso`]) packed beside the
//! pointer, so that a batch moves two vector registers a frame and no second cache line.
//!
//! A frame has no way home of its own: whoever owns it passes it on or gives it to a
//! [`FramePool`](crate::FramePool). Debug builds panic when one is dropped instead, which is how tests find
//! a leak at the line that made it.

use std::ops::Range;
use std::ptr::NonNull;
use std::slice;

use crate::addr::VtepId;
use crate::area::{CHUNK_LEN, ChunkKind, LARGE_CHUNK_LEN};
use crate::offload::{Checksum, Gso, GsoKind, Tunnel};

/// Bytes before the packet in a fresh frame: room for encapsulation (70 bytes), a `virtio_net_hdr`
/// (24) and AF_XDP transmit metadata (24), rounded up to what the kernel itself leaves (256).
pub const HEADROOM: usize = 256;

const CHECKSUM_PARTIAL: u16 = 1;
const CHECKSUM_UNKNOWN: u16 = 2;
const GSO_SHIFT: u16 = 2;
const GSO_MASK: u16 = 0b11 << GSO_SHIFT;
const GSO_ECN: u16 = 1 << 4;
const TUNNEL: u16 = 1 << 5;
const TUNNEL_CHECKSUM: u16 = 1 << 6;
const LARGE: u16 = 1 << 7;
/// The place of a tunnel's inner header holds the endpoint that the frame came from.
const VTEP: u16 = 1 << 8;

/// Packs fields that are seldom read into one 64-bit word: the compiler moves each field of a frame on its own, and
/// frames move a lot. PERF: benches/l2.
macro_rules! word {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty = $shift:literal),+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        struct $name(u64);

        impl $name {
            const fn new($($field: $type),+) -> Self {
                Self($(($field as u64) << $shift)|+)
            }

            $(
                #[inline(always)]
                #[allow(clippy::cast_possible_truncation, reason = "the field is that wide")]
                const fn $field(self) -> $type {
                    (self.0 >> $shift) as $type
                }
            )+
        }
    };
}

/// The bytes of one packet, and what is left to do to them. See the module header.
///
/// INVARIANT: `chunk` is the start of a chunk that nobody else refers to, of the kind that `flags` says, and
/// `start + len` is within it.
#[must_use = "a frame must be passed on or given back to a pool"]
#[repr(C)]
pub struct Frame {
    chunk: NonNull<u8>,
    len: u32,
    start: u16,
    flags: u16,
    place: Place,
    cut: Cut,
}

word! {
    /// Which chunk it is, and where its checksum is.
    Place { page: u32 = 0, checksum_start: u16 = 32, checksum_offset: u16 = 48 }
}
word! {
    /// How a large frame is cut. A frame that is not in a tunnel has the endpoint that it came from in place of the inner
    /// header: it left that endpoint's tunnel.
    Cut { size: u16 = 0, header_len: u16 = 16, outer_l4: u16 = 32, inner_l3: u16 = 48 }
}

const _: () = assert!(size_of::<Frame>() == 32);

// SAFETY: a frame is the only owner of its chunk, so it may move between threads like a `Box<[u8]>`.
unsafe impl Send for Frame {}
// SAFETY: shared access only reads.
unsafe impl Sync for Frame {}

impl Frame {
    /// # Safety
    /// The caller owns the chunk at `chunk`, which is number `page` of its area and of kind `kind`, and
    /// `start + len` is within it.
    #[inline]
    pub(crate) unsafe fn from_chunk(
        chunk: NonNull<u8>,
        page: u32,
        kind: ChunkKind,
        start: usize,
        len: usize,
    ) -> Self {
        Self {
            chunk,
            len: u32::try_from(len).expect("a chunk is smaller than 4 GiB"),
            start: u16::try_from(start).expect("headroom is smaller than 64 KiB"),
            flags: if kind == ChunkKind::Large { LARGE } else { 0 },
            place: Place::new(page, 0, 0),
            cut: Cut::new(0, 0, 0, 0),
        }
    }

    /// Returns the bytes of the packet, from the Ethernet header on.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: INVARIANT of the type.
        unsafe { slice::from_raw_parts(self.data(), self.len as usize) }
    }

    /// Returns the bytes of the packet, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: INVARIANT of the type, and `&mut self` is exclusive.
        unsafe { slice::from_raw_parts_mut(self.data(), self.len as usize) }
    }

    #[inline]
    fn data(&self) -> *mut u8 {
        // SAFETY: `start` is within the chunk.
        unsafe { self.chunk.as_ptr().add(self.start as usize) }
    }

    /// Returns the address of the first byte, for the ports' ring descriptors.
    #[inline]
    pub fn address(&self) -> usize {
        self.data() as usize
    }

    /// Returns the bytes of the packet.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Says whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes of the chunk.
    #[inline]
    pub fn capacity(&self) -> usize {
        match self.kind() {
            ChunkKind::Small => CHUNK_LEN,
            ChunkKind::Large => LARGE_CHUNK_LEN,
        }
    }

    /// Returns the kind of chunk.
    #[inline]
    pub fn kind(&self) -> ChunkKind {
        if self.flags & LARGE != 0 { ChunkKind::Large } else { ChunkKind::Small }
    }

    /// Returns the free bytes before the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Returns the free bytes after the packet.
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.capacity() - self.start as usize - self.len as usize
    }

    /// Returns the packet with the `count` bytes of headroom before it, for what a device wants there
    /// (`virtio_net_hdr`, transmit metadata). Changes neither start nor length.
    ///
    /// # Panics
    /// When there is less headroom.
    #[inline]
    pub fn with_headroom(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.headroom(), "{count} bytes wanted, {} bytes of headroom", self.headroom());
        let len = count + self.len as usize;
        // SAFETY: `count` bytes before `start` are within the chunk.
        let first = unsafe { self.data().sub(count) };
        // SAFETY: from there to the end of the packet is within the chunk, which is ours alone.
        unsafe { slice::from_raw_parts_mut(first, len) }
    }

    /// Puts `count` bytes before the packet and returns them; false offsets in the offload state are moved
    /// along. `None`, and nothing changed, when the headroom is too small.
    #[inline(always)]
    pub fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        if count > self.headroom() {
            return None;
        }
        let count16 = u16::try_from(count).expect("headroom is smaller than 64 KiB");
        self.start -= count16;
        self.len += u32::from(count16);
        if self.flags & (CHECKSUM_PARTIAL | GSO_MASK) != 0 {
            self.shift_offload(i32::from(count16));
        }
        Some(&mut self.bytes_mut()[..count])
    }

    /// Takes `count` bytes off the front. `None`, and nothing changed, when the packet is shorter.
    #[inline]
    #[must_use = "None means that nothing was removed"]
    pub fn trim_front(&mut self, count: usize) -> Option<()> {
        if count > self.len() {
            return None;
        }
        let count16 = u16::try_from(count).ok()?;
        self.start = self.start.checked_add(count16)?;
        self.len -= u32::from(count16);
        if self.flags & (CHECKSUM_PARTIAL | GSO_MASK) != 0 {
            self.shift_offload(-i32::from(count16));
        }
        Some(())
    }

    /// Leaves of a frame what is in it from `inner.start` to `inner.end`: it came out of the tunnel of `vtep`. `None`, and nothing
    /// changed, when the frame is shorter, or its device left something to do.
    #[inline(always)]
    #[must_use = "None means that nothing was removed"]
    pub fn uncover(&mut self, inner: Range<usize>, vtep: VtepId) -> Option<()> {
        let (start, end) = (u16::try_from(inner.start).ok()?, u32::try_from(inner.end).ok()?);
        let len = end.checked_sub(u32::from(start))?;
        if end > self.len || self.flags & (CHECKSUM_PARTIAL | GSO_MASK) != 0 {
            return None;
        }
        self.start = self.start.checked_add(start)?;
        self.len = len;
        self.flags = self.flags & !TUNNEL | VTEP;
        self.cut = Cut::new(0, 0, 0, vtep.get());
        Some(())
    }

    /// Sets the length, within the chunk. Bytes that are new have whatever value the chunk had.
    ///
    /// # Panics
    /// When the chunk is too small.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(self.start as usize + len <= self.capacity(), "{len} bytes do not fit into the chunk");
        self.len = u32::try_from(len).expect("a chunk is smaller than 4 GiB");
    }

    #[inline(never)]
    fn shift_offload(&mut self, by: i32) {
        let shift = |value: u16| u16::try_from(i32::from(value) + by).unwrap_or(0);
        if matches!(self.checksum(), Checksum::Partial { .. }) {
            self.set_checksum_place(shift(self.place.checksum_start()), self.place.checksum_offset());
        }
        if self.flags & GSO_MASK != 0 {
            let cut = self.cut;
            let (outer_l4, inner_l3) = if self.flags & TUNNEL != 0 {
                (shift(cut.outer_l4()), shift(cut.inner_l3()))
            } else {
                (cut.outer_l4(), cut.inner_l3())
            };
            self.cut = Cut::new(cut.size(), shift(cut.header_len()), outer_l4, inner_l3);
        }
    }

    /// Returns what is known of the transport checksum.
    #[inline]
    pub fn checksum(&self) -> Checksum {
        if self.flags & CHECKSUM_PARTIAL != 0 {
            Checksum::Partial { start: self.place.checksum_start(), offset: self.place.checksum_offset() }
        } else if self.flags & CHECKSUM_UNKNOWN != 0 {
            Checksum::Unknown
        } else {
            Checksum::Complete
        }
    }

    /// Says whether the transport checksum is complete.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.flags & (CHECKSUM_PARTIAL | CHECKSUM_UNKNOWN) == 0
    }

    /// Records what is known of the transport checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: Checksum) {
        self.flags &= !(CHECKSUM_PARTIAL | CHECKSUM_UNKNOWN);
        match checksum {
            Checksum::Complete => {}
            Checksum::Unknown => self.flags |= CHECKSUM_UNKNOWN,
            Checksum::Partial { start, offset } => {
                self.flags |= CHECKSUM_PARTIAL;
                self.set_checksum_place(start, offset);
            }
        }
    }

    fn set_checksum_place(&mut self, start: u16, offset: u16) {
        self.place = Place::new(self.place.page(), start, offset);
    }

    /// Returns how the frame is to be cut, or `None` for an ordinary packet.
    pub fn gso(&self) -> Option<Gso> {
        let kind = match (self.flags & GSO_MASK) >> GSO_SHIFT {
            0 => return None,
            1 => GsoKind::Tcp4,
            2 => GsoKind::Tcp6,
            _ => GsoKind::Udp,
        };
        let tunnel = (self.flags & TUNNEL != 0).then_some(Tunnel {
            outer_l4: self.cut.outer_l4(),
            inner_l3: self.cut.inner_l3(),
            outer_checksum: self.flags & TUNNEL_CHECKSUM != 0,
        });
        Some(Gso {
            kind,
            size: self.cut.size(),
            header_len: self.cut.header_len(),
            ecn: self.flags & GSO_ECN != 0,
            tunnel,
        })
    }

    /// Records how the frame is to be cut.
    pub fn set_gso(&mut self, gso: Option<Gso>) {
        let vtep = self.vtep();
        self.flags &= !(GSO_MASK | GSO_ECN | TUNNEL | TUNNEL_CHECKSUM | VTEP);
        let Some(gso) = gso else { return self.set_vtep(vtep) };
        let kind: u16 = match gso.kind {
            GsoKind::Tcp4 => 1,
            GsoKind::Tcp6 => 2,
            GsoKind::Udp => 3,
        };
        self.flags |= kind << GSO_SHIFT;
        if gso.ecn {
            self.flags |= GSO_ECN;
        }
        let (outer_l4, inner_l3) = gso.tunnel.map_or((0, 0), |tunnel| (tunnel.outer_l4, tunnel.inner_l3));
        self.cut = Cut::new(gso.size, gso.header_len, outer_l4, inner_l3);
        if let Some(tunnel) = gso.tunnel {
            self.flags |= TUNNEL;
            if tunnel.outer_checksum {
                self.flags |= TUNNEL_CHECKSUM;
            }
        } else {
            self.set_vtep(vtep);
        }
    }

    /// Returns the endpoint of whose tunnel the frame came out, when it did.
    #[inline]
    pub fn vtep(&self) -> Option<VtepId> {
        if self.flags & VTEP != 0 { VtepId::new(self.cut.inner_l3()) } else { None }
    }

    /// Records the endpoint of whose tunnel the frame came out. A large frame that is to be cut inside another tunnel
    /// has no room for it, and forgets it.
    #[inline]
    pub fn set_vtep(&mut self, vtep: Option<VtepId>) {
        self.flags &= !VTEP;
        if let Some(vtep) = vtep.filter(|_| self.flags & TUNNEL == 0) {
            self.flags |= VTEP;
            let cut = self.cut;
            self.cut = Cut::new(cut.size(), cut.header_len(), 0, vtep.get());
        }
    }

    /// Says whether nothing is left to do: no large frame, and the checksum is complete.
    #[inline]
    pub fn is_finished(&self) -> bool {
        self.flags & (GSO_MASK | CHECKSUM_PARTIAL | CHECKSUM_UNKNOWN) == 0
    }

    /// Says whether the frame stands for several packets on the wire.
    #[inline]
    pub fn is_gso(&self) -> bool {
        self.flags & GSO_MASK != 0
    }

    /// Returns the length of the longest packet that this frame puts on the wire.
    #[inline]
    pub fn wire_len(&self) -> usize {
        if self.flags & GSO_MASK == 0 {
            self.len as usize
        } else {
            self.len().min(self.cut.size() as usize + self.cut.header_len() as usize)
        }
    }

    /// Copies the offload state of `other`, whose packet has the same layout, and the endpoint that it came from.
    pub fn copy_offload(&mut self, other: &Frame) {
        self.set_checksum(other.checksum());
        self.set_gso(other.gso());
        self.set_vtep(other.vtep());
    }

    /// Returns the number of the chunk in its area, counted in small chunks.
    #[inline]
    pub(crate) fn page(&self) -> u32 {
        self.place.page()
    }

    /// Gives up the chunk without returning it; the caller owns it now.
    #[inline]
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("len", &self.len)
            .field("checksum", &self.checksum())
            .field("gso", &self.gso())
            .finish_non_exhaustive()
    }
}

#[cfg(debug_assertions)]
impl Drop for Frame {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a frame of {} bytes was dropped outside a pool", self.len);
    }
}
