//! Who the primary is, as the sentinels say.
//!
//! All sentinels are asked at once. Once more than half have answered, the answer of the highest
//! configuration epoch counts, as it does among sentinels; so one that is cut off with a primary that the
//! others have replaced misleads nobody who reaches those. What fewer say is believed unless something newer is
//! known. While none answers, the primary that was known last is still the one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, ErrorKind, RedisError, RedisResult};
use tokio::time::timeout;

use super::connection::Endpoint;
use crate::config::{RedisAddress, SentinelGroup};

/// For one sentinel: connecting and answering.
const ASK_LIMIT: Duration = Duration::from_millis(500);

pub(super) struct Sentinels {
    group: SentinelGroup,
    /// A connection to each, kept between questions.
    lines: Vec<tokio::sync::Mutex<Option<MultiplexedConnection>>>,
    known: Mutex<Option<Primary>>,
}

/// The primary as one sentinel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Primary {
    epoch: u64,
    at: Endpoint,
}

impl Sentinels {
    pub(super) fn new(group: SentinelGroup) -> Self {
        let lines = group.sentinels.iter().map(|_| tokio::sync::Mutex::default()).collect();
        Self { group, lines, known: Mutex::default() }
    }

    /// How to reach the server at `at`.
    pub(super) fn server(&self, (host, port): &Endpoint) -> RedisResult<ConnectionInfo> {
        self.group.server(host, *port)
    }

    /// The primary that was known last.
    pub(super) fn known(&self) -> Option<Endpoint> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|primary| primary.at.clone())
    }

    /// Asks for the primary.
    pub(super) async fn ask(&self, address: &RedisAddress) -> RedisResult<Endpoint> {
        let all = self.lines.len();
        let mut asked: FuturesUnordered<_> =
            (0..all).map(|at| timeout(ASK_LIMIT, self.ask_one(address, at))).collect();
        let (mut answers, mut failure) = (Vec::with_capacity(all), None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Ok(primary)) => answers.push(primary),
                Ok(Err(error)) => failure = Some(error),
                Err(_) => {}
            }
            if answers.len() > all / 2 {
                break;
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = believe(known.take(), answers, all);
        let none = || RedisError::from((ErrorKind::Io, "no sentinel answers"));
        known.as_ref().map(|primary| primary.at.clone()).ok_or_else(|| failure.unwrap_or_else(none))
    }

    async fn ask_one(&self, address: &RedisAddress, at: usize) -> RedisResult<Primary> {
        let mut line = self.line(address, at).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("MASTER").arg(&self.group.name);
        let said: RedisResult<HashMap<String, String>> = question.query_async(&mut line).await;
        if said.is_err() {
            *self.lines[at].lock().await = None;
        }
        let none = (ErrorKind::UnexpectedReturnType, "a sentinel names no primary");
        Ok(parse(&said?).ok_or(none)?)
    }

    async fn line(&self, address: &RedisAddress, at: usize) -> RedisResult<MultiplexedConnection> {
        let mut line = self.lines[at].lock().await;
        if let Some(line) = &*line {
            return Ok(line.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ASK_LIMIT))
            .set_response_timeout(Some(ASK_LIMIT));
        let client = address.client(self.group.sentinels[at].clone())?;
        let new = client.get_multiplexed_async_connection_with_config(&config).await?;
        *line = Some(new.clone());
        Ok(new)
    }
}

fn parse(said: &HashMap<String, String>) -> Option<Primary> {
    let port = said.get("port")?.parse().ok().filter(|port| *port != 0)?;
    let epoch = said.get("config-epoch")?.parse().ok()?;
    Some(Primary { epoch, at: (said.get("ip")?.clone(), port) })
}

/// What to believe of the `answers` of `all` sentinels.
fn believe(known: Option<Primary>, answers: Vec<Primary>, all: usize) -> Option<Primary> {
    let most = answers.len() > all / 2;
    let newest = answers.into_iter().max_by_key(|primary| primary.epoch);
    match (known, newest) {
        (Some(known), Some(newest)) if !most && newest.epoch < known.epoch => Some(known),
        (known, newest) => newest.or(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(epoch: u64, host: &str) -> Primary {
        Primary { epoch, at: (host.to_owned(), 6379) }
    }

    #[test]
    fn the_highest_epoch_counts_and_a_minority_takes_nothing_back() {
        let (old, new) = (says(1, "old"), says(2, "new"));
        assert_eq!(believe(None, vec![], 3), None);
        assert_eq!(believe(Some(old.clone()), vec![], 3), Some(old.clone()));
        assert_eq!(believe(None, vec![old.clone()], 3), Some(old.clone()));
        assert_eq!(believe(Some(old.clone()), vec![old.clone(), new.clone()], 3), Some(new.clone()));
        assert_eq!(believe(Some(new.clone()), vec![old.clone()], 3), Some(new));
        // Sentinels that were set up anew count from the beginning again.
        assert_eq!(believe(Some(says(9, "gone")), vec![old.clone(), old.clone()], 3), Some(old));
    }
}
