//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::protocol::Protocol;

/// Loads Rollcall with many clients, measures, and checks that every client saw exactly what happened.
#[derive(Parser)]
#[command(name = "load")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Many clients join one channel at once; each must end with the whole roster.
    Storm(Storm),
    /// Steady members watch others join and leave at an even pace.
    Churn(Churn),
    /// Many members in small channels with nothing going on: what one costs in memory.
    Idle(Idle),
    /// Churn with the members half on each of two nodes: how fast one node hears of the other.
    TwoNodes(TwoNodes),
    /// Joins and holds, for other tools to measure a channel that is not empty.
    Hold(Hold),
    /// Thousands of members are gone at once: how long do those wait who come meanwhile?
    Vanish(Vanish),
}

/// The servers to load, and what to print.
#[derive(Args, Clone)]
pub struct Common {
    /// A running node; given twice, clients spread over both.
    #[arg(long, default_values = ["ws://127.0.0.1:8000"], value_parser = address)]
    pub url: Vec<SocketAddr>,
    /// Process id of a running node, for its CPU time and memory; one for each --url.
    #[arg(long)]
    pub pid: Vec<u32>,
    /// Start this server on a free port, without rate limits, and stop it afterwards.
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["url", "pid"])]
    pub spawn: Option<PathBuf>,
    /// Start a redis-server on a free port too, for the servers of --spawn.
    #[arg(long, requires = "spawn")]
    pub redis: bool,
    /// How many servers --spawn starts; more than one needs --redis.
    #[arg(long, requires = "spawn", value_name = "N")]
    pub nodes: Option<usize>,
    /// Print one line of JSON, and the table to standard error.
    #[arg(long)]
    pub json: bool,
    /// Channel, or the start of the channels' names; else one of its own for each run.
    #[arg(long)]
    pub channel: Option<String>,
    /// How long views may take to become complete.
    #[arg(long, default_value_t = 15.0, value_name = "SECONDS")]
    pub settle: f64,
}

#[derive(Args)]
pub struct Storm {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Clients that connect and join at the same time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub in_flight: u32,
    /// What the clients speak.
    #[arg(long, value_enum, default_value = "phoenix")]
    pub protocol: Protocol,
    /// Fail if a client got more presence frames, on average.
    #[arg(long)]
    pub max_frames: Option<f64>,
    /// Fail if the servers took more CPU seconds.
    #[arg(long)]
    pub max_cpu: Option<f64>,
    /// Fail if views took more seconds to become complete.
    #[arg(long)]
    pub max_seconds: Option<f64>,
}

/// How members come and go.
#[derive(Args, Clone)]
pub struct Pace {
    /// Joins a second.
    #[arg(long, default_value_t = 50.0)]
    pub joins: f64,
    /// Leaves a second.
    #[arg(long, default_value_t = 50.0)]
    pub leaves: f64,
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How long a member stays, at least, before it leaves again.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub stay: f64,
    /// Leave by closing the socket instead of saying so.
    #[arg(long)]
    pub drop: bool,
}

/// Limits on what the churn runs measure.
#[derive(Args, Clone)]
pub struct ChurnLimits {
    /// Fail if the median from join to visible is more milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p50: Option<f64>,
    /// Fail if one in a hundred takes more milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_p99: Option<f64>,
    /// Fail if the servers took more microseconds for each change told to a member.
    #[arg(long, value_name = "MICROSECONDS")]
    pub max_cpu_us: Option<f64>,
}

#[derive(Args)]
pub struct Churn {
    #[command(flatten)]
    pub common: Common,
    /// Members who stay and watch.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    #[command(flatten)]
    pub pace: Pace,
    #[command(flatten)]
    pub limits: ChurnLimits,
}

#[derive(Args)]
pub struct TwoNodes {
    #[command(flatten)]
    pub common: Common,
    /// Members who stay and watch, half on each node.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    pub members: u32,
    /// Joins a second, in turn on each node.
    #[arg(long, default_value_t = 20.0)]
    pub joins: f64,
    /// Leaves a second.
    #[arg(long, default_value_t = 20.0)]
    pub leaves: f64,
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How long a member stays, at least, before it leaves again.
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    pub stay: f64,
    /// Leave by closing the socket instead of saying so.
    #[arg(long)]
    pub drop: bool,
    #[command(flatten)]
    pub limits: ChurnLimits,
}

#[derive(Args)]
pub struct Idle {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub channel_size: u32,
    /// Fail if a member costs the servers more KiB.
    #[arg(long)]
    pub max_kib: Option<f64>,
}

#[derive(Args)]
pub struct Hold {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
}

#[derive(Args)]
pub struct Vanish {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub members: u32,
    /// A client connects and joins this often.
    #[arg(long, default_value_t = 5.0, value_name = "MS")]
    pub every: f64,
    /// How long to look on.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Fail if a client waited more milliseconds.
    #[arg(long, value_name = "MS")]
    pub max_stall: Option<f64>,
}

/// `ws://host:port`, as an address.
fn address(url: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("must start with ws://; TLS is for a proxy in front")?.trim_end_matches('/');
    let with_port = if rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        rest.to_owned()
    } else {
        format!("{rest}:80")
    };
    let mut found = with_port.to_socket_addrs().map_err(|e| e.to_string())?.collect::<Vec<_>>();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| "no such host".to_owned())
}
