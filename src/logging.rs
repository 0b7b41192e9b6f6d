//! Log lines: one form for people, one for machines. Never payloads, never tokens. What others can make
//! happen as often as they like is said seldom.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Starts logging to standard error. Only the first call in a process has an effect.
pub fn start(config: &Config) {
    // The library tells each attempt to reach a part of a cluster, several a second; what follows from them
    // we tell ourselves. Who asks for its lines (`info,redis=warn`) gets them.
    let filter = EnvFilter::try_new(format!("redis=off,{}", config.log));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let started = match config.log_format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging had been started before");
    }
}

/// The least time between two lines of one kind.
const SELDOM: Duration = Duration::from_secs(10);

/// One kind of line that is said seldom however often it comes: a static beside the line.
#[derive(Debug)]
pub struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// A kind that was not said yet.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// Counts a line; if it is to be said now, how many it stands for.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.1 += 1;
        if told.0.is_some_and(|last| now.saturating_duration_since(last) < SELDOM) {
            return None;
        }
        told.0 = Some(now);
        Some(std::mem::take(&mut told.1))
    }
}

impl Default for Seldom {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_often_is_said_seldom_with_how_often_it_came() {
        let (seldom, now) = (Seldom::new(), Instant::now());
        assert_eq!(seldom.count_at(now), Some(1));
        assert!((0..100).all(|_| seldom.count_at(now + Duration::from_secs(9)).is_none()));
        assert_eq!(seldom.count_at(now + SELDOM), Some(101));
    }
}
