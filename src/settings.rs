//! Settings of the project and of single channels, which trusted backends change while nodes run.
//!
//! They stand in the database and are read through the tiered cache, all in one piece. Each node looks twice a second
//! ([`Settings::follow`]) and keeps what it saw last, so that a join never waits for Redis or a database. What a
//! channel does not say holds for it as the project says.
//!
//! **When the database or Redis is away** what was seen last goes on to hold, however long that lasts. A node that has
//! never seen any, because both are away since it started, cannot know which channels are closed: it lets in only who
//! has proven who he is. Changes fail then.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;

use crate::cache::{CacheError, Caches, Lives, TieredCache};
use crate::database::{Database, DatabaseError};
use crate::logging::Seldom;

/// Channels that may have settings of their own.
pub const MAX_CHANNELS: usize = 10_000;

/// How long a node goes on with what it knows without looking again, changes apart, which it is told of.
const L1_LIFE: Duration = Duration::from_secs(30);
/// How often a node looks, mostly into its own memory.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const KEY: &str = "all";
const PROJECT: &str = "project";
const CHANNEL: &str = "channel";

/// What can be set. What is not said holds as it does one step further out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Members that a channel may have; 0 is no limit. Otherwise `ROLLCALL_MAX_CHANNEL_MEMBERS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_members: Option<usize>,
    /// Whether only who has proven who it is may join, also in `open` mode. Otherwise false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_needs_session: Option<bool>,
}

impl Rules {
    /// These, and where they say nothing, `outer`.
    fn within(self, outer: Self) -> Self {
        Self {
            max_members: self.max_members.or(outer.max_members),
            join_needs_session: self.join_needs_session.or(outer.join_needs_session),
        }
    }
}

/// Everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct All {
    pub project: Rules,
    pub channels: BTreeMap<String, Rules>,
}

impl All {
    /// What holds for `channel`.
    pub fn of(&self, channel: &str) -> Rules {
        self.channels.get(channel).copied().unwrap_or_default().within(self.project)
    }
}

/// Why settings could not be read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Stored, but other nodes may go on with what they know for a while.
    #[error("stored; other nodes may take a while to follow: {0}")]
    Untold(CacheError),
    #[error("as many channels have settings as may: {MAX_CHANNELS}")]
    TooMany,
    #[error("the settings are not known: {0}")]
    Unknown(CacheError),
}

/// The settings, shared by all nodes. Clones share them.
#[derive(Clone)]
pub struct Settings {
    database: Database,
    cache: TieredCache<All>,
    /// What was seen last.
    seen: Arc<RwLock<Option<Arc<All>>>>,
}

impl Settings {
    /// The settings in `database`, kept in Redis for `l2_life` at most.
    pub fn new(database: Database, caches: &Caches, l2_life: Duration) -> Self {
        let lives = Lives { l1: L1_LIFE, l2: l2_life, absent: L1_LIFE, capacity: 1 };
        Self { database, cache: caches.cache("settings", lives), seen: Arc::default() }
    }

    /// Everything that is set, as this node saw it last; none if it never has.
    pub fn known(&self) -> Option<Arc<All>> {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps [`Settings::known`] up to date, for ever.
    pub async fn follow(&self) {
        loop {
            if let Err(error) = self.all().await {
                static UNKNOWN: Seldom = Seldom::new();
                if let Some(times) = UNKNOWN.count() {
                    tracing::warn!(%error, times, "settings stay as they were last seen");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Everything that is set.
    ///
    /// # Errors
    /// [`SettingsError::Unknown`].
    pub async fn all(&self) -> Result<Arc<All>, SettingsError> {
        let read = || async { self.read().await.map(Some) };
        let all = self.cache.get_or_load(KEY, read).await.map_err(SettingsError::Unknown)?;
        let all = all.unwrap_or_default();
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&all));
        Ok(all)
    }

    /// Sets the rules of `channel`, or of the project where there is none; no `rules` takes away what was set.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub async fn set(&self, channel: Option<&str>, rules: Option<Rules>) -> Result<(), SettingsError> {
        let (scope, name) = channel.map_or((PROJECT, ""), |channel| (CHANNEL, channel));
        // Numbers and booleans: it cannot fail.
        let json = rules.map(|rules| serde_json::to_string(&rules).unwrap_or_default());
        let changed = self.database.call(async |pool| match &json {
            None => {
                let delete = sqlx::query("DELETE FROM rollcall_settings WHERE scope = $1 AND name = $2");
                delete.bind(scope).bind(name).execute(pool).await.map(|_| true)
            }
            Some(json) => {
                let count =
                    sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM rollcall_settings WHERE name <> $1");
                if count.bind(name).fetch_one(pool).await? >= MAX_CHANNELS as i64 {
                    return Ok(false);
                }
                let upsert = sqlx::query(
                    "INSERT INTO rollcall_settings (scope, name, settings) VALUES ($1, $2, $3) \
                     ON CONFLICT (scope, name) DO UPDATE SET settings = excluded.settings",
                );
                upsert.bind(scope).bind(name).bind(json).execute(pool).await.map(|_| true)
            }
        });
        if !changed.await? {
            return Err(SettingsError::TooMany);
        }
        let told = self.cache.delete(KEY).await;
        // So that who set it sees it here.
        let _ = self.all().await;
        told.map_err(SettingsError::Untold)
    }

    async fn read(&self) -> Result<All, DatabaseError> {
        let rows = self.database.call(async |pool| {
            let select = sqlx::query("SELECT scope, name, settings FROM rollcall_settings");
            let rows = select.fetch_all(pool).await?;
            let fields = |row: &sqlx::any::AnyRow| {
                Ok((row.try_get::<String, _>(0)?, row.try_get::<String, _>(1)?, row.try_get::<String, _>(2)?))
            };
            rows.iter().map(fields).collect::<Result<Vec<_>, sqlx::Error>>()
        });
        let mut all = All::default();
        for (scope, name, json) in rows.await? {
            let Ok(rules) = serde_json::from_str::<Rules>(&json) else {
                // Somebody else wrote it: nobody is let in by mistake where it could have said so.
                tracing::warn!(
                    scope,
                    "a row of the settings cannot be read; it counts as one for sessions only"
                );
                let closed = Rules { join_needs_session: Some(true), ..Rules::default() };
                all.put(&scope, name, closed);
                continue;
            };
            all.put(&scope, name, rules);
        }
        Ok(all)
    }
}

impl All {
    fn put(&mut self, scope: &str, name: String, rules: Rules) {
        match scope {
            PROJECT => self.project = rules,
            CHANNEL => {
                self.channels.insert(name, rules);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Hearing;
    use crate::metrics::Metrics;
    use crate::redis_pool::test_redis::TestRedis;

    #[test]
    fn what_a_channel_does_not_say_holds_as_for_the_project() {
        let project = Rules { max_members: Some(10), join_needs_session: Some(true) };
        let own = Rules { max_members: None, join_needs_session: Some(false) };
        let all = All { project, channels: BTreeMap::from([("lobby".to_owned(), own)]) };
        assert_eq!(all.of("lobby"), Rules { max_members: Some(10), join_needs_session: Some(false) });
        assert_eq!((all.of("other"), All::default().of("other")), (project, Rules::default()));
        assert!(serde_json::from_str::<Rules>(r#"{"max_member":1}"#).is_err());
    }

    #[tokio::test]
    async fn what_is_set_is_read_from_the_database_once_and_then_from_the_cache() {
        let redis = TestRedis::start();
        let metrics = Arc::new(Metrics::new());
        let database = Database::new(&"sqlite::memory:".parse().unwrap(), Arc::clone(&metrics)).unwrap();
        let node = || {
            let caches = Caches::new(Some(redis.pool()), Hearing::default(), Arc::clone(&metrics));
            Settings::new(database.clone(), &caches, Duration::from_secs(60))
        };
        let (a, b) = (node(), node());
        assert_eq!(a.known(), None);
        assert_eq!(*a.all().await.unwrap(), All::default());
        assert_eq!(a.known().as_deref(), Some(&All::default()));
        let rules = Rules { max_members: Some(3), join_needs_session: None };
        a.set(Some("room:1"), Some(rules)).await.unwrap();
        a.set(None, Some(Rules { join_needs_session: Some(true), ..Rules::default() })).await.unwrap();
        for node in [&a, &b] {
            assert_eq!(
                node.all().await.unwrap().of("room:1"),
                Rules { join_needs_session: Some(true), ..rules }
            );
        }
        assert_eq!(a.known().unwrap().of("room:1").max_members, Some(3), "who set it sees it");
        b.set(Some("room:1"), None).await.unwrap();
        assert_eq!(b.all().await.unwrap().of("room:1").max_members, None);
    }
}
