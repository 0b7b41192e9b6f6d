//! The address of the database: PostgreSQL's own form, or `sqlite:` and a path.

use std::fmt;
use std::str::FromStr;

use super::Secret;

/// An address that names a kind of database that there is. Printed without what may be secret in it.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseAddress(Secret);

impl DatabaseAddress {
    /// The address in the library's form. Holds the password.
    pub fn url(&self) -> &str {
        self.0.expose()
    }

    /// Whether it is SQLite.
    pub fn is_file(&self) -> bool {
        self.url().starts_with("sqlite:")
    }

    /// Whether it is kept in memory, by one connection: for tests.
    pub fn is_memory(&self) -> bool {
        self.url().starts_with("sqlite::memory:")
    }
}

impl fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_file() { "sqlite:***" } else { "postgres://***" })
    }
}

impl FromStr for DatabaseAddress {
    type Err = String;

    /// What is wrong is told without the address, which may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("sqlite:") {
            if path.trim_start_matches('/').is_empty() || path.starts_with('?') {
                return Err("names no file; example: sqlite:rollcall.db".to_owned());
            }
            // Without a mode a file that is not there would be an error.
            let mode = match path.contains("mode=") || path.starts_with(":memory:") {
                true => "",
                false if path.contains('?') => "&mode=rwc",
                false => "?mode=rwc",
            };
            return Ok(Self(Secret::new(format!("{text}{mode}"))));
        }
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("must begin with postgres:// or sqlite:".to_owned());
        }
        text.parse::<sqlx::postgres::PgConnectOptions>()
            .map(|_| Self(Secret::new(text)))
            .map_err(|_| "is not an address of the form postgres://user:password@host:port/name".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read_and_no_secret_is_printed() {
        let url = |text: &str| text.parse::<DatabaseAddress>().map(|address| address.url().to_owned());
        assert_eq!(url("sqlite:a b.db").unwrap(), "sqlite:a b.db?mode=rwc");
        assert_eq!(
            url("sqlite:///var/r.db?cache=shared").unwrap(),
            "sqlite:///var/r.db?cache=shared&mode=rwc"
        );
        assert_eq!(url("sqlite:r.db?mode=ro").unwrap(), "sqlite:r.db?mode=ro");
        let address: DatabaseAddress = "postgres://u:hunter2@db/rollcall".parse().unwrap();
        assert!(!address.is_file() && !format!("{address:?}").contains("hunter2"));
        for wrong in
            ["", "sqlite:", "sqlite://", "mysql://u:hunter2@db/x", "postgres://u:hunter2@[bad", "r.db"]
        {
            assert!(!url(wrong).unwrap_err().contains("hunter2"), "{wrong}");
        }
    }
}
