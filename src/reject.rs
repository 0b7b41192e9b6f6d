//! What a client can be told when it is refused or closed: every reason and code, in one place, for each dialect.
//!
//! A [`Reject`] answers one call and leaves the socket and its channels alone. A [`Close`] ends the
//! socket. Codes have other meanings to other clients: 1000 keeps old Phoenix clients away for good, and 4300 to
//! 4399 keep Pusher's away, so neither is ever sent. `docs/errors.md` lists it all; a test holds it to this file.

use std::borrow::Cow;

/// The wire protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Phoenix Channels.
    Phoenix,
    /// Supabase Realtime.
    Supabase,
    /// Pusher Channels, protocol 7.
    Pusher,
}

/// Why one call of a client was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("user_id must be a non-empty string or a number")]
    UserInvalid,
    #[error("user_id is longer than {0} characters")]
    UserTooLong(usize),
    #[error("user_id is reserved")]
    UserReserved,
    #[error("meta must be an object")]
    MetaNotObject,
    #[error("meta is larger than {0} bytes")]
    MetaTooLarge(usize),
    #[error("resume must be a string of 8 to 128 bytes")]
    ResumeInvalid,
    #[error("channel name must have 1 to {0} bytes")]
    ChannelName(usize),
    #[error("channel name is reserved")]
    ChannelReserved,
    #[error("channel name has characters that Pusher's clients cannot use")]
    ChannelUnmappable,
    #[error("TopicNameRequired: You must provide a topic name, as in realtime:lobby")]
    TopicNameRequired,
    #[error("too many channels joined")]
    TooManyChannels,
    #[error("too many channels on this node")]
    TooManyOnNode,
    #[error("channel has its {0} members")]
    ChannelFull(usize),
    #[error("channel needs a session")]
    SessionNeeded,
    #[error("a name needs a session or token that proves it, since others here are proven")]
    NameUnproven,
    #[error("settings are not known yet; try again")]
    SettingsUnknown,
    #[error("Unauthorized: You do not have permissions to read from this Channel topic: {0}")]
    Unauthorized(Box<str>),
    #[error("InvalidJWTToken: the token is not valid, or not any more")]
    TokenInvalid,
    #[error("the token is that of another user than before")]
    OtherUser,
    #[error("tokens cannot be checked for now; try again")]
    TokensUnknown,
    #[error("postgres_changes are not available: this server tells presence and broadcasts")]
    PostgresChanges,
    #[error("Invalid signature: expected the HMAC-SHA256 of {0}, with the application's secret")]
    Signature(&'static str),
    #[error("sign in first")]
    SignInNeeded,
    #[error("watchlist has more than {0} users")]
    WatchlistTooLong(usize),
    #[error("client events need a subscription to a private or presence channel")]
    ClientEventChannel,
    #[error("event name must begin with client- and have at most {0} bytes")]
    ClientEventName(usize),
    #[error("client events are limited to {0} a second")]
    ClientEventRate(u32),
    #[error("unmatched topic")]
    UnmatchedTopic,
    #[error("unknown event")]
    UnknownEvent,
    #[error("malformed payload")]
    MalformedPayload,
    #[error("rate limited")]
    RateLimited {
        /// After this many milliseconds the call would pass.
        retry_after_ms: u64,
    },
}

impl Reject {
    /// The reason as clients of `dialect` know it.
    pub fn reason(&self, dialect: Dialect) -> Cow<'static, str> {
        match (self, dialect) {
            (Self::MetaNotObject, Dialect::Supabase) => "Presence track payload must be a map".into(),
            (Self::TooManyChannels, Dialect::Supabase) => "ChannelRateLimitReached: Too many channels".into(),
            (Self::RateLimited { .. }, Dialect::Supabase) => {
                "ClientJoinRateLimitReached: Too many messages per second".into()
            }
            (Self::MetaNotObject, Dialect::Pusher) => "user_info must be an object".into(),
            (Self::MetaTooLarge(most), Dialect::Pusher) => {
                format!("user_info is larger than {most} bytes").into()
            }
            (Self::UnmatchedTopic, Dialect::Pusher) => "No current subscription to the channel".into(),
            (other, _) => other.to_string().into(),
        }
    }

    /// The code in Pusher's `pusher:error`, where there is one for it.
    pub fn pusher_code(&self) -> Option<u16> {
        match self {
            Self::RateLimited { .. } | Self::ClientEventRate(_) => Some(4301),
            Self::WatchlistTooLong(_) => Some(4302),
            Self::ChannelFull(_) | Self::TooManyChannels | Self::TooManyOnNode => Some(4100),
            _ => None,
        }
    }

    /// The status in Pusher's `pusher:subscription_error`: that of an HTTP answer which would say the same.
    pub fn pusher_status(&self) -> u16 {
        match self {
            Self::Signature(_) | Self::SignInNeeded | Self::OtherUser | Self::SessionNeeded => 401,
            Self::ChannelFull(_) | Self::TooManyChannels | Self::TooManyOnNode | Self::RateLimited { .. } => {
                429
            }
            Self::SettingsUnknown | Self::TokensUnknown => 503,
            _ => 400,
        }
    }

    /// Every reason once, with numbers as in the defaults.
    pub fn all() -> Vec<Self> {
        vec![
            Self::UserInvalid,
            Self::UserTooLong(128),
            Self::UserReserved,
            Self::MetaNotObject,
            Self::MetaTooLarge(4096),
            Self::ResumeInvalid,
            Self::ChannelName(200),
            Self::ChannelReserved,
            Self::ChannelUnmappable,
            Self::TopicNameRequired,
            Self::TooManyChannels,
            Self::TooManyOnNode,
            Self::ChannelFull(100),
            Self::SessionNeeded,
            Self::NameUnproven,
            Self::SettingsUnknown,
            Self::Unauthorized("lobby".into()),
            Self::TokenInvalid,
            Self::OtherUser,
            Self::TokensUnknown,
            Self::PostgresChanges,
            Self::Signature("socket_id:channel"),
            Self::SignInNeeded,
            Self::WatchlistTooLong(100),
            Self::ClientEventChannel,
            Self::ClientEventName(200),
            Self::ClientEventRate(10),
            Self::UnmatchedTopic,
            Self::UnknownEvent,
            Self::MalformedPayload,
            Self::RateLimited { retry_after_ms: 10 },
        ]
    }

    /// Which dialects' clients can be told it.
    pub fn is_told(&self, dialect: Dialect) -> bool {
        match self {
            Self::TopicNameRequired
            | Self::Unauthorized(_)
            | Self::TokenInvalid
            | Self::TokensUnknown
            | Self::PostgresChanges => dialect == Dialect::Supabase,
            Self::OtherUser => dialect != Dialect::Phoenix,
            Self::NameUnproven => dialect != Dialect::Pusher,
            Self::Signature(_)
            | Self::SignInNeeded
            | Self::WatchlistTooLong(_)
            | Self::ClientEventChannel
            | Self::ClientEventName(_)
            | Self::ClientEventRate(_)
            | Self::ChannelUnmappable => dialect == Dialect::Pusher,
            Self::ResumeInvalid => dialect == Dialect::Phoenix,
            Self::ChannelReserved => true,
            _ => true,
        }
    }
}

/// Why the server ends a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The node is going away; reconnect and be served by another.
    Restart,
    /// Nothing came for too long.
    Silent,
    /// The session was revoked or has expired.
    SessionEnded,
    /// A backend has ended all connections of the user.
    Terminated,
    /// A message, or one announced, is over the limit.
    TooLarge,
    /// Bytes that are no WebSocket frames.
    Protocol,
    /// Pusher: no application has this key.
    NoApplication,
    /// Pusher: the protocol's version is not one that is spoken here.
    UnknownProtocol,
    /// Pusher: no protocol version was given.
    NoProtocol,
}

impl Close {
    /// Every one once.
    pub const ALL: [Self; 9] = [
        Self::Restart,
        Self::Silent,
        Self::SessionEnded,
        Self::Terminated,
        Self::TooLarge,
        Self::Protocol,
        Self::NoApplication,
        Self::UnknownProtocol,
        Self::NoProtocol,
    ];

    /// The code of the close frame (RFC 6455, section 7.4.1; 1012 is registered with IANA; 4000 to 4299 are
    /// Pusher's own).
    pub fn code(self, dialect: Dialect) -> u16 {
        match (self, dialect) {
            (Close::Restart, Dialect::Pusher) => 4200,
            (Close::Restart, _) => 1012,
            (Close::Silent, Dialect::Pusher) => 4201,
            (Close::Silent, _) => 1001,
            (Close::SessionEnded | Close::Terminated, Dialect::Pusher) => 4009,
            (Close::SessionEnded | Close::Terminated, _) => 1008,
            (Close::TooLarge, _) => 1009,
            (Close::Protocol, _) => 1002,
            (Close::NoApplication, _) => 4001,
            (Close::UnknownProtocol, _) => 4007,
            (Close::NoProtocol, _) => 4008,
        }
    }

    /// The text beside the code.
    pub fn reason(self) -> &'static str {
        match self {
            Close::Restart => "restarting",
            Close::Silent => "silent",
            Close::SessionEnded => "session ended",
            Close::Terminated => "ended by a backend",
            Close::TooLarge => "message too large",
            Close::Protocol => "protocol error",
            Close::NoApplication => "no application has this key",
            Close::UnknownProtocol => "protocol version not supported; 5 to 7 are",
            Close::NoProtocol => "protocol version missing",
        }
    }

    /// What clients of `dialect` do then by themselves; none where it cannot happen to them.
    pub fn then(self, dialect: Dialect) -> Option<&'static str> {
        let own = matches!(
            self,
            Close::NoApplication | Close::UnknownProtocol | Close::NoProtocol | Close::Terminated
        );
        match dialect {
            Dialect::Phoenix if !own => Some("comes back after 10 ms, then ever later, 5 s at most"),
            Dialect::Supabase if !own => Some("comes back after 1, 2, 5, then every 10 s"),
            Dialect::Phoenix | Dialect::Supabase => None,
            Dialect::Pusher => match self.code(dialect) {
                4000..=4099 => Some("stays away until the application connects again")
                    .filter(|_| self != Close::SessionEnded),
                4200..=4299 => Some("comes back at once"),
                _ => Some("comes back after 1 s"),
            },
        }
    }
}

#[cfg(test)]
#[path = "reject_tests.rs"]
mod tests;
