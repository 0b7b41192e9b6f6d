//! Rate limits (stand-in).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

pub enum Subject<'a> {
    Ip(IpAddr),
    User(&'a str),
}

pub struct Decision {
    pub allowed: bool,
    pub limit: u32,
    pub remaining: u32,
    pub reset: u64,
}

#[derive(Clone, Default)]
pub struct RateLimiter {
    hits: Arc<Mutex<HashMap<String, u32>>>,
}

impl RateLimiter {
    pub async fn check(&self, subject: Subject<'_>, limit: u32) -> Decision {
        let key = match subject {
            Subject::Ip(addr) => format!("ip:{addr}"),
            Subject::User(user) => format!("user:{user}"),
        };
        let mut hits = self.hits.lock().unwrap_or_else(|e| e.into_inner());
        let hits = hits.entry(key).or_default();
        *hits += 1;
        Decision { allowed: *hits <= limit, limit, remaining: limit.saturating_sub(*hits), reset: 60 }
    }
}
