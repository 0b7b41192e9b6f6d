//! Accounts: an e-mail address and a password, kept in the database, and the refresh tokens of who has signed in.
//!
//! A refresh token is good once and gives another. One that was exchanged is good for ten seconds more, since a
//! client may not have got the answer, or have several tabs, ten times at most; after that it has been stolen, from
//! its owner or by him: then that sign-in ends, with all that came of it. An unknown address and a wrong password are answered
//! alike, and after the same time.
//!
//! **When the database is away** every call fails with [`DatabaseError::Away`]; sessions go on without it. Redis
//! has no part in this.

mod password;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use sqlx::{AnyPool, Row as _};
use uuid::Uuid;

use crate::database::{Database, DatabaseError};

pub use password::{HashError, Passwords};

/// Bytes in an e-mail address (RFC 5321, section 4.5.3.1.3, less the brackets).
const MAX_EMAIL: usize = 254;
/// How long a refresh token that was exchanged is still good: as in Supabase's server.
const REUSE: Duration = Duration::from_secs(10);
/// How often it is, in all: a client has some tabs, and no more.
const MAX_USES: i64 = 10;
/// The role of who has signed in, as Supabase calls it.
const ROLE: &str = "authenticated";

/// Somebody with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    pub email: String,
    pub role: String,
    pub tier: Option<String>,
}

/// Why somebody has no account, or is not let into it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AccountError {
    #[error("email must be an address of at most 254 bytes")]
    BadEmail,
    #[error("password must have 8 to 1024 bytes")]
    BadPassword,
    #[error("there is an account with this email already")]
    Taken,
    /// Which of the two is not told.
    #[error("email or password is wrong")]
    Wrong,
    #[error("the refresh token is not valid, or not any more")]
    BadRefresh,
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The operating system gave no random bytes.
    #[error("no randomness for a token")]
    NoRandomness,
}

/// A refresh token that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refreshed {
    pub account: Account,
    pub login: String,
}

/// The accounts in a database. Clones share it.
#[derive(Clone)]
pub struct Accounts {
    database: Database,
    passwords: Passwords,
    /// How long a refresh token is good.
    refresh_life: Duration,
}

impl Accounts {
    /// The accounts in `database`.
    pub fn new(database: Database, passwords: Passwords, refresh_life: Duration) -> Self {
        Self { database, passwords, refresh_life }
    }

    /// Makes an account.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn create(
        &self,
        email: &str,
        password: String,
        role: Option<String>,
        tier: Option<String>,
    ) -> Result<Account, AccountError> {
        let email = checked_email(email)?;
        if !password::LENGTH.contains(&password.len()) {
            return Err(AccountError::BadPassword);
        }
        let stored = self.passwords.hash(password).await?;
        let role = role.unwrap_or_else(|| ROLE.to_owned());
        let account = Account { id: Uuid::new_v4().to_string(), email, role, tier };
        let insert = async |pool: &AnyPool| {
            sqlx::query(
                "INSERT INTO rollcall_accounts (id, email, password, role, tier, created_at) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&account.id)
            .bind(&account.email)
            .bind(&stored)
            .bind(&account.role)
            .bind(&account.tier)
            .bind(unix_now())
            .execute(pool)
            .await
        };
        match self.database.call(insert).await {
            Ok(_) => Ok(account),
            Err(DatabaseError::Taken) => Err(AccountError::Taken),
            Err(error) => Err(error.into()),
        }
    }

    /// The account of `email`, if `password` is its.
    ///
    /// # Errors
    /// [`AccountError::Wrong`] in every case in which something does not fit.
    pub async fn verify(&self, email: &str, password: String) -> Result<Account, AccountError> {
        // What cannot be an address or a password takes as long as what can.
        let email = checked_email(email).unwrap_or_default();
        let password = if password.len() > *password::LENGTH.end() { String::new() } else { password };
        let select = async |pool: &AnyPool| {
            sqlx::query("SELECT id, email, password, role, tier FROM rollcall_accounts WHERE email = $1")
                .bind(&email)
                .fetch_optional(pool)
                .await?
                .map(|row| Ok((account(&row)?, row.try_get::<String, _>("password")?)))
                .transpose()
        };
        let (account, stored) = self.database.call(select).await?.unzip();
        match (self.passwords.verify(password, stored).await?, account) {
            (true, Some(account)) => Ok(account),
            _ => Err(AccountError::Wrong),
        }
    }

    /// A new sign-in of `account`: its name. What has expired of others is cleared away.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn sign_in(&self, account: &str) -> Result<String, AccountError> {
        let (login, now) = (Uuid::new_v4().to_string(), unix_now());
        let insert = async |pool: &AnyPool| {
            sqlx::query("DELETE FROM rollcall_refresh_tokens WHERE expires_at < $1 AND login IN (SELECT id FROM rollcall_logins WHERE account = $2)")
                .bind(unix_now())
                .bind(account)
                .execute(pool)
                .await?;
            // Younger ones may be about to get their first token.
            sqlx::query(
                "DELETE FROM rollcall_logins WHERE account = $1 AND created_at < $2 AND NOT EXISTS \
                 (SELECT 1 FROM rollcall_refresh_tokens WHERE login = rollcall_logins.id)",
            )
            .bind(account)
            .bind(now - 3_600)
            .execute(pool)
            .await?;
            sqlx::query("INSERT INTO rollcall_logins (id, account, created_at) VALUES ($1, $2, $3)")
                .bind(&login)
                .bind(account)
                .bind(now)
                .execute(pool)
                .await
        };
        self.database.call(insert).await?;
        Ok(login)
    }

    /// A refresh token of `login`.
    ///
    /// # Errors
    /// [`AccountError::BadRefresh`] if that sign-in has ended meanwhile: what was made of it must end too.
    pub async fn issue(&self, login: &str) -> Result<String, AccountError> {
        let token = random_token()?;
        let insert = async |pool: &AnyPool| {
            // The database itself sees to it that the sign-in is there, and stays until this is done.
            sqlx::query(
                "INSERT INTO rollcall_refresh_tokens (digest, login, expires_at, uses) VALUES ($1, $2, $3, 0)",
            )
            .bind(digest(&token))
            .bind(login)
            .bind(unix_now() + seconds(self.refresh_life))
            .execute(pool)
            .await
        };
        match self.database.call(insert).await {
            Ok(_) => Ok(token),
            Err(DatabaseError::Orphan) => Err(AccountError::BadRefresh),
            Err(error) => Err(error.into()),
        }
    }

    /// Whose `token` is, which is good once: exchange it with [`Accounts::issue`].
    ///
    /// # Errors
    /// [`AccountError::BadRefresh`]. The inner error is the user and the sign-in of a token that was exchanged long
    /// ago: that sign-in has ended by this, and its sessions are to end too.
    pub async fn refresh(&self, token: &str) -> Result<Result<Refreshed, (String, String)>, AccountError> {
        let (digest, now) = (digest(token), unix_now());
        let select = async |pool: &AnyPool| {
            let found = sqlx::query(
                "SELECT a.id, a.email, a.role, a.tier, t.login, t.used_at FROM rollcall_refresh_tokens t \
                 JOIN rollcall_logins l ON l.id = t.login JOIN rollcall_accounts a ON a.id = l.account \
                 WHERE t.digest = $1 AND t.expires_at >= $2",
            );
            let Some(row) = found.bind(&digest).bind(now).fetch_optional(pool).await? else {
                return Ok(None);
            };
            let counted = sqlx::query(
                "UPDATE rollcall_refresh_tokens SET used_at = COALESCE(used_at, $1), uses = uses + 1 \
                 WHERE digest = $2 AND uses < $3",
            );
            let counted = counted.bind(now).bind(&digest).bind(MAX_USES).execute(pool).await?;
            let refreshed = Refreshed { account: account(&row)?, login: row.try_get("login")? };
            Ok(Some((refreshed, row.try_get::<Option<i64>, _>("used_at")?, counted.rows_affected() > 0)))
        };
        let Some((refreshed, used_at, is_counted)) = self.database.call(select).await? else {
            return Err(AccountError::BadRefresh);
        };
        if used_at.is_some_and(|used_at| now - used_at > seconds(REUSE)) {
            self.forget(&refreshed.account.id, Some(&refreshed.login), false).await?;
            return Ok(Err((refreshed.account.id, refreshed.login)));
        }
        if is_counted { Ok(Ok(refreshed)) } else { Err(AccountError::BadRefresh) }
    }

    /// Ends sign-ins of `account`, and their refresh tokens: `login`, all others with `others`, or all without one.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn forget(&self, account: &str, login: Option<&str>, others: bool) -> Result<(), AccountError> {
        let statement = match (login, others) {
            (None, _) => "DELETE FROM rollcall_logins WHERE account = $1 AND $2 = $2",
            (Some(_), false) => "DELETE FROM rollcall_logins WHERE account = $1 AND id = $2",
            (Some(_), true) => "DELETE FROM rollcall_logins WHERE account = $1 AND id <> $2",
        };
        let delete = async |pool: &AnyPool| {
            sqlx::query(statement).bind(account).bind(login.unwrap_or_default()).execute(pool).await
        };
        self.database.call(delete).await?;
        Ok(())
    }
}

fn account(row: &sqlx::any::AnyRow) -> Result<Account, sqlx::Error> {
    Ok(Account {
        id: row.try_get("id")?,
        email: row.try_get("email")?,
        role: row.try_get("role")?,
        tier: row.try_get("tier")?,
    })
}

/// An address as it is stored, if it can be one.
///
/// # Errors
/// [`AccountError::BadEmail`].
pub fn checked_email(email: &str) -> Result<String, AccountError> {
    let email = email.trim().to_lowercase();
    let fits = email.len() <= MAX_EMAIL && !email.chars().any(|c| c.is_whitespace() || c.is_control());
    match email.rsplit_once('@') {
        Some((local, domain)) if fits && !local.is_empty() && !domain.is_empty() => Ok(email),
        _ => Err(AccountError::BadEmail),
    }
}

/// What is stored of a token.
fn digest(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random_token() -> Result<String, AccountError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| AccountError::NoRandomness)?;
    Ok(format!("rcr_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

fn unix_now() -> i64 {
    seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn seconds(time: Duration) -> i64 {
    time.as_secs().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;

    fn accounts(refresh_life: Duration) -> Accounts {
        let metrics = Arc::new(Metrics::new());
        let database = Database::new(&"sqlite::memory:".parse().unwrap(), metrics).unwrap();
        Accounts::new(database, Passwords::new(2).unwrap(), refresh_life)
    }

    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    #[tokio::test]
    async fn who_has_the_password_is_let_in_and_nobody_else() {
        let accounts = accounts(MONTH);
        let made = accounts
            .create(" Ada@Example.org ", "correct horse".into(), None, Some("pro".into()))
            .await
            .unwrap();
        assert_eq!((made.email.as_str(), made.role.as_str()), ("ada@example.org", "authenticated"));
        let verify = async |email: &str, password: &str| accounts.verify(email, password.into()).await;
        assert_eq!(verify("ADA@example.org", "correct horse").await, Ok(made));
        for (email, password) in [
            ("ada@example.org", "wrong"),
            ("bob@example.org", "correct horse"),
            ("no address", "correct horse"),
            ("ada@example.org", &"x".repeat(5_000)),
            ("' OR 1=1 --", ""),
        ] {
            assert_eq!(verify(email, password).await, Err(AccountError::Wrong), "{email}");
        }
        let create =
            async |email: &str, password: &str| accounts.create(email, password.into(), None, None).await;
        assert_eq!(create("ADA@EXAMPLE.ORG", "correct horse").await, Err(AccountError::Taken));
        assert_eq!(create("bob@example.org", "short").await, Err(AccountError::BadPassword));
        for email in ["", "@", "a@", "@b", "a b@c", &format!("{}@b", "a".repeat(254))] {
            assert_eq!(create(email, "correct horse").await, Err(AccountError::BadEmail), "{email}");
        }
    }

    #[tokio::test]
    async fn a_refresh_token_is_good_once_and_a_stolen_one_ends_the_sign_in() {
        let accounts = accounts(MONTH);
        let ada = accounts.create("ada@example.org", "correct horse".into(), None, None).await.unwrap();
        let login = accounts.sign_in(&ada.id).await.unwrap();
        let first = accounts.issue(&login).await.unwrap();
        let second_login = accounts.sign_in(&ada.id).await.unwrap();
        let other = accounts.issue(&second_login).await.unwrap();
        let good = Refreshed { account: ada.clone(), login: login.clone() };
        // A second tab, at the same moment.
        assert_eq!(accounts.refresh(&first).await, Ok(Ok(good.clone())));
        assert_eq!(accounts.refresh(&first).await, Ok(Ok(good)));
        let second = accounts.issue(&login).await.unwrap();
        let long_ago = async |pool: &AnyPool| {
            sqlx::query("UPDATE rollcall_refresh_tokens SET used_at = used_at - 11").execute(pool).await
        };
        accounts.database.call(long_ago).await.unwrap();
        assert_eq!(accounts.refresh(&first).await, Ok(Err((ada.id.clone(), login.clone()))));
        assert_eq!(accounts.refresh(&second).await, Err(AccountError::BadRefresh));
        assert!(accounts.refresh(&other).await.unwrap().is_ok());
        assert_eq!(accounts.refresh("rcr_nonsense").await, Err(AccountError::BadRefresh));
        assert_eq!(
            accounts.issue(&login).await,
            Err(AccountError::BadRefresh),
            "nothing comes of an ended sign-in"
        );
        let login = accounts.sign_in(&ada.id).await.unwrap();
        let third = accounts.issue(&login).await.unwrap();
        accounts.forget(&ada.id, Some(&login), true).await.unwrap();
        assert_eq!(accounts.refresh(&other).await, Err(AccountError::BadRefresh));
        for _ in 0..MAX_USES {
            assert!(accounts.refresh(&third).await.unwrap().is_ok());
        }
        assert_eq!(accounts.refresh(&third).await, Err(AccountError::BadRefresh));
        let third = accounts.issue(&login).await.unwrap();
        accounts.forget(&ada.id, None, false).await.unwrap();
        assert_eq!(accounts.refresh(&third).await, Err(AccountError::BadRefresh));
    }

    #[tokio::test]
    async fn an_expired_refresh_token_is_none() {
        let accounts = accounts(Duration::ZERO);
        let ada = accounts.create("ada@example.org", "correct horse".into(), None, None).await.unwrap();
        let login = accounts.sign_in(&ada.id).await.unwrap();
        let token = accounts.issue(&login).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_eq!(accounts.refresh(&token).await, Err(AccountError::BadRefresh));
    }
}
