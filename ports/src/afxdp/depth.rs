//! How many chunks to keep in the kernel for frames to come.
//!
//! A few for a port that is quiet, because two hundred ports would else hold all chunks there are; many for one
//! that is busy, because what arrives when the fill ring is empty is lost, and a TCP sender has a window of
//! packets on its way while the worker looks elsewhere. The depth doubles when a look at the ring finds a
//! quarter of it used (a sender that starts doubles its window, too), and halves when none of the last
//! [`WINDOW`] looks has found a sixteenth of it used.

/// Looks that found frames, after which the depth may shrink.
const WINDOW: u32 = 4096;

/// The depth of one queue, between two limits.
#[derive(Debug)]
pub(super) struct Depth {
    depth: u32,
    least: u32,
    most: u32,
    /// The most that was waiting at once in this window.
    peak: u32,
    looks: u32,
}

impl Depth {
    pub(super) fn new(least: u32, most: u32) -> Self {
        Self { depth: least, least, most, peak: 0, looks: 0 }
    }

    /// Returns how many chunks are to be out.
    #[inline]
    pub(super) fn get(&self) -> u32 {
        self.depth
    }

    /// Notes that `waiting` descriptors were found, at least one.
    #[inline]
    pub(super) fn note(&mut self, waiting: u32) {
        self.peak = self.peak.max(waiting);
        self.looks += 1;
        if waiting >= self.depth / 4 {
            self.depth = (self.depth * 2).min(self.most);
            self.restart();
        } else if self.looks >= WINDOW {
            if self.peak < self.depth / 16 {
                self.depth = (self.depth / 2).max(self.least);
            }
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.peak = 0;
        self.looks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_follows_the_load_within_its_limits() {
        let mut depth = Depth::new(256, 2048);
        depth.note(63);
        assert_eq!(depth.get(), 256);
        for (waiting, expected) in [(64, 512), (128, 1024), (256, 2048), (2000, 2048)] {
            depth.note(waiting);
            assert_eq!(depth.get(), expected);
        }
        for _ in 0..WINDOW - 1 {
            depth.note(1);
        }
        assert_eq!(depth.get(), 2048);
        for _ in 0..4 * WINDOW {
            depth.note(1);
        }
        assert_eq!(depth.get(), 256);
    }

    #[test]
    fn a_busy_window_keeps_the_depth() {
        let mut depth = Depth::new(256, 1024);
        depth.note(200);
        for n in 0..3 * WINDOW {
            depth.note(if n % WINDOW == 7 { 40 } else { 1 });
        }
        assert_eq!(depth.get(), 512);
    }
}
