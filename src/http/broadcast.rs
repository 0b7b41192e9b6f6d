//! Broadcasts by HTTP, as Supabase's clients and backends send them: accepted is 202, and nothing is kept.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::input::{self, Body};
use super::{AppState, Caller, Problem};
use crate::admission;
use crate::dialects::{self, Broadcast, Dialect, Message, Names};
use crate::reject::Reject;

/// Messages in one call.
const MAX_MESSAGES: usize = 100;

/// `{"messages":[…]}`
#[derive(Deserialize)]
struct Messages<'a> {
    #[serde(borrow)]
    messages: Vec<Sent<'a>>,
}

#[derive(Deserialize)]
struct Sent<'a> {
    topic: String,
    event: String,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(default)]
    private: bool,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    private: bool,
}

/// `POST /realtime/v1/api/broadcast`
pub async fn many(caller: Caller, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let Messages { messages } = serde_json::from_slice(body.bytes())
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("body: {error}")))?;
    if messages.len() > MAX_MESSAGES {
        return Err(unprocessable(format!("at most {MAX_MESSAGES} messages in one call")));
    }
    let mut checked = Vec::with_capacity(messages.len());
    for Sent { topic, event, payload, private } in messages {
        check(&state, &caller, &topic, &event, payload.get().len(), private)?;
        let message = Message { event: event.into(), body: dialects::Body::Json(payload.get().into()) };
        checked.push((channel(&topic, private), message));
    }
    // All or nothing.
    checked.into_iter().for_each(|(channel, message)| say(&state, &caller, &channel, message));
    Ok(HttpResponse::Accepted().finish())
}

/// `POST /realtime/v1/api/broadcast/{topic}/events/{event}`: the body is the payload.
pub async fn one(
    caller: Caller,
    request: HttpRequest,
    body: Body,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let (topic, event) = (input::segment(&request, 5)?, input::segment(&request, 7)?);
    let Asked { private } = input::query(&request)?;
    check(&state, &caller, &topic, &event, body.bytes().len(), private)?;
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let body = if kind.starts_with("application/octet-stream") {
        dialects::Body::Raw(Dialect::Supabase, body.bytes().clone())
    } else {
        let payload: &RawValue = serde_json::from_slice(body.bytes())
            .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("body: {error}")))?;
        dialects::Body::Json(payload.get().into())
    };
    say(&state, &caller, &channel(&topic, private), Message { event: (&*event).into(), body });
    Ok(HttpResponse::Accepted().finish())
}

fn check(
    state: &AppState,
    caller: &Caller,
    topic: &str,
    event: &str,
    size: usize,
    private: bool,
) -> Result<(), Problem> {
    let limits = &state.config.limits;
    Names::Supabase.check(&format!("realtime:{topic}"), limits).map_err(|reject| match reject {
        Reject::TopicNameRequired => unprocessable("topic: can't be blank"),
        other => unprocessable(format!("topic: {other}")),
    })?;
    // One byte says how long it is where it goes out in binary.
    if event.is_empty() || event.len() > usize::from(u8::MAX) {
        return Err(unprocessable("event: must have 1 to 255 bytes"));
    }
    if size > limits.max_frame_bytes {
        let most = limits.max_frame_bytes;
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a payload has at most {most} bytes"),
        ));
    }
    if private {
        state.admission.known(admission::Caller::clone(caller))?;
    }
    Ok(())
}

/// The channel that clients join as `realtime:{topic}`.
fn channel(topic: &str, private: bool) -> String {
    Names::Supabase.channel(&format!("realtime:{topic}"), private).into_owned()
}

fn unprocessable(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

fn say(state: &AppState, caller: &Caller, channel: &str, message: Message) {
    let said = Broadcast::Said { message, by_backend: false, user: caller.user().cloned(), except: None };
    state.registry.say(channel, Arc::new(said));
}
