//! What a caller is told of its allowance: `RateLimit` and `RateLimit-Policy`
//! (draft-ietf-httpapi-ratelimit-headers-10), beside `Retry-After` where it is used up.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpMessage as _, HttpRequest};

use super::{Decision, WINDOW};

/// How much of the policy is left.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// What the policy is.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What was decided on the way of one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowances {
    pub address: Option<Decision>,
    pub user: Option<Decision>,
}

impl Allowances {
    /// Notes something about `request`, for [`Allowances::noted`].
    pub fn of(request: &HttpRequest, note: impl FnOnce(&mut Self)) {
        let mut extensions = request.extensions_mut();
        let mut allowances = extensions.get::<Self>().copied().unwrap_or_default();
        note(&mut allowances);
        extensions.insert(allowances);
    }

    /// What was noted about `request`.
    pub fn noted(request: &HttpRequest) -> Self {
        request.extensions().get::<Self>().copied().unwrap_or_default()
    }

    /// Writes both headers. An answer about one refusal is replaced by what is known of all limits.
    pub fn write(&self, headers: &mut HeaderMap) {
        let counted = [("address", self.address), ("user", self.user)];
        let counted = || counted.iter().filter_map(|(name, decision)| Some((name, (*decision)?)));
        let counted = || counted().filter(|(_, decision)| decision.limit > 0);
        if counted().next().is_none() {
            return;
        }
        let left: Vec<String> = counted()
            .map(|(name, decision)| {
                format!("\"{name}\";r={};t={}", decision.remaining, decision.whole_seconds())
            })
            .collect();
        let policy: Vec<String> = counted()
            .map(|(name, decision)| format!("\"{name}\";q={};w={}", decision.limit, WINDOW.as_secs()))
            .collect();
        for (name, value) in [(RATE_LIMIT, left.join(", ")), (RATE_LIMIT_POLICY, policy.join(", "))] {
            // Names of ours and numbers: always a value.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_limits_are_told_and_none_of_what_is_not_limited() {
        let decision = |limit, remaining| Decision {
            allowed: true,
            limit,
            remaining,
            reset: Duration::from_millis(41_001),
        };
        let mut headers = HeaderMap::new();
        Allowances::default().write(&mut headers);
        Allowances { address: Some(decision(0, u32::MAX)), user: None }.write(&mut headers);
        assert!(headers.is_empty());
        Allowances { address: Some(decision(300, 299)), user: Some(decision(600, 0)) }.write(&mut headers);
        assert_eq!(headers.get("ratelimit").unwrap(), "\"address\";r=299;t=42, \"user\";r=0;t=42");
        assert_eq!(headers.get("ratelimit-policy").unwrap(), "\"address\";q=300;w=60, \"user\";q=600;w=60");
    }
}
