//! Passwords: hashed with Argon2id, verified in a time that does not tell whether there is an account.
//!
//! A hash takes tens of milliseconds of a core and 19 MiB, on purpose. So they are made on threads of their own, a
//! few at a time, and when too many wait, more are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

/// Bytes in a password: the least that is worth the name, and the most that is worth hashing.
pub const LENGTH: std::ops::RangeInclusive<usize> = 8..=1_024;
/// Hashes that may wait for each core that makes them.
const WAITING: usize = 32;

/// Why a password was not hashed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HashError {
    /// As many wait as may.
    #[error("too many sign in at once")]
    Busy,
    /// It could not be computed, for want of memory or randomness.
    #[error("the password could not be hashed")]
    Failed,
}

/// Makes and verifies hashes. Clones share the cores.
#[derive(Clone)]
pub struct Passwords(Arc<Inner>);

struct Inner {
    cores: Semaphore,
    waiting: AtomicUsize,
    most: usize,
    /// Of no password, for addresses without an account: looking at it takes as long.
    decoy: String,
}

impl Passwords {
    /// Uses so many cores at a time at most.
    ///
    /// # Errors
    /// [`HashError::Failed`] if not even one hash can be made.
    pub fn new(cores: usize) -> Result<Self, HashError> {
        let decoy = hash(&[0; 32])?;
        let (cores, most) = (Semaphore::new(cores), cores * WAITING);
        Ok(Self(Arc::new(Inner { cores, waiting: AtomicUsize::new(0), most, decoy })))
    }

    /// The hash to store for `password`.
    ///
    /// # Errors
    /// [`HashError`].
    pub async fn hash(&self, password: String) -> Result<String, HashError> {
        self.work(move || hash(password.as_bytes())).await
    }

    /// Whether `password` is that of `stored`. Without one it is not, and it takes as long to say so.
    ///
    /// # Errors
    /// [`HashError`].
    pub async fn verify(&self, password: String, stored: Option<String>) -> Result<bool, HashError> {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.0.decoy.clone());
        let same = self.work(move || Ok(verify(password.as_bytes(), &stored))).await?;
        Ok(same && known)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let inner = &self.0;
        if inner.waiting.fetch_add(1, Ordering::Relaxed) >= inner.most {
            inner.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(HashError::Busy);
        }
        let _leaving = Leaving(&inner.waiting);
        // Never closed.
        let _core = inner.cores.acquire().await;
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(HashError::Failed))
    }
}

/// Counts down also when the caller gives up.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// With the parameters that the library recommends (19 MiB, 2 passes, 1 lane: OWASP's first choice for Argon2id).
fn hash(password: &[u8]) -> Result<String, HashError> {
    Argon2::default().hash_password(password).map(|hash| hash.to_string()).map_err(|_| HashError::Failed)
}

fn verify(password: &[u8], stored: &str) -> bool {
    PasswordHash::new(stored).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_alone() {
        let passwords = Passwords::new(2).unwrap();
        let stored = passwords.hash("correct horse".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        let verify = async |password: &str, stored: Option<&str>| {
            passwords.verify(password.into(), stored.map(Into::into)).await
        };
        assert_eq!(verify("correct horse", Some(&stored)).await, Ok(true));
        assert_eq!(verify("wrong horse", Some(&stored)).await, Ok(false));
        assert_eq!(verify("correct horse", None).await, Ok(false));
        assert_eq!(verify("correct horse", Some("rubbish")).await, Ok(false));
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let passwords = Passwords::new(1).unwrap();
        let all = join_all((0..WAITING + 5).map(|_| passwords.hash("correct horse".into()))).await;
        assert_eq!(all.iter().filter(|hash| **hash == Err(HashError::Busy)).count(), 5);
        assert!(passwords.hash("correct horse".into()).await.is_ok());
    }
}
