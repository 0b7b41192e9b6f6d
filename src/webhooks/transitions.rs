//! Who came, who left, which channel is occupied: each transition told once, whichever nodes have seen it.
//!
//! What the backends were told last stands in Redis beside what is (`cache:pusher:told:{channel}`, a set of users,
//! the empty one for "occupied"). Every node that sees a change asks one script to compare the two: it makes them
//! equal and answers what it changed, and who is answered tells. So a transition is told by one node; of one that
//! was undone before anybody asked, nothing is told. A sweep, by one node at a time, finds what nobody saw, such as
//! the members of a node that died alone. Without Redis the same is compared in memory.
//!
//! **When Redis is away**, questions wait for it, 10,000 at most; of more, the sweep finds out. **When Redis has
//! forgotten everything**, each node notices by a mark of its own that is gone, and tells Redis what was told as far
//! as it knows: whoever it shows was told of, but for what it has just seen. Then it rests until all nodes have
//! written again who is there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::events::owner;
use super::sender::Sender;
use super::{HookEvent, Known};
use crate::cluster::keys::Keys;
use crate::config::PusherApp;
use crate::dialects::Kind;
use crate::keys;
use crate::lock::DistributedLock;
use crate::redis_pool::{RedisError, RedisPool};

/// Stands in the set for a channel that is occupied.
const OCCUPIED: &str = "";
/// The channels of which something was told: a set.
const INDEX: &str = "cache:pusher:told";
/// How long a Redis that was emptied is given to know again who is there: nodes write that within a lease's life.
const REWRITTEN: Duration = Duration::from_secs(5);
/// How long what was told is remembered after the last question or sweep.
const TOLD_FOR: Duration = Duration::from_secs(86_400);
/// Questions that may wait to be asked, and changes that may wait to become questions.
const QUEUE: usize = 10_000;
const SEEN: usize = 100_000;
/// How often waiting questions are asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How soon, and how often, a question is asked again whose answer is not what was seen: the write that made it so
/// may be on its way.
const AGAIN: Duration = Duration::from_millis(250);
const TRIES: u32 = 8;
/// How often everything is compared.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// For how long one node alone sweeps, in seconds.
const SWEEP_LOCK: u64 = 30;
/// Users in one question.
const CHUNK: usize = 200;

static COMPARE: LazyLock<redis::Script> =
    LazyLock::new(|| redis::Script::new(include_str!("../scripts/webhooks_compare.lua")));

/// Something that a node has seen.
pub struct Seen {
    pub channel: Arc<str>,
    /// The user, or [`OCCUPIED`], and whether it is there.
    pub what: Vec<(Arc<str>, bool)>,
}

/// A question that waits.
pub struct Question {
    expected: bool,
    tries: u32,
    at: Instant,
}

/// What one comparison found.
#[derive(Default)]
struct Compared {
    /// What has changed since it was told: whether it is there now.
    flipped: Vec<(Arc<str>, bool)>,
    /// Of what was asked, whether it is there.
    is_there: HashMap<Arc<str>, bool>,
    subscribers: usize,
}

/// Where it stands what was told.
pub enum Told {
    Shared {
        pool: RedisPool,
        keys: Keys,
        /// Whether this node has left its mark.
        is_marked: bool,
        /// Until when nothing is asked, since Redis does not know yet who is there.
        rests_until: Option<Instant>,
    },
    /// By channel.
    Own(HashMap<Arc<str>, HashSet<Arc<str>>>),
}

/// What waits to be asked, by channel.
pub type Questions = HashMap<Arc<str>, HashMap<Arc<str>, Question>>;

/// Everything that tells transitions.
pub struct Transitions {
    pub apps: Vec<Arc<PusherApp>>,
    pub counts: bool,
    pub known: Known,
    pub told: Told,
    pub sender: Sender,
}

/// The queue of what was seen.
pub fn queue() -> (mpsc::Sender<Seen>, mpsc::Receiver<Seen>) {
    mpsc::channel(SEEN)
}

/// Tells for ever, and says in `open` how many questions wait.
pub async fn run(mut transitions: Transitions, mut seen: mpsc::Receiver<Seen>, open: Arc<AtomicUsize>) {
    let mut questions = Questions::new();
    let mut waiting = 0;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sweep = Instant::now() + SWEEP_EVERY;
    loop {
        tokio::select! {
            next = seen.recv() => {
                let Some(Seen { channel, what }) = next else { return };
                if waiting < QUEUE {
                    let of_channel = questions.entry(channel).or_default();
                    let before = of_channel.len();
                    for (what, expected) in what {
                        of_channel.insert(what, Question { expected, tries: 0, at: Instant::now() });
                    }
                    waiting += of_channel.len() - before;
                    open.store(waiting, Ordering::Relaxed);
                }
                // Asked without waiting for the tick, which would have to let some go.
                if waiting < QUEUE {
                    continue;
                }
            }
            _ = look.tick() => {}
        }
        let is_time = sweep <= Instant::now();
        if (waiting == 0 && !is_time) || !transitions.may_ask(&questions).await {
            continue;
        }
        transitions.ask(&mut questions).await;
        waiting = questions.values().map(HashMap::len).sum();
        open.store(waiting, Ordering::Relaxed);
        if is_time {
            sweep = Instant::now() + SWEEP_EVERY;
            if let Err(error) = transitions.sweep().await {
                tracing::debug!(%error, "webhooks could not be compared");
            }
        }
    }
}

impl Transitions {
    /// Whether what was told and what is can be compared now. If Redis has forgotten what was told, it is told again
    /// what that was.
    async fn may_ask(&mut self, questions: &Questions) -> bool {
        let Told::Shared { pool, keys, is_marked, rests_until } = &mut self.told else { return true };
        let (pool, keys) = (pool.clone(), *keys);
        let mark = format!("{INDEX}:by:{}", self.known.node);
        let life = TOLD_FOR.as_secs();
        match pool.query::<bool>(redis::cmd("EXPIRE").arg(&mark).arg(life)).await {
            Ok(true) => {}
            Ok(false) => {
                if *is_marked {
                    *rests_until = Some(Instant::now() + REWRITTEN);
                    if self.recall(&pool, keys, questions).await.is_err() {
                        return false;
                    }
                }
                let set = redis::cmd("SET").arg(&mark).arg(1).arg("EX").arg(life).to_owned();
                let is_set = pool.query::<()>(&set).await.is_ok();
                if let Told::Shared { is_marked, .. } = &mut self.told {
                    *is_marked |= is_set;
                }
            }
            Err(_) => return false,
        }
        match &self.told {
            Told::Shared { rests_until: Some(until), .. } => *until <= Instant::now(),
            _ => true,
        }
    }

    /// Writes what was told, as far as it is known here: that everybody is there who is shown, but for what has
    /// changed just now.
    async fn recall(&self, pool: &RedisPool, keys: Keys, questions: &Questions) -> Result<(), RedisError> {
        let channels: HashSet<Arc<str>> =
            (self.known.channels)().into_iter().chain(questions.keys().cloned()).collect();
        let mut pipeline = redis::pipe();
        for channel in channels {
            if owner(&self.apps, &channel).is_none() {
                continue;
            }
            let asked = questions.get(&channel);
            let expected = |what: &str| asked.and_then(|asked| asked.get(what)).map(|one| one.expected);
            let mut told: HashSet<Arc<str>> = HashSet::new();
            let mut is_occupied = expected(OCCUPIED) == Some(false);
            (self.known.roster)(&channel, &mut |roster| {
                is_occupied |= roster.connections > 0 && expected(OCCUPIED).is_none();
                told.extend(roster.members.iter().map(|member| Arc::clone(&member.user)));
            });
            told.retain(|user| expected(user) != Some(true));
            let gone =
                asked.into_iter().flatten().filter(|(what, one)| !one.expected && &***what != OCCUPIED);
            told.extend(gone.map(|(user, _)| Arc::clone(user)));
            is_occupied |= !told.is_empty();
            if !self.wants_users(&channel) {
                told.clear();
            }
            if is_occupied {
                told.insert(OCCUPIED.into());
                let key = told_key(keys, &channel);
                pipeline
                    .cmd("SADD")
                    .arg(&key)
                    .arg(told.iter().map(|what| &**what).collect::<Vec<_>>())
                    .ignore();
                pipeline.cmd("EXPIRE").arg(&key).arg(TOLD_FOR.as_secs()).ignore();
                pipeline.cmd("SADD").arg(INDEX).arg(&*channel).ignore();
            }
        }
        if pipeline.is_empty() { Ok(()) } else { pool.pipeline(&pipeline).await }
    }

    /// Asks what is due. What has the expected answer, or was asked often enough, is done with.
    async fn ask(&mut self, questions: &mut Questions) {
        let now = Instant::now();
        let mut away = false;
        for (channel, waiting) in questions.iter_mut() {
            let due: Vec<Arc<str>> =
                waiting.iter().filter(|(_, one)| one.at <= now).map(|(what, _)| Arc::clone(what)).collect();
            for chunk in due.chunks(CHUNK) {
                if away {
                    break;
                }
                let Ok(compared) = self.compare(channel, chunk).await else {
                    away = true;
                    break;
                };
                for what in chunk {
                    let is_there = compared.is_there.get(what).copied();
                    let is_done = waiting.get_mut(what).is_some_and(|one| {
                        (one.tries, one.at) = (one.tries + 1, now + AGAIN);
                        is_there == Some(one.expected) || one.tries >= TRIES
                    });
                    if is_done {
                        waiting.remove(what);
                    }
                }
                self.tell(channel, compared).await;
            }
        }
        questions.retain(|_, waiting| !waiting.is_empty());
    }

    /// Makes what was told equal to what is.
    async fn compare(&mut self, channel: &str, what: &[Arc<str>]) -> Result<Compared, RedisError> {
        match &mut self.told {
            Told::Own(told) => {
                let mut compared = Compared::default();
                let what = || what.iter().cloned().chain([OCCUPIED.into()]);
                (self.known.roster)(channel, &mut |roster| {
                    compared.subscribers = roster.connections;
                    compared.is_there.extend(what().map(|what| {
                        let is_occupied = &*what == OCCUPIED && roster.connections > 0;
                        let is_there = is_occupied || roster.member(&what).is_some();
                        (what, is_there)
                    }));
                });
                let of_channel = told.entry(channel.into()).or_default();
                for what in what() {
                    let is_there = *compared.is_there.entry(Arc::clone(&what)).or_default();
                    let has_changed = match is_there {
                        true => of_channel.insert(Arc::clone(&what)),
                        false => of_channel.remove(&what),
                    };
                    if has_changed {
                        compared.flipped.push((what, is_there));
                    }
                }
                if of_channel.is_empty() {
                    told.remove(channel);
                }
                Ok(compared)
            }
            Told::Shared { pool, keys, .. } => {
                let mut call = COMPARE.prepare_invoke();
                call.key(told_key(*keys, channel)).key(keys.users(channel)).arg(TOLD_FOR.as_secs());
                for user in what.iter().filter(|what| &***what != OCCUPIED) {
                    call.key(keys.user(channel, user)).arg(&**user);
                }
                let (flipped, there, subscribers): (Vec<String>, Vec<String>, usize) =
                    pool.script(&call).await?;
                let there: HashSet<&str> = there.iter().map(String::as_str).collect();
                let mut compared = Compared { subscribers, ..Compared::default() };
                for what in what.iter().chain([&OCCUPIED.into()]) {
                    compared.is_there.insert(Arc::clone(what), there.contains(&**what));
                }
                compared.flipped = flipped
                    .iter()
                    .map(|what| (Arc::from(what.as_str()), there.contains(what.as_str())))
                    .collect();
                if compared.flipped.iter().any(|(what, is_there)| &**what == OCCUPIED && *is_there) {
                    // Best done before anything is told: who dies in between leaves a channel that is looked at.
                    // What was found is told all the same.
                    let _ = pool.query::<()>(redis::cmd("SADD").arg(INDEX).arg(channel)).await;
                }
                Ok(compared)
            }
        }
    }

    async fn tell(&self, channel: &str, compared: Compared) {
        let Some((app, name)) = owner(&self.apps, channel) else { return };
        let name = name.into_owned();
        let is_presence = Kind::of(&name) == Kind::Presence;
        let has_count = compared.flipped.iter().any(|(what, _)| &**what != OCCUPIED);
        let mut events: Vec<(u8, HookEvent)> = Vec::new();
        for (what, is_there) in compared.flipped {
            let channel = name.clone();
            // A channel is occupied before somebody is told to be in it, and vacated after.
            match (&*what, is_there) {
                (OCCUPIED, true) => events.push((0, HookEvent::ChannelOccupied { channel })),
                (OCCUPIED, false) => events.push((3, HookEvent::ChannelVacated { channel })),
                (_, true) if is_presence => {
                    events.push((1, HookEvent::MemberAdded { channel, user_id: what }))
                }
                (_, false) if is_presence => {
                    events.push((1, HookEvent::MemberRemoved { channel, user_id: what }))
                }
                _ => {}
            }
        }
        if self.counts && !is_presence && has_count {
            let subscription_count = compared.subscribers;
            events.push((2, HookEvent::SubscriptionCount { channel: name, subscription_count }));
        }
        events.sort_by_key(|(order, _)| *order);
        self.sender.tell_all(app, events.into_iter().map(|(_, event)| event)).await;
    }

    /// Compares everything, if no other node does.
    async fn sweep(&mut self) -> Result<(), RedisError> {
        let Told::Shared { pool, keys, .. } = &self.told else { return Ok(()) };
        let (pool, keys) = (pool.clone(), *keys);
        let mut lock = DistributedLock::new(pool.clone(), "pusher-webhooks", SWEEP_LOCK);
        if !lock.try_acquire().await.unwrap_or(false) {
            return Ok(());
        }
        let result = self.sweep_alone(&pool, keys, &mut lock).await;
        // Left to its time if Redis is away now.
        let _ = lock.release().await;
        result
    }

    async fn sweep_alone(
        &mut self,
        pool: &RedisPool,
        keys: Keys,
        lock: &mut DistributedLock,
    ) -> Result<(), RedisError> {
        for channel in members(pool, INDEX).await? {
            let mut what = members(pool, &told_key(keys, &channel)).await?;
            what.extend(members(pool, &keys.users(&channel)).await?);
            if !self.wants_users(&channel) {
                what.clear();
            }
            what.insert(OCCUPIED.into());
            let what: Vec<Arc<str>> = what.into_iter().map(Arc::from).collect();
            let mut is_occupied = false;
            for chunk in what.chunks(CHUNK) {
                let compared = self.compare(&channel, chunk).await?;
                is_occupied = compared.is_there.get(OCCUPIED) == Some(&true);
                self.tell(&channel, compared).await;
            }
            if !is_occupied {
                pool.query::<()>(redis::cmd("SREM").arg(INDEX).arg(&channel)).await?;
            }
            if !lock.renew().await.unwrap_or(false) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn wants_users(&self, channel: &str) -> bool {
        wants_users(&self.apps, channel, self.counts)
    }
}

/// Whether of `channel` it is told who is in it, and not only that somebody is.
pub fn wants_users(apps: &[Arc<PusherApp>], channel: &str, counts: bool) -> bool {
    owner(apps, channel).is_some_and(|(_, name)| counts || Kind::of(&name) == Kind::Presence)
}

/// The set of what was told of `channel`, in its slot.
fn told_key(keys: Keys, channel: &str) -> String {
    let name = keys::encode(channel);
    if keys.is_tagged() { format!("{INDEX}:{{{name}}}") } else { format!("{INDEX}:{name}") }
}

/// The members of a set, some at a time, so that a large one holds nobody up.
async fn members(pool: &RedisPool, key: &str) -> Result<BTreeSet<String>, RedisError> {
    let (mut all, mut cursor) = (BTreeSet::new(), 0_u64);
    loop {
        let scan = redis::cmd("SSCAN").arg(key).arg(cursor).arg("COUNT").arg(500).to_owned();
        let (next, some): (u64, Vec<String>) = pool.query(&scan).await?;
        all.extend(some);
        cursor = next;
        if cursor == 0 {
            return Ok(all);
        }
    }
}

#[cfg(test)]
#[path = "transitions_tests.rs"]
mod tests;
