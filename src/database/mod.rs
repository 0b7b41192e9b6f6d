//! The database: PostgreSQL or SQLite, for what must outlive Redis.
//!
//! Its schema is made and kept up to date by the program itself, at the first use that succeeds; several nodes may
//! begin at the same time. A SQLite file is created where there is none.
//!
//! **When the database is away** a call fails within [`CALL_LIMIT`] with [`DatabaseError::Away`]; nothing is
//! retried, and the pool connects again by itself. Redis has no part in this.

use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::{AnyPool, Executor as _};
use tokio::sync::OnceCell;

use crate::config::DatabaseAddress;
use crate::health::Trouble;
use crate::metrics::Metrics;

/// For a whole call.
const CALL_LIMIT: Duration = Duration::from_secs(4);
/// For a connection out of the pool.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Connections at most.
const MAX_SIZE: u32 = 8;
/// How often bringing the schema up to date is tried, and how long it waits in between.
const MIGRATION_TRIES: u32 = 5;
const MIGRATION_PAUSE: Duration = Duration::from_millis(150);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/database/migrations");

/// Why the database gave no answer that could be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DatabaseError {
    /// No connection, or no answer in time. What was asked may or may not have been done.
    #[error("the database is away")]
    Away,
    /// There is such a row already.
    #[error("there is one already")]
    Taken,
    /// What the row belongs to is not there, or not any more.
    #[error("what it belongs to is gone")]
    Orphan,
    /// The database refused. The text holds nothing of what was sent or stored.
    #[error("the database refused: {0}")]
    Refused(String),
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(refused) if refused.is_unique_violation() => Self::Taken,
            sqlx::Error::Database(refused) if refused.is_foreign_key_violation() => Self::Orphan,
            // Starting up, shutting down, too many connections (PostgreSQL, appendix A: classes 57 and 53).
            sqlx::Error::Database(refused)
                if refused.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("53")) =>
            {
                Self::Away
            }
            sqlx::Error::Database(refused) => {
                // Messages quote values; the code says what is wrong.
                Self::Refused(format!("error {}", refused.code().unwrap_or_default()))
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => {
                tracing::debug!(%error, "no answer from the database");
                Self::Away
            }
            _ => Self::Refused("an answer that was not understood".to_owned()),
        }
    }
}

/// A pool of connections to the database. Clones share it.
#[derive(Clone)]
pub struct Database(Arc<Inner>);

struct Inner {
    pool: AnyPool,
    migrated: OnceCell<()>,
    metrics: Arc<Metrics>,
}

impl Database {
    /// A pool for the database at `address`. Does not connect. Must be called where tokio runs.
    ///
    /// # Errors
    /// [`DatabaseError::Refused`] when `address` is none.
    pub fn new(address: &DatabaseAddress, metrics: Arc<Metrics>) -> Result<Self, DatabaseError> {
        install_default_drivers();
        let is_file = address.is_file();
        let options = AnyPoolOptions::new()
            .max_connections(if address.is_memory() { 1 } else { MAX_SIZE })
            .min_connections(u32::from(address.is_memory()))
            .idle_timeout((!address.is_memory()).then_some(Duration::from_secs(600)))
            .max_lifetime((!address.is_memory()).then_some(Duration::from_secs(1_800)))
            .acquire_timeout(CONNECT_LIMIT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if is_file {
                        // Readers and a writer do not wait for each other.
                        connection.execute("PRAGMA journal_mode = WAL").await?;
                        connection.execute("PRAGMA foreign_keys = ON").await?;
                    }
                    Ok(())
                })
            });
        let pool = options
            .connect_lazy(address.url())
            .map_err(|_| DatabaseError::Refused("the address is not one of a database".to_owned()))?;
        Ok(Self(Arc::new(Inner { pool, migrated: OnceCell::new(), metrics })))
    }

    /// Connects and brings the schema up to date.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn prepare(&self) -> Result<(), DatabaseError> {
        self.call(async |_| Ok(())).await
    }

    /// Does `work` with the pool, within the time limit.
    ///
    /// # Errors
    /// See [`DatabaseError`].
    pub async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&AnyPool) -> Result<T, sqlx::Error>,
    ) -> Result<T, DatabaseError> {
        let inner = &self.0;
        let bounded = async {
            inner.migrated.get_or_try_init(|| self.migrate()).await?;
            work(&inner.pool).await.map_err(DatabaseError::from)
        };
        // Boxed, as calls to Redis are.
        let answer = tokio::time::timeout(CALL_LIMIT, Box::pin(bounded)).await;
        let answer = answer.unwrap_or(Err(DatabaseError::Away));
        match &answer {
            Err(DatabaseError::Away) => inner.metrics.health.set(Trouble::DatabaseAway, ""),
            _ => inner.metrics.health.clear(Trouble::DatabaseAway),
        }
        answer
    }

    /// Brings the schema up to date. SQLite has no lock for that: of two nodes that begin at the same time one fails,
    /// and finds it done when it looks again.
    async fn migrate(&self) -> Result<(), DatabaseError> {
        let mut tries = MIGRATION_TRIES;
        loop {
            match self.migrate_once().await {
                Err(DatabaseError::Refused(_) | DatabaseError::Taken) if tries > 1 => {
                    tries -= 1;
                    tokio::time::sleep(MIGRATION_PAUSE).await;
                }
                migrated => return migrated,
            }
        }
    }

    async fn migrate_once(&self) -> Result<(), DatabaseError> {
        let mut migrations = sqlx::migrate::Migrator { ..Self::migrations() };
        // Other services may keep their own in the same table.
        migrations.set_ignore_missing(true);
        migrations.run(&self.0.pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => error.into(),
            sqlx::migrate::MigrateError::ExecuteMigration(error, version) => match DatabaseError::from(error)
            {
                DatabaseError::Away => DatabaseError::Away,
                error => DatabaseError::Refused(format!("migration {version}: {error}")),
            },
            other => DatabaseError::Refused(format!("its schema could not be brought up to date: {other}")),
        })?;
        tracing::info!("the database is up to date");
        Ok(())
    }

    fn migrations() -> sqlx::migrate::Migrator {
        let of = &MIGRATIONS;
        sqlx::migrate::Migrator {
            migrations: of.migrations.clone(),
            ignore_missing: of.ignore_missing,
            locking: of.locking,
            no_tx: of.no_tx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_and_its_schema_are_made_and_found_again() {
        let folder = std::env::temp_dir().join(format!("rollcall-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let address: DatabaseAddress = format!("sqlite:{}/accounts.db", folder.display()).parse().unwrap();
        let metrics = Arc::new(Metrics::new());
        let count = async |database: &Database| {
            let counted = database
                .call(async |pool| {
                    sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM rollcall_accounts")
                        .fetch_one(pool)
                        .await
                })
                .await;
            counted.unwrap()
        };
        // Two nodes at once.
        let databases = [0; 2].map(|_| Database::new(&address, Arc::clone(&metrics)).unwrap());
        let (one, other) = tokio::join!(databases[0].prepare(), databases[1].prepare());
        assert_eq!((one, other), (Ok(()), Ok(())));
        let insert = async |pool: &AnyPool| {
            sqlx::query("INSERT INTO rollcall_accounts VALUES ('1', 'a@b.c', 'x', 'r', NULL, 5)")
                .execute(pool)
                .await
        };
        assert!(databases[0].call(insert).await.is_ok());
        assert_eq!(databases[1].call(insert).await.err(), Some(DatabaseError::Taken));
        assert_eq!(count(&Database::new(&address, metrics).unwrap()).await, 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_told_of_and_nothing_waits_long() {
        let metrics = Arc::new(Metrics::new());
        let address: DatabaseAddress = "postgres://u:hunter2@127.0.0.1:1/none".parse().unwrap();
        let database = Database::new(&address, Arc::clone(&metrics)).unwrap();
        let began = std::time::Instant::now();
        assert_eq!(database.prepare().await, Err(DatabaseError::Away));
        assert!(began.elapsed() < CALL_LIMIT + Duration::from_secs(1));
        assert!(metrics.health.standing().iter().any(|one| one.what == Trouble::DatabaseAway));
        let address: DatabaseAddress = "sqlite:/no/such/folder/accounts.db".parse().unwrap();
        assert!(Database::new(&address, metrics).unwrap().prepare().await.is_err());
    }
}
