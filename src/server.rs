//! Assembly: puts the parts together, runs them, and takes them apart in order.

use std::cell::OnceCell;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use actix::Arbiter;
use actix_web::dev::{Extensions, ServerHandle};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::channel::{Registry, Rosters, Shared};
use crate::cluster::{Cluster, LocalCluster, RedisCluster, Ttls};
use crate::config::Config;
use crate::connection::{self, Admission, ConnectParams, Sockets};
use crate::hub::{Drain, Hubs, SharedHub};
use crate::lifecycle::{Lifecycle, Stage};
use crate::metrics::Metrics;
use crate::presence::{Ids, NodeId};
use crate::redis_pool::RedisPool;

/// Connections that may wait to be accepted. The kernel's own bound may be lower.
const BACKLOG: i32 = 8_192;
/// A peer that acknowledges nothing for this long is gone: frees the socket of a reader that stalls.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Sockets are told to go over this time when the node drains.
const DRAIN_OVER: Duration = Duration::from_secs(3);

/// An address could not be listened on.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ROLLCALL_LISTEN: cannot listen on {}: {}", self.address, self.source)
    }
}

impl std::error::Error for BindError {}

/// Listens on every address.
///
/// # Errors
/// The first address that cannot be had, and why.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BindError> {
    addresses.iter().map(|at| listen(*at).map_err(|source| BindError { address: *at, source })).collect()
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node must get its port back at once.
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Ends when the process is asked to stop (SIGTERM or SIGINT).
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // Without the signal there is still the other one.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}

thread_local! {
    /// The hub of this worker thread, shared by all listeners.
    static HUB: OnceCell<SharedHub> = const { OnceCell::new() };
}

/// Runs a node until `stop` ends, then drains it. Must be called in an actix system.
///
/// # Errors
/// What the HTTP server could not do.
pub async fn run(config: Config, listeners: Vec<TcpListener>, stop: impl Future<Output = ()>) -> io::Result<()> {
    let metrics = Arc::new(Metrics::new());
    let lifecycle = Arc::new(Lifecycle::default());
    let ids = Ids::new(NodeId::random());
    let shared = Arc::new(Shared {
        ids: ids.clone(),
        grace: config.grace,
        heartbeat: config.presence_ttl / 3,
        rosters: Rosters::default(),
        cluster: cluster(&config, ids.node(), &metrics),
        metrics: Arc::clone(&metrics),
    });
    let arbiters = (0..config.workers.div_ceil(4)).map(|_| Arbiter::new().handle()).collect();
    let registry = Registry::new(shared, arbiters);
    let hubs = Hubs::default();
    let limits = Arc::new(config.limits.clone());
    let (r, h, m) = (registry.clone(), hubs.clone(), Arc::clone(&metrics));
    let mut server = HttpServer::new(move || {
        let hub = HUB.with(|cell| cell.get_or_init(|| h.start_here(r.clone(), Arc::new(|_, _| {}))).clone());
        let sockets = Sockets { hub, limits: Arc::clone(&limits), metrics: Arc::clone(&m) };
        App::new()
            .app_data(sockets)
            .route("/healthz", web::get().to(|| async { HttpResponse::Ok().body("ok") }))
            .route("/socket/websocket", web::get().to(socket))
    })
    .workers(config.workers)
    .h1_write_buffer_size(16 * 1024)
    .client_disconnect_timeout(Duration::from_secs(1))
    .shutdown_timeout(1)
    .max_connections(config.limits.max_connections)
    .on_connect(on_connect)
    .disable_signals();
    for listener in listeners {
        server = server.listen(listener)?;
    }
    let server = server.run();
    let handle = server.handle();
    let running = actix::spawn(server);
    lifecycle.enter(Stage::Ready);
    tracing::info!(node = %ids.node(), addresses = ?config.listen, "ready");
    stop.await;
    drain(&config, &lifecycle, &handle, &hubs, &registry, &metrics).await;
    running.await.map_err(io::Error::other)?
}

/// The way to the other nodes, if there are any.
fn cluster(config: &Config, node: NodeId, metrics: &Arc<Metrics>) -> Cluster {
    let Some(url) = &config.redis_url else { return Cluster::Local(LocalCluster::new(config.last_seen_ttl)) };
    let ttls = Ttls { presence: config.presence_ttl, node: config.node_ttl, last_seen: config.last_seen_ttl };
    let pool = RedisPool::new(url).expect("checked");
    Cluster::Redis(RedisCluster::start(
        node,
        url.clone(),
        pool,
        ttls,
        Arc::clone(metrics),
        Arc::new(|_| {}),
        Arbiter::new().handle(),
    ))
}

async fn drain(config: &Config, lifecycle: &Lifecycle, handle: &ServerHandle, hubs: &Hubs, registry: &Registry, metrics: &Metrics) {
    tracing::info!(connections = metrics.connections.get(), "draining");
    lifecycle.enter(Stage::Draining);
    handle.pause().await;
    if metrics.connections.get() > 0 {
        hubs.tell(Drain { over: DRAIN_OVER });
        until(DRAIN_OVER + Duration::from_secs(1), || metrics.connections.get() == 0).await;
        // Whoever comes back elsewhere within the grace is not seen to leave.
        until(config.grace.min(Duration::from_secs(2)), || metrics.members.get() == 0).await;
    }
    registry.drain();
    until(Duration::from_secs(1), || metrics.members.get() == 0).await;
    let left = tokio::time::timeout(Duration::from_secs(2), registry.shared().cluster.leave()).await;
    if left.is_err() {
        tracing::warn!("Redis did not answer in time; the others will notice by the lease that this node is gone");
    }
    handle.stop(true).await;
    tracing::info!("stopped");
}

/// Waits until `done`, at most for `most`.
async fn until(most: Duration, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() && start.elapsed() < most {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn on_connect(connection: &dyn std::any::Any, _: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>() {
        let socket = SockRef::from(stream);
        // Both only make dead peers go sooner; without them the sweep finds them.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    }
}

async fn socket(request: HttpRequest, payload: web::Payload) -> actix_web::Result<HttpResponse> {
    let Some(sockets) = request.app_data::<Sockets>() else {
        return Ok(HttpResponse::InternalServerError().finish());
    };
    let Ok(params) = ConnectParams::read(request.query_string(), &sockets.limits) else {
        return Ok(HttpResponse::Forbidden().finish());
    };
    Ok(connection::open(&request, payload, sockets, params, Admission { user: None, tie: None })?)
}
