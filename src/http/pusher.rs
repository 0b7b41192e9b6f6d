//! The HTTP API of Pusher's applications, under `/apps/{id}`: what their backends trigger and ask. Every call is
//! signed with the application's secret, and then not limited; one that is not counts against its address.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};

use super::input::{self, Body};
use super::{AppState, Problem, answer, presence};
use crate::cluster::Occupancy;
use crate::config::PusherApp;
use crate::dialects::{self, Broadcast, Kind, Message, Names, SocketId, pusher_channel, pusher_name};
use crate::signature::Call;

/// Bytes in the data of an event (Pusher's limit).
const MAX_DATA: usize = 10 * 1024;
/// Channels that one event may go to, and events in a batch (Pusher's limits).
const MAX_CHANNELS: usize = 100;
const MAX_BATCH: usize = 10;
/// Bytes in the name of an event (Pusher's limit).
const MAX_NAME: usize = 200;

/// What is asked of a channel.
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    user_count: bool,
    subscription_count: bool,
}

impl Info {
    fn read(text: Option<&str>) -> Self {
        let has = |name: &str| text.is_some_and(|text| text.split(',').any(|part| part.trim() == name));
        Self { user_count: has("user_count"), subscription_count: has("subscription_count") }
    }

    fn is_empty(self) -> bool {
        !self.user_count && !self.subscription_count
    }

    fn of(self, name: &str, occupancy: Occupancy) -> About {
        let is_presence = Kind::of(name) == Kind::Presence;
        About {
            occupied: None,
            user_count: (self.user_count && is_presence).then_some(occupancy.online),
            subscription_count: self.subscription_count.then_some(occupancy.connections),
        }
    }
}

/// What is said of a channel.
#[derive(Debug, Serialize)]
struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    occupied: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_count: Option<usize>,
}

/// A call that is signed: whose it is, and its query.
struct Signed {
    app: Arc<PusherApp>,
    query: Vec<(String, String)>,
}

impl Signed {
    fn asked(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Whose call it is.
async fn signed(request: &HttpRequest, state: &AppState, body: &Body) -> Result<Signed, Problem> {
    let query: Vec<(String, String)> = input::query(request)?;
    let id = input::segment(request, 2)?;
    let checked = match state.config.pusher.app(&id) {
        None => Err(Problem::new(StatusCode::NOT_FOUND, "no application has this id")),
        Some(app) => {
            let call = Call {
                method: request.method().as_str(),
                path: request.uri().path(),
                query: &query,
                body: body.bytes(),
            };
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            match call.check(app, now) {
                Ok(()) => Ok(Arc::clone(app)),
                Err(wrong) => Err(Problem::new(StatusCode::UNAUTHORIZED, wrong.to_string())),
            }
        }
    };
    match checked {
        Ok(app) => Ok(Signed { app, query }),
        Err(problem) => {
            state.admission.admit_unproven(request).await?;
            Err(problem)
        }
    }
}

/// An event for one channel or several.
#[derive(Deserialize)]
struct Trigger {
    name: String,
    data: String,
    #[serde(default)]
    channels: Option<Vec<String>>,
    #[serde(default)]
    channel: Option<String>,
    #[serde(default)]
    socket_id: Option<String>,
    #[serde(default)]
    info: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    batch: Vec<Trigger>,
}

/// An event that may be told.
struct Checked {
    names: Vec<String>,
    info: Info,
    event: String,
    data: String,
    except: Option<SocketId>,
}

impl Trigger {
    fn check(self, app: &Arc<PusherApp>, state: &AppState) -> Result<Checked, Problem> {
        let names = self.channels.into_iter().flatten().chain(self.channel).collect::<Vec<_>>();
        if names.is_empty() || names.len() > MAX_CHANNELS {
            return Err(Problem::bad_request(format!("an event goes to 1 to {MAX_CHANNELS} channels")));
        }
        let rules = Names::Pusher(Arc::clone(app));
        for name in &names {
            rules
                .check(name, &state.config.limits)
                .map_err(|reject| Problem::bad_request(format!("channel {name:?}: {reject}")))?;
        }
        if self.name.is_empty() || self.name.len() > MAX_NAME || dialects::is_reserved(&self.name) {
            return Err(Problem::bad_request(format!(
                "name must have 1 to {MAX_NAME} bytes, and not be one of Pusher's"
            )));
        }
        if self.data.len() > MAX_DATA {
            let detail = format!("data has at most {MAX_DATA} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if names.len() > 1 && names.iter().any(|name| name.starts_with("private-encrypted-")) {
            return Err(Problem::bad_request(
                "an encrypted channel has a key of its own: one channel for such an event",
            ));
        }
        let except = self.socket_id.filter(|id| !id.is_empty()).map(|id| id.parse()).transpose();
        let except = except.map_err(|_| Problem::bad_request("socket_id is not one"))?;
        let info = Info::read(self.info.as_deref());
        Ok(Checked { names, info, event: self.name, data: self.data, except })
    }
}

impl Checked {
    async fn say(&self, app: &PusherApp, state: &AppState) {
        let message = Message {
            event: self.event.as_str().into(),
            body: dialects::Body::Text(self.data.as_str().into()),
        };
        let said = Arc::new(Broadcast::Said { message, by_backend: true, user: None, except: self.except });
        for name in &self.names {
            let channel = pusher_channel(app, name);
            if Kind::keeps_last(name) {
                state.last_said.keep(&channel, &self.event, &self.data).await;
            }
            state.registry.say(&channel, Arc::clone(&said));
        }
    }

    async fn about(&self, app: &PusherApp, state: &AppState) -> Result<Vec<About>, Problem> {
        let channels: Vec<Cow<'_, str>> = self.names.iter().map(|name| pusher_channel(app, name)).collect();
        let channels: Vec<&str> = channels.iter().map(|channel| &**channel).collect();
        let counts = presence::occupancies(state, &channels).await?;
        Ok(self.names.iter().zip(counts).map(|(name, count)| self.info.of(name, count)).collect())
    }
}

/// `POST /apps/{id}/events`
pub async fn trigger(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let Signed { app, .. } = signed(&request, &state, &body).await?;
    let event = body.json::<Trigger>()?.check(&app, &state)?;
    event.say(&app, &state).await;
    if event.info.is_empty() {
        return Ok(answer::json(StatusCode::OK, b"{}".to_vec()));
    }
    let about = event.about(&app, &state).await?;
    let channels: BTreeMap<&String, About> = event.names.iter().zip(about).collect();
    Ok(answer::value(StatusCode::OK, &BTreeMap::from([("channels", channels)])))
}

/// `POST /apps/{id}/batch_events`
pub async fn trigger_batch(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let Signed { app, .. } = signed(&request, &state, &body).await?;
    let Batch { batch } = body.json()?;
    if batch.len() > MAX_BATCH {
        return Err(Problem::bad_request(format!("a batch has at most {MAX_BATCH} events")));
    }
    let events: Vec<Checked> =
        batch.into_iter().map(|event| event.check(&app, &state)).collect::<Result<_, _>>()?;
    let mut about = Vec::with_capacity(events.len());
    for event in &events {
        event.say(&app, &state).await;
        let told = if event.info.is_empty() { None } else { event.about(&app, &state).await?.pop() };
        about.push(told.unwrap_or(About { occupied: None, user_count: None, subscription_count: None }));
    }
    if events.iter().all(|event| event.info.is_empty()) {
        return Ok(answer::json(StatusCode::OK, b"{}".to_vec()));
    }
    Ok(answer::value(StatusCode::OK, &BTreeMap::from([("batch", about)])))
}

/// `GET /apps/{id}/channels`: those in which somebody is.
pub async fn channels(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let call = signed(&request, &state, &body).await?;
    let prefix = call.asked("filter_by_prefix").unwrap_or_default();
    let info = Info::read(call.asked("info"));
    if info.user_count && !prefix.starts_with("presence-") {
        return Err(Problem::bad_request("user_count needs filter_by_prefix=presence-…"));
    }
    let mut all: BTreeSet<String> = state.cluster.channels().await?;
    all.extend(state.rosters.all().map(|(channel, _)| channel.to_string()));
    let named = |channel: &String| {
        let name = pusher_name(&call.app, channel)?;
        let is_wanted = name.starts_with(prefix) && !matches!(Kind::of(&name), Kind::User(_));
        is_wanted.then(|| (name.into_owned(), channel.clone()))
    };
    let wanted: Vec<(String, String)> = all.iter().filter_map(named).collect();
    let names: Vec<&str> = wanted.iter().map(|(_, channel)| channel.as_str()).collect();
    let counts = presence::occupancies(&state, &names).await?;
    let occupied = wanted.iter().zip(counts).filter(|(_, count)| count.connections > 0);
    let channels: BTreeMap<&str, About> =
        occupied.map(|((name, _), count)| (name.as_str(), info.of(name, count))).collect();
    Ok(answer::value(StatusCode::OK, &BTreeMap::from([("channels", channels)])))
}

/// The channel that the path names, as its application calls it.
fn named<'a>(
    request: &'a HttpRequest,
    app: &Arc<PusherApp>,
    state: &AppState,
) -> Result<Cow<'a, str>, Problem> {
    let name = input::segment(request, 4)?;
    Names::Pusher(Arc::clone(app))
        .check(&name, &state.config.limits)
        .map_err(|reject| Problem::bad_request(reject.to_string()))?;
    Ok(name)
}

/// `GET /apps/{id}/channels/{channel}`
pub async fn channel(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let call = signed(&request, &state, &body).await?;
    let name = named(&request, &call.app, &state)?;
    let info = Info::read(call.asked("info"));
    if info.user_count && Kind::of(&name) != Kind::Presence {
        return Err(Problem::bad_request("user_count is known of channels with presence only"));
    }
    let counts = presence::occupancies(&state, &[&pusher_channel(&call.app, &name)]).await?;
    let count = counts.first().copied().unwrap_or_default();
    let about = About { occupied: Some(count.connections > 0), ..info.of(&name, count) };
    Ok(answer::value(StatusCode::OK, &about))
}

#[derive(Serialize)]
struct User<'a> {
    id: &'a str,
}

/// `GET /apps/{id}/channels/{channel}/users`
pub async fn users(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let call = signed(&request, &state, &body).await?;
    let name = named(&request, &call.app, &state)?;
    if Kind::of(&name) != Kind::Presence {
        return Err(Problem::bad_request("only channels with presence have users"));
    }
    let channel = pusher_channel(&call.app, &name);
    let here = state.rosters.get(&channel);
    let elsewhere = match &here {
        Some(_) => None,
        None => Some(state.remote.roster(&channel).await?),
    };
    let roster = match (&here, &elsewhere) {
        (Some(here), _) => Some(&here.snapshot),
        (None, elsewhere) => elsewhere.as_deref(),
    };
    let members = roster.into_iter().flat_map(|roster| &roster.members);
    let users: Vec<User<'_>> = members.map(|member| User { id: &member.user }).collect();
    Ok(answer::value(StatusCode::OK, &BTreeMap::from([("users", users)])))
}

/// `POST /apps/{id}/users/{user}/terminate_connections`: those by which the user has signed in.
pub async fn terminate(
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let Signed { app, .. } = signed(&request, &state, &body).await?;
    let user = input::segment(&request, 4)?;
    dialects::check_user(&user, &state.config.limits)
        .map_err(|reject| Problem::bad_request(reject.to_string()))?;
    let channel = pusher_channel(&app, &Kind::of_user(&user)).into_owned();
    state.registry.say(&channel, Arc::new(Broadcast::Terminate));
    Ok(answer::json(StatusCode::OK, b"{}".to_vec()))
}
