//! How a connection proves who its client is beyond what it connected with: tokens that come in messages, and what
//! the backends of Pusher's applications sign. The rest of [`ConnectionState`], as pure as that.

use std::sync::Arc;

use super::state::{ConnectionState, Effect, Found, Identity, refuse};
use crate::config::Secret;
use crate::dialects::Identity as Signed;
use crate::dialects::{
    Address, Command, Event, Incoming, Kind, Names, Proof, WireFormat, channel_data, encode, pusher_channel,
    user_data as read_user_data,
};
use crate::hub::{Tie, View};
use crate::reject::Reject;
use crate::signature;

/// Whom a token stands for, as far as it can be told.
#[derive(Clone, Debug)]
pub enum Verdict {
    User {
        user: Arc<str>,
        tie: Tie,
    },
    /// It names nobody, and is good all the same.
    Anonymous,
    /// It is not valid.
    Nobody,
    /// It cannot be checked just now.
    Unknown,
}

impl ConnectionState {
    /// The token in a message that has to be read first: then call [`ConnectionState::note_token`].
    #[must_use]
    pub fn unread_token(&self, incoming: &Incoming) -> Option<Secret> {
        let token = match &incoming.command {
            Command::AccessToken(Some(token)) => token,
            Command::Join(request) => match &request.proof {
                Proof::Token { token: Some(token), .. } => token,
                _ => return None,
            },
            _ => return None,
        };
        let is_read = self.token.as_ref().is_some_and(|known| known.0 == *token);
        (!is_read && !is_project_key(token)).then(|| token.clone())
    }

    /// Takes in whom a token stands for.
    pub fn note_token(&mut self, token: Secret, verdict: Verdict) {
        self.token = Some(Box::new((token, verdict)));
    }

    /// Checks what a join proves; gives whom a backend has signed for it.
    pub(super) fn check_proof(
        &mut self,
        topic: &str,
        proof: &Proof,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Identity>, Reject> {
        self.client.names.check(topic, &self.limits)?;
        match proof {
            Proof::None => Ok(None),
            Proof::Token { token, private } => {
                effects.extend(self.prove(token.as_ref())?);
                if *private && self.client.session_user.is_none() {
                    let name = topic.split_once(':').map_or(topic, |(_, name)| name);
                    return Err(Reject::Unauthorized(name.into()));
                }
                Ok(None)
            }
            Proof::Signed { auth, channel_data } => {
                self.check_signed(topic, auth, channel_data.as_deref()).map(Some)
            }
        }
    }

    /// Binds the connection to the user of `token`, if it is one.
    fn prove(&mut self, token: Option<&Secret>) -> Result<Vec<Effect>, Reject> {
        let Some(token) = token.filter(|token| !is_project_key(token)) else { return Ok(Vec::new()) };
        let verdict = self.token.as_ref().filter(|known| known.0 == *token).map(|known| &known.1);
        let (user, tie) = match verdict {
            Some(Verdict::User { user, tie }) => (Arc::clone(user), tie.clone()),
            Some(Verdict::Nobody) if self.client.strict => return Err(Reject::TokenInvalid),
            Some(Verdict::Unknown) | None if self.client.strict => return Err(Reject::TokensUnknown),
            _ => return Ok(Vec::new()),
        };
        let mut effects = vec![Effect::Bind(tie)];
        match &self.client.session_user {
            Some(known) if *known == user => {}
            Some(_) => return Err(Reject::OtherUser),
            None => {
                for joined in &mut self.joined {
                    joined.user = Arc::clone(&user);
                    if joined.present {
                        let channel = joined.channel.clone();
                        effects.push(Effect::Identify { channel, user: Arc::clone(&user) });
                    }
                }
                self.client.session_user = Some(user);
            }
        }
        Ok(effects)
    }

    /// A newer token came for a join. Nothing is answered if it is good.
    pub(super) fn renew(
        &mut self,
        address: &Address,
        token: Option<&Secret>,
        format: WireFormat,
    ) -> Vec<Effect> {
        let Found::Current(at) = self.find(address) else { return Vec::new() };
        let reject = match self.prove(token) {
            Ok(effects) => return effects,
            Err(reject) => reject,
        };
        let (channel, join_ref) = (self.joined[at].channel.clone(), self.joined[at].join_ref.clone());
        let mut effects = self.end(&channel);
        let told = Event::System { topic: &address.topic, join_ref: join_ref.as_deref(), reject: &reject };
        effects.extend(encode(format, &told).map(Effect::Send));
        if let Some(join_ref) = &join_ref {
            let closed = Event::Closed { topic: &address.topic, join_ref, replaced: false };
            effects.extend(encode(format, &closed).map(Effect::Send));
        }
        effects
    }

    /// Checks a backend's signature for a join, and reads for whom it is.
    fn check_signed(&self, name: &str, auth: &str, data: Option<&str>) -> Result<Identity, Reject> {
        let Names::Pusher(app) = &self.client.names else { return Err(Reject::UnknownEvent) };
        let socket = self.client.socket.to_string();
        let is_signed = |data: Option<&str>| {
            let what = if data.is_none() { "socket_id:channel" } else { "socket_id:channel:channel_data" };
            match signature::may_join(app, auth, &socket, name, data) {
                true => Ok(()),
                false => Err(Reject::Signature(what)),
            }
        };
        let identity = |user, meta| Identity { user, meta, resume: None };
        match Kind::of(name) {
            Kind::Public => {}
            // Some backends sign data for these too. Anything but an object could be the end of another name.
            Kind::Private { .. } if data.is_some_and(|data| !data.trim_start().starts_with('{')) => {
                return Err(Reject::Signature("socket_id:channel"));
            }
            Kind::Private { .. } => is_signed(data)?,
            Kind::Presence => {
                is_signed(data)?;
                let signed = match (data, &self.signed_in) {
                    (Some(data), _) => channel_data(data, &self.limits)?,
                    (None, Some(signed_in)) => Signed::clone(signed_in),
                    (None, None) => return Err(Reject::SignInNeeded),
                };
                return Ok(identity(signed.user, signed.meta));
            }
            Kind::User(user) => match &self.signed_in {
                Some(signed_in) if *signed_in.user == *user => {}
                Some(_) => return Err(Reject::OtherUser),
                None => return Err(Reject::SignInNeeded),
            },
        }
        // Each subscriber counts: there is no user to be in such a channel.
        Ok(identity(socket.into(), "{}".into()))
    }

    /// Whether `channel` is that of the user who has signed in.
    pub(super) fn is_own(&self, channel: &str) -> bool {
        match (&self.client.names, &self.signed_in) {
            (Names::Pusher(app), Some(signed_in)) => {
                *pusher_channel(app, &Kind::of_user(&signed_in.user)) == *channel
            }
            _ => false,
        }
    }

    /// Pusher: the connection is that of a user, who is online by it, and watches others.
    pub(super) fn sign_in(
        &mut self,
        address: &Address,
        auth: &str,
        user_data: &str,
        format: WireFormat,
    ) -> Vec<Effect> {
        let Names::Pusher(app) = &self.client.names else {
            return refuse(format, address, &Reject::UnknownEvent);
        };
        let app = Arc::clone(app);
        let socket = self.client.socket.to_string();
        if !signature::may_sign_in(&app, auth, &socket, user_data) {
            return refuse(format, address, &Reject::Signature("socket_id::user::user_data"));
        }
        let signed = match read_user_data(user_data, &self.limits) {
            Ok(signed) => signed,
            Err(reject) => return refuse(format, address, &reject),
        };
        let mut effects: Vec<Effect> =
            encode(format, &Event::SignedIn { user_data }).map(Effect::Send).into_iter().collect();
        match &self.signed_in {
            Some(known) if known.user == signed.user => return effects,
            Some(_) => return refuse(format, address, &Reject::OtherUser),
            None => {}
        }
        let own: Box<str> = pusher_channel(&app, &Kind::of_user(&signed.user)).into();
        if let Err(reject) = self.room.check(&own, None, true) {
            return refuse(format, address, &reject);
        }
        effects
            .push(Effect::View { channel: own.clone(), view: View { roster: false, ..View::new(format) } });
        let (user, meta) = (socket.into(), "{}".into());
        effects.push(Effect::Track { channel: own.clone(), user, meta, resume: None });
        for user in &signed.watched {
            let channel: Box<str> = pusher_channel(&app, &Kind::of_user(user)).into();
            if channel != own && self.room.check(&channel, None, true).is_ok() {
                effects.push(Effect::View { channel, view: View::new(WireFormat::PusherWatch) });
            }
        }
        self.signed_in = Some(Box::new(signed));
        effects
    }
}

/// Whether `token` is a project's key of the new kind, which proves nothing of a user.
fn is_project_key(token: &Secret) -> bool {
    token.expose().starts_with("sb_")
}
