//! A node: the parts that make presence, started together, without HTTP around them.

use std::sync::Arc;

use actix::{Arbiter, Recipient};

use crate::channel::{Registry, Rosters, Shared};
use crate::cluster::{Cluster, LocalCluster, RedisCluster, Revoked, RevokedFn, Ttls};
use crate::config::Config;
use crate::hub::{CloseSessions, Hubs, Rules, SessionCheck};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::presence::{Ids, NodeId};
use crate::presence_manager::PresenceManager;
use crate::redis_pool::{RedisError, RedisPool};
use crate::session::SessionManager;

/// One running node. Must be made in an actix system.
pub struct Node {
    pub id: NodeId,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub lifecycle: Arc<Lifecycle>,
    pub registry: Registry,
    pub hubs: Hubs,
    pub sessions: SessionManager,
    /// None without Redis.
    pub pool: Option<RedisPool>,
}

impl Node {
    /// Starts a node. Redis, where there is one, need not be there yet.
    ///
    /// # Errors
    /// [`RedisError`] if the address of Redis is none.
    pub fn start(config: Config) -> Result<Self, RedisError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        let ids = Ids::new(NodeId::random());
        let pool = config.redis.as_ref().map(RedisPool::new).transpose()?;
        let sessions = SessionManager::new(pool.clone(), config.session_ttl);
        let hubs = Hubs::new(Rules::of(&config));
        let revoked = on_revoked(sessions.clone(), hubs.clone());
        let cluster = cluster(&config, ids.clone(), pool.clone(), &metrics, revoked);
        let shared = Shared {
            ids: ids.clone(),
            grace: config.grace,
            heartbeat: config.presence_ttl / 3,
            rosters: Rosters::default(),
            cluster,
            metrics: Arc::clone(&metrics),
        };
        // A channel's work is small beside that of the sockets it feeds.
        let arbiters = (0..config.workers.div_ceil(4)).map(|_| Arbiter::new().handle()).collect();
        let registry = Registry::new(Arc::new(shared), arbiters);
        let lifecycle = Arc::new(Lifecycle::default());
        Ok(Self { id: ids.node(), config, metrics, lifecycle, registry, hubs, sessions, pool })
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

/// The way to the other nodes, if there are any.
fn cluster(
    config: &Config,
    ids: Ids,
    pool: Option<RedisPool>,
    metrics: &Arc<Metrics>,
    revoked: RevokedFn,
) -> Cluster {
    let Some(pool) = pool else {
        return Cluster::Local(LocalCluster::new(config.last_seen_ttl));
    };
    let ttls = Ttls { presence: config.presence_ttl, node: config.node_ttl, last_seen: config.last_seen_ttl };
    let metrics = Arc::clone(metrics);
    Cluster::Redis(RedisCluster::start(ids, pool, ttls, metrics, revoked, Arbiter::new().handle()))
}

/// A session that was revoked anywhere is forgotten here, and its sockets end.
fn on_revoked(sessions: SessionManager, hubs: Hubs) -> RevokedFn {
    Arc::new(move |revoked| match revoked {
        Revoked::Token(token) => {
            let (sessions, hubs) = (sessions.clone(), hubs.clone());
            actix::spawn(async move {
                sessions.forget(&token).await;
                hubs.tell(CloseSessions { tokens: Arc::new([token]) });
            });
        }
        Revoked::Unknown => sessions.forget_all(),
    })
}
