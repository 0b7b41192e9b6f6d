//! stub
use crate::redis_pool::{RedisPool, RedisError};
pub struct DistributedLock { pool: RedisPool, key: String, ttl: u64, token: String }
impl DistributedLock {
    pub fn new(pool: RedisPool, name: &str, ttl: u64) -> Self { Self { pool, key: format!("lock:{}", crate::keys::encode(name)), ttl, token: uuid::Uuid::new_v4().to_string() } }
    pub async fn try_acquire(&self) -> Result<bool, RedisError> { let mut c = redis::cmd("SET"); c.arg(&self.key).arg(&self.token).arg("NX").arg("EX").arg(self.ttl); Ok(self.pool.query::<Option<String>>(&c).await?.is_some()) }
    pub async fn release(&self) -> Result<bool, RedisError> { let mut c = redis::cmd("DEL"); c.arg(&self.key); self.pool.query(&c).await }
}
