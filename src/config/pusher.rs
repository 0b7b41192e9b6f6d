//! Applications of Pusher's clients, and where their webhooks go.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{AuthMode, ConfigError, Secret, Switch, bad, items};

const APPS: &str = "ROLLCALL_PUSHER_APPS";
const WEBHOOKS: &str = "ROLLCALL_PUSHER_WEBHOOKS";

/// The application that there is in `open` mode where none is named. Its secret is known to everybody.
const DEMO: &str = "demo:demo-key:demo-secret";

/// The settings as they are given.
#[derive(Clone, Debug, clap::Args)]
pub struct PusherArgs {
    /// Applications of Pusher's clients: id:key:secret, comma-separated
    /// [default: demo:demo-key:demo-secret in open mode, else none]
    #[arg(long, env = "ROLLCALL_PUSHER_APPS", hide_env_values = true)]
    pub pusher_apps: Option<String>,

    /// Where Pusher's webhooks are sent: http:// or https:// addresses, comma-separated
    #[arg(long, env = "ROLLCALL_PUSHER_WEBHOOKS", hide_env_values = true, default_value = "")]
    pub pusher_webhooks: String,

    /// Whether subscribers of Pusher's channels without presence are told how many they are
    #[arg(
        long,
        env = "ROLLCALL_PUSHER_SUBSCRIPTION_COUNT",
        value_enum,
        ignore_case = true,
        default_value = "off"
    )]
    pub pusher_subscription_count: Switch,

    /// After how many seconds without a frame Pusher's clients ask whether the server is there (1 to 600)
    #[arg(long, env = "ROLLCALL_PUSHER_ACTIVITY_SECONDS", default_value_t = 120)]
    pub pusher_activity_seconds: u32,

    /// Whether presence channels of the first of Pusher's applications are those of the other clients. Off, users
    /// that an application has signed are never mixed with users that have another proof, or none
    /// [default: on in open mode, else off]
    #[arg(long, env = "ROLLCALL_BRIDGE", value_enum, ignore_case = true)]
    pub bridge: Option<Switch>,
}

impl PusherArgs {
    /// Checks them.
    ///
    /// # Errors
    /// The first that cannot work.
    pub(super) fn check(&self, auth: AuthMode) -> Result<Pusher, ConfigError> {
        let open = auth == AuthMode::Open;
        if !(1..=600).contains(&self.pusher_activity_seconds) {
            return Err(bad("ROLLCALL_PUSHER_ACTIVITY_SECONDS", "from 1 to 600"));
        }
        let apps = self.pusher_apps.as_deref().unwrap_or(if open { DEMO } else { "" });
        Ok(Pusher {
            is_demo: open && self.pusher_apps.is_none(),
            apps: parse_apps(apps, self.bridge.map_or(open, |switch| switch == Switch::On))?,
            webhooks: parse_webhooks(&self.pusher_webhooks)?,
            subscription_count: self.pusher_subscription_count == Switch::On,
            activity_timeout: self.pusher_activity_seconds,
        })
    }
}

/// An application: whoever knows its secret speaks for all its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PusherApp {
    pub id: String,
    /// What its clients connect with. Not secret.
    pub key: String,
    pub secret: Secret,
    /// Whether its presence channels are those of the other dialects.
    pub bridged: bool,
}

/// What concerns Pusher's clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pusher {
    pub apps: Vec<Arc<PusherApp>>,
    /// Whether that is the demo application only.
    is_demo: bool,
    /// Where every application's webhooks are sent.
    pub webhooks: Vec<HookAddress>,
    /// Whether subscribers of channels without presence are told how many they are.
    pub subscription_count: bool,
    /// After how many seconds without a frame a client asks whether the server is there.
    pub activity_timeout: u32,
}

impl Pusher {
    /// The application with this id.
    pub fn app(&self, id: &str) -> Option<&Arc<PusherApp>> {
        self.apps.iter().find(|app| app.id == id)
    }

    /// The demo application, whose clients may be anyone.
    pub fn demo(&self) -> Option<&Arc<PusherApp>> {
        self.apps.first().filter(|_| self.is_demo)
    }

    /// The application whose clients connect with this key.
    pub fn app_of_key(&self, key: &str) -> Option<&Arc<PusherApp>> {
        self.apps.iter().find(|app| app.key == key)
    }
}

/// `http://` or `https://`, host, port and path.
#[derive(Clone, PartialEq, Eq)]
pub struct HookAddress {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// With the query, in which there may be something secret.
    pub path: String,
}

impl HookAddress {
    /// The address, whole.
    pub fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{}://{host}:{}{}", if self.tls { "https" } else { "http" }, self.port, self.path)
    }
}

impl fmt::Debug for HookAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}/***", if self.tls { "https" } else { "http" }, self.host, self.port)
    }
}

impl FromStr for HookAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "an address must be http://host[:port]/path or https://host[:port]/path";
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(FORM),
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.contains(['@', '?', '#']) || !is_plain(rest) {
            return Err(FORM);
        }
        let default = if tls { 443 } else { 80 };
        // A colon within brackets belongs to the host.
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((host, port)) => (host, port.parse().map_err(|_| FORM)?),
            None => (authority, default),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(FORM);
        }
        Ok(Self { tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// Reads `id:key:secret`, comma-separated. With `bridge` the first shares its presence channels.
fn parse_apps(text: &str, bridge: bool) -> Result<Vec<Arc<PusherApp>>, ConfigError> {
    let mut apps: Vec<Arc<PusherApp>> = Vec::new();
    for (at, part) in items(text).enumerate() {
        let mut fields = part.splitn(3, ':').map(str::trim);
        let (Some(id), Some(key), Some(secret)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(bad(APPS, format!("application {} is not id:key:secret", at + 1)));
        };
        let is_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !is_name(id) || !is_name(key) || secret.is_empty() {
            let problem = format!(
                "application {}: id and key are letters, digits, - and _; the secret is not empty",
                at + 1
            );
            return Err(bad(APPS, problem));
        }
        if apps.iter().any(|app| app.id == id || app.key == key) {
            return Err(bad(APPS, format!("`{id}` has an id or a key that another has too")));
        }
        apps.push(Arc::new(PusherApp {
            id: id.to_owned(),
            key: key.to_owned(),
            secret: Secret::new(secret),
            bridged: bridge && at == 0,
        }));
    }
    Ok(apps)
}

/// Reads the addresses of webhooks, comma-separated.
fn parse_webhooks(text: &str) -> Result<Vec<HookAddress>, ConfigError> {
    // Not repeated in the message: there may be something secret in it.
    items(text).map(|part| part.parse().map_err(|problem: &str| bad(WEBHOOKS, problem))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applications_have_an_id_a_key_and_a_secret_and_only_the_first_is_bridged() {
        let apps = parse_apps("1:k:s:with:colons, 2:k2:s", true).unwrap();
        assert_eq!(
            (apps[0].secret.expose(), apps[0].bridged, apps[1].bridged),
            ("s:with:colons", true, false)
        );
        assert!(!format!("{apps:?}").contains("with:colons"));
        for wrong in ["1", "1:2", "1:2:", ":k:s", "1:a/b:s", "1:k:s,1:l:s", "1:k:s,2:k:s"] {
            let error = parse_apps(wrong, false).unwrap_err();
            assert_eq!(error.setting, APPS, "{wrong}");
        }
    }

    #[test]
    fn addresses_of_webhooks() {
        let read = |text: &str| text.parse::<HookAddress>().map(|at| (at.tls, at.host, at.port, at.path));
        assert_eq!(read("http://a"), Ok((false, "a".into(), 80, "/".into())));
        assert_eq!(read("https://[::1]/x?y=z"), Ok((true, "::1".into(), 443, "/x?y=z".into())));
        assert_eq!(read("http://127.0.0.1:81/h"), Ok((false, "127.0.0.1".into(), 81, "/h".into())));
        for wrong in ["a", "ftp://a", "http://", "http://u:p@a", "http://a b", "http://a:x", "http://a\r\nb"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let shown = format!("{:?}", "https://a/secret".parse::<HookAddress>());
        assert!(!shown.contains("secret"));
    }
}
