//! The guard in front of the frame parser: ends a connection at the first header that announces too
//! much.
//!
//! The engine's parser checks a frame's size only when the whole frame is in memory, so a frame
//! announced as 200 MB would cost 200 MB. The guard follows the bytes as they pass, reads nothing
//! but headers, and holds back nothing. It also stops reading for a while from a client that sends more
//! than its rate allows, so that a flood waits where it comes from.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use actix_web::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

use crate::hub::{self, Outbox};
use crate::metrics::Metrics;
use crate::reject::{Close, Dialect};

/// Follows the frames in a stream of bytes (RFC 6455, section 5.2).
#[derive(Debug)]
struct Scanner {
    limit: u64,
    header: [u8; 10],
    have: usize,
    /// Bytes of the current frame, mask included, that are still to come.
    skip: u64,
}

/// A frame was announced that is over the limit.
#[derive(Debug, PartialEq, Eq)]
struct TooLarge;

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8]) -> Result<(), TooLarge> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = (bytes.len() as u64).min(self.skip);
                self.skip -= passed;
                bytes = &bytes[passed as usize..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == self.header_length() {
                let length = self.announced();
                if length > self.limit {
                    return Err(TooLarge);
                }
                let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
                self.skip = length + mask;
                self.have = 0;
            }
        }
        Ok(())
    }

    /// How long the header is, without the mask, as far as it is known.
    fn header_length(&self) -> usize {
        match (self.have, self.header[1] & 0x7f) {
            (0 | 1, _) => 2,
            (_, 126) => 4,
            (_, 127) => 10,
            _ => 2,
        }
    }

    fn announced(&self) -> u64 {
        let [_, short, a, b, rest @ ..] = self.header;
        match short & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, rest[0], rest[1], rest[2], rest[3], rest[4], rest[5]]),
            length => u64::from(length),
        }
    }
}

/// The incoming bytes of one socket.
pub struct Guard<S> {
    inner: S,
    scanner: Scanner,
    dialect: Dialect,
    outbox: Rc<Outbox>,
    clock: Instant,
    metrics: Arc<Metrics>,
    /// While it runs, nothing is read: what comes waits at the client.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Guard<S> {
    /// Lets frames of at most `limit` bytes of payload through. Whatever comes is noted in `outbox` as
    /// a sign of life, in seconds since `clock`.
    pub fn new(
        inner: S,
        limit: usize,
        dialect: Dialect,
        outbox: Rc<Outbox>,
        clock: Instant,
        metrics: Arc<Metrics>,
    ) -> Self {
        let scanner = Scanner { limit: limit as u64, header: [0; 10], have: 0, skip: 0 };
        Self { inner, scanner, dialect, outbox, clock, metrics, pause: None }
    }
}

impl<S> Stream for Guard<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(wait) = self.outbox.take_deaf() {
            self.pause = Some(Box::pin(sleep(wait)));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let polled = Pin::new(&mut self.inner).poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            self.outbox.hear(u32::try_from(self.clock.elapsed().as_secs()).unwrap_or(u32::MAX));
            self.metrics.bytes_in.inc_by(bytes.len() as u64);
            if self.scanner.scan(bytes).is_err() {
                self.metrics.frames_oversized.inc();
                // With no room for the close frame, the connection ends without it.
                let _ = self.outbox.push(hub::close(self.dialect, Close::TooLarge));
                self.outbox.finish();
                return Poll::Ready(Some(Err(PayloadError::Overflow)));
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use actix_http::ws::{OpCode, Parser};
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{damaged, fuzz};

    fn scanner(limit: u64) -> Scanner {
        Scanner { limit, header: [0; 10], have: 0, skip: 0 }
    }

    #[test]
    fn a_frame_announced_as_200_mb_is_refused_at_its_header() {
        let mut header = vec![0x81, 0xff];
        header.extend(200_000_000u64.to_be_bytes());
        assert_eq!(scanner(65_536).scan(&header), Err(TooLarge));
        header[2..].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(scanner(65_536).scan(&header), Err(TooLarge));
    }

    /// Whatever bytes come and however they are cut, the verdict is the same, and after frames of the engine's
    /// own making nothing is left over.
    #[test]
    fn fuzz_headers() {
        const FRAMES: &[&[u8]] = &[
            b"\x81\x85\x01\x02\x03\x04hello",
            b"\x01\x83\x00\x00\x00\x00[1,\x80\x82\x00\x00\x00\x002]\x89\x80\x00\x00\x00\x00",
            b"\x82\xfe\x00\x7e\x00\x00\x00\x00",
            b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
        ];
        let tokens = &[
            b"\xff" as &[u8],
            b"\x7f",
            b"\xfe",
            b"\x81",
            b"\x88",
            b"\x00\x00\x00\x00",
            b"\x80",
            b"\x8a\x80",
        ];
        fuzz(&(damaged(FRAMES, tokens), 1usize..9), |(bytes, cut)| {
            let run = |cut: usize| {
                let mut scanner = scanner(200);
                let result = bytes.chunks(cut).try_for_each(|chunk| scanner.scan(chunk));
                result.map(|()| (scanner.skip, scanner.have))
            };
            assert_eq!(run(bytes.len().max(1)), run(cut));
        });
    }

    proptest! {
        #[test]
        fn frames_within_the_limit_pass_however_they_are_cut(
            lengths in proptest::collection::vec(0usize..70_000, 1..6),
            masked in any::<bool>(),
            cut in 1usize..5_000,
        ) {
            let mut wire = BytesMut::new();
            for length in &lengths {
                Parser::write_message(&mut wire, vec![7u8; *length], OpCode::Binary, true, masked);
            }
            let run = |limit: u64| {
                let mut scanner = scanner(limit);
                wire.chunks(cut).try_for_each(|chunk| scanner.scan(chunk)).map(|()| (scanner.skip, scanner.have))
            };
            let longest = lengths.iter().max().copied().unwrap_or(0) as u64;
            prop_assert_eq!(run(longest), Ok((0, 0)));
            if longest > 0 {
                prop_assert_eq!(run(longest - 1), Err(TooLarge));
            }
        }
    }
}
