//! Finished frames: the bytes that go to the socket. For WebSockets, header and payload.
//!
//! A frame that many receivers share is made once and cloned by reference count.

use actix_http::ws::{CloseCode, CloseReason, OpCode, Parser};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::dialects::{Frame, WireFormat};
use crate::reject::{Close, Dialect};

/// The longest header of an unmasked frame (RFC 6455, section 5.2).
const MAX_HEADER: usize = 10;

/// Messages of a dialect as they go to the socket: one after another in one piece, so that they cost one write.
pub fn finish(messages: &[Frame]) -> Bytes {
    if let [Frame::Bare(text)] = messages {
        return text.clone();
    }
    let size = messages.iter().map(|message| body(message).len() + MAX_HEADER).sum();
    let mut out = BytesMut::with_capacity(size);
    for message in messages {
        match message {
            Frame::Text(_) => put_header(&mut out, OpCode::Text, body(message).len()),
            Frame::Binary(_) => put_header(&mut out, OpCode::Binary, body(message).len()),
            Frame::Bare(_) => {}
        }
        out.put_slice(body(message));
    }
    out.freeze()
}

fn body(message: &Frame) -> &Bytes {
    let (Frame::Text(body) | Frame::Binary(body) | Frame::Bare(body)) = message;
    body
}

/// The same in three chunks, of which the large one in the middle is shared with others.
pub fn finish_around(format: WireFormat, head: String, shared: Bytes, tail: &'static str) -> [Bytes; 3] {
    let first = if format == WireFormat::Events {
        head.into()
    } else {
        let mut out = BytesMut::with_capacity(head.len() + MAX_HEADER);
        put_header(&mut out, OpCode::Text, head.len() + shared.len() + tail.len());
        out.put_slice(head.as_bytes());
        out.freeze()
    };
    [first, shared, Bytes::from_static(tail.as_bytes())]
}

/// A ping without payload.
pub fn ping() -> Bytes {
    Bytes::from_static(&[0x89, 0x00])
}

/// The pong that answers a ping with this payload.
pub fn pong(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + MAX_HEADER);
    Parser::write_message(&mut out, payload, OpCode::Pong, true, false);
    out.freeze()
}

/// The close frame that says why the server ends the socket, to clients of `dialect`.
pub fn close(dialect: Dialect, why: Close) -> Bytes {
    close_frame(Some(CloseReason {
        code: why.code(dialect).into(),
        description: Some(why.reason().to_owned()),
    }))
}

/// The close frame that answers a client's own: its code, as RFC 6455 asks, but never a reason.
pub fn close_echo(reason: Option<CloseReason>) -> Bytes {
    close_frame(reason.map(|r| CloseReason { code: r.code, description: None }))
}

fn close_frame(reason: Option<CloseReason>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    // 1005 and 1006 stand for "no code" and must not be sent.
    let reason = reason.filter(|r| !matches!(u16::from(r.code), 1005 | 1006));
    debug_assert!(reason.as_ref().is_none_or(|r| r.code != CloseCode::Abnormal));
    Parser::write_close(&mut out, reason, false);
    out.freeze()
}

fn put_header(out: &mut BytesMut, code: OpCode, length: usize) {
    out.put_u8(0x80 | u8::from(code));
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.put_u8(short),
        (_, Ok(medium)) => {
            out.put_u8(126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Bytes {
        finish(&[Frame::Text(text.to_owned().into())])
    }

    #[test]
    fn several_messages_are_one_piece() {
        let (one, two) = (Frame::Text("a".into()), Frame::Binary(Bytes::from_static(b"\x00b")));
        assert_eq!(&finish(&[one, two])[..], b"\x81\x01a\x82\x02\x00b");
        assert!(finish(&[]).is_empty());
    }

    #[test]
    fn frames_are_what_the_parser_of_the_engine_reads() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = "x".repeat(length);
            let mut whole = BytesMut::from(&text(&payload)[..]);
            let parsed = Parser::parse(&mut whole, false, 1 << 20).unwrap();
            let (fin, code, data) = parsed.unwrap();
            assert!(fin && code == OpCode::Text && data.unwrap_or_default().len() == length);
            let whole = format!("ab{payload}c");
            let parts = |format| finish_around(format, "ab".into(), payload.clone().into(), "c").concat();
            assert_eq!(parts(WireFormat::PhoenixV2), text(&whole));
            assert_eq!(parts(WireFormat::Events), whole.as_bytes());
            assert_eq!(finish(&[Frame::Bare(whole.clone().into())]), whole);
        }
    }

    #[test]
    fn a_close_carries_its_code_and_an_echo_no_reason() {
        assert_eq!(close(Dialect::Phoenix, Close::Restart)[2..4], 1012u16.to_be_bytes());
        assert_eq!(close(Dialect::Pusher, Close::Restart)[2..4], 4200u16.to_be_bytes());
        let echo = close_echo(Some(CloseReason { code: CloseCode::Normal, description: Some("bye".into()) }));
        assert_eq!(&echo[..], [0x88, 2, 0x03, 0xe8]);
        assert_eq!(&close_echo(None)[..], [0x88, 0]);
    }
}
