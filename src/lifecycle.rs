//! Where the node is in its life: starting, ready, draining or stopped.

use std::sync::atomic::{AtomicU8, Ordering};

/// A stage of a node's life. The order is the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Starting,
    Ready,
    /// On its way out: sockets are told to go elsewhere and no new ones are taken.
    Draining,
    /// Nothing is served any more.
    Stopped,
}

/// The stage, readable from every thread.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

impl Lifecycle {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            2 => Stage::Draining,
            _ => Stage::Stopped,
        }
    }

    /// Enters `stage`.
    pub fn enter(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }
}
