//! What a client can be told when it is refused or closed: every reason and code, in one place.
//!
//! A [`Reject`] answers one call and leaves the socket and its channels alone. A [`Close`] ends the
//! socket; every code makes the known clients come back (1000 would keep old ones away for good).

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
    #[error("too many channels joined")]
    TooManyChannels,
    #[error("too many channels on this node")]
    TooManyOnNode,
    #[error("channel has its {0} members")]
    ChannelFull(usize),
    #[error("channel needs a session")]
    SessionNeeded,
    #[error("settings are not known yet; try again")]
    SettingsUnknown,
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

/// Why the server ends a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The node is going away; reconnect and be served by another.
    Restart,
    /// Nothing came for too long.
    Silent,
    /// The session was revoked or has expired.
    SessionEnded,
    /// A message, or one announced, is over the limit.
    TooLarge,
    /// Bytes that are no WebSocket frames.
    Protocol,
}

impl Close {
    /// The code of the close frame (RFC 6455, section 7.4.1; 1012 is registered with IANA).
    pub fn code(self) -> u16 {
        match self {
            Close::Restart => 1012,
            Close::Silent => 1001,
            Close::SessionEnded => 1008,
            Close::TooLarge => 1009,
            Close::Protocol => 1002,
        }
    }

    /// The text beside the code.
    pub fn reason(self) -> &'static str {
        match self {
            Close::Restart => "restarting",
            Close::Silent => "silent",
            Close::SessionEnded => "session ended",
            Close::TooLarge => "message too large",
            Close::Protocol => "protocol error",
        }
    }
}
