//! Signatures for clients of the demo application, in `open` mode, where anyone is whoever they say: so Pusher's
//! clients can be tried without a backend. Where applications are set, their own backends sign, and this is not
//! there.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::input::Body;
use super::{AppState, Guest, Problem, answer};
use crate::config::PusherApp;
use crate::dialects::{Kind, SocketId};
use crate::json;
use crate::signature;

#[derive(Deserialize)]
struct Asked {
    socket_id: String,
    #[serde(default)]
    channel_name: String,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    user_info: Option<String>,
}

/// `POST /pusher/auth`
pub async fn channel(_: Guest, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let (app, asked, socket) = read(&body, &state)?;
    let name = &asked.channel_name;
    let mut answer = BTreeMap::new();
    let data = (Kind::of(name) == Kind::Presence).then(|| user_data(&asked, "user_id"));
    let text = match &data {
        Some(data) => format!("{socket}:{name}:{data}"),
        None => format!("{socket}:{name}"),
    };
    answer.insert("auth", format!("{}:{}", app.key, signature::sign(&app, text.as_bytes())));
    if let Some(data) = data {
        answer.insert("channel_data", data);
    }
    Ok(answer::value(StatusCode::OK, &answer))
}

/// `POST /pusher/user-auth`
pub async fn user(_: Guest, body: Body, state: web::Data<AppState>) -> Result<HttpResponse, Problem> {
    let (app, asked, socket) = read(&body, &state)?;
    let data = user_data(&asked, "id");
    let signed = signature::sign(&app, format!("{socket}::user::{data}").as_bytes());
    let answer = BTreeMap::from([("auth", format!("{}:{signed}", app.key)), ("user_data", data)]);
    Ok(answer::value(StatusCode::OK, &answer))
}

fn read(body: &Body, state: &AppState) -> Result<(Arc<PusherApp>, Asked, SocketId), Problem> {
    let app = state.config.pusher.demo().ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "applications sign for their own clients: only the demo's are signed here",
        )
    })?;
    let asked: Asked = web::Query::<Asked>::from_query(std::str::from_utf8(body.bytes()).unwrap_or_default())
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?
        .into_inner();
    let socket = asked.socket_id.parse().map_err(|_| Problem::bad_request("socket_id is not one"))?;
    Ok((Arc::clone(app), asked, socket))
}

/// `{"user_id":…,"user_info":…}`; who names nobody is a guest.
fn user_data(asked: &Asked, id: &str) -> String {
    let mut out = Vec::with_capacity(128);
    out.push(b'{');
    json::string(&mut out, id);
    out.push(b':');
    let guest = format!("guest-{}", asked.socket_id);
    json::string(&mut out, asked.user_id.as_deref().unwrap_or(&guest));
    if let Some(info) =
        asked.user_info.as_deref().filter(|info| serde_json::from_str::<&RawValue>(info).is_ok())
    {
        out.extend_from_slice(b",\"user_info\":");
        out.extend_from_slice(info.as_bytes());
    }
    out.push(b'}');
    // Made of strings only.
    String::from_utf8(out).unwrap_or_default()
}
