//! Sends webhooks: signed, in batches, to every address, each at its own pace, and again where one does not take them.
//!
//! Order is kept for each address. Nothing is kept beyond this process: what could not be sent within five minutes,
//! or is one too many for the queues, is dropped and counted.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::HookEvent;
use super::events::body;
use crate::cluster::wall_clock;
use crate::config::{HookAddress, PusherApp};
use crate::logging::Seldom;
use crate::metrics::Metrics;
use crate::signature;

/// Events that may wait to be put into batches. Transitions wait for room; others are dropped.
const QUEUE: usize = 10_000;
/// Batches that may wait for one address.
const BATCHES: usize = 1_000;
/// Events in a batch, and how long it gathers them.
const BATCH: usize = 100;
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of an answer that are read: it says nothing.
const MAX_ANSWER: u64 = 64 * 1024;
/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a batch is tried, and how long to wait between attempts at first and at last.
const TRY_FOR: Duration = Duration::from_secs(300);
const WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// An event, and whose it is.
type Waiting = (Arc<PusherApp>, HookEvent);

/// One signed call.
struct Batch {
    key: String,
    signature: String,
    body: Vec<u8>,
    events: usize,
}

/// The way into the queue. Clones share it.
#[derive(Clone)]
pub struct Sender {
    queue: mpsc::Sender<Waiting>,
    /// Events that are neither sent nor given up.
    open: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

/// The other end of it, for [`run`].
pub struct Queue(mpsc::Receiver<Waiting>);

#[cfg(test)]
impl Queue {
    /// What waits.
    pub fn take(&mut self) -> Vec<HookEvent> {
        std::iter::from_fn(|| self.0.try_recv().ok()).map(|(_, event)| event).collect()
    }
}

impl Sender {
    /// An empty queue.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Queue) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue, open: Arc::default(), metrics }, Queue(waiting))
    }

    /// Queues an event of `app` as soon as there is room. Where events wait for room, they are not lost for a
    /// moment in which there are many: batches leave faster than they are made.
    pub async fn tell_all(&self, app: &Arc<PusherApp>, events: impl IntoIterator<Item = HookEvent>) {
        for event in events {
            self.open.fetch_add(1, Ordering::Relaxed);
            if self.queue.send((Arc::clone(app), event)).await.is_err() {
                self.close(1, "dropped");
            }
        }
    }

    /// Queues an event of `app`, if there is room.
    pub fn tell(&self, app: &Arc<PusherApp>, event: HookEvent) {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send((Arc::clone(app), event)).is_err() {
            self.close(1, "dropped");
        }
    }

    /// Whether nothing waits.
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// So many events are done with.
    fn close(&self, events: usize, outcome: &'static str) {
        self.open.fetch_sub(events, Ordering::Relaxed);
        self.metrics.webhooks.get_or_create(&[("outcome", outcome)]).inc_by(events as u64);
        if outcome == "dropped" {
            static DROPPED: Seldom = Seldom::new();
            if let Some(times) = DROPPED.count() {
                tracing::warn!(
                    times,
                    "webhooks were dropped: more than their receiver takes, or than can wait"
                );
            }
        }
    }
}

/// Sends for ever. Must be called on a thread of actix.
pub async fn run(sender: Sender, Queue(mut waiting): Queue, addresses: Vec<HookAddress>) {
    let lines: Vec<_> = addresses
        .into_iter()
        .map(|address| {
            let (queue, batches) = mpsc::channel::<Arc<Batch>>(BATCHES);
            actix::spawn(send_to(address, sender.clone(), batches));
            queue
        })
        .collect();
    let mut events: Vec<Waiting> = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut events, BATCH).await > 0 {
        if events.len() < BATCH {
            tokio::time::sleep(GATHER).await;
        }
        while events.len() < BATCH
            && let Ok(event) = waiting.try_recv()
        {
            events.push(event);
        }
        for batch in batches(std::mem::take(&mut events)) {
            // Counted once for each address.
            sender.open.fetch_add(batch.events * lines.len(), Ordering::Relaxed);
            sender.open.fetch_sub(batch.events, Ordering::Relaxed);
            let batch = Arc::new(batch);
            for line in &lines {
                if line.try_send(Arc::clone(&batch)).is_err() {
                    sender.close(batch.events, "dropped");
                }
            }
        }
    }
}

/// The events of each application in a call of its own, in their order.
fn batches(events: Vec<Waiting>) -> Vec<Batch> {
    let mut apps: Vec<(Arc<PusherApp>, Vec<HookEvent>)> = Vec::new();
    for (app, event) in events {
        match apps.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &app)) {
            Some((_, events)) => events.push(event),
            None => apps.push((app, vec![event])),
        }
    }
    let batch = |(app, events): (Arc<PusherApp>, Vec<HookEvent>)| {
        let body = body(wall_clock(), &events);
        let signature = signature::sign(&app, &body);
        Batch { key: app.key.clone(), signature, body, events: events.len() }
    };
    apps.into_iter().map(batch).collect()
}

async fn send_to(address: HookAddress, sender: Sender, mut batches: mpsc::Receiver<Arc<Batch>>) {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .max_redirects(0)
        .http_status_as_error(false)
        .user_agent("Rollcall");
    let client = config.build().new_agent();
    let spread = Cell::new(crate::presence::NodeId::random().number());
    while let Some(batch) = batches.recv().await {
        let (began, mut wait) = (Instant::now(), WAIT.0);
        let outcome = loop {
            let (client, url, batch) = (client.clone(), address.url(), Arc::clone(&batch));
            let posted = tokio::task::spawn_blocking(move || post(&client, &url, &batch)).await;
            match posted.unwrap_or(Err(Failure::Unreached)) {
                Ok(()) => break "sent",
                Err(_) if began.elapsed() > TRY_FOR => break "dropped",
                Err(error) => {
                    sender.metrics.webhooks.get_or_create(&[("outcome", "retried")]).inc();
                    tracing::debug!(?address, %error, "a webhook was not taken; will try again");
                }
            }
            // From half to one and a half of it, so that receivers are not met by all nodes at once.
            spread.set(spread.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            let share = (spread.get() >> 33) as f64 / f64::from(u32::MAX >> 1);
            tokio::time::sleep(wait.mul_f64(0.5 + share)).await;
            wait = (wait * 2).min(WAIT.1);
        };
        sender.close(batch.events, outcome);
    }
}

/// Why a batch was not taken. The library's own errors may name the address, where there may be something secret.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("status {0}")]
    Status(u16),
    #[error("no answer in time")]
    Late,
    #[error("no connection, or no answer")]
    Unreached,
}

fn post(client: &ureq::Agent, url: &str, batch: &Batch) -> Result<(), Failure> {
    // Exactly this type: the libraries refuse it with a charset.
    let call = client
        .post(url)
        .header("Content-Type", "application/json")
        .header("X-Pusher-Key", batch.key.as_str())
        .header("X-Pusher-Signature", &batch.signature);
    match call.send(&batch.body[..]) {
        Ok(mut answer) => {
            // Read to its end, so that the connection can be used again.
            let _ = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
            let status = answer.status();
            if status.is_success() { Ok(()) } else { Err(Failure::Status(status.as_u16())) }
        }
        Err(ureq::Error::Timeout(_)) => Err(Failure::Late),
        Err(_) => Err(Failure::Unreached),
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
