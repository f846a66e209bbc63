//! Frames that wait, in lists, and those that wait to be dropped.
//!
//! A table that cannot free a frame itself puts it on the list of the doomed, which is handed out at the next
//! occasion; until then it counts as kept.

use packet::{Frame, PortId};

use super::{Link, List, MAX_PORTS};

/// Frames in all.
const FRAMES: usize = 256;
/// Frames of one port.
const FRAMES_A_PORT: u16 = 64;

#[derive(Debug)]
pub(super) struct Held {
    frames: Box<[Option<(Frame, PortId)>]>,
    links: Box<[Link]>,
    free: Vec<u32>,
    by_port: Box<[u16]>,
    doomed: List,
}

impl Held {
    pub(super) fn new() -> Self {
        let count = u32::try_from(FRAMES).expect("a small number");
        Self {
            frames: (0..FRAMES).map(|_| None).collect(),
            links: vec![Link::default(); FRAMES].into(),
            free: (0..count).rev().collect(),
            by_port: vec![0; MAX_PORTS].into(),
            doomed: List::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        FRAMES - self.free.len()
    }

    /// Adds a frame to a list, or gives it back when there is no room.
    pub(super) fn keep(&mut self, list: &mut List, frame: Frame, from: PortId) -> Result<(), Frame> {
        let Some(count) = self.by_port.get_mut(from.index()).filter(|count| **count < FRAMES_A_PORT) else {
            return Err(frame);
        };
        let Some(slot) = self.free.pop() else { return Err(frame) };
        *count += 1;
        self.frames[slot as usize] = Some((frame, from));
        list.push(&mut self.links, slot);
        Ok(())
    }

    /// Takes the frame that was added first.
    pub(super) fn take(&mut self, list: &mut List) -> Option<(Frame, PortId)> {
        let slot = list.first()?;
        list.remove(&mut self.links, slot);
        self.free.push(slot);
        let (frame, from) = self.frames[slot as usize].take()?;
        self.by_port[from.index()] -= 1;
        Some((frame, from))
    }

    /// Has all frames of a list dropped.
    pub(super) fn doom(&mut self, list: &mut List) {
        while let Some(slot) = list.first() {
            list.remove(&mut self.links, slot);
            self.doomed.push(&mut self.links, slot);
        }
    }

    /// Hands out the frames that are to be dropped.
    pub(super) fn drop_doomed(&mut self, dropped: &mut impl FnMut(Frame, PortId)) {
        let mut doomed = std::mem::take(&mut self.doomed);
        while let Some((frame, from)) = self.take(&mut doomed) {
            dropped(frame, from);
        }
    }
}
