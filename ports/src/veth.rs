//! Placeholder of the contract; see `Port`.
use super::*;

/// A queue.
#[derive(Debug)]
pub struct Veth {}
#[allow(missing_docs, unused_variables, clippy::needless_pass_by_ref_mut)]
impl Veth {
    pub fn receive(&mut self, pool: &mut FramePool, budget: usize, sink: impl FnMut(Frame)) -> usize {
        todo!()
    }
    pub fn transmit(&mut self, queue: &mut FrameQueue, pool: &mut FramePool) {
        todo!()
    }
    pub fn wants_turn(&mut self) -> bool {
        todo!()
    }
    pub fn fd(&self) -> RawFd {
        todo!()
    }
    pub fn health(&self) -> Health {
        todo!()
    }
    pub fn stats(&self) -> Stats {
        todo!()
    }
    pub fn close(self, pool: &mut FramePool) {
        todo!()
    }
}
/// Opens.
#[allow(unused_variables)]
pub fn open(port: &str, device: &str) -> Result<Opened, Error> {
    todo!()
}
