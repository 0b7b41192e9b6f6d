//! stub
pub const REVOKED_TOPIC: &str = "cache:session:revoked";
