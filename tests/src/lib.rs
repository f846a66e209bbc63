//! What the tests of the whole switch share.

pub mod lab;
pub mod model;

pub use lab::Lab;
