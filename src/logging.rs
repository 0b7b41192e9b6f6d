//! Log lines: one form for people, one for machines. Never payloads, never tokens.

use std::io::IsTerminal as _;

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
