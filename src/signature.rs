//! Signatures of Pusher's applications: HMAC-SHA256 with the application's secret, as hexadecimal digits. Pure.
//!
//! What is signed are the very bytes that were sent: nothing is ever written again before it is checked.

use hmac::{Hmac, Mac as _};
use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::config::PusherApp;

/// By how many seconds the clock of a backend may differ (Pusher's rule).
pub const CLOCK_SKEW: u64 = 600;

/// The signature of `text`.
pub fn sign(app: &PusherApp, text: &[u8]) -> String {
    hex(&mac(app, text).finalize().into_bytes())
}

/// Whether `signature` is that of `text`, in a time that does not tell how much of it is right.
pub fn is_signed(app: &PusherApp, text: &[u8], signature: &str) -> bool {
    unhex(signature).is_some_and(|signature| mac(app, text).verify_slice(&signature).is_ok())
}

/// Whether `auth`, which is `key:signature`, lets the socket called `socket` into `channel`.
pub fn may_join(
    app: &PusherApp,
    auth: &str,
    socket: &str,
    channel: &str,
    channel_data: Option<&str>,
) -> bool {
    let data = channel_data.map_or_else(String::new, |data| format!(":{data}"));
    is_of(app, auth, &format!("{socket}:{channel}{data}"))
}

/// Whether `auth` proves to the socket called `socket` that `user_data` is true.
pub fn may_sign_in(app: &PusherApp, auth: &str, socket: &str, user_data: &str) -> bool {
    is_of(app, auth, &format!("{socket}::user::{user_data}"))
}

fn is_of(app: &PusherApp, auth: &str, text: &str) -> bool {
    auth.split_once(':')
        .is_some_and(|(key, signature)| key == app.key && is_signed(app, text.as_bytes(), signature))
}

/// A call of the HTTP API, as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Decoded, in any order, `auth_signature` among them.
    pub query: &'a [(String, String)],
    pub body: &'a [u8],
}

/// What is wrong with a call's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    #[error("auth_key, auth_timestamp, auth_version=1.0 and auth_signature are needed")]
    Missing,
    #[error("auth_key is not that of the application")]
    Key,
    #[error("auth_timestamp is more than {CLOCK_SKEW} s away from this server's clock")]
    Clock,
    #[error("body_md5 is not that of the body")]
    Body,
    #[error("Invalid signature")]
    Signature,
}

impl Call<'_> {
    /// Checks that a backend of `app` has made the call. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Unsigned`].
    pub fn check(&self, app: &PusherApp, now: u64) -> Result<(), Unsigned> {
        let given =
            |name: &str| self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let (Some(key), Some(at), Some("1.0"), Some(signature)) =
            (given("auth_key"), given("auth_timestamp"), given("auth_version"), given("auth_signature"))
        else {
            return Err(Unsigned::Missing);
        };
        if key != app.key {
            return Err(Unsigned::Key);
        }
        if !is_signed(app, self.text().as_bytes(), signature) {
            return Err(Unsigned::Signature);
        }
        match at.parse::<u64>() {
            Ok(at) if at.abs_diff(now) <= CLOCK_SKEW => {}
            _ => return Err(Unsigned::Clock),
        }
        // Without a body there is nothing that the query does not say.
        if !self.body.is_empty() && given("body_md5") != Some(&hex(&Md5::digest(self.body))) {
            return Err(Unsigned::Body);
        }
        Ok(())
    }

    /// The method, the path and the query in order of its names, which count in small letters.
    fn text(&self) -> String {
        let mut query: Vec<(String, &str)> = self
            .query
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
            .filter(|(name, _)| name != "auth_signature")
            .collect();
        query.sort();
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{}\n{}\n{}", self.method, self.path, query.join("&"))
    }
}

fn mac(app: &PusherApp, text: &[u8]) -> Hmac<Sha256> {
    // A key of any length will do.
    let mut mac = Hmac::<Sha256>::new_from_slice(app.secret.expose().as_bytes())
        .unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"));
    mac.update(text);
    mac
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((digit(*high)? * 16 + digit(*low)?) as u8),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn app() -> PusherApp {
        PusherApp { id: "7".into(), key: "app-key".into(), secret: Secret::new("app-secret"), bridged: false }
    }

    const PRIVATE: &str = "app-key:7d39f26d4d655bd56b11cb2cbca1c97b1d12e8dfc0381368cab350f5f50b5487";
    const PRESENCE: &str = "app-key:bbf7ef7f91ea43583266fe913e966578e28e7d315b4e00ff28015426ebe2b716";
    const USER: &str = "app-key:b291393dce2108060c768aa06b328705c6601bc45babaaad6f4636de8cc8354e";

    #[test]
    fn signatures_are_those_of_the_libraries() {
        let (app, data) = (app(), r#"{"user_id":"u1","user_info":{"name":"Ada"}}"#);
        assert!(may_join(&app, PRIVATE, "123.456", "private-room", None));
        assert!(may_join(&app, PRESENCE, "123.456", "presence-room", Some(data)));
        assert!(may_sign_in(&app, USER, "123.456", r#"{"id":"u1"}"#));
        // Another socket, other bytes that mean the same, another key, and what is no signature at all.
        assert!(!may_join(&app, PRIVATE, "123.457", "private-room", None));
        assert!(!may_join(&app, PRESENCE, "123.456", "presence-room", Some(&data.replace(',', ", "))));
        assert!(!may_join(&app, &PRIVATE.replace("app-key", "other"), "123.456", "private-room", None));
        for wrong in ["", ":", "app-key:", "app-key:7d", "app-key:zz", &PRIVATE[..PRIVATE.len() - 1]] {
            assert!(!may_join(&app, wrong, "123.456", "private-room", None), "{wrong}");
        }
    }

    fn call(at: &str, body: &str, md5: &str) -> Result<(), Unsigned> {
        let signed =
            [("auth_key", "app-key"), ("auth_timestamp", at), ("auth_version", "1.0"), ("body_md5", md5)];
        let mut query: Vec<(String, String)> =
            signed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let unsigned = Call { method: "POST", path: "/apps/7/events", query: &query, body: body.as_bytes() };
        let signature = sign(&app(), unsigned.text().as_bytes());
        query.push(("auth_signature".into(), signature));
        Call { method: "POST", path: "/apps/7/events", query: &query, body: body.as_bytes() }
            .check(&app(), 1_700_000_000)
    }

    #[test]
    fn calls_are_checked_whole() {
        let (body, md5) = (
            r#"{"name":"ev","channels":["presence-room"],"data":"{\"a\":1}"}"#,
            "1372df1ca80c094f558029e4088d562f",
        );
        let query = |signature: &str| {
            [
                ("auth_key", "app-key"),
                ("auth_timestamp", "1700000000"),
                ("auth_version", "1.0"),
                ("body_md5", md5),
                ("auth_signature", signature),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        };
        let check = |signature, now| {
            let query = query(signature);
            let call = Call { method: "POST", path: "/apps/7/events", query: &query, body: body.as_bytes() };
            call.check(&app(), now)
        };
        let right = "f235842151af1f32e1d6246a6757ec4925fc6f4d3c863fab143fc249e9236569";
        assert_eq!(check(right, 1_700_000_600), Ok(()));
        assert_eq!(check(right, 1_700_000_601), Err(Unsigned::Clock));
        assert_eq!(check(&right.replace('f', "0"), 1_700_000_000), Err(Unsigned::Signature));
        assert_eq!(call("1700000000", body, md5), Ok(()));
        assert_eq!(call("1700000000", "other", md5), Err(Unsigned::Body));
        assert_eq!(call("soon", body, md5), Err(Unsigned::Clock));
        let none = Call { method: "GET", path: "/", query: &[], body: b"" };
        assert_eq!(none.check(&app(), 0), Err(Unsigned::Missing));
    }
}
