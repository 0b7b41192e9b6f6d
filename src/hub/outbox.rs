//! The outbox of one connection: a bounded queue of finished frames in front of the socket.
//!
//! actix-web-actors' own queue has no bound and stands still with a reader that stalls, so nothing
//! is ever written through it. The outbox lives on the thread of its socket: no lock, and a frame
//! that many receivers share is pushed by reference count. When it is full its reader is too slow:
//! the queue is dropped, its memory with it, and the connection ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

/// Number of one WebSocket on this node.
pub type ConnId = u64;

/// One connection's way out, shared by the socket's task, its actor and the hub of the thread.
#[derive(Debug)]
pub struct Outbox {
    id: ConnId,
    limit: usize,
    queue: RefCell<Queue>,
    /// When anything last came from the client, in seconds of the hub's clock.
    heard: Cell<u32>,
    /// How long not to listen to the client, in milliseconds: it sends more than it may.
    deaf: Cell<u32>,
    /// Whether the client is asked for a sign of life.
    doubted: Cell<bool>,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    reader: Option<Waker>,
}

/// The outbox was full, or has ended before: nothing more will be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended;

impl Outbox {
    /// An empty outbox that is full once `limit` bytes wait. A frame is taken whole while it is not full,
    /// and counts for no more than a quarter of the limit: rosters and diffs larger than the limit, also
    /// some in a row, still reach whoever reads. What is that large is shared by all who are told it.
    pub fn new(id: ConnId, limit: usize, now: u32) -> Self {
        Self {
            id,
            limit,
            queue: RefCell::default(),
            heard: Cell::new(now),
            deaf: Cell::new(0),
            doubted: Cell::new(false),
        }
    }

    /// The connection's number.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`Ended`] if there is no room (the queue is dropped then) or it has ended before.
    pub fn push(&self, frame: Bytes) -> Result<(), Ended> {
        self.push_parts([frame])
    }

    /// Queues one frame that consists of several chunks.
    ///
    /// # Errors
    /// As [`Outbox::push`].
    pub fn push_parts<const N: usize>(&self, chunks: [Bytes; N]) -> Result<(), Ended> {
        let mut queue = self.queue.borrow_mut();
        if queue.ended {
            return Err(Ended);
        }
        if queue.bytes >= self.limit {
            queue.end(true);
            return Err(Ended);
        }
        queue.bytes += chunks.iter().map(|chunk| self.weight(chunk)).sum::<usize>();
        queue.chunks.extend(chunks);
        queue.wake();
        Ok(())
    }

    /// For how many bytes of the limit `chunk` counts.
    fn weight(&self, chunk: &Bytes) -> usize {
        chunk.len().min(self.limit / 4)
    }

    /// Sends what is queued, then ends the stream, and the socket with it.
    pub fn finish(&self) {
        self.queue.borrow_mut().end(false);
    }

    /// Ends the stream at once; what is queued is dropped.
    pub fn abort(&self) {
        self.queue.borrow_mut().end(true);
    }

    /// Whether it takes no more.
    pub fn has_ended(&self) -> bool {
        self.queue.borrow().ended
    }

    /// The next chunk for the socket; `None` when it has ended and all is sent.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut queue = self.queue.borrow_mut();
        if let Some(chunk) = queue.chunks.pop_front() {
            queue.bytes -= self.weight(&chunk);
            return Poll::Ready(Some(chunk));
        }
        if queue.ended {
            return Poll::Ready(None);
        }
        if queue.chunks.capacity() > 64 {
            queue.chunks = VecDeque::new();
        }
        match &queue.reader {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => queue.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Has the client listened to later by `wait`; calls add up, to a second at most.
    pub fn listen_later(&self, wait: Duration) {
        let wait = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1);
        self.deaf.set(self.deaf.get().saturating_add(wait).min(1_000));
    }

    /// How long not to listen, once.
    pub fn take_deaf(&self) -> Option<Duration> {
        let wait = self.deaf.take();
        (wait > 0).then(|| Duration::from_millis(wait.into()))
    }

    /// The client is asked for a sign of life.
    pub fn doubt(&self) {
        self.doubted.set(true);
    }

    /// Whether it was asked; this is the sign.
    pub fn take_doubt(&self) -> bool {
        self.doubted.take()
    }

    /// When anything last came from the client.
    pub fn heard(&self) -> u32 {
        self.heard.get()
    }

    /// Something came from the client at `now`.
    pub fn hear(&self, now: u32) {
        self.heard.set(now);
    }
}

impl Queue {
    fn end(&mut self, drop_rest: bool) {
        self.ended = true;
        if drop_rest {
            self.chunks = VecDeque::new();
            self.bytes = 0;
        }
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = &self.reader {
            reader.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;

    use super::*;

    fn next(outbox: &Outbox) -> Poll<Option<Bytes>> {
        outbox.poll_next(&mut Context::from_waker(&noop_waker()))
    }

    #[test]
    fn frames_come_out_in_order_and_a_finished_outbox_ends_after_them() {
        let outbox = Outbox::new(1, 100, 0);
        assert_eq!(next(&outbox), Poll::Pending);
        outbox.push(Bytes::from_static(b"a")).unwrap();
        outbox.push_parts([Bytes::from_static(b"b"), Bytes::from_static(b"c")]).unwrap();
        outbox.finish();
        assert_eq!(outbox.push(Bytes::from_static(b"d")), Err(Ended));
        for expected in ["a", "b", "c"] {
            assert_eq!(next(&outbox), Poll::Ready(Some(Bytes::from_static(expected.as_bytes()))));
        }
        assert_eq!(next(&outbox), Poll::Ready(None));
    }

    #[test]
    fn a_full_outbox_ends_and_gives_its_memory_back() {
        let outbox = Outbox::new(1, 10, 0);
        for _ in 0..10 {
            outbox.push(Bytes::from_static(b"1")).unwrap();
        }
        assert_eq!(outbox.push(Bytes::from_static(b"1")), Err(Ended));
        assert!(outbox.has_ended());
        assert_eq!(next(&outbox), Poll::Ready(None));
    }

    #[test]
    fn some_large_frames_in_a_row_do_not_fill_it() {
        let outbox = Outbox::new(1, 8, 0);
        let large = Bytes::from_static(b"larger than all the room there is");
        for _ in 0..4 {
            outbox.push(large.clone()).unwrap();
        }
        assert!(matches!(next(&outbox), Poll::Ready(Some(_))));
        outbox.push(large.clone()).unwrap();
        assert_eq!(outbox.push(large), Err(Ended));
    }

    #[test]
    fn what_was_sent_makes_room() {
        let outbox = Outbox::new(1, 10, 0);
        for _ in 0..100 {
            outbox.push(Bytes::from_static(b"12345678")).unwrap();
            assert!(matches!(next(&outbox), Poll::Ready(Some(_))));
        }
    }
}
