//! stub
use std::time::Duration;
use redis::FromRedisValue;
use crate::config::Secret;
#[derive(Debug, thiserror::Error)]
pub enum RedisError { #[error("away")] Away, #[error("refused {0}")] Refused(String) }
#[derive(Clone)]
pub struct RedisPool { pool: deadpool_redis::Pool }
impl RedisPool {
    pub fn new(url: &Secret) -> Result<Self, RedisError> {
        let pool = deadpool_redis::Config::from_url(url.expose()).builder().unwrap().max_size(16).runtime(deadpool_redis::Runtime::Tokio1).wait_timeout(Some(Duration::from_millis(500))).create_timeout(Some(Duration::from_millis(500))).recycle_timeout(Some(Duration::from_millis(500))).build().unwrap();
        Ok(Self { pool })
    }
    pub async fn query<T: FromRedisValue>(&self, cmd: &redis::Cmd) -> Result<T, RedisError> {
        let mut c = self.pool.get().await.map_err(|_| RedisError::Away)?;
        cmd.query_async(&mut c).await.map_err(|e| RedisError::Refused(e.to_string()))
    }
    pub async fn pipeline<T: FromRedisValue>(&self, p: &redis::Pipeline) -> Result<T, RedisError> {
        let mut c = self.pool.get().await.map_err(|_| RedisError::Away)?;
        p.query_async(&mut c).await.map_err(|e| RedisError::Refused(e.to_string()))
    }
    pub async fn script<T: FromRedisValue>(&self, s: &redis::ScriptInvocation<'_>) -> Result<T, RedisError> {
        let mut c = self.pool.get().await.map_err(|_| RedisError::Away)?;
        s.invoke_async(&mut c).await.map_err(|e| RedisError::Refused(e.to_string()))
    }
}
