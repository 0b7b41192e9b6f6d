//! Presence as it changes, as server-sent events: one more viewer of the thread's hub.
//!
//! A client that comes back with the id of the last event it has is sent no snapshot if the roster
//! still is at that version; else it gets a new one. No diffs are kept for it: the snapshot is at
//! hand, encoded once for all, and costs no memory while nobody comes back.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::Stream;

use super::{AppState, Caller, Problem, input};
use crate::connection::Sockets;
use crate::dialects::WireFormat;
use crate::hub::{self, Line, Outbox, Room as _, SharedHub, View};
use crate::presence::NodeId;
use crate::quota::Place;

/// What the query may say. Clients that cannot set headers name the last event here.
#[derive(serde::Deserialize)]
struct Resume {
    last_event_id: Option<String>,
}

/// `GET /v1/channels/{channel}/presence/events`
pub async fn events(
    caller: Caller,
    request: HttpRequest,
    state: web::Data<AppState>,
) -> Result<HttpResponse, Problem> {
    let limits = &state.config.limits;
    let channel = input::channel(&request, limits)?;
    caller.may_read(&channel)?;
    let known = last_event(&request)?.and_then(|id| version_here(&id, state.node));
    let Some(Sockets { hub, .. }) = request.app_data::<Sockets>() else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no hub on this thread"));
    };
    state.has_room()?;
    let place = state.admission.place(&request, caller.user())?;
    let staying = state.is_staying().is_ok();
    if staying {
        // What a channel asks of who joins is not asked of who reads.
        hub.check(&channel, None, true).map_err(|reject| Problem::busy(reject.to_string()))?;
    }
    let outbox = {
        let mut hub = hub.borrow_mut();
        let outbox = hub.connect(Line::Events, limits.max_output_bytes, caller.tie());
        if !staying {
            // Any other answer would end it for good: told so, it tries again, and elsewhere.
            hub.send(&outbox, hub::retry_spread());
            outbox.finish();
        } else {
            hub.send(&outbox, hub::retry());
            let view = View { known, ..View::new(WireFormat::Events) };
            hub.view(outbox.id(), &channel, view);
        }
        outbox
    };
    Ok(HttpResponse::Ok()
        // Not to be used again, so that who comes back after a drain comes to another node.
        .force_close()
        .insert_header((CONTENT_TYPE, HeaderValue::from_static("text/event-stream")))
        .insert_header((CACHE_CONTROL, HeaderValue::from_static("no-store")))
        // A proxy that gathers output would keep events back.
        .insert_header(("x-accel-buffering", HeaderValue::from_static("no")))
        .streaming(Viewing { outbox, hub: Rc::clone(hub), _place: place }))
}

/// The id of the last event that the client has. The header is newer than what stands in the URL.
fn last_event(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let sent = request.headers().get("last-event-id").and_then(|id| id.to_str().ok());
    match sent.filter(|id| !id.is_empty()) {
        Some(id) => Ok(Some(id.to_owned())),
        None => Ok(input::query::<Resume>(request)?.last_event_id),
    }
}

/// The number in a version, if `node` gave it.
pub(super) fn version_here(id: &str, node: NodeId) -> Option<u64> {
    let (giver, number) = id.split_once('.')?;
    if giver == node.short() { number.parse().ok() } else { None }
}

/// The stream. Dropped with the client's connection, and then the hub lets the viewer go.
struct Viewing {
    outbox: Rc<Outbox>,
    hub: SharedHub,
    _place: Place,
}

impl Stream for Viewing {
    type Item = Result<Bytes, actix_web::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outbox.poll_next(cx).map(|chunk| chunk.map(Ok))
    }
}

impl Drop for Viewing {
    fn drop(&mut self) {
        self.hub.borrow_mut().disconnect(self.outbox.id());
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
