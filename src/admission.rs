//! Who may come in: the checks before a socket is opened and before a call is served.
//!
//! Always in this order: origin, rate limit of the address, session, rate limit of the user. The
//! pieces that need nothing but the request are plain functions. When the session store is away a
//! token that only it could know is neither right nor wrong: where that matters, the answer is 503.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;

use crate::address::client_address;
use crate::config::{AuthMode, Config, Origins};
use crate::dialects::check_user;
use crate::health::Trouble;
use crate::hub::Tie;
use crate::jwt::{Claims, JwtVerifier, looks_like_jwt};
use crate::metrics::Metrics;
use crate::quota::{Full, Place, Quotas};
use crate::rate_limit::{Allowances, Decision, RateLimiter, Subject};
use crate::session::{Session, SessionManager};

/// The cookie that may hold a session's token.
pub const COOKIE_NAME: &str = "rollcall_session";
/// The subprotocol that Phoenix clients offer and must be given when they send a token beside it.
const PHOENIX: &str = "phoenix";
/// What stands before a token among the subprotocols.
const BEARER_PROTOCOL: &str = "base64url.bearer.phx.";
/// The parameter in which a client names its application.
const API_KEY: &str = "apikey";
/// The parameters that may hold a token, in the order in which they are believed.
const QUERY_NAMES: [&str; 3] = ["access_token", "token", API_KEY];
/// The role of a token that stands for a project and not for a person.
const ANON_ROLE: &str = "anon";

/// What proved an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A session's token. It can be revoked.
    Opaque(String),
    /// A JWT. It ends at `exp`, in seconds since 1970, where it says so.
    Jwt { exp: Option<u64> },
}

/// Who somebody is, proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: Arc<str>,
    pub token: TokenKind,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    /// The user signed up without saying who it is.
    pub anonymous: bool,
}

impl Identity {
    /// What binds an open connection to the proof.
    pub fn tie(&self) -> Tie {
        match &self.token {
            TokenKind::Opaque(token) => {
                Tie::Session { token: token.as_str().into(), checked: Instant::now() }
            }
            TokenKind::Jwt { exp } => Tie::Jwt { expires: *exp },
        }
    }
}

/// A socket that may be opened.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Who it belongs to. None: it names itself.
    pub identity: Option<Identity>,
    /// The subprotocol to answer with.
    pub subprotocol: Option<&'static str>,
    pub addr: IpAddr,
}

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The holder of the service key.
    Service,
    User(Identity),
    /// The holder of a token that names nobody and is good where anonymous use is on.
    Anonymous,
    /// Nobody that we know.
    Nobody,
    /// It has a token that only the session store could know, and that is away.
    Unknown,
}

impl Caller {
    /// Who it has proven to be.
    pub fn user(&self) -> Option<&Arc<str>> {
        match self {
            Self::User(identity) => Some(&identity.user),
            _ => None,
        }
    }

    /// What binds what it opens to its proof; nothing where it needed none.
    pub fn tie(&self) -> Option<Tie> {
        match self {
            Self::User(identity) => Some(identity.tie()),
            _ => None,
        }
    }
}

/// Why somebody may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this origin may not connect")]
    Origin,
    #[error("too many calls from this address")]
    AddressRate(Decision),
    #[error("too many calls by this user")]
    UserRate(Decision),
    #[error("too many attempts to sign in; wait a moment")]
    SignInRate(Decision),
    #[error("too many connections from this address; at most {0} on a node")]
    AddressFull(usize),
    #[error("too many connections of this user; at most {0} on a node")]
    UserFull(usize),
    #[error("a valid session or token is needed")]
    NoSession,
    #[error("the service key is needed")]
    NoServiceKey,
    #[error("the service key is needed; a session is not enough")]
    NotTrusted,
    #[error("sessions cannot be checked: Redis is away")]
    StoreAway,
}

impl Refusal {
    /// The status to answer with; its phrase is the problem's title.
    pub fn status(self) -> StatusCode {
        match self {
            Refusal::Origin | Refusal::NotTrusted => StatusCode::FORBIDDEN,
            Refusal::AddressRate(_)
            | Refusal::UserRate(_)
            | Refusal::SignInRate(_)
            | Refusal::AddressFull(_)
            | Refusal::UserFull(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::NoSession | Refusal::NoServiceKey => StatusCode::UNAUTHORIZED,
            Refusal::StoreAway => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// After how many seconds it is worth trying again.
    pub fn retry_after(self) -> Option<u64> {
        match self {
            Refusal::AddressRate(over) | Refusal::UserRate(over) | Refusal::SignInRate(over) => {
                Some(over.whole_seconds())
            }
            Refusal::StoreAway => Some(2),
            Refusal::AddressFull(_) | Refusal::UserFull(_) => Some(5),
            _ => None,
        }
    }
}

/// A token that came with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: Cow<'a, str>,
    /// It came as `apikey`, which clients must send and which seldom is anybody's.
    pub is_api_key: bool,
}

/// The checks, with what they need.
pub struct Admission {
    pub config: Arc<Config>,
    pub sessions: SessionManager,
    pub jwt: JwtVerifier,
    pub limiter: RateLimiter,
    pub quotas: Arc<Quotas>,
    pub metrics: Arc<Metrics>,
}

impl Admission {
    /// Checks a socket before its upgrade.
    ///
    /// # Errors
    /// The first check that it does not pass.
    pub async fn admit(&self, request: &HttpRequest) -> Result<Admitted, Refusal> {
        let (addr, tokens) = self.enter(request).await?;
        let identity = match self.recognise(request, &tokens).await? {
            Caller::User(identity) => Some(identity),
            Caller::Unknown => return Err(self.refuse(Refusal::StoreAway)),
            Caller::Nobody if self.config.auth == AuthMode::Session => {
                return Err(self.refuse(Refusal::NoSession));
            }
            Caller::Nobody | Caller::Anonymous | Caller::Service => None,
        };
        let subprotocol = offers_phoenix(request.headers()).then_some(PHOENIX);
        Ok(Admitted { identity, subprotocol, addr })
    }

    /// Checks a socket whose clients prove who they are in another way: its origin and address.
    ///
    /// # Errors
    /// The check that it does not pass.
    pub async fn admit_unproven(&self, request: &HttpRequest) -> Result<(), Refusal> {
        self.enter(request).await.map(|_| ())
    }

    /// Takes a place for a connection of `user`, where that is proven, among those of its user and address.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub fn place(&self, request: &HttpRequest, user: Option<&Arc<str>>) -> Result<Place, Refusal> {
        let addr = client_address(request.peer_addr(), request.headers(), &self.config.trusted_proxies);
        let limits = &self.config.limits;
        self.quotas.take(user, addr).map_err(|full| {
            let (problem, refusal) = match full {
                Full::User => (Trouble::UserFull, Refusal::UserFull(limits.max_user_connections)),
                Full::Address => (Trouble::AddressFull, Refusal::AddressFull(limits.max_address_connections)),
            };
            self.metrics.health.set(problem, "");
            self.refuse(refusal)
        })
    }

    /// Finds out who makes a call. The service key passes every check and is not limited.
    ///
    /// # Errors
    /// A check that it does not pass. Whether the caller may do what it asks is another matter.
    pub async fn caller(&self, request: &HttpRequest) -> Result<Caller, Refusal> {
        if self.has_service_key(request.headers()) {
            return Ok(Caller::Service);
        }
        let (_, tokens) = self.enter(request).await?;
        self.recognise(request, &tokens).await
    }

    /// The same where it can be said without asking anybody: nothing is limited by address, no
    /// browser's origin is in question and no token was sent.
    pub fn caller_at_once(&self, request: &HttpRequest) -> Option<Caller> {
        let headers = request.headers();
        let plain = self.config.rate_ip == 0
            && !headers.contains_key(ORIGIN)
            && !headers.contains_key(AUTHORIZATION)
            && !headers.contains_key(COOKIE)
            && !headers.contains_key(API_KEY)
            && !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
            && query_tokens(request.query_string()).next().is_none();
        plain.then_some(Caller::Nobody)
    }

    /// Lets whoever may read pass.
    ///
    /// # Errors
    /// In `session` mode, for want of a session.
    pub fn may_read(&self, caller: &Caller) -> Result<(), Refusal> {
        match (self.config.auth, caller) {
            (AuthMode::Session, Caller::Nobody) => Err(self.refuse(Refusal::NoSession)),
            (AuthMode::Session, Caller::Unknown) => Err(self.refuse(Refusal::StoreAway)),
            _ => Ok(()),
        }
    }

    /// Lets users and trusted backends pass.
    ///
    /// # Errors
    /// For want of a session.
    pub fn known(&self, caller: Caller) -> Result<Caller, Refusal> {
        match caller {
            Caller::User(_) | Caller::Service => Ok(caller),
            Caller::Unknown => Err(self.refuse(Refusal::StoreAway)),
            Caller::Anonymous | Caller::Nobody => Err(self.refuse(Refusal::NoSession)),
        }
    }

    /// Lets trusted backends pass.
    ///
    /// # Errors
    /// For want of the service key.
    pub fn service(&self, caller: &Caller) -> Result<(), Refusal> {
        match caller {
            Caller::Service => Ok(()),
            Caller::User(_) => Err(self.refuse(Refusal::NotTrusted)),
            Caller::Anonymous | Caller::Nobody | Caller::Unknown => Err(self.refuse(Refusal::NoServiceKey)),
        }
    }

    /// Refuses browsers of other origins. Whether a cookie counts: only for a page known to be ours.
    fn check_origin(&self, headers: &HeaderMap) -> Result<bool, Refusal> {
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(text(headers, "sec-fetch-site") == Some("same-origin"));
        };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let allowed = origin.to_str().is_ok_and(|origin| origin_allowed(&self.config.origins, origin, host));
        if allowed { Ok(true) } else { Err(self.refuse(Refusal::Origin)) }
    }

    /// Origin and address; gives the address and the tokens that came with the request.
    async fn enter<'a>(&self, request: &'a HttpRequest) -> Result<(IpAddr, Vec<Token<'a>>), Refusal> {
        let cookies_count = self.check_origin(request.headers())?;
        let addr = client_address(request.peer_addr(), request.headers(), &self.config.trusted_proxies);
        if self.config.rate_ip > 0 {
            // Boxed: where nothing is limited, nobody pays for the room that a question to Redis takes.
            let decision = Box::pin(self.limiter.check(Subject::Ip(addr), self.config.rate_ip)).await;
            Allowances::of(request, |allowances| allowances.address = Some(decision));
            if !decision.allowed {
                return Err(self.refuse(Refusal::AddressRate(decision)));
            }
        }
        Ok((addr, tokens(request.query_string(), request.headers(), cookies_count)))
    }

    /// Who the first valid token belongs to, limited by user.
    async fn recognise(&self, request: &HttpRequest, tokens: &[Token<'_>]) -> Result<Caller, Refusal> {
        let mut best = Caller::Nobody;
        for token in tokens {
            match self.read(&token.text).await {
                Caller::User(identity) => {
                    self.limit_user(request, &identity).await?;
                    return Ok(Caller::User(identity));
                }
                Caller::Nobody => {}
                // Any key will do in open mode, so also one that cannot be checked just now.
                Caller::Unknown if token.is_api_key && self.config.auth == AuthMode::Open => {}
                other if best != Caller::Unknown => best = other,
                _ => {}
            }
        }
        Ok(best)
    }

    /// Whom `token` stands for. Limits nothing: also for tokens that come over a socket later.
    pub async fn read(&self, token: &str) -> Caller {
        if looks_like_jwt(token) {
            let claims = Box::pin(self.jwt.verified(token, unix_seconds())).await;
            return claims.map_or(Caller::Nobody, |claims| self.of_claims(&claims));
        }
        // Boxed, so that whoever sends no token, as most sockets, does not pay for the room it takes.
        match Box::pin(self.sessions.validate_session(token)).await {
            Ok(Some(session)) => Caller::User(of_session(token, session)),
            Ok(None) => Caller::Nobody,
            Err(_) => Caller::Unknown,
        }
    }

    fn of_claims(&self, claims: &Claims) -> Caller {
        let Some(user) = claims.sub.as_deref().filter(|sub| !sub.is_empty()) else {
            let anon = self.config.anonymous && claims.role.as_deref() == Some(ANON_ROLE);
            return if anon { Caller::Anonymous } else { Caller::Nobody };
        };
        if check_user(user, &self.config.limits).is_err() {
            return Caller::Nobody;
        }
        Caller::User(Identity {
            user: user.into(),
            token: TokenKind::Jwt { exp: claims.exp },
            email: claims.email.clone(),
            role: claims.role.clone(),
            tier: claims.tier.clone(),
            anonymous: claims.anonymous,
        })
    }

    async fn limit_user(&self, request: &HttpRequest, identity: &Identity) -> Result<(), Refusal> {
        if self.config.rate_user == 0 {
            return Ok(());
        }
        let limit = self.config.tiers.limit(self.config.rate_user, identity.tier.as_deref());
        let decision = Box::pin(self.limiter.check(Subject::User(&identity.user), limit)).await;
        Allowances::of(request, |allowances| allowances.user = Some(decision));
        if decision.allowed { Ok(()) } else { Err(self.refuse(Refusal::UserRate(decision))) }
    }

    /// Counts an attempt to sign in to `account`, or to make it, against its address and the account.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub async fn attempt(&self, request: &HttpRequest, account: &str) -> Result<(), Refusal> {
        let addr = client_address(request.peer_addr(), request.headers(), &self.config.trusted_proxies);
        let subjects = [
            (Subject::SignInIp(addr), self.config.rate_sign_in_ip),
            (Subject::SignInAccount(account), self.config.rate_sign_in_account),
        ];
        for (subject, limit) in subjects {
            let decision = self.limiter.check(subject, limit).await;
            if !decision.allowed {
                return Err(self.refuse(Refusal::SignInRate(decision)));
            }
        }
        Ok(())
    }

    fn has_service_key(&self, headers: &HeaderMap) -> bool {
        match (&self.config.service_key, bearer(headers)) {
            (Some(key), Some(sent)) => same_secret(key.expose().as_bytes(), sent.as_bytes()),
            _ => false,
        }
    }

    /// Counts a refusal.
    fn refuse(&self, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::Origin => self.metrics.origin_refusals.inc(),
            Refusal::AddressRate(_) => self.metrics.rate_refusals_ip.inc(),
            Refusal::UserRate(_) => self.metrics.rate_refusals_user.inc(),
            Refusal::SignInRate(_) => self.metrics.rate_refusals_sign_in.inc(),
            Refusal::AddressFull(_) | Refusal::UserFull(_) => self.metrics.quota_refusals.inc(),
            Refusal::NoSession | Refusal::NoServiceKey | Refusal::NotTrusted | Refusal::StoreAway => {
                self.metrics.session_refusals.inc()
            }
        };
        refusal
    }
}

fn of_session(token: &str, session: Session) -> Identity {
    Identity {
        user: session.user_id.into(),
        token: TokenKind::Opaque(token.to_owned()),
        email: session.email,
        role: session.role,
        tier: session.tier,
        anonymous: session.anonymous,
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether two secrets are the same, in a time that does not tell how much of them is.
fn same_secret(ours: &[u8], theirs: &[u8]) -> bool {
    let differences = ours.iter().zip(theirs).fold(0, |found, (a, b)| std::hint::black_box(found | (a ^ b)));
    ours.len() == theirs.len() && differences == 0
}

/// Whether `origin`, as a browser wrote it, is one of `origins`. `host` is what the request calls us.
pub fn origin_allowed(origins: &Origins, origin: &str, host: Option<&str>) -> bool {
    match origins {
        Origins::Any => true,
        Origins::Listed(list) => list.iter().any(|listed| listed.eq_ignore_ascii_case(origin)),
        Origins::Same => {
            let (ours, port) = match origin.split_once("://") {
                Some(("https", ours)) => (ours, ":443"),
                Some(("http", ours)) => (ours, ":80"),
                _ => return false,
            };
            // Browsers leave out the scheme's own port; a proxy may write it.
            host.is_some_and(|host| host.strip_suffix(port).unwrap_or(host).eq_ignore_ascii_case(ours))
        }
    }
}

/// The tokens that came with a request, those meant for one person before those that may stand for
/// an application. Cookies, which browsers add by themselves, only where `cookies_count`.
pub fn tokens<'a>(query: &'a str, headers: &'a HeaderMap, cookies_count: bool) -> Vec<Token<'a>> {
    let mut found: Vec<Token<'a>> = Vec::new();
    let mut add = |text: Cow<'a, str>, is_api_key| {
        if !text.is_empty() && found.iter().all(|known| known.text != text) {
            found.push(Token { text, is_api_key });
        }
    };
    bearer(headers).into_iter().for_each(|token| add(token.into(), false));
    protocols(headers).find_map(protocol_token).into_iter().for_each(|token| add(token.into(), false));
    let mut asked: Vec<(usize, Cow<'a, str>)> = query_tokens(query).collect();
    asked.sort_by_key(|(rank, _)| *rank);
    asked.into_iter().for_each(|(rank, token)| add(token, QUERY_NAMES[rank] == API_KEY));
    text(headers, API_KEY).into_iter().for_each(|token| add(token.into(), true));
    if cookies_count {
        cookie(headers).into_iter().for_each(|token| add(token.into(), false));
    }
    found
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The tokens in a query with the rank of their names, one for each name.
fn query_tokens(query: &str) -> impl Iterator<Item = (usize, Cow<'_, str>)> {
    let mut seen = [false; QUERY_NAMES.len()];
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=')?;
        let rank = QUERY_NAMES.iter().position(|known| *known == name)?;
        let value = percent_decode_str(value).decode_utf8().ok()?;
        (!std::mem::replace(&mut seen[rank], true)).then_some((rank, value))
    })
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(',').map(str::trim))
}

fn offers_phoenix(headers: &HeaderMap) -> bool {
    protocols(headers).any(|protocol| protocol == PHOENIX)
}

/// The token in a subprotocol. Clients write it in the standard alphabet, whatever the prefix says.
fn protocol_token(protocol: &str) -> Option<String> {
    let encoded = protocol.strip_prefix(BEARER_PROTOCOL)?.trim_end_matches('=');
    let bytes = STANDARD_NO_PAD.decode(encoded).or_else(|_| URL_SAFE_NO_PAD.decode(encoded)).ok()?;
    String::from_utf8(bytes).ok()
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(COOKIE)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "admission_fuzz.rs"]
mod fuzz;
