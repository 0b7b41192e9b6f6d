//! A node: the parts that make presence, started together, without HTTP around them.

use std::sync::Arc;
use std::time::Duration;

use actix::{Arbiter, Recipient};

use crate::accounts::{Accounts, HashError, Passwords};
use crate::cache::{self, Caches, Hearing};
use crate::channel::{Registry, Rosters, Shared};
use crate::cluster::{Aside, Asides, Cluster, LocalCluster, RedisCluster, Ttls};
use crate::config::Config;
use crate::database::{Database, DatabaseError};
use crate::hub::{CheckSessions, CloseSessions, Hubs, Rules, SessionCheck};
use crate::lifecycle::Lifecycle;
use crate::logging::Seldom;
use crate::metrics::Metrics;
use crate::presence::{Ids, NodeId};
use crate::presence_manager::PresenceManager;
use crate::redis_pool::{RedisError, RedisPool};
use crate::session::{FILTER_TOPIC, REVOKED_TOPIC, SessionManager};
use crate::settings::Settings;
use crate::webhooks::{Known, Webhooks};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("REDIS_URL: {0}")]
    Redis(#[from] RedisError),
    #[error("DATABASE_URL: {0}")]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Passwords(#[from] HashError),
}

/// How often a database that is away at the start is tried.
const DATABASE_AGAIN: Duration = Duration::from_secs(2);

/// One running node. Must be made in an actix system.
pub struct Node {
    pub id: NodeId,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub lifecycle: Arc<Lifecycle>,
    pub registry: Registry,
    pub hubs: Hubs,
    pub sessions: SessionManager,
    /// What is kept in two tiers.
    pub caches: Caches,
    pub database: Option<Database>,
    /// None without a database.
    pub accounts: Option<Accounts>,
    /// None without a database.
    pub settings: Option<Settings>,
    /// None without Redis.
    pub pool: Option<RedisPool>,
}

impl Node {
    /// Starts a node. Redis, where there is one, need not be there yet.
    ///
    /// Nor need the database, where there is one, unless it is a file.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: Config) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        let ids = Ids::new(NodeId::random());
        let pool = config.redis.as_ref().map(RedisPool::new).transpose()?;
        let hearing = Hearing::default();
        let sessions = SessionManager::of_node(pool.clone(), config.session_ttl, hearing.clone(), &metrics);
        let caches = Caches::new(pool.clone(), hearing.clone(), Arc::clone(&metrics));
        let database = database(&config, &metrics)?;
        let settings = database.clone().map(|database| Settings::new(database, &caches, config.session_ttl));
        if let Some(settings) = settings.clone() {
            actix::spawn(async move { settings.follow().await });
        }
        let accounts = database.clone().map(|database| {
            let passwords = Passwords::new(config.workers)?;
            Ok::<_, StartError>(Accounts::new(database, passwords, config.refresh_ttl))
        });
        let accounts = accounts.transpose()?;
        let hubs = Hubs::new(Rules::of(&config), settings.clone());
        let asides = asides(sessions.clone(), caches.clone(), hubs.clone(), hearing);
        let cluster = cluster(&config, ids.clone(), pool.clone(), &metrics, asides);
        let rosters = Rosters::default();
        let published = rosters.clone();
        let all = rosters.clone();
        let known = Known {
            node: ids.node(),
            roster: Box::new(move |channel, show| {
                published.get(channel).inspect(|published| show(&published.snapshot));
            }),
            channels: Box::new(move || all.all().map(|(name, _)| name).collect()),
        };
        let webhooks = Webhooks::start(&config.pusher, pool.clone(), known, Arc::clone(&metrics));
        let shared = Shared {
            ids: ids.clone(),
            grace: config.grace,
            heartbeat: config.presence_ttl / 3,
            rosters,
            cluster,
            webhooks,
            metrics: Arc::clone(&metrics),
        };
        // A channel's work is small beside that of the sockets it feeds.
        let arbiters = (0..config.workers.div_ceil(4)).map(|_| Arbiter::new().handle()).collect();
        let registry = Registry::new(Arc::new(shared), arbiters);
        let lifecycle = Arc::new(Lifecycle::default());
        let id = ids.node();
        Ok(Self {
            id,
            config,
            metrics,
            lifecycle,
            registry,
            hubs,
            sessions,
            caches,
            database,
            accounts,
            settings,
            pool,
        })
    }

    /// Presence for programs.
    pub fn presence(&self) -> PresenceManager {
        PresenceManager::new(self.registry.clone(), Arc::new(self.config.limits.clone()))
    }

    /// What the hubs ask of the sessions their sockets are bound to. A session that cannot be looked
    /// up just now keeps its sockets.
    pub fn session_check(&self) -> SessionCheck {
        let sessions = self.sessions.clone();
        Arc::new(move |tokens: Vec<Arc<str>>, ended: Recipient<CloseSessions>| {
            let sessions = sessions.clone();
            actix::spawn(async move {
                for token in tokens {
                    if matches!(sessions.validate_session(&token).await, Ok(None)) {
                        ended.do_send(CloseSessions { tokens: Arc::new([token]) });
                    }
                }
            });
        })
    }
}

/// The database, if there is one, with its schema on the way.
fn database(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Database>, StartError> {
    let Some(address) = &config.database else { return Ok(None) };
    let database = Database::new(address, Arc::clone(metrics))?;
    let preparing = database.clone();
    actix::spawn(async move {
        while let Err(error) = preparing.prepare().await {
            static AGAIN: Seldom = Seldom::new();
            if let Some(times) = AGAIN.count() {
                tracing::warn!(%error, times, "the database cannot be used yet; will try again");
            }
            actix::clock::sleep(DATABASE_AGAIN).await;
        }
    });
    Ok(Some(database))
}

/// The way to the other nodes, if there are any.
fn cluster(
    config: &Config,
    ids: Ids,
    pool: Option<RedisPool>,
    metrics: &Arc<Metrics>,
    asides: Asides,
) -> Cluster {
    let Some(pool) = pool else {
        return Cluster::Local(LocalCluster::new(config.last_seen_ttl));
    };
    let ttls = Ttls { presence: config.presence_ttl, node: config.node_ttl, last_seen: config.last_seen_ttl };
    let metrics = Arc::clone(metrics);
    Cluster::Redis(RedisCluster::start(ids, pool, ttls, metrics, asides, Arbiter::new().handle()))
}

/// What those who keep copies of what stands in Redis do with what they hear.
fn asides(sessions: SessionManager, caches: Caches, hubs: Hubs, hearing: Hearing) -> Asides {
    let told = move |aside: Aside<'_>| match aside {
        // Forgotten here, and its sockets end.
        Aside::Said { topic: REVOKED_TOPIC, text } => {
            let (sessions, hubs, token) = (sessions.clone(), hubs.clone(), Arc::<str>::from(text));
            actix::spawn(async move {
                sessions.forget(&token).await;
                hubs.tell(CloseSessions { tokens: Arc::new([token]) });
            });
        }
        Aside::Said { topic: FILTER_TOPIC, text } => {
            if let Some(filter) = sessions.filter().filter(|filter| filter.heard(text)).cloned() {
                actix::spawn(async move {
                    // If it fails, the filter goes on with what it has, which is more than there is.
                    let _ = filter.load().await;
                });
            }
        }
        Aside::Said { text, .. } => {
            let (caches, text) = (caches.clone(), text.to_owned());
            actix::spawn(async move { caches.heard(&text).await });
        }
        Aside::Missed => {
            sessions.forget_all();
            caches.forget_all();
            hubs.tell(CheckSessions);
            if let Some(filter) = sessions.filter().cloned() {
                filter.doubt();
                actix::spawn(async move { filter.keep().await });
            }
        }
    };
    Asides { topics: &[REVOKED_TOPIC, FILTER_TOPIC, cache::TOPIC], told: Arc::new(told), hearing }
}
