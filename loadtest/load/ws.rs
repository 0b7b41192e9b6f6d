//! The least of WebSocket that a load generator needs: the client's handshake and frames of one piece.
//!
//! Client frames carry a mask of zero, which is legal and costs nothing. What a server must not send
//! (masked frames, fragments, reserved bits) is an error, not something to be lenient about.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The example key of RFC 6455 and the answer it gives there: nothing to compute.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const MAX_HEAD: usize = 8 * 1024;
const MAX_PAYLOAD: u64 = 64 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Close,
    Ping,
    Pong,
}

/// One frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub payload: &'a [u8],
    /// How long the frame is with its header.
    pub len: usize,
}

/// Asks for the upgrade and returns whatever came after the answer's head.
pub async fn upgrade(stream: &mut TcpStream, host: SocketAddr, path: &str) -> Result<Vec<u8>, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("upgrade: {e}"))?;
    let mut head = Vec::with_capacity(512);
    let end = loop {
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if head.len() > MAX_HEAD {
            return Err(format!("upgrade: a head over {MAX_HEAD} bytes: {}", start_of(&head)));
        }
        if stream.read_buf(&mut head).await.map_err(|e| format!("upgrade: {e}"))? == 0 {
            return Err(format!("upgrade: closed after {:?}", start_of(&head)));
        }
    };
    let rest = head.split_off(end + 4);
    check_head(&head)?;
    Ok(rest)
}

fn check_head(head: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(head);
    if !text.starts_with("HTTP/1.1 101 ") {
        return Err(format!("upgrade refused: {}", start_of(head)));
    }
    let accepted = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT);
    if accepted { Ok(()) } else { Err(format!("upgrade with a wrong key: {}", start_of(head))) }
}

/// The frame at the start of `bytes`; `None` if it is not all there yet.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, String> {
    let [first, second, ..] = *bytes else { return Ok(None) };
    let kind = match first {
        0x81 => Kind::Text,
        0x88 => Kind::Close,
        0x89 => Kind::Ping,
        0x8a => Kind::Pong,
        _ => return Err(format!("a frame that no one asked for: {}", start_of(bytes))),
    };
    if second & 0x80 != 0 {
        return Err(format!("a masked frame from the server: {}", start_of(bytes)));
    }
    let (head, len) = match second {
        126 => match bytes.get(2..4).and_then(|b| b.try_into().ok()) {
            Some(two) => (4, u64::from(u16::from_be_bytes(two))),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|b| b.try_into().ok()) {
            Some(eight) => (10, u64::from_be_bytes(eight)),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    if len > MAX_PAYLOAD {
        return Err(format!("a frame of {len} bytes"));
    }
    let all = head + len as usize;
    Ok(bytes.get(head..all).map(|payload| Frame { kind, payload, len: all }))
}

/// Appends a client frame: a mask of zero leaves the payload as it is.
pub fn encode(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    out.push(match kind {
        Kind::Text => 0x81,
        Kind::Close => 0x88,
        Kind::Ping => 0x89,
        Kind::Pong => 0x8a,
    });
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        middle @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// The first bytes of something wrong, fit for an error message.
pub fn start_of(bytes: &[u8]) -> String {
    const SHOWN: usize = 120;
    let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string();
    if bytes.len() > SHOWN { format!("{shown}… ({} bytes)", bytes.len()) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server would send it: the same without the mask.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, Kind::Text, payload);
        let mask = out.len() - payload.len() - 4;
        out.drain(mask..mask + 4);
        out[1] &= 0x7f;
        out
    }

    #[test]
    fn frames_of_every_length_come_back() {
        for len in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let payload = vec![b'x'; len];
            let mut bytes = from_server(&payload);
            let all = bytes.len();
            for part in [0, 1, 3, all - 1] {
                assert_eq!(decode(&bytes[..part.min(all - 1)]), Ok(None), "{len} cut at {part}");
            }
            bytes.extend_from_slice(b"\x81\x01y");
            let frame = decode(&bytes).unwrap().unwrap();
            assert_eq!((frame.kind, frame.payload.len(), frame.len), (Kind::Text, len, all));
        }
    }

    #[test]
    fn what_a_server_must_not_send_is_refused() {
        let fragment = b"\x01\x01x".as_slice();
        let binary = b"\x82\x01x".as_slice();
        let compressed = b"\xc1\x01x".as_slice();
        let masked = b"\x81\x81\0\0\0\0x".as_slice();
        let huge = b"\x81\x7f\xff\0\0\0\0\0\0\0".as_slice();
        for bytes in [fragment, binary, compressed, masked, huge] {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_must_be_101_and_know_the_key() {
        let good = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}");
        assert_eq!(check_head(good.as_bytes()), Ok(()));
        assert!(check_head(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: no").is_err());
        assert!(check_head(b"HTTP/1.1 429 Too Many Requests\r\n").unwrap_err().contains("429"));
    }
}
