//! Connections to Redis for the two tasks that keep one of their own, under time limits.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo as _, RedisError};
use tokio::time::timeout;

use crate::config::Secret;

const CONNECT: Duration = Duration::from_secs(1);

/// Why there is no connection. The address is left out: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("no answer within a second")]
    TimedOut,
    #[error("refused: {0}")]
    Refused(String),
}

impl From<RedisError> for LinkError {
    fn from(error: RedisError) -> Self {
        Self::Refused(error.category().to_owned())
    }
}

/// A connection for commands. Its answers are waited for by whoever asks, so it has no limit of its own.
///
/// # Errors
/// [`LinkError`].
pub async fn commands(url: &Secret) -> Result<MultiplexedConnection, LinkError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
    let client = Client::open(info(url)?)?;
    within(client.get_multiplexed_async_connection_with_config(&config)).await
}

/// A connection for subscriptions.
///
/// # Errors
/// [`LinkError`].
pub async fn pubsub(url: &Secret) -> Result<PubSub, LinkError> {
    let client = Client::open(info(url)?)?;
    within(client.get_async_pubsub()).await
}

/// Without Nagle's delay: small writes must not wait for each other.
fn info(url: &Secret) -> Result<ConnectionInfo, LinkError> {
    Ok(url.expose().into_connection_info()?.set_tcp_settings(TcpSettings::default().set_nodelay(true)))
}

async fn within<T>(connecting: impl Future<Output = Result<T, RedisError>>) -> Result<T, LinkError> {
    match timeout(CONNECT, connecting).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(LinkError::TimedOut),
    }
}

/// Growing pauses between attempts: 50 ms to a second.
#[derive(Debug, Default)]
pub struct Pause(u32);

impl Pause {
    /// How long to wait now.
    pub fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(50 << self.0.min(5)).min(Duration::from_secs(1));
        self.0 += 1;
        pause
    }

    /// The last attempt has worked.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}
