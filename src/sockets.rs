//! The routes of WebSockets, one for each dialect: the checks before the upgrade, and what a connection may ask
//! of the rest of the node.

use std::rc::Rc;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use crate::admission::{Admitted, Caller, Identity};
use crate::config::{AuthMode, Secret};
use crate::connection::{self, ConnectParams, Opening, Services, Sockets, Verdict};
use crate::dialects::{Broadcast, Dialect, Names};
use crate::http::{AppState, Problem, resource};
use crate::quota::Place;
use crate::reject::Close;

/// The versions of Pusher's protocol that are spoken.
const PUSHER_PROTOCOLS: std::ops::RangeInclusive<u32> = 5..=7;

/// A route for each dialect. Pusher's clients may put a path of their own before it.
pub fn routes(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/socket/websocket", "GET").route(web::get().to(phoenix)))
        .service(resource("/realtime/v1/websocket", "GET").route(web::get().to(supabase)))
        .service(resource("/app/{key}", "GET").route(web::get().to(pusher)))
        .service(resource("/{path:.+}/app/{key}", "GET").route(web::get().to(pusher)));
}

async fn phoenix(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, actix_web::Error> {
    let (admitted, place) = admit(&request, &state).await?;
    let opening = Opening {
        names: Names::Phoenix,
        params: params(&request, &state)?,
        strict: state.config.auth == AuthMode::Session,
        proven_names: needs_proof(&state),
        counts: false,
        activity_timeout: None,
    };
    open(&request, payload, opening, admission(admitted, place))
}

async fn supabase(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, actix_web::Error> {
    let (admitted, place) = admit(&request, &state).await?;
    // Its clients name themselves in each join.
    let params = ConnectParams { format: params(&request, &state)?.format, ..ConnectParams::none() };
    let opening = Opening {
        names: Names::Supabase,
        params,
        strict: state.config.auth == AuthMode::Session,
        proven_names: needs_proof(&state),
        counts: false,
        activity_timeout: None,
    };
    open(&request, payload, opening, admission(admitted, place))
}

/// Unknown keys and versions are told by a close after the upgrade: a refused upgrade would be tried for ever.
async fn pusher(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, actix_web::Error> {
    check_upgrade(&request, &state)?;
    state.admission.admit_unproven(&request).await.map_err(Problem::from)?;
    state.is_staying()?;
    state.has_room()?;
    let place = state.admission.place(&request, None).map_err(Problem::from)?;
    let app = match application(&request, &state) {
        Ok(app) => app,
        Err(why) => {
            return connection::turn_away(&request, Dialect::Pusher, why)
                .map_err(|error| Problem::from(error).into());
        }
    };
    let opening = Opening {
        names: Names::Pusher(app),
        params: ConnectParams::none(),
        strict: true,
        proven_names: true,
        counts: state.config.pusher.subscription_count,
        activity_timeout: Some(state.config.pusher.activity_timeout),
    };
    open(&request, payload, opening, connection::Admission { user: None, tie: None, place })
}

/// Whether a name must be proven: where names can be, and stand beside those that applications have signed.
fn needs_proof(state: &AppState) -> bool {
    let config = &state.config;
    config.auth == AuthMode::Session && config.pusher.apps.iter().any(|app| app.bridged)
}

/// The application that a Pusher client asks for, if it speaks a protocol that is known.
fn application(request: &HttpRequest, state: &AppState) -> Result<Arc<crate::config::PusherApp>, Close> {
    let key = request.match_info().get("key").unwrap_or_default();
    let app = state.config.pusher.app_of_key(key).ok_or(Close::NoApplication)?;
    let protocol = request.query_string().split('&').find_map(|pair| pair.strip_prefix("protocol="));
    match protocol.filter(|protocol| !protocol.is_empty()).map(str::parse) {
        None => Err(Close::NoProtocol),
        Some(Ok(version)) if PUSHER_PROTOCOLS.contains(&version) => Ok(Arc::clone(app)),
        Some(_) => Err(Close::UnknownProtocol),
    }
}

fn check_upgrade(request: &HttpRequest, state: &AppState) -> Result<(), Problem> {
    state.is_staying()?;
    if !connection::asks_for_upgrade(request) {
        return Err(Problem::upgrade_required("this path takes WebSockets only"));
    }
    Ok(())
}

/// The checks of a socket that proves who it is with a session or a token, or need not.
async fn admit(request: &HttpRequest, state: &AppState) -> Result<(Admitted, Place), Problem> {
    check_upgrade(request, state)?;
    let admitted = state.admission.admit(request).await?;
    // The checks may have taken a while.
    state.is_staying()?;
    state.has_room()?;
    let user = admitted.identity.as_ref().map(|identity| &identity.user);
    let place = state.admission.place(request, user)?;
    Ok((admitted, place))
}

fn params(request: &HttpRequest, state: &AppState) -> Result<ConnectParams, Problem> {
    ConnectParams::read(request.query_string(), &state.config.limits)
        .map_err(|error| Problem::new(StatusCode::FORBIDDEN, error.to_string()))
}

fn open(
    request: &HttpRequest,
    payload: web::Payload,
    opening: Opening,
    admission: connection::Admission,
) -> Result<HttpResponse, actix_web::Error> {
    let Some(sockets) = request.app_data::<Sockets>() else {
        return Err(actix_web::error::ErrorInternalServerError("no hub on this thread"));
    };
    connection::open(request, payload, sockets, opening, admission)
        .map_err(|error| Problem::from(error).into())
}

fn admission(admitted: Admitted, place: Place) -> connection::Admission {
    let tie = admitted.identity.as_ref().map(Identity::tie);
    connection::Admission { user: admitted.identity.map(|identity| identity.user), tie, place }
}

/// What connections may ask of the node.
pub fn services(state: web::Data<AppState>) -> Rc<dyn Services> {
    Rc::new(OfNode(state))
}

struct OfNode(web::Data<AppState>);

impl Services for OfNode {
    fn read_token(&self, token: Secret) -> LocalBoxFuture<'static, Verdict> {
        let state = self.0.clone();
        async move {
            match state.admission.read(token.expose()).await {
                Caller::User(identity) => Verdict::User { tie: identity.tie(), user: identity.user },
                Caller::Anonymous | Caller::Service => Verdict::Anonymous,
                Caller::Nobody => Verdict::Nobody,
                Caller::Unknown => Verdict::Unknown,
            }
        }
        .boxed_local()
    }

    fn last_said(&self, channel: &str) -> LocalBoxFuture<'static, Option<Arc<Broadcast>>> {
        let (state, channel) = (self.0.clone(), channel.to_owned());
        async move {
            let said = state.last_said.get(&channel).await;
            if said.is_none() {
                state.webhooks.note_cache_miss(&channel);
            }
            said
        }
        .boxed_local()
    }

    fn note_client_event(&self, channel: &str, said: &Broadcast, by: &str) {
        self.0.webhooks.note_client_event(channel, said, by);
    }
}
