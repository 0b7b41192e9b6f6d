//! HTTP: thin handlers over what the rest of the program knows.
//!
//! A handler names the guard its caller must pass, reads its input, asks and writes the answer.
//! Every failure is a [`Problem`]. Counts of channels that live on this node are one look into L1.

mod answer;
mod auth;
mod broadcast;
mod channels;
mod events;
mod explain;
mod guard;
mod input;
mod last_said;
mod openapi;
mod ops;
mod pages;
mod presence;
mod problem;
mod pusher;
mod pusher_demo;
mod remote;
mod sessions;
mod settings;
mod status;

use std::sync::Arc;

use actix_cors::Cors;
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, ORIGIN};
use actix_web::{HttpResponse, Resource, guard as guards, web};

use crate::accounts::Accounts;
use crate::admission::{Admission, origin_allowed};
use crate::channel::{Registry, Rosters};
use crate::cluster::Cluster;
use crate::config::{Config, Origins};
use crate::health::Trouble;
use crate::hub::Hubs;
use crate::lifecycle::{Lifecycle, Stage};
use crate::metrics::Metrics;
use crate::presence::NodeId;
use crate::rate_limit::Allowances;
use crate::redis_pool::RedisPool;
use crate::session::SessionManager;
use crate::settings::Settings;
use crate::webhooks::Webhooks;

pub use guard::{Caller, Guest, Known, Manager};
pub use last_said::LastSaid;
pub use problem::Problem;
pub use remote::Remote;

/// Seconds for which a browser remembers what it may call.
const CORS_MAX_AGE: usize = 3_600;

/// What the handlers work with: one for the process, shared by its threads.
pub struct AppState {
    pub config: Arc<Config>,
    pub rosters: Rosters,
    /// To ask channels what they have not published.
    pub registry: Registry,
    pub cluster: Cluster,
    /// What other nodes hold, read through a short-lived cache.
    pub remote: Remote,
    pub sessions: SessionManager,
    /// None without a database.
    pub accounts: Option<Accounts>,
    /// None without a database.
    pub settings: Option<Settings>,
    /// To close the sockets of a session that is revoked.
    pub hubs: Hubs,
    pub admission: Admission,
    /// For Pusher's channels that remember it.
    pub last_said: LastSaid,
    pub webhooks: Webhooks,
    /// None without Redis.
    pub pool: Option<RedisPool>,
    pub metrics: Arc<Metrics>,
    pub lifecycle: Arc<Lifecycle>,
    pub node: NodeId,
}

impl AppState {
    /// Whether one more socket or event stream may be opened.
    ///
    /// # Errors
    /// The problem to answer with where there are as many as there may be.
    pub fn has_room(&self) -> Result<(), Problem> {
        if self.metrics.open() < self.config.limits.max_connections as i64 {
            return Ok(());
        }
        self.metrics.quota_refusals.inc();
        self.metrics.health.set(Trouble::ConnectionsFull, "");
        Err(Problem::busy("this node has as many connections as it may"))
    }

    /// Whether this node is not on its way out.
    ///
    /// # Errors
    /// The problem to answer with where it is.
    pub fn is_staying(&self) -> Result<(), Problem> {
        match self.lifecycle.stage() {
            Stage::Starting | Stage::Ready => Ok(()),
            Stage::Draining | Stage::Stopped => Err(Problem::going_away()),
        }
    }
}

/// Adds routes.
type Routes = fn(&mut web::ServiceConfig);

/// Mounts everything but the sockets, whose routes must come before: what is found nowhere else is
/// answered here with 404.
pub fn configure(cfg: &mut web::ServiceConfig, state: web::Data<AppState>) {
    let origins = state.config.origins.clone();
    cfg.app_data(state)
        .app_data(web::PayloadConfig::new(input::MAX_BODY))
        .configure(pages::routes)
        .service(resource("/healthz", "GET, HEAD").route(get_or_head().to(ops::healthz)))
        .service(resource("/readyz", "GET, HEAD").route(get_or_head().to(ops::readyz)))
        .service(resource("/metrics", "GET, HEAD").route(get_or_head().to(ops::metrics)));
    let scopes: [(&str, Routes); 4] =
        [("/v1", v1), ("/auth/v1", auth), ("/realtime/v1/api", realtime), ("/pusher", pusher_demo)];
    for (prefix, routes) in scopes {
        // Twice: what no browser sent does not pay for CORS.
        let from_browser = guards::fn_guard(|ctx| ctx.head().headers().contains_key(ORIGIN));
        let browsers = web::scope(prefix).guard(from_browser).configure(routes).wrap_fn(tell_allowances);
        cfg.service(browsers.wrap(cors(&origins)))
            .service(web::scope(prefix).configure(routes).wrap_fn(tell_allowances));
    }
    // For backends: no browser of another origin may call it.
    cfg.service(web::scope("/apps/{id}").configure(apps));
    cfg.service(web::resource("/socket/longpoll").wrap(cors(&origins)).to(no_long_poll))
        .default_service(web::to(problem::not_found));
}

/// What is left of the caller's allowance goes with every answer.
fn tell_allowances<S, B>(
    request: ServiceRequest,
    service: &S,
) -> impl Future<Output = Answered<B>> + use<S, B>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
{
    let answer = service.call(request);
    async move {
        let mut answer = answer.await?;
        let allowances = Allowances::noted(answer.request());
        allowances.write(answer.response_mut().headers_mut());
        Ok(answer)
    }
}

type Answered<B> = Result<ServiceResponse<B>, actix_web::Error>;

/// Answers Phoenix clients that fall back to long polling: any JSON here would make them throw.
async fn no_long_poll() -> HttpResponse {
    HttpResponse::NotFound().content_type("text/plain; charset=utf-8").body("long polling is not available")
}

fn v1(cfg: &mut web::ServiceConfig) {
    cfg.service(
        resource("/channels/{channel}/presence/count", "GET, HEAD").route(get_or_head().to(presence::count)),
    )
    .service(resource("/channels/{channel}/presence/events", "GET").route(web::get().to(events::events)))
    .service(resource("/channels/{channel}/presence", "GET, HEAD").route(get_or_head().to(presence::members)))
    .service(resource("/channels", "GET, HEAD").route(get_or_head().to(channels::list)))
    .service(resource("/presence/counts", "POST").route(web::post().to(presence::counts)))
    .service(resource("/users/{user}/presence", "GET, HEAD").route(get_or_head().to(presence::user)))
    .service(
        resource("/users/{user}/sessions", "GET, HEAD, DELETE")
            .route(get_or_head().to(sessions::list))
            .route(web::delete().to(sessions::revoke_all)),
    )
    .service(
        resource("/channels/{channel}/settings", "GET, HEAD, PUT, DELETE")
            .route(get_or_head().to(settings::of_channel))
            .route(web::put().to(settings::set_channel))
            .route(web::delete().to(settings::clear_channel)),
    )
    .service(
        resource("/settings", "GET, HEAD, PUT")
            .route(get_or_head().to(settings::all))
            .route(web::put().to(settings::set_project)),
    )
    .service(resource("/channels/{channel}/stats", "GET, HEAD").route(get_or_head().to(channels::statistics)))
    .service(
        resource("/channels/{channel}/presence/nearby", "GET, HEAD")
            .route(get_or_head().to(presence::nearby)),
    )
    .service(resource("/users/status", "POST").route(web::post().to(status::of_many)))
    .service(resource("/users/{user}/status", "GET, HEAD").route(get_or_head().to(status::of_one)))
    .service(resource("/sessions", "POST").route(web::post().to(sessions::create)))
    .service(resource("/sessions/{token}", "DELETE").route(web::delete().to(sessions::revoke)));
}

fn auth(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/signup", "POST").route(web::post().to(auth::sign_up)))
        .service(resource("/token", "POST").route(web::post().to(auth::sign_in)))
        .service(resource("/logout", "POST").route(web::post().to(auth::sign_out)))
        .service(resource("/user", "GET, HEAD").route(get_or_head().to(auth::whoami)));
}

fn realtime(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/broadcast", "POST").route(web::post().to(broadcast::many)))
        .service(resource("/broadcast/{topic}/events/{event}", "POST").route(web::post().to(broadcast::one)));
}

fn pusher_demo(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/auth", "POST").route(web::post().to(pusher_demo::channel)))
        .service(resource("/user-auth", "POST").route(web::post().to(pusher_demo::user)));
}

fn apps(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/events", "POST").route(web::post().to(pusher::trigger)))
        .service(resource("/batch_events", "POST").route(web::post().to(pusher::trigger_batch)))
        .service(resource("/channels", "GET, HEAD").route(get_or_head().to(pusher::channels)))
        .service(resource("/channels/{channel}", "GET, HEAD").route(get_or_head().to(pusher::channel)))
        .service(resource("/channels/{channel}/users", "GET, HEAD").route(get_or_head().to(pusher::users)))
        .service(
            resource("/users/{user}/terminate_connections", "POST").route(web::post().to(pusher::terminate)),
        );
}

/// A path whose other methods than those in `allow` are answered with 405.
pub fn resource(path: &str, allow: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || problem::wrong_method(allow)))
}

fn get_or_head() -> actix_web::Route {
    web::route().guard(guards::Any(guards::Get()).or(guards::Head()))
}

/// What browsers on other origins may call and see. Whether they are served at all is admission's.
pub fn cors(origins: &Origins) -> Cors {
    let cors = match origins.clone() {
        Origins::Any => Cors::default().allow_any_origin().send_wildcard(),
        Origins::Same => Cors::default(),
        listed => Cors::default().supports_credentials().allowed_origin_fn(move |origin, _| {
            origin.to_str().is_ok_and(|origin| origin_allowed(&listed, origin, None))
        }),
    };
    let ask = [
        "authorization",
        "content-type",
        "apikey",
        "x-client-info",
        "x-supabase-api-version",
        "last-event-id",
    ];
    let see = ["retry-after", "ratelimit", "ratelimit-policy"];
    cors.allowed_methods(["GET", "HEAD", "POST", "PUT", "DELETE"])
        .allowed_headers(ask.map(HeaderName::from_static))
        .expose_headers(see.map(HeaderName::from_static))
        .max_age(CORS_MAX_AGE)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
