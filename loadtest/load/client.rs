//! One client: a socket in one channel, and the view it builds from what the socket says.
//!
//! A task for each client reads; everything else calls the client directly, because the whole load
//! generator is one thread. Nothing borrows across an await.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::phoenix::{self, Message};
use crate::room::Room;
use crate::view::{User, View};
use crate::world::World;
use crate::ws::{self, Kind};

/// How long anything that a server must answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Clients that share a source address: well below the 28,000 ports that Linux gives out by default.
const PER_SOURCE: usize = 4_000;

/// What a client is made of.
#[derive(Clone)]
pub struct Spec {
    pub index: usize,
    pub room: Rc<Room>,
    pub node: usize,
    pub name: String,
    /// Whether arrivals at this client count as latencies.
    pub measures: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connected,
    Joined,
    Leaving,
    Gone,
}

/// What came in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub frames: u64,
    pub presence_frames: u64,
    pub states: u64,
    pub bytes: u64,
    /// Calls that found something to read.
    pub reads: u64,
}

struct Inner {
    phase: Phase,
    view: View,
    counts: Counts,
    /// A frame of which only a part has come.
    part: Vec<u8>,
    last_change: Instant,
    awaiting: Option<oneshot::Sender<()>>,
    /// What the server calls the connection, where it has said so.
    socket: String,
}

pub struct Client {
    spec: Spec,
    pub user: User,
    stream: TcpStream,
    world: Rc<World>,
    inner: RefCell<Inner>,
    reader: Cell<Option<AbortHandle>>,
}

impl Client {
    /// Connects and starts reading; joins nothing yet.
    pub async fn connect(spec: Spec, to: SocketAddr, world: Rc<World>) -> Result<Rc<Self>, String> {
        let name = spec.name.clone();
        let path = spec.room.protocol.path();
        let opening = open(to, spec.index, &path);
        let (stream, part) = match timeout(PATIENCE, opening).await {
            Ok(opened) => opened.map_err(|e| format!("{name}: {e}"))?,
            Err(_) => return Err(format!("{name}: no connection within {PATIENCE:?}")),
        };
        let inner = Inner {
            phase: Phase::Connected,
            view: View::default(),
            counts: Counts::default(),
            part,
            last_change: Instant::now(),
            awaiting: None,
            socket: String::new(),
        };
        let user = spec.room.user(&spec.name);
        let reader = Cell::new(None);
        let client = Rc::new(Self { spec, user, stream, world, inner: RefCell::new(inner), reader });
        // A server may speak first, together with its answer to the upgrade.
        client.read_part()?;
        let task = tokio::task::spawn_local(client.clone().read());
        client.reader.set(Some(task.abort_handle()));
        Ok(client)
    }

    /// Joins and waits for the first state. With `stamped`, others measure when they see it.
    pub async fn join(&self, stamped: bool) -> Result<(), String> {
        let meta = format!(r#"{{"name":"{}","status":"online"}}"#, self.spec.name);
        let Room { topic, protocol, .. } = &*self.spec.room;
        if protocol.needs_socket() && self.inner.borrow().socket.is_empty() {
            self.wait("what the server calls it").await?;
        }
        let frame = protocol.join(topic, &self.spec.name, &meta, &self.inner.borrow().socket);
        if stamped {
            self.spec.room.stamp(self.user, self.spec.node);
        }
        self.ask(&frame, "a state after the join").await?;
        match protocol.track(topic, &meta) {
            Some(track) => self.send(Kind::Text, track.as_bytes()),
            None => Ok(()),
        }
    }

    /// Leaves and waits for the reply, so that the leave cannot be lost with the socket.
    pub async fn leave(&self) -> Result<(), String> {
        self.inner.borrow_mut().phase = Phase::Leaving;
        self.ask(&phoenix::leave(&self.spec.room.topic), "the reply to the leave").await
    }

    /// Closes the socket as a closed tab does, without a word in the channel.
    pub fn close(&self) {
        self.inner.borrow_mut().phase = Phase::Gone;
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }

    /// Closes with a reset: the port is free again at once. For the end of a run.
    pub fn reset(&self) {
        // If it fails, a port stays taken for a minute: no reason to fail.
        let _ = self.stream.set_zero_linger();
        self.close();
    }

    pub fn room(&self) -> &Rc<Room> {
        &self.spec.room
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn counts(&self) -> Counts {
        self.inner.borrow().counts
    }

    /// When this client's view last changed.
    pub fn last_change(&self) -> Instant {
        self.inner.borrow().last_change
    }

    pub fn with_view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.inner.borrow().view)
    }

    async fn ask(&self, frame: &str, what: &str) -> Result<(), String> {
        self.send(Kind::Text, frame.as_bytes())?;
        self.wait(what).await
    }

    /// Waits for what [`Inner::answered`] tells. Nothing comes before it is called: the reader is on this thread.
    async fn wait(&self, what: &str) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.inner.borrow_mut().awaiting = Some(answer);
        match timeout(PATIENCE, answered).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(format!("{}: ended while waiting for {what}", self.spec.name)),
            Err(_) => Err(format!("{}: waited {PATIENCE:?} for {what}", self.spec.name)),
        }
    }

    /// Writes a frame at once: what a client sends is far smaller than a socket's buffer.
    fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), String> {
        let mut frame = Vec::with_capacity(payload.len() + 16);
        ws::encode(&mut frame, kind, payload);
        match self.stream.try_write(&frame) {
            Ok(all) if all == frame.len() => Ok(()),
            Ok(part) => Err(format!("{}: wrote {part} of {} bytes", self.spec.name, frame.len())),
            Err(e) => Err(format!("{}: write: {e}", self.spec.name)),
        }
    }

    /// Handles what came before the reading began.
    fn read_part(&self) -> Result<(), String> {
        let mut inner = self.inner.borrow_mut();
        let mut part = std::mem::take(&mut inner.part);
        let used = self.frames(&mut inner, &part)?;
        part.drain(..used);
        inner.part = part;
        Ok(())
    }

    async fn read(self: Rc<Self>) {
        let ended = loop {
            if let Err(e) = self.stream.readable().await {
                break Err(e.to_string());
            }
            match self.read_some() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        let mut inner = self.inner.borrow_mut();
        inner.phase = Phase::Gone;
        inner.awaiting = None;
        if let Err(e) = ended {
            self.world.error(format!("{}: {e}", self.spec.name));
        }
    }

    /// Takes what the socket has; false when this client has left.
    fn read_some(&self) -> Result<bool, String> {
        let mut buffer = self.world.read_buffer.borrow_mut();
        let n = match self.stream.try_read(&mut buffer) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) => return Err(format!("read: {e}")),
        };
        let mut inner = self.inner.borrow_mut();
        inner.counts.bytes += n as u64;
        inner.counts.reads += 1;
        if inner.part.is_empty() {
            let used = self.frames(&mut inner, &buffer[..n])?;
            inner.part.extend_from_slice(&buffer[used..n]);
        } else {
            let mut part = std::mem::take(&mut inner.part);
            part.extend_from_slice(&buffer[..n]);
            let used = self.frames(&mut inner, &part)?;
            if used < part.len() {
                part.drain(..used);
                inner.part = part;
            }
        }
        Ok(inner.phase != Phase::Gone)
    }

    /// Handles all whole frames at the start of `bytes` and returns how long they are. Whoever has left
    /// does not care for the rest: a server may well say goodbye twice, with a reply and a close.
    fn frames(&self, inner: &mut Inner, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        while inner.phase != Phase::Gone
            && let Some(frame) = ws::decode(&bytes[used..])?
        {
            used += frame.len;
            inner.counts.frames += 1;
            match frame.kind {
                Kind::Text => self.message(inner, frame.payload)?,
                Kind::Ping => self.send(Kind::Pong, frame.payload)?,
                Kind::Pong => {}
                Kind::Close => return Err(format!("closed by the server: {}", ws::start_of(frame.payload))),
            }
        }
        Ok(used)
    }

    fn message(&self, inner: &mut Inner, payload: &[u8]) -> Result<(), String> {
        let message = self.spec.room.read(payload)?;
        let now = Instant::now();
        self.world.frame_came(now);
        let mut arrived = |seat: crate::view::Seat| {
            if !self.spec.measures || seat.user == self.user {
                return;
            }
            if let Some(stamp) = self.spec.room.stamp_of(seat.user) {
                self.world.record(stamp.node, self.spec.node, now.saturating_duration_since(stamp.at));
            }
        };
        match &*message {
            Message::Joined | Message::Taken => {}
            Message::Named(socket) => {
                inner.socket.clone_from(socket);
                inner.answered();
            }
            Message::Left => inner.left()?,
            Message::State(seats) => {
                inner.view.state(seats, &mut arrived);
                inner.counts.states += 1;
                inner.presence(now);
                inner.joined();
            }
            Message::Diff(diff) => {
                inner.view.diff(diff, &mut arrived);
                inner.presence(now);
            }
            Message::Refused(words) => return Err(format!("refused: {words}")),
        }
        Ok(())
    }
}

impl Inner {
    fn presence(&mut self, now: Instant) {
        self.counts.presence_frames += 1;
        self.last_change = now;
    }

    fn joined(&mut self) {
        if self.phase == Phase::Connected {
            self.phase = Phase::Joined;
            self.answered();
        }
    }

    fn left(&mut self) -> Result<(), String> {
        if self.phase != Phase::Leaving {
            return Err("put out of the channel without having asked".to_owned());
        }
        self.phase = Phase::Gone;
        self.answered();
        Ok(())
    }

    fn answered(&mut self) {
        if let Some(answer) = self.awaiting.take() {
            // Whoever asked may have given up.
            let _ = answer.send(());
        }
    }
}

async fn open(to: SocketAddr, index: usize, path: &str) -> Result<(TcpStream, Vec<u8>), String> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(|e| format!("socket: {e}"))?;
    if matches!(to.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        let source = Ipv4Addr::new(127, 0, 1, (index / PER_SOURCE % 250) as u8 + 1);
        socket.bind((source, 0).into()).map_err(|e| format!("bind {source}: {e}"))?;
    }
    let mut stream = socket.connect(to).await.map_err(|e| format!("connect: {e}"))?;
    stream.set_nodelay(true).map_err(|e| format!("no delay: {e}"))?;
    let rest = ws::upgrade(&mut stream, to, path).await?;
    Ok((stream, rest))
}
