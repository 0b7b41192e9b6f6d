//! Sessions (stand-in).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::redis_pool::{RedisError, RedisPool};

#[derive(Clone, Debug, Default)]
pub struct NewSession {
    pub user_id: String,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    pub anonymous: bool,
    pub ttl: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub user_id: String,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    pub anonymous: bool,
    pub created_at: u64,
    pub ttl_seconds: Option<u64>,
    pub expires_at: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("sessions are unavailable: {0}")]
    Unavailable(#[from] RedisError),
    #[error("a session lives from 1 second to 365 days")]
    BadTtl,
    #[error("a session needs a user")]
    NoUser,
    #[error("no randomness for a token")]
    NoRandomness,
}

#[derive(Clone)]
pub struct SessionManager {
    all: Arc<Mutex<HashMap<String, Session>>>,
    ttl: Duration,
}

impl SessionManager {
    pub fn new(_: Option<RedisPool>, ttl: Duration) -> Self {
        Self { all: Arc::default(), ttl }
    }

    pub async fn create(&self, new: NewSession) -> Result<(String, Session), SessionError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let token = uuid::Uuid::new_v4().simple().to_string();
        if new.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(SessionError::BadTtl);
        }
        let session = Session {
            user_id: new.user_id,
            email: new.email,
            role: new.role,
            tier: new.tier,
            anonymous: new.anonymous,
            created_at: now,
            ttl_seconds: new.ttl.map(|ttl| ttl.as_secs()),
            expires_at: now + new.ttl.unwrap_or(self.ttl).as_secs(),
        };
        self.all.lock().map_err(|_| SessionError::NoRandomness)?.insert(token.clone(), session.clone());
        Ok((token, session))
    }

    pub async fn validate_session(&self, token: &str) -> Result<Option<Session>, SessionError> {
        Ok(self.all.lock().map_err(|_| SessionError::NoRandomness)?.get(token).cloned())
    }

    pub async fn revoke(&self, token: &str) -> Result<bool, SessionError> {
        Ok(self.all.lock().map_err(|_| SessionError::NoRandomness)?.remove(token).is_some())
    }
}

/// Where revoked tokens are announced.
pub const REVOKED_TOPIC: &str = "cache:session:revoked";
