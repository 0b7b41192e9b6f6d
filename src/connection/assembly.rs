//! Fragmented messages: put together within the limit of a message, in bytes and in pieces.

use actix_http::ws::Item;
use bytes::{Bytes, BytesMut};

/// More pieces than this for one message are no message but an attack.
const MAX_PIECES: usize = 1_024;

/// A message that arrives in pieces.
#[derive(Debug, Default)]
pub struct Assembly {
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    text: bool,
    bytes: BytesMut,
    pieces: usize,
}

/// A message that is whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Whole {
    Text(Bytes),
    Binary(Bytes),
}

/// Why a fragmented message cannot be put together. Each ends the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// It is over the limit, in bytes or in pieces.
    TooLarge,
    /// The pieces are not in order.
    Disordered,
}

impl Assembly {
    /// Adds a piece; the last one gives the message.
    ///
    /// # Errors
    /// [`Broken`]; what was there is dropped.
    pub fn add(&mut self, item: Item, limit: usize) -> Result<Option<Whole>, Broken> {
        let (piece, last) = match item {
            Item::FirstText(piece) => return self.begin(true, &piece, limit),
            Item::FirstBinary(piece) => return self.begin(false, &piece, limit),
            Item::Continue(piece) => (piece, false),
            Item::Last(piece) => (piece, true),
        };
        let Some(mut parts) = self.parts.take() else { return Err(Broken::Disordered) };
        parts.pieces += 1;
        if parts.bytes.len() + piece.len() > limit || parts.pieces > MAX_PIECES {
            return Err(Broken::TooLarge);
        }
        parts.bytes.extend_from_slice(&piece);
        if !last {
            self.parts = Some(parts);
            return Ok(None);
        }
        let bytes = parts.bytes.freeze();
        Ok(Some(if parts.text { Whole::Text(bytes) } else { Whole::Binary(bytes) }))
    }

    fn begin(&mut self, text: bool, piece: &[u8], limit: usize) -> Result<Option<Whole>, Broken> {
        if self.parts.take().is_some() {
            return Err(Broken::Disordered);
        }
        if piece.len() > limit {
            return Err(Broken::TooLarge);
        }
        self.parts = Some(Parts { text, bytes: piece.into(), pieces: 1 });
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn pieces_become_the_message_they_were() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(Item::FirstText(bytes("ab")), 5), Ok(None));
        assert_eq!(assembly.add(Item::Continue(bytes("c")), 5), Ok(None));
        assert_eq!(assembly.add(Item::Last(bytes("de")), 5), Ok(Some(Whole::Text(bytes("abcde")))));
    }

    #[test]
    fn too_much_or_out_of_order_is_broken() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(Item::Last(bytes("x")), 5), Err(Broken::Disordered));
        assembly.add(Item::FirstBinary(bytes("abc")), 5).unwrap();
        assert_eq!(assembly.add(Item::Continue(bytes("def")), 5), Err(Broken::TooLarge));
        assembly.add(Item::FirstBinary(bytes("abc")), 5).unwrap();
        assert_eq!(assembly.add(Item::FirstText(bytes("abc")), 5), Err(Broken::Disordered));
        assembly.add(Item::FirstText(bytes("")), 5).unwrap();
        let endless =
            (0..MAX_PIECES).map(|_| assembly.add(Item::Continue(bytes("")), 5)).find(Result::is_err);
        assert_eq!(endless, Some(Err(Broken::TooLarge)));
    }
}
