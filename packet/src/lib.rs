//! Frames and what is in them: the ground floor of the switch.
//!
//! A [`Frame`] owns one chunk of the shared memory [`Area`]; a [`FramePool`] hands chunks out and takes them
//! back; a [`Batch`] is what a worker decides together. Header views and builders live in [`header`] and
//! [`build`]; [`checksum`] and [`segment`] finish what a device left undone.
//!
//! `unsafe` is confined to [`frame`], [`area`], [`table`] and [`mod@prefetch`]: everything else sees slices.

pub mod addr;
pub mod area;
pub mod batch;
pub mod build;
pub mod checksum;
pub mod ecn;
pub mod frame;
pub mod hash;
pub mod header;
pub mod offload;
pub mod pool;
pub mod prefetch;
pub mod segment;
pub mod table;
pub mod time;
pub mod tuple;

pub use addr::{MacAddr, NetworkId, PortId, VlanId, Vni, VtepId};
pub use area::Area;
pub use batch::{Batch, FrameQueue};
pub use frame::Frame;
pub use offload::{Checksum, Gso, GsoKind, Tunnel};
pub use pool::FramePool;
pub use prefetch::{prefetch, prefetch_at};
pub use table::Table;
pub use time::Instant;
pub use tuple::{Address, Prefix, Tuple};
