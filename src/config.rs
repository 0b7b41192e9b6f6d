//! Settings: every one is a flag and an environment variable, read and checked once, before anything starts.
//!
//! [`Args`] is what a person writes; [`Config`] is what the rest of the program reads. The step
//! between them, [`Args::check`], refuses a value that could not work and names the setting, so
//! a mistake costs one line at start-up instead of a surprise at night. Secrets are kept in
//! [`Secret`], which prints as `***`.

mod database_address;
mod jwks;
mod pusher;
mod redis_address;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ContextKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use ipnet::IpNet;

pub use database_address::DatabaseAddress;
pub use jwks::IssuerKey;
pub use pusher::{HookAddress, Pusher, PusherApp, PusherArgs};
pub(crate) use redis_address::tcp_settings;
pub use redis_address::{AddressError, RedisAddress, RedisServers, SentinelGroup};

/// How a connection proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Anyone connects under the name they give.
    Open,
    /// A valid session or JWT is needed.
    Session,
}

/// On or off, as written in settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A value that must never be printed. Its `Debug` form is `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`; only [`Secret::expose`] gives it back.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself. Callers must not log or format it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it is so short that it could be guessed: worth a warning at the start.
    pub fn is_weak(&self) -> bool {
        self.0.len() < 16
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Why the settings cannot work: one line, naming the setting.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// The environment variable's name; that of a flag that there is not.
    pub setting: Cow<'static, str>,
    /// What is wrong with it and what would be right. Never contains a secret.
    pub problem: String,
}

fn bad(setting: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError { setting: setting.into(), problem: problem.into() }
}

/// The settings of this process. `--help` and `--version` print and end it. An empty variable counts as
/// one that is not set, as compose files write it.
///
/// # Errors
/// The first setting that cannot work.
pub fn read() -> Result<Config, ConfigError> {
    let known = known();
    for variable in known.get_arguments().filter_map(clap::Arg::get_env) {
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            // SAFETY: called first in `main`, when there is no other thread that could read a variable.
            unsafe { std::env::remove_var(variable) };
        }
    }
    match Args::try_parse() {
        Ok(args) => args.check(),
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => Err(unreadable(&error, &known)),
    }
}

/// Every setting there is.
fn known() -> clap::Command {
    let mut known = Args::command();
    known.build();
    known
}

/// What the parser of flags and variables says in several lines, in one.
fn unreadable(error: &clap::Error, known: &clap::Command) -> ConfigError {
    let told = |kind| error.get(kind).map(ToString::to_string);
    let argument = told(ContextKind::InvalidArg).unwrap_or_default();
    let of = |arg: &&clap::Arg| !argument.is_empty() && arg.to_string() == argument;
    let variable = known.get_arguments().find(of).and_then(clap::Arg::get_env);
    let setting = variable.map_or(argument.clone(), |name| name.to_string_lossy().into_owned());
    let value = told(ContextKind::InvalidValue).unwrap_or_default();
    let why = match (std::error::Error::source(error), told(ContextKind::ValidValue)) {
        (Some(source), _) => source.to_string(),
        (None, Some(valid)) => format!("one of: {valid}"),
        (None, None) => error.kind().to_string(),
    };
    let setting = if setting.is_empty() { "settings".to_owned() } else { setting };
    ConfigError { setting: setting.into(), problem: format!("`{value}` cannot be: {why}") }
}

/// Rollcall: a realtime presence server.
///
/// Tells every browser who is online in a channel, on one node or on many that share a Redis.
/// Every setting is a flag and an environment variable; the flag wins.
#[derive(Parser, Clone)]
#[command(name = "rollcall", version, about, long_about, max_term_width = 110)]
pub struct Args {
    /// Addresses and ports to listen on, comma-separated
    #[arg(long, env = "ROLLCALL_LISTEN", default_value = "127.0.0.1:8000")]
    pub listen: String,

    /// Redis shared by all nodes: redis://[user:password@]host[:port][/db];
    /// redis+sentinel://[user:password@]sentinel[:port],…/name[/db][?sentinel_user=&sentinel_password=];
    /// redis+cluster://[user:password@]node[:port],…; each with rediss for TLS.
    /// None: a single node, everything in memory
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<String>,

    /// File (PEM) with the authorities whose certificates Redis may show [default: those of the web]
    #[arg(long, env = "ROLLCALL_REDIS_CA")]
    pub redis_ca: Option<PathBuf>,

    /// Database for accounts and settings: postgres://user:password@host[:port]/name, or sqlite:path, a file
    /// that is created. None: password sign-in and settings answer with an error, all else works
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,

    /// Whether POST /auth/v1/signup with an e-mail address and a password makes an account (needs DATABASE_URL)
    #[arg(long, env = "ROLLCALL_SIGNUP", value_enum, ignore_case = true, default_value = "off")]
    pub signup: Switch,

    /// How long a refresh token is good, in days: who does not come back for so long signs in again
    #[arg(long, env = "ROLLCALL_REFRESH_DAYS", default_value_t = 30)]
    pub refresh_days: u64,

    /// Life of a session and of what the cache keeps in Redis, in seconds
    #[arg(long, env = "CACHE_TTL_SECONDS", default_value_t = 3600)]
    pub cache_ttl_seconds: u64,

    /// Life of a presence key in Redis, in seconds (from 3 up); heartbeats come at a third of it
    #[arg(long, env = "ROLLCALL_PRESENCE_TTL_SECONDS", default_value_t = 60)]
    pub presence_ttl_seconds: u64,

    /// Life of this node's lease in Redis, in seconds; a node whose lease is gone is dead and the
    /// others say goodbye for it [default: 10, or half the presence TTL where that is less]
    #[arg(long, env = "ROLLCALL_NODE_TTL_SECONDS")]
    pub node_ttl_seconds: Option<u64>,

    /// How long a member whose socket ended without an explicit leave stays, in seconds (0 to 30)
    #[arg(long, env = "ROLLCALL_GRACE_SECONDS", default_value_t = 2)]
    pub grace_seconds: u64,

    /// Who may connect. Needed when listening beyond loopback [default: open on loopback]
    #[arg(long, env = "ROLLCALL_AUTH", value_enum, ignore_case = true)]
    pub auth: Option<AuthMode>,

    /// Secret that verifies HS256 tokens. None, and no ROLLCALL_JWKS_FILE: JWTs are refused
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,

    /// File with the public keys (a JWK set) that verify RS256, ES256 and EdDSA tokens. Read at the start
    #[arg(long, env = "ROLLCALL_JWKS_FILE")]
    pub jwks_file: Option<PathBuf>,

    /// Bearer key of trusted backends for management calls. None: they are refused
    #[arg(long, env = "SERVICE_KEY", hide_env_values = true)]
    pub service_key: Option<String>,

    /// Connection attempts and API calls allowed per 60 s from one address; 0: no limit
    #[arg(long, env = "ROLLCALL_RATE_IP", default_value_t = 300)]
    pub rate_ip: u32,

    /// Connection attempts and API calls allowed per 60 s for one user; 0: no limit
    #[arg(long, env = "ROLLCALL_RATE_USER", default_value_t = 120)]
    pub rate_user: u32,

    /// By how much a tier multiplies its users' limit: name:factor, comma-separated; others have it once
    #[arg(long, env = "ROLLCALL_RATE_TIERS", default_value = "free:1,pro:5,enterprise:25")]
    pub rate_tiers: String,

    /// Attempts to sign in or up allowed per 60 s from one address; 0: no limit
    #[arg(long, env = "ROLLCALL_RATE_SIGN_IN_IP", default_value_t = 30)]
    pub rate_sign_in_ip: u32,

    /// Attempts to sign in or up allowed per 60 s for one e-mail address; 0: no limit
    #[arg(long, env = "ROLLCALL_RATE_SIGN_IN_ACCOUNT", default_value_t = 10)]
    pub rate_sign_in_account: u32,

    /// Proxies whose X-Forwarded-For is believed: CIDRs, comma-separated
    #[arg(long, env = "ROLLCALL_TRUSTED_PROXIES", default_value = "")]
    pub trusted_proxies: String,

    /// Browser origins that may connect, comma-separated, or *
    /// [default: same origin; any on loopback]
    #[arg(long, env = "ROLLCALL_ALLOWED_ORIGINS")]
    pub allowed_origins: Option<String>,

    /// Whether POST /auth/v1/signup with an empty body gives an anonymous session
    /// [default: on in open mode, else off]
    #[arg(long, env = "ROLLCALL_ANONYMOUS", value_enum, ignore_case = true)]
    pub anonymous: Option<Switch>,

    #[command(flatten)]
    pub pusher: PusherArgs,

    /// How often a WebSocket is pinged, in seconds (1 to 600)
    #[arg(long, env = "ROLLCALL_PING_SECONDS", default_value_t = 20)]
    pub ping_seconds: u32,

    /// After how long without a word, a pong among them, a WebSocket is ended as silent, in seconds (2 to
    /// 3600); longer than the time between two pings
    #[arg(long, env = "ROLLCALL_SILENCE_SECONDS", default_value_t = 60)]
    pub silence_seconds: u32,

    /// Without activity for so long a user is idle, in seconds (0 to 86400); heartbeats and pongs are none. 0: never
    #[arg(long, env = "ROLLCALL_IDLE_SECONDS", default_value_t = 300)]
    pub idle_seconds: u64,

    /// How long a user's last_seen and first_seen are kept, in days
    #[arg(long, env = "ROLLCALL_LAST_SEEN_DAYS", default_value_t = 30)]
    pub last_seen_days: u64,

    /// What is logged: a tracing filter such as info or rollcall=debug
    #[arg(long, env = "ROLLCALL_LOG", default_value = "info")]
    pub log: String,

    /// Form of the log lines
    #[arg(long, env = "ROLLCALL_LOG_FORMAT", value_enum, ignore_case = true, default_value = "text")]
    pub log_format: LogFormat,

    /// Worker threads that serve sockets and HTTP [default: the number of cores]
    #[arg(long, env = "ROLLCALL_WORKERS")]
    pub workers: Option<usize>,

    #[command(flatten)]
    pub limits: Limits,
}

/// The limits on what a client may send or cost (guarantee G6). Each is a setting of its own.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Bytes in one message from a client
    #[arg(long, env = "ROLLCALL_MAX_FRAME_BYTES", default_value_t = 65_536)]
    pub max_frame_bytes: usize,
    /// Bytes in a meta, as JSON
    #[arg(long, env = "ROLLCALL_MAX_META_BYTES", default_value_t = 4_096)]
    pub max_meta_bytes: usize,
    /// Characters in a user id
    #[arg(long, env = "ROLLCALL_MAX_USER_CHARS", default_value_t = 128)]
    pub max_user_chars: usize,
    /// Bytes in a channel name
    #[arg(long, env = "ROLLCALL_MAX_CHANNEL_BYTES", default_value_t = 200)]
    pub max_channel_bytes: usize,
    /// Channels that one connection may be in
    #[arg(long, env = "ROLLCALL_MAX_CHANNELS", default_value_t = 100)]
    pub max_channels: usize,
    /// Presence calls a second on one connection; over it the newest meta waits its turn
    #[arg(long, env = "ROLLCALL_MAX_PRESENCE_RATE", default_value_t = 10)]
    pub max_presence_rate: u32,
    /// Presence calls that may come at once on one connection
    #[arg(long, env = "ROLLCALL_MAX_PRESENCE_BURST", default_value_t = 20)]
    pub max_presence_burst: u32,
    /// Other messages a second on one connection
    #[arg(long, env = "ROLLCALL_MAX_MESSAGE_RATE", default_value_t = 100)]
    pub max_message_rate: u32,
    /// Bytes that may wait to be sent to one connection before it is closed as a slow reader; a frame counts for
    /// a quarter of them at most
    #[arg(long, env = "ROLLCALL_MAX_OUTPUT_BYTES", default_value_t = 1_048_576)]
    pub max_output_bytes: usize,
    /// WebSockets and event streams on one node
    #[arg(long, env = "ROLLCALL_MAX_CONNECTIONS", default_value_t = 100_000)]
    pub max_connections: usize,
    /// Of them, those of one user who has proven who it is, on each node; 0: no limit
    #[arg(long, env = "ROLLCALL_MAX_USER_CONNECTIONS", default_value_t = 100)]
    pub max_user_connections: usize,
    /// Of them, those from one address (IPv6: one /64), on each node; 0: no limit, for whole companies and
    /// networks may share an address
    #[arg(long, env = "ROLLCALL_MAX_ADDRESS_CONNECTIONS", default_value_t = 0)]
    pub max_address_connections: usize,
    /// Channels open on one node; joins of others are refused
    #[arg(long, env = "ROLLCALL_MAX_NODE_CHANNELS", default_value_t = 100_000)]
    pub max_node_channels: usize,
    /// Members of one channel, as last told to its viewers: what joins at the same moment can exceed it;
    /// 0: no limit
    #[arg(long, env = "ROLLCALL_MAX_CHANNEL_MEMBERS", default_value_t = 0)]
    pub max_channel_members: usize,
}

/// By how much a tier multiplies the limit of its users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiers(BTreeMap<String, u32>);

impl Tiers {
    /// What a user of `tier` may do where others may do `limit`: it has none where `limit` is 0.
    pub fn limit(&self, limit: u32, tier: Option<&str>) -> u32 {
        limit.saturating_mul(tier.and_then(|tier| self.0.get(tier)).copied().unwrap_or(1))
    }
}

/// Which browser origins may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every origin.
    Any,
    /// The origin that the server itself is reached under (`Origin` equals `Host`).
    Same,
    /// Those listed, written as browsers send them: `https://app.example`.
    Listed(Vec<String>),
}

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Vec<SocketAddr>,
    /// Redis, if there is one.
    pub redis: Option<RedisAddress>,
    /// The database, if there is one.
    pub database: Option<DatabaseAddress>,
    /// Whether anyone may make an account.
    pub signup: bool,
    pub refresh_ttl: Duration,
    pub session_ttl: Duration,
    pub presence_ttl: Duration,
    pub node_ttl: Duration,
    pub grace: Duration,
    pub auth: AuthMode,
    pub jwt_secret: Option<Secret>,
    /// Public keys that verify tokens.
    pub jwt_keys: Vec<IssuerKey>,
    pub service_key: Option<Secret>,
    /// Calls per 60 s by address; 0 is no limit.
    pub rate_ip: u32,
    /// Calls per 60 s by user; 0 is no limit.
    pub rate_user: u32,
    /// What tiers make of the user's limit.
    pub tiers: Tiers,
    /// Attempts to sign in per 60 s by address; 0 is no limit.
    pub rate_sign_in_ip: u32,
    /// Attempts to sign in per 60 s by account; 0 is no limit.
    pub rate_sign_in_account: u32,
    pub trusted_proxies: Vec<IpNet>,
    pub origins: Origins,
    pub anonymous: bool,
    pub pusher: Pusher,
    pub last_seen_ttl: Duration,
    /// After how long without activity a user is idle; zero: never.
    pub idle_after: Duration,
    /// How often a WebSocket is pinged, in seconds.
    pub ping_every: u32,
    /// After how many seconds without a word a WebSocket ends.
    pub silent_after: u32,
    pub log: String,
    pub log_format: LogFormat,
    pub workers: usize,
    /// Whether every address listened on is loopback.
    pub loopback_only: bool,
    pub limits: Limits,
}

impl Args {
    /// Turns what was written into settings that can work.
    ///
    /// # Errors
    /// The first setting that cannot work, by its environment variable's name.
    pub fn check(self) -> Result<Config, ConfigError> {
        let listen = parse_listen(&self.listen)?;
        let loopback_only = listen.iter().all(|a| a.ip().is_loopback());
        let auth = match self.auth {
            Some(mode) => mode,
            None if loopback_only => AuthMode::Open,
            None => {
                return Err(bad(
                    "ROLLCALL_AUTH",
                    format!(
                        "listening on {}, which others can reach, needs a choice: \
                         session (a token is needed) or open (anyone connects under any name)",
                        self.listen
                    ),
                ));
            }
        };
        let (presence_ttl, node_ttl) = self.check_ttls()?;
        self.check_limits()?;
        self.check_liveness()?;
        if self.grace_seconds > 30 {
            return Err(bad("ROLLCALL_GRACE_SECONDS", "at most 30"));
        }
        if self.last_seen_days == 0 || self.last_seen_days > 3650 {
            return Err(bad("ROLLCALL_LAST_SEEN_DAYS", "from 1 to 3650"));
        }
        if self.idle_seconds > 86_400 {
            return Err(bad("ROLLCALL_IDLE_SECONDS", "at most 86400"));
        }
        if self.refresh_days == 0 || self.refresh_days > 3650 {
            return Err(bad("ROLLCALL_REFRESH_DAYS", "from 1 to 3650"));
        }
        if self.log.parse::<tracing_subscriber::EnvFilter>().is_err() {
            return Err(bad("ROLLCALL_LOG", format!("`{}` is not a tracing filter", self.log)));
        }
        let workers = self.workers.unwrap_or_else(default_workers);
        if workers == 0 || workers > 1024 {
            return Err(bad("ROLLCALL_WORKERS", "from 1 to 1024"));
        }
        let pusher = self.pusher.check(auth)?;
        Ok(Config {
            redis: check_redis(self.redis_url.as_deref(), self.redis_ca.as_deref())?,
            database: check_database(self.database_url.as_deref(), self.signup)?,
            signup: self.signup == Switch::On,
            refresh_ttl: Duration::from_secs(self.refresh_days * 86_400),
            session_ttl: Duration::from_secs(self.cache_ttl_seconds),
            presence_ttl,
            node_ttl,
            grace: Duration::from_secs(self.grace_seconds),
            auth,
            jwt_secret: secret(self.jwt_secret),
            jwt_keys: check_jwks(self.jwks_file.as_deref())?,
            service_key: secret(self.service_key),
            rate_ip: self.rate_ip,
            rate_user: self.rate_user,
            tiers: parse_tiers(&self.rate_tiers)?,
            rate_sign_in_ip: self.rate_sign_in_ip,
            rate_sign_in_account: self.rate_sign_in_account,
            trusted_proxies: parse_proxies(&self.trusted_proxies)?,
            origins: parse_origins(self.allowed_origins.as_deref(), loopback_only)?,
            pusher,
            anonymous: match self.anonymous {
                Some(switch) => switch == Switch::On,
                None => auth == AuthMode::Open,
            },
            last_seen_ttl: Duration::from_secs(self.last_seen_days * 86_400),
            idle_after: Duration::from_secs(self.idle_seconds),
            ping_every: self.ping_seconds,
            silent_after: self.silence_seconds,
            log: self.log,
            log_format: self.log_format,
            workers,
            loopback_only,
            listen,
            limits: self.limits,
        })
    }

    fn check_ttls(&self) -> Result<(Duration, Duration), ConfigError> {
        let presence = self.presence_ttl_seconds;
        if !(3..=3600).contains(&presence) {
            return Err(bad("ROLLCALL_PRESENCE_TTL_SECONDS", "from 3 to 3600"));
        }
        if !(60..=31_536_000).contains(&self.cache_ttl_seconds) {
            return Err(bad("CACHE_TTL_SECONDS", "from 60 to 31536000"));
        }
        let presence = Duration::from_secs(presence);
        let node = match self.node_ttl_seconds {
            None => Duration::from_secs(10).min(presence / 2),
            Some(0) => return Err(bad("ROLLCALL_NODE_TTL_SECONDS", "at least 1")),
            Some(s) => Duration::from_secs(s),
        };
        if node > presence {
            return Err(bad(
                "ROLLCALL_NODE_TTL_SECONDS",
                "must not be longer than ROLLCALL_PRESENCE_TTL_SECONDS: \
                 a dead node's keys would be gone before it is known to be dead",
            ));
        }
        Ok((presence, node))
    }

    fn check_liveness(&self) -> Result<(), ConfigError> {
        if !(1..=600).contains(&self.ping_seconds) {
            return Err(bad("ROLLCALL_PING_SECONDS", "from 1 to 600"));
        }
        if !(2..=3_600).contains(&self.silence_seconds) {
            return Err(bad("ROLLCALL_SILENCE_SECONDS", "from 2 to 3600"));
        }
        if self.silence_seconds <= self.ping_seconds {
            return Err(bad(
                "ROLLCALL_SILENCE_SECONDS",
                "must be longer than ROLLCALL_PING_SECONDS: clients that only answer pings would be ended",
            ));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let l = &self.limits;
        let ranges: [(&'static str, usize, usize, usize); 14] = [
            ("ROLLCALL_MAX_FRAME_BYTES", l.max_frame_bytes, 1_024, 16 << 20),
            ("ROLLCALL_MAX_META_BYTES", l.max_meta_bytes, 2, 1 << 20),
            ("ROLLCALL_MAX_USER_CHARS", l.max_user_chars, 1, 1_024),
            ("ROLLCALL_MAX_CHANNEL_BYTES", l.max_channel_bytes, 1, 1_024),
            ("ROLLCALL_MAX_CHANNELS", l.max_channels, 1, 100_000),
            ("ROLLCALL_MAX_PRESENCE_RATE", l.max_presence_rate as usize, 1, 100_000),
            ("ROLLCALL_MAX_PRESENCE_BURST", l.max_presence_burst as usize, 1, 100_000),
            ("ROLLCALL_MAX_MESSAGE_RATE", l.max_message_rate as usize, 1, 100_000),
            ("ROLLCALL_MAX_OUTPUT_BYTES", l.max_output_bytes, 65_536, 1 << 30),
            ("ROLLCALL_MAX_CONNECTIONS", l.max_connections, 1, 10_000_000),
            ("ROLLCALL_MAX_USER_CONNECTIONS", l.max_user_connections, 0, 10_000_000),
            ("ROLLCALL_MAX_ADDRESS_CONNECTIONS", l.max_address_connections, 0, 10_000_000),
            ("ROLLCALL_MAX_NODE_CHANNELS", l.max_node_channels, 1, 10_000_000),
            ("ROLLCALL_MAX_CHANNEL_MEMBERS", l.max_channel_members, 0, 10_000_000),
        ];
        for (setting, value, least, most) in ranges {
            if value < least || value > most {
                return Err(bad(setting, format!("{value} is not from {least} to {most}")));
            }
        }
        if l.max_meta_bytes > l.max_frame_bytes {
            return Err(bad(
                "ROLLCALL_MAX_META_BYTES",
                "must not be over ROLLCALL_MAX_FRAME_BYTES: no such meta could arrive",
            ));
        }
        Ok(())
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn parse_listen(text: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    let mut all = Vec::new();
    for part in items(text) {
        let found = part.to_socket_addrs().map_err(|e| {
            bad("ROLLCALL_LISTEN", format!("`{part}` is not address:port ({e}); example: 127.0.0.1:8000"))
        })?;
        all.extend(found);
    }
    if all.is_empty() {
        return Err(bad("ROLLCALL_LISTEN", "no address given; example: 127.0.0.1:8000"));
    }
    Ok(all)
}

fn parse_proxies(text: &str) -> Result<Vec<IpNet>, ConfigError> {
    items(text)
        .map(|part| {
            part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                bad("ROLLCALL_TRUSTED_PROXIES", format!("`{part}` is not a CIDR; example: 10.0.0.0/8"))
            })
        })
        .collect()
}

fn parse_tiers(text: &str) -> Result<Tiers, ConfigError> {
    let mut tiers = Tiers::default();
    for part in items(text) {
        let factor = part.rsplit_once(':').and_then(|(name, factor)| {
            let factor = factor.trim().parse::<u32>().ok().filter(|factor| *factor > 0)?;
            Some((name.trim(), factor)).filter(|(name, _)| !name.is_empty())
        });
        let Some((name, factor)) = factor else {
            return Err(bad(
                "ROLLCALL_RATE_TIERS",
                format!("`{part}` is not name:factor with a factor from 1 up; example: free:1,pro:5"),
            ));
        };
        if tiers.0.insert(name.to_owned(), factor).is_some() {
            return Err(bad("ROLLCALL_RATE_TIERS", format!("`{name}` is there twice")));
        }
    }
    Ok(tiers)
}

fn parse_origins(text: Option<&str>, loopback_only: bool) -> Result<Origins, ConfigError> {
    let Some(text) = text else {
        return Ok(if loopback_only { Origins::Any } else { Origins::Same });
    };
    let list: Vec<String> = items(text).map(|o| o.trim_end_matches('/').to_ascii_lowercase()).collect();
    if list.iter().any(|o| o == "*") {
        return Ok(Origins::Any);
    }
    if let Some(wrong) = list.iter().find(|o| !o.contains("://")) {
        return Err(bad(
            "ROLLCALL_ALLOWED_ORIGINS",
            format!("`{wrong}` is not an origin; example: https://app.example"),
        ));
    }
    Ok(if list.is_empty() { Origins::Same } else { Origins::Listed(list) })
}

fn check_redis(url: Option<&str>, ca: Option<&Path>) -> Result<Option<RedisAddress>, ConfigError> {
    const CA: &str = "ROLLCALL_REDIS_CA";
    let Some(url) = url.filter(|url| !url.trim().is_empty()) else {
        return if ca.is_some() { Err(bad(CA, "is of no use without REDIS_URL")) } else { Ok(None) };
    };
    let address: RedisAddress =
        url.parse().map_err(|error: AddressError| bad("REDIS_URL", error.to_string()))?;
    let Some(ca) = ca else { return Ok(Some(address)) };
    let pem = std::fs::read(ca).map_err(|error| bad(CA, format!("cannot read {}: {error}", ca.display())))?;
    Ok(Some(address.with_ca(&pem).map_err(|error| bad(CA, error.to_string()))?))
}

fn check_database(url: Option<&str>, signup: Switch) -> Result<Option<DatabaseAddress>, ConfigError> {
    let Some(url) = url.filter(|url| !url.trim().is_empty()) else {
        return match signup {
            Switch::On => Err(bad("ROLLCALL_SIGNUP", "needs DATABASE_URL: accounts must be kept somewhere")),
            Switch::Off => Ok(None),
        };
    };
    url.parse().map(Some).map_err(|problem: String| bad("DATABASE_URL", problem))
}

fn check_jwks(path: Option<&Path>) -> Result<Vec<IssuerKey>, ConfigError> {
    let path = path.filter(|path| !path.as_os_str().is_empty());
    path.map_or(Ok(Vec::new()), jwks::read).map_err(|problem| bad("ROLLCALL_JWKS_FILE", problem))
}

fn secret(value: Option<String>) -> Option<Secret> {
    value.filter(|v| !v.is_empty()).map(Secret)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<Config, ConfigError> {
        Args::parse_from(std::iter::once("rollcall").chain(args.iter().copied())).check()
    }

    #[test]
    fn no_settings_at_all_is_an_open_node_on_loopback() {
        let config = check(&[]).unwrap();
        assert_eq!(config.listen, ["127.0.0.1:8000".parse().unwrap()]);
        assert_eq!(config.auth, AuthMode::Open);
        assert_eq!(config.origins, Origins::Any);
        assert_eq!(config.node_ttl, Duration::from_secs(10));
        assert!(config.anonymous && config.redis.is_none());
    }

    #[test]
    fn listening_for_others_needs_a_choice_of_auth() {
        let error = check(&["--listen", "0.0.0.0:8000"]).unwrap_err();
        assert_eq!(error.setting, "ROLLCALL_AUTH");
        let config = check(&["--listen", "0.0.0.0:8000", "--auth", "session"]).unwrap();
        assert_eq!(config.origins, Origins::Same);
        assert!(!config.anonymous);
    }

    #[test]
    fn a_short_presence_ttl_shortens_the_lease() {
        let config = check(&["--presence-ttl-seconds", "6"]).unwrap();
        assert_eq!(config.node_ttl, Duration::from_secs(3));
    }

    #[test]
    fn every_bad_value_names_its_setting() {
        for (args, setting) in [
            (&["--listen", "nonsense"][..], "ROLLCALL_LISTEN"),
            (&["--redis-url", "http://x"], "REDIS_URL"),
            (&["--redis-url", "redis+sentinel://x:26379"], "REDIS_URL"),
            (&["--redis-url", "rediss://x", "--redis-ca", "/no/such/file"], "ROLLCALL_REDIS_CA"),
            (&["--redis-ca", "/no/such/file"], "ROLLCALL_REDIS_CA"),
            (&["--jwks-file", "/no/such/file"], "ROLLCALL_JWKS_FILE"),
            (&["--presence-ttl-seconds", "2"], "ROLLCALL_PRESENCE_TTL_SECONDS"),
            (&["--node-ttl-seconds", "61"], "ROLLCALL_NODE_TTL_SECONDS"),
            (&["--database-url", "mysql://x"], "DATABASE_URL"),
            (&["--database-url", "sqlite:"], "DATABASE_URL"),
            (&["--database-url", "postgres://[bad"], "DATABASE_URL"),
            (&["--signup", "on"], "ROLLCALL_SIGNUP"),
            (&["--idle-seconds", "86401"], "ROLLCALL_IDLE_SECONDS"),
            (&["--refresh-days", "0"], "ROLLCALL_REFRESH_DAYS"),
            (&["--rate-tiers", "free"], "ROLLCALL_RATE_TIERS"),
            (&["--rate-tiers", "free:0"], "ROLLCALL_RATE_TIERS"),
            (&["--rate-tiers", "pro:2,pro:3"], "ROLLCALL_RATE_TIERS"),
            (&["--trusted-proxies", "10.0.0.0/99"], "ROLLCALL_TRUSTED_PROXIES"),
            (&["--allowed-origins", "example"], "ROLLCALL_ALLOWED_ORIGINS"),
            (&["--max-meta-bytes", "1000000"], "ROLLCALL_MAX_META_BYTES"),
            (&["--grace-seconds", "31"], "ROLLCALL_GRACE_SECONDS"),
            (&["--ping-seconds", "0"], "ROLLCALL_PING_SECONDS"),
            (&["--silence-seconds", "20"], "ROLLCALL_SILENCE_SECONDS"),
            (&["--silence-seconds", "3601"], "ROLLCALL_SILENCE_SECONDS"),
            (&["--max-node-channels", "0"], "ROLLCALL_MAX_NODE_CHANNELS"),
            (&["--max-user-connections", "10000001"], "ROLLCALL_MAX_USER_CONNECTIONS"),
            (&["--max-address-connections", "10000001"], "ROLLCALL_MAX_ADDRESS_CONNECTIONS"),
            (&["--max-channel-members", "10000001"], "ROLLCALL_MAX_CHANNEL_MEMBERS"),
        ] {
            assert_eq!(check(args).unwrap_err().setting, setting);
        }
    }

    #[test]
    fn what_the_parser_refuses_is_one_line_that_names_the_variable() {
        for (args, line) in [
            (
                ["rollcall", "--rate-ip=many"],
                "ROLLCALL_RATE_IP: `many` cannot be: invalid digit found in string",
            ),
            (["rollcall", "--auth=maybe"], "ROLLCALL_AUTH: `maybe` cannot be: one of: open, session"),
        ] {
            let error = Args::try_parse_from(args).err().unwrap();
            assert_eq!(unreadable(&error, &known()).to_string(), line);
        }
        let error = Args::try_parse_from(["rollcall", "--nonsense"]).err().unwrap();
        assert!(unreadable(&error, &known()).to_string().starts_with("--nonsense: "));
    }

    #[test]
    fn tiers_multiply() {
        let tiers = check(&["--rate-tiers", "free:1, gold:7"]).unwrap().tiers;
        let limits = [None, Some("free"), Some("gold"), Some("unknown")].map(|tier| tiers.limit(120, tier));
        assert_eq!(limits, [120, 120, 840, 120]);
        assert_eq!((tiers.limit(u32::MAX, Some("gold")), tiers.limit(0, Some("gold"))), (u32::MAX, 0));
        assert_eq!(check(&[]).unwrap().tiers.limit(120, Some("pro")), 600);
    }

    #[test]
    fn secrets_do_not_print() {
        let config = check(&[
            "--redis-url",
            "redis://:hunter2hunter2@localhost/",
            "--service-key",
            "0123456789abcdef",
        ])
        .unwrap();
        let printed = format!("{config:?}");
        assert!(!printed.contains("hunter2") && !printed.contains("0123456789abcdef"));
        let error = check(&["--redis-url", "redis://:hunter2@[bad"]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
