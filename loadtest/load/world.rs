//! What a whole run shares: its errors, the time of its last frame, its latencies, its read buffer.

use std::cell::{Cell, Ref, RefCell};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;

/// One read takes what a socket has, up to this.
const READ_BUFFER: usize = 256 * 1024;
/// More errors than this only repeat the first.
const KEPT_ERRORS: usize = 5;

pub struct World {
    nodes: usize,
    errors: RefCell<Vec<String>>,
    error_count: Cell<u64>,
    last_frame: Cell<Instant>,
    /// By the node of the joiner and the node of the receiver.
    latencies: RefCell<Vec<Histogram>>,
    pub read_buffer: RefCell<Box<[u8]>>,
}

impl World {
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            errors: RefCell::default(),
            error_count: Cell::new(0),
            last_frame: Cell::new(Instant::now()),
            latencies: RefCell::new(vec![Histogram::default(); nodes * nodes]),
            read_buffer: RefCell::new(vec![0; READ_BUFFER].into_boxed_slice()),
        }
    }

    pub fn error(&self, error: String) {
        self.error_count.set(self.error_count.get() + 1);
        let mut errors = self.errors.borrow_mut();
        if errors.len() < KEPT_ERRORS {
            errors.push(error);
        }
    }

    pub fn error_count(&self) -> u64 {
        self.error_count.get()
    }

    /// The first errors.
    pub fn errors(&self) -> Ref<'_, Vec<String>> {
        self.errors.borrow()
    }

    pub fn frame_came(&self, now: Instant) {
        self.last_frame.set(now);
    }

    /// For how long no frame has come to anyone.
    pub fn quiet_for(&self) -> Duration {
        self.last_frame.get().elapsed()
    }

    pub fn record(&self, from: usize, to: usize, took: Duration) {
        self.latencies.borrow_mut()[from * self.nodes + to].record(took);
    }

    /// From joins on one node to receivers on another, or the same.
    pub fn latency(&self, from: usize, to: usize) -> Histogram {
        self.latencies.borrow()[from * self.nodes + to].clone()
    }

    /// Of all pairs of nodes.
    pub fn latency_of_all(&self) -> Histogram {
        let mut all = Histogram::default();
        self.latencies.borrow().iter().for_each(|one| all.add(one));
        all
    }
}
