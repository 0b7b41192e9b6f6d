//! The server: HTTP and WebSockets around a node, and the order in which a node goes away.

use std::cell::OnceCell;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use actix_web::dev::{Extensions, ServerHandle};
use actix_web::{App, HttpServer, web};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::admission::Admission;
use crate::config::{Config, DatabaseAddress};
use crate::connection::Sockets;
use crate::health::Trouble;
use crate::http::{self, AppState, LastSaid, Remote};
use crate::hub::{Drain, SharedHub};
use crate::jwt::JwtVerifier;
use crate::lifecycle::Stage;
use crate::node::Node;
use crate::quota::Quotas;
use crate::rate_limit::RateLimiter;
use crate::sockets;

/// Connections that may wait to be accepted. The kernel's own bound may be lower.
const BACKLOG: i32 = 8_192;
/// A peer that acknowledges nothing for this long is gone: frees the socket of a reader that stalls.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Sockets are told to go over this time when the node drains.
const DRAIN_OVER: Duration = Duration::from_secs(3);
/// What the engine gathers before it writes to a socket: enough for many small frames, and little
/// enough that ten thousand connections that were busy once do not keep much.
const WRITE_BUFFER: usize = 16 * 1024;

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

/// Ends when the process is asked to stop (SIGTERM or SIGINT). Asked again, the process ends at once.
pub async fn stop_signal() {
    signalled().await;
    actix::spawn(async {
        signalled().await;
        tracing::warn!("asked to stop twice: ending at once");
        std::process::exit(1);
    });
}

async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // Without this signal there is still the other one.
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
/// What the node or the HTTP server could not do.
pub async fn run(
    config: Config,
    listeners: Vec<TcpListener>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    raise_file_limit();
    warn_of_risks(&config);
    let node = Node::start(config).map_err(io::Error::other)?;
    let config = Arc::clone(&node.config);
    // A file that cannot be made will not be made later; a server may just not be there yet.
    if let Some(database) =
        node.database.as_ref().filter(|_| config.database.as_ref().is_some_and(DatabaseAddress::is_file))
    {
        database.prepare().await.map_err(|error| io::Error::other(format!("DATABASE_URL: {error}")))?;
    }
    let state = web::Data::new(app_state(&node));
    let (registry, hubs, check) = (node.registry.clone(), node.hubs.clone(), node.session_check());
    let (limits, metrics) = (Arc::new(config.limits.clone()), Arc::clone(&node.metrics));
    let mut server = HttpServer::new(move || {
        let hub = HUB.with(|cell| {
            let start = || hubs.start_here(registry.clone(), Arc::clone(&check));
            cell.get_or_init(start).clone()
        });
        let state = state.clone();
        let sockets = Sockets {
            hub,
            limits: Arc::clone(&limits),
            metrics: Arc::clone(&metrics),
            services: sockets::services(state.clone()),
        };
        App::new()
            .app_data(sockets)
            .configure(sockets::routes)
            .configure(move |cfg| http::configure(cfg, state))
    })
    .workers(config.workers)
    .h1_write_buffer_size(WRITE_BUFFER)
    // Who closes its half has gone: an event stream to it would else go on until a write fails.
    .h1_allow_half_closed(false)
    .client_disconnect_timeout(Duration::from_secs(1))
    .shutdown_timeout(1)
    // Over our own limit a client is told so; the engine would let it wait without a word.
    .max_connections(config.limits.max_connections.saturating_add(BACKLOG as usize))
    .on_connect(on_connect)
    .disable_signals();
    for listener in listeners {
        server = server.listen(listener)?;
    }
    let server = server.run();
    let handle = server.handle();
    let running = actix::spawn(server);
    node.lifecycle.enter(Stage::Ready);
    tracing::info!(node = %node.id, addresses = ?config.listen, "ready");
    stop.await;
    tokio::join!(drain(&node, &handle), tell_how_many_are_left(&node));
    running.await.map_err(io::Error::other)?
}

fn app_state(node: &Node) -> AppState {
    let shared = node.registry.shared();
    let admission = Admission {
        config: Arc::clone(&node.config),
        sessions: node.sessions.clone(),
        jwt: JwtVerifier::counted(node.config.jwt_secret.as_ref(), &node.config.jwt_keys, &node.metrics),
        limiter: RateLimiter::new(node.pool.clone()),
        quotas: Quotas::of(&node.config.limits),
        metrics: Arc::clone(&node.metrics),
    };
    AppState {
        config: Arc::clone(&node.config),
        rosters: shared.rosters.clone(),
        registry: node.registry.clone(),
        cluster: shared.cluster.clone(),
        remote: Remote::new(shared.cluster.clone(), Arc::clone(&node.metrics)),
        sessions: node.sessions.clone(),
        accounts: node.accounts.clone(),
        settings: node.settings.clone(),
        hubs: node.hubs.clone(),
        admission,
        last_said: LastSaid::new(&node.caches),
        webhooks: shared.webhooks.clone(),
        pool: node.pool.clone(),
        metrics: Arc::clone(&node.metrics),
        lifecycle: Arc::clone(&node.lifecycle),
        node: node.id,
    }
}

/// A socket is a file: as many as the system lets the process have, not the thousand it begins with.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        tracing::warn!(limit = ?current, "the limit of open files could not be raised");
    }
}

/// Says what works and is nevertheless a risk.
fn warn_of_risks(config: &Config) {
    for (name, secret) in [("JWT_SECRET", &config.jwt_secret), ("SERVICE_KEY", &config.service_key)] {
        if secret.as_ref().is_some_and(crate::config::Secret::is_weak) {
            tracing::warn!("{name} has fewer than 16 bytes and could be guessed");
        }
    }
    if config.auth == crate::config::AuthMode::Open && !config.loopback_only {
        tracing::warn!(
            "ROLLCALL_AUTH=open beyond loopback: anyone who reaches this address may take any name"
        );
    }
}

/// Not ready, no new sockets; sockets told to go, in slices; own presence taken back and announced; the
/// lease given back; the end. Less than ten seconds. Calls are answered until then: who asks for a socket
/// is told at once to ask elsewhere, and would else wait for a node that never answers.
async fn drain(node: &Node, handle: &ServerHandle) {
    let metrics = &node.metrics;
    tracing::info!(connections = metrics.open(), "draining");
    node.lifecycle.enter(Stage::Draining);
    if metrics.open() > 0 {
        node.hubs.tell(Drain { over: DRAIN_OVER });
        until(DRAIN_OVER + Duration::from_secs(1), || metrics.open() == 0).await;
    }
    // Whoever comes back elsewhere within the grace is not seen to leave.
    until(node.config.grace.min(Duration::from_secs(2)), || metrics.members.get() == 0).await;
    node.registry.drain();
    until(Duration::from_secs(1), || metrics.members.get() == 0).await;
    let leaving = node.registry.shared().cluster.leave();
    if tokio::time::timeout(Duration::from_secs(2), leaving).await.is_err() {
        tracing::warn!(
            "Redis did not answer in time: the others will see by the lease that this node is gone"
        );
    }
    node.registry.shared().webhooks.flush().await;
    handle.stop(true).await;
    node.lifecycle.enter(Stage::Stopped);
    tracing::info!("stopped");
}

/// Until the node has stopped, for whoever watches it.
async fn tell_how_many_are_left(node: &Node) {
    while node.lifecycle.stage() != Stage::Stopped {
        let left =
            format!("{} connections and {} members left", node.metrics.open(), node.metrics.members.get());
        node.metrics.health.set(Trouble::Draining, &left);
        tracing::info!(
            connections = node.metrics.open(),
            members = node.metrics.members.get(),
            "still draining"
        );
        until(Duration::from_secs(1), || node.lifecycle.stage() == Stage::Stopped).await;
    }
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
        // Both only make things quicker; without them the sweep finds dead peers.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    }
}
