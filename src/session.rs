//! Sessions (stand-in).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    pub token: String,
    pub user_id: String,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    pub anonymous: bool,
    pub ttl: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("the session store is away")]
pub struct SessionError;

#[derive(Clone, Default)]
pub struct SessionManager {
    all: Arc<Mutex<HashMap<String, Session>>>,
}

impl SessionManager {
    pub async fn create(&self, new: NewSession) -> Result<Session, SessionError> {
        let session = Session {
            token: uuid::Uuid::new_v4().simple().to_string(),
            user_id: new.user_id,
            email: new.email,
            role: new.role,
            tier: new.tier,
            anonymous: new.anonymous,
            ttl: new.ttl.unwrap_or(Duration::from_secs(3600)),
        };
        self.all.lock().map_err(|_| SessionError)?.insert(session.token.clone(), session.clone());
        Ok(session)
    }

    pub async fn validate_session(&self, token: &str) -> Result<Option<Session>, SessionError> {
        Ok(self.all.lock().map_err(|_| SessionError)?.get(token).cloned())
    }

    pub async fn revoke(&self, token: &str) -> Result<bool, SessionError> {
        Ok(self.all.lock().map_err(|_| SessionError)?.remove(token).is_some())
    }
}

/// Where revoked tokens are announced.
pub const REVOKED_TOPIC: &str = "cache:session:revoked";
