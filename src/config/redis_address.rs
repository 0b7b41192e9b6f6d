//! Where Redis is: one server, a primary that sentinels name, or a cluster.
//!
//! `redis://` and `rediss://` (TLS) name one server. `redis+sentinel://` names sentinels and the group that
//! they watch, `redis+cluster://` some nodes of a cluster; both may say `rediss`. What is wrong with an
//! address is told without quoting it, since it may hold a password.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, RedisResult,
    TlsCertificates,
};

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
/// Databases that a server may have; its own limit is usually 16.
const MAX_DB: i64 = 1_000_000;

/// Why an address cannot be one of Redis. Quotes nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(&'static str);

/// Where Redis is, and how to log in. Prints without secrets.
#[derive(Clone)]
pub struct RedisAddress {
    servers: RedisServers,
    /// PEM of the only authorities whose certificates are trusted; none: those of the web.
    ca: Option<Arc<[u8]>>,
}

/// What kind of Redis it is.
#[derive(Clone)]
pub enum RedisServers {
    /// One server.
    Single(ConnectionInfo),
    /// A primary with replicas, one of which takes over when the sentinels agree on it.
    Sentinel(SentinelGroup),
    /// Some nodes of a cluster, by which the others are found.
    Cluster(Vec<ConnectionInfo>),
}

/// Sentinels, and how to reach the servers that they name.
#[derive(Clone)]
pub struct SentinelGroup {
    pub sentinels: Vec<ConnectionInfo>,
    /// The name under which the sentinels know the primary.
    pub name: String,
    login: RedisConnectionInfo,
    tls: bool,
}

impl SentinelGroup {
    /// The server of the group at `host` and `port`.
    ///
    /// # Errors
    /// What the library has against the address.
    pub fn server(&self, host: &str, port: u16) -> RedisResult<ConnectionInfo> {
        info(address(host.to_owned(), port, self.tls), self.login.clone())
    }
}

impl RedisAddress {
    /// The kind of Redis, with the addresses.
    pub fn servers(&self) -> &RedisServers {
        &self.servers
    }

    /// The authorities that are trusted in place of those of the web.
    pub fn certificates(&self) -> Option<TlsCertificates> {
        self.ca.as_ref().map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) })
    }

    /// A client of one server of this Redis.
    ///
    /// # Errors
    /// What the library has against the address.
    pub fn client(&self, at: ConnectionInfo) -> RedisResult<Client> {
        match self.certificates() {
            Some(certificates) if is_tls(&at) => Client::build_with_tls(at, certificates),
            _ => Client::open(at),
        }
    }

    /// The same with certificates trusted that the authorities in `pem` have signed, and no others.
    ///
    /// # Errors
    /// [`AddressError`] when there is no certificate in `pem`, or no TLS in the address.
    pub fn with_ca(self, pem: &[u8]) -> Result<Self, AddressError> {
        let first = match &self.servers {
            RedisServers::Single(at) => Some(at),
            RedisServers::Sentinel(group) => group.sentinels.first(),
            RedisServers::Cluster(nodes) => nodes.first(),
        };
        let Some(first) = first.filter(|at| is_tls(at)) else {
            return Err(AddressError("is of no use: REDIS_URL does not ask for TLS (rediss)"));
        };
        let none = AddressError("is not a file with certificates in PEM");
        if !pem.windows(27).any(|some| some == b"-----BEGIN CERTIFICATE-----") {
            return Err(none);
        }
        let address = Self { ca: Some(pem.into()), ..self.clone() };
        address.client(first.clone()).map_err(|_| none)?;
        Ok(address)
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, at) = match &self.servers {
            RedisServers::Single(at) => ("single", std::slice::from_ref(at)),
            RedisServers::Sentinel(group) => ("sentinel", &group.sentinels[..]),
            RedisServers::Cluster(nodes) => ("cluster", &nodes[..]),
        };
        let at: Vec<String> = at.iter().map(|at| at.addr().to_string()).collect();
        write!(f, "{kind} {}", at.join(","))
    }
}

impl FromStr for RedisAddress {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, AddressError> {
        let url = url.trim();
        let Some((scheme, rest)) = url.split_once("://") else { return Err(AddressError(FORMS)) };
        let servers = match scheme {
            "redis" | "rediss" => RedisServers::Single(single(url)?),
            "redis+sentinel" | "rediss+sentinel" => {
                RedisServers::Sentinel(sentinel(rest, scheme.starts_with("rediss"))?)
            }
            "redis+cluster" | "rediss+cluster" => {
                RedisServers::Cluster(cluster(rest, scheme.starts_with("rediss"))?)
            }
            _ => return Err(AddressError(FORMS)),
        };
        Ok(Self { servers, ca: None })
    }
}

const FORMS: &str = "must begin with redis://, rediss://, redis+sentinel:// or redis+cluster://";

fn single(url: &str) -> Result<ConnectionInfo, AddressError> {
    // The parser's own message can quote the URL, and so the password.
    let wrong = AddressError("is not a Redis address; example: redis://127.0.0.1:6379/0");
    Ok(url.into_connection_info().map_err(|_| wrong)?.set_tcp_settings(tcp_settings()))
}

fn sentinel(rest: &str, tls: bool) -> Result<SentinelGroup, AddressError> {
    let many = Many::parse(rest)?;
    let mut path = many.path.split('/');
    let name = decoded(path.next().unwrap_or_default())?;
    if name.is_empty() {
        return Err(AddressError(
            "lacks the name of the primary; example: redis+sentinel://a:26379,b:26379/mymaster",
        ));
    }
    let db = database(path.next())?;
    if path.next().is_some() {
        return Err(AddressError("has more after the number of the database"));
    }
    let (mut tls, mut user, mut password) = (tls, None, None);
    for pair in many.query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("sentinel_user", value) => user = Some(decoded(value)?),
            ("sentinel_password", value) => password = Some(decoded(value)?),
            ("tls", "true") => tls = true,
            ("tls", "false") if !tls => {}
            ("tls", _) => return Err(AddressError("says tls= something that it cannot be: true or false")),
            _ => {
                return Err(AddressError(
                    "has a parameter other than sentinel_user, sentinel_password and tls",
                ));
            }
        }
    }
    let sentinels = listed(many.hosts, SENTINEL_PORT, tls, &login(user, password)?)?;
    Ok(SentinelGroup { sentinels, name, login: many.login.set_db(db), tls })
}

fn cluster(rest: &str, tls: bool) -> Result<Vec<ConnectionInfo>, AddressError> {
    let many = Many::parse(rest)?;
    if !matches!(many.path, "" | "0") || !many.query.is_empty() {
        return Err(AddressError("has more after the nodes: a cluster has one database and no parameters"));
    }
    listed(many.hosts, REDIS_PORT, tls, &many.login)
}

/// `[user:password@]host[:port],host[:port]…[/path][?query]`
struct Many<'a> {
    login: RedisConnectionInfo,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Many<'a> {
    fn parse(rest: &'a str) -> Result<Self, AddressError> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (before, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = before.split_once(':').map_or((before, None), |(u, p)| (u, Some(p)));
        let user = Some(decoded(user)?).filter(|user| !user.is_empty());
        let password = password.map(decoded).transpose()?;
        Ok(Self { login: login(user, password)?, hosts, path, query })
    }
}

fn login(user: Option<String>, password: Option<String>) -> Result<RedisConnectionInfo, AddressError> {
    let mut login = RedisConnectionInfo::default();
    match (user, password) {
        (Some(_), None) => return Err(AddressError("names a user without a password")),
        (user, Some(password)) => {
            if let Some(user) = user {
                login = login.set_username(user);
            }
            login = login.set_password(password);
        }
        (None, None) => {}
    }
    Ok(login)
}

fn decoded(text: &str) -> Result<String, AddressError> {
    let wrong = AddressError("is not UTF-8 where it is percent-encoded");
    Ok(percent_decode_str(text).decode_utf8().map_err(|_| wrong)?.into_owned())
}

fn database(text: Option<&str>) -> Result<i64, AddressError> {
    match text {
        None | Some("") => Ok(0),
        Some(text) => {
            let number = text.parse().ok().filter(|db| (0..MAX_DB).contains(db));
            number.ok_or(AddressError("has no number where that of the database stands"))
        }
    }
}

fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
    };
    let port = match port {
        None => default_port,
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
    };
    let plain = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "[]@/".contains(c));
    plain.then(|| (host.to_owned(), port))
}

fn address(host: String, port: u16, tls: bool) -> ConnectionAddr {
    if tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn info(at: ConnectionAddr, login: RedisConnectionInfo) -> RedisResult<ConnectionInfo> {
    Ok(at.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp_settings()))
}

fn listed(
    hosts: &str,
    default_port: u16,
    tls: bool,
    login: &RedisConnectionInfo,
) -> Result<Vec<ConnectionInfo>, AddressError> {
    let wrong = AddressError("does not list hosts as host:port,host:port");
    let one = |text: &str| {
        let (host, port) = host_and_port(text.trim(), default_port)?;
        info(address(host, port, tls), login.clone()).ok()
    };
    hosts.split(',').map(one).collect::<Option<_>>().ok_or(wrong)
}

fn is_tls(at: &ConnectionInfo) -> bool {
    matches!(at.addr(), ConnectionAddr::TcpTls { .. })
}

/// Nagle off, since calls are small and waited for; a peer that vanished without a word is noticed
/// by probes on idle connections and by unacknowledged data on busy ones.
pub(crate) fn tcp_settings() -> TcpSettings {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(Duration::from_secs(5));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> RedisServers {
        url.parse::<RedisAddress>().unwrap_or_else(|error| panic!("{url}: {error}")).servers
    }

    fn names(all: &[ConnectionInfo]) -> Vec<String> {
        all.iter().map(|at| at.addr().to_string()).collect()
    }

    #[test]
    fn one_server_is_named_as_ever() {
        let RedisServers::Single(at) = parse("rediss://:pass@db.example:7000/3") else { panic!() };
        assert_eq!((at.addr().to_string().as_str(), is_tls(&at)), ("db.example:7000", true));
        assert_eq!((at.redis_settings().password(), at.redis_settings().db()), (Some("pass"), 3));
    }

    #[test]
    fn sentinels_have_a_login_of_their_own() {
        let url = "redis+sentinel://app:p%40s%2Fs@a,b:1,[::1]:2/the%20one/4?sentinel_password=hush&tls=true";
        let RedisServers::Sentinel(group) = parse(url) else { panic!() };
        assert_eq!(names(&group.sentinels), ["a:26379", "b:1", "::1:2"]);
        assert_eq!(group.name, "the one");
        let sentinel = group.sentinels[0].redis_settings();
        assert_eq!((sentinel.username(), sentinel.password(), sentinel.db()), (None, Some("hush"), 0));
        let server = group.server("c", 5).unwrap();
        let login = server.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("app"), Some("p@s/s"), 4));
        assert!(is_tls(&server) && is_tls(&group.sentinels[0]));
    }

    #[test]
    fn a_cluster_is_some_of_its_nodes() {
        let RedisServers::Cluster(nodes) = parse("rediss+cluster://u:p@a:7000,b") else { panic!() };
        assert_eq!(names(&nodes), ["a:7000", "b:6379"]);
        assert!(nodes.iter().all(|at| is_tls(at) && at.redis_settings().username() == Some("u")));
        assert!(matches!(parse("redis+cluster://a:1/0"), RedisServers::Cluster(_)));
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        for url in [
            "hunter2",
            "http://:hunter2@a",
            "redis://:hunter2@[bad",
            "redis+sentinel://:hunter2@a:1",
            "redis+sentinel://:hunter2@a:1/",
            "redis+sentinel://:hunter2@a:1/m/x",
            "redis+sentinel://:hunter2@a:1/m/0/1",
            "redis+sentinel://a:1/m?password=hunter2",
            "redis+sentinel://a:1/m?tls=hunter2",
            "redis+sentinel://:hunter2@a:1,/m",
            "redis+sentinel://:hunter2@a:99999/m",
            "redis+sentinel://hunter2@a:1/m",
            "redis+sentinel://:hunter2%ff@a:1/m",
            "redis+cluster://:hunter2@a:1/3",
            "redis+cluster://:hunter2@",
            "redis+cluster://:hunter2@a:0",
            "redis+cluster://:hunter2@a:1?tls=true",
            "redis+cluster://:hunter2@[::1",
        ] {
            let error = url.parse::<RedisAddress>().unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn it_prints_without_secrets() {
        for url in [
            "redis://:hunter2@a",
            "redis+sentinel://:hunter2@a/m?sentinel_password=hunter2",
            "redis+cluster://:hunter2@a",
        ] {
            let printed = format!("{:?}", url.parse::<RedisAddress>().unwrap());
            assert!(printed.contains("a:") && !printed.contains("hunter2"), "{printed}");
        }
    }

    #[test]
    fn authorities_are_read_at_once_and_need_tls() {
        let tls = || "rediss+cluster://a".parse::<RedisAddress>().unwrap();
        assert!(tls().with_ca(b"nonsense").is_err());
        let broken = b"-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n";
        assert!(tls().with_ca(broken).is_err());
        let error = "redis://a".parse::<RedisAddress>().unwrap().with_ca(broken).unwrap_err();
        assert!(error.to_string().contains("REDIS_URL"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_written_makes_it_stumble(scheme in "rediss?(\\+(sentinel|cluster))?", rest in "[\\PC@:,/?&=%\\[\\]]{0,40}") {
            let url = format!("{scheme}://{rest}");
            if let Ok(address) = url.parse::<RedisAddress>() {
                let _ = format!("{address:?}");
            }
        }
    }
}
