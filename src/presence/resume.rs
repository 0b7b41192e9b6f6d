//! The resume key: by what a client that comes back without a session is recognised.
//!
//! The client makes up a key and keeps it; here only a digest of it is kept, which says nothing about the
//! key and is another one for each user. It travels between nodes, and never to a client or into a log.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// The digest of a user and the user's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResumeKey([u8; 16]);

impl ResumeKey {
    /// Of `user`, who sent `key`.
    pub fn new(user: &str, key: &str) -> Self {
        let digest = Sha256::new().chain_update(user).chain_update([0]).chain_update(key).finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(half)
    }

    /// As it stands between nodes: 22 characters of URL-safe base64.
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// A name for a client that has a key and no name: the same for the same key.
pub fn anonymous(key: &str) -> String {
    format!("anon-{}", URL_SAFE_NO_PAD.encode(&Sha256::digest(key)[..12]))
}

impl fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A text that is not a [`ResumeKey`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a resume key: 22 characters of URL-safe base64 are needed")]
pub struct BadResumeKey;

impl FromStr for ResumeKey {
    type Err = BadResumeKey;

    fn from_str(text: &str) -> Result<Self, BadResumeKey> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadResumeKey)?;
        bytes.try_into().map(Self).map_err(|_| BadResumeKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_users_and_survives_its_text() {
        let key = ResumeKey::new("ada", "a long key");
        assert_eq!(key, ResumeKey::new("ada", "a long key"));
        assert_ne!(key, ResumeKey::new("bob", "a long key"));
        assert_ne!(ResumeKey::new("a", "b\0c"), ResumeKey::new("b", "a\0c"));
        assert_eq!(key.encode().parse(), Ok(key));
        assert_eq!(key.encode().len(), 22);
        assert_eq!("short".parse::<ResumeKey>(), Err(BadResumeKey));
        assert_eq!("not base64 at all!!!!!".parse::<ResumeKey>(), Err(BadResumeKey));
        assert_eq!(format!("{key:?}"), "***");
        assert_eq!(anonymous("k").len(), "anon-".len() + 16);
    }
}
