//! Names that must be unique in the cluster: nodes and refs, and the counter behind versions.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// One running process. A restarted process is another node, so a late word of the old one can
/// never be taken for the new one's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub Uuid);

impl NodeId {
    /// An id that no other process has.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The first 48 bits as a number, for names that must be numbers: the same that refs begin with.
    pub fn number(&self) -> u64 {
        let [a, b, c, d, e, f, ..] = *self.0.as_bytes();
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The first eight hexadecimal digits, for people and version strings.
    pub fn short(&self) -> String {
        self.0.simple().to_string()[..8].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}", self.short())
    }
}

impl FromStr for NodeId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Unique id of one (connection, channel, meta): 16 characters of URL-safe base64, made of 48 bits
/// of the node's id and 48 bits of its counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ref([u8; 16]);

impl Ref {
    /// As it stands on the wire.
    pub fn as_str(&self) -> &str {
        // The bytes come from base64 or from a checked string; never anything but ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not a [`Ref`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a ref: 16 characters of URL-safe base64 are needed")]
pub struct BadRef;

impl FromStr for Ref {
    type Err = BadRef;

    fn from_str(text: &str) -> Result<Self, BadRef> {
        let bytes: [u8; 16] = text.as_bytes().try_into().map_err(|_| BadRef)?;
        let plain = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if plain { Ok(Self(bytes)) } else { Err(BadRef) }
    }
}

/// The source of identity of one node: hands out numbers that only grow, and refs made of them.
/// Clones share the counter.
#[derive(Clone, Debug)]
pub struct Ids {
    node: NodeId,
    last: Arc<AtomicU64>,
}

impl Ids {
    /// A source for `node`, counting from 1.
    pub fn new(node: NodeId) -> Self {
        Self { node, last: Arc::new(AtomicU64::new(0)) }
    }

    /// The node it speaks for.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The next number, greater than every one before it on this node.
    pub fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A ref that no other node and no earlier call made.
    pub fn r#ref(&self) -> Ref {
        let mut bytes = [0u8; 12];
        bytes[..6].copy_from_slice(&self.node.0.as_bytes()[..6]);
        bytes[6..].copy_from_slice(&self.number().to_be_bytes()[2..]);
        let mut text = [0u8; 16];
        // Twelve bytes are sixteen characters of base64, without padding: it cannot fall short.
        let written = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        debug_assert_eq!(written, Ok(16));
        Ref(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_differ_between_calls_and_nodes_and_survive_their_text() {
        let (a, b) = (Ids::new(NodeId::random()), Ids::new(NodeId::random()));
        let refs = [a.r#ref(), a.r#ref(), b.r#ref()];
        assert!(refs[0] != refs[1] && refs[0] != refs[2] && refs[1] != refs[2]);
        assert_eq!(refs[0].as_str().parse(), Ok(refs[0]));
        assert_eq!("short".parse::<Ref>(), Err(BadRef));
        assert_eq!("sixteen chars \"!".parse::<Ref>(), Err(BadRef));
    }
}
