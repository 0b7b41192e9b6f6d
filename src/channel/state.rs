//! What a channel does with what it is told: the logic of the channel actor, without the actor.
//!
//! Plain data: inputs come in as method calls with the time as an argument, and what must be done
//! comes out as [`Output`]s. It joins the roster (who is in), the grace (whose seat waits), the
//! pending diff (what viewers must be told) and the catching up with other nodes.
//!
//! Who comes back is seated where the user sat before, on whatever node that was: see
//! [`ChannelState::track`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::grace::Grace;
use crate::cluster::Tally;
use crate::presence::{
    Batch, Change, Diff, Difference, Entry, Heard, Ids, NodeId, Op, Origin, Pending, Reading, Ref, ResumeKey,
    Roster, Seat, Snapshot, Stated,
};

/// How many batches may wait for a reading. Over it they are let go, and another reading follows.
const MAX_BUFFERED: usize = 1_024;
/// How long it is remembered that a user has left of whom an older seat is still known. Longer than the
/// death of that seat's node takes to be noticed.
const CLOSED_FOR: Duration = Duration::from_secs(20);

/// How long an announcement may be on its way that a heartbeat has already told of.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// How long to wait before what could not be read is read again: at first, and at last. The longest is a
/// heartbeat, which would find it too.
const READ_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));

/// Something that must be done outside.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell the other nodes and the shared store: changes, and the digest of the own part after them.
    Announce(Batch, u64),
    /// Read the channel from the shared store; the versions known now go with the question.
    Read(HashMap<NodeId, u64>),
    /// Find out whether this connection lives: then call [`ChannelState::alive`].
    Probe(u64),
}

/// A connection that wants to be present, and who it is.
#[derive(Debug)]
struct Arrival {
    user: Arc<str>,
    meta: Arc<str>,
    resume: Option<ResumeKey>,
    wall: u64,
    /// When it came; none if it was here before.
    at: Option<Instant>,
    /// Its socket has ended before it was seated: at this wall time, at this moment.
    ended: Option<(u64, Instant)>,
}

/// What a connection showed whose seat somebody with the same key has taken: the same client, come back
/// while this connection hangs, or another tab. At its first sign of life it is another one.
#[derive(Debug)]
struct Doubted {
    user: Arc<str>,
    meta: Arc<str>,
    since: u64,
}

/// The seat that an arrival takes.
enum Place {
    /// One of this node's own, waiting or not.
    Own(u64),
    /// Another node's: what shows there goes on here.
    Elsewhere { origin: Origin, shown: Arc<Entry> },
    /// None that is known.
    New,
}

/// Batches that wait until a reading under way has come.
#[derive(Debug, Default)]
struct CatchingUp {
    buffered: Vec<(NodeId, Arc<Batch>)>,
    overflowed: bool,
}

/// What a reading left open: it failed, or nodes that were just writing did not stand there.
#[derive(Debug)]
struct Unread {
    at: Instant,
    /// The parts that were not found, with what is known of them; none if nothing was.
    parts: Option<Vec<(NodeId, u64)>>,
}

/// A part that differed from what its node states.
#[derive(Debug)]
struct Suspect {
    node: NodeId,
    difference: Difference,
    stated: Option<Stated>,
    known: Option<u64>,
}

/// What was found wrong by comparing, and put right. All of it stays 0 where nothing gets lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Seats that were shown here or stood in the store, and that nobody sits on.
    pub ghosts: u64,
    /// Seats that were not shown here or did not stand in the store, and that are taken.
    pub missing: u64,
    /// Announcements that were missed without a sign, so that only a heartbeat told.
    pub skipped: u64,
}

/// One channel on one node.
#[derive(Debug)]
pub struct ChannelState {
    ids: Ids,
    grace_period: Duration,
    roster: Roster,
    /// The seat of each connection that is present.
    seats: HashMap<u64, u64>,
    grace: Grace,
    /// Connections whose seat was taken by somebody with the same key.
    doubted: HashMap<u64, Doubted>,
    /// Who wants to be present and is not seated before it is known who waits here: while not live.
    held: IndexMap<u64, Arrival>,
    /// Origins whose holder has left, with the time at which that is forgotten.
    closed: VecDeque<(Instant, Seat)>,
    pending: Pending,
    /// When the oldest pending change of this node's own happened.
    oldest: Option<Instant>,
    catching_up: Option<CatchingUp>,
    unread: Option<Unread>,
    /// How long to wait before the next of the readings that settle nothing.
    read_after: Duration,
    /// What a heartbeat found to differ, and when to look again.
    suspicion: Option<(Instant, Vec<Suspect>)>,
    /// Parts of other nodes that are read anew because they differ, with what was shown of them.
    distrusted: Vec<(NodeId, BTreeSet<(u64, Ref)>)>,
    audit: Audit,
    tally: Tally,
    /// Whether the roster is known well enough to be shown.
    live: bool,
    outputs: Vec<Output>,
}

impl ChannelState {
    /// An empty channel, not yet live.
    pub fn new(ids: Ids, grace_period: Duration) -> Self {
        let roster = Roster::new(ids.node());
        Self {
            ids,
            grace_period,
            roster,
            seats: HashMap::new(),
            grace: Grace::default(),
            doubted: HashMap::new(),
            held: IndexMap::new(),
            closed: VecDeque::new(),
            pending: Pending::default(),
            oldest: None,
            catching_up: None,
            unread: None,
            read_after: READ_AFTER.0,
            suspicion: None,
            distrusted: Vec::new(),
            audit: Audit::default(),
            tally: Tally::default(),
            live: false,
            outputs: Vec::new(),
        }
    }

    /// `connection` is present as `user` and shows `meta`: a join, or an update, or a return. The same
    /// again changes nothing. `wall` is milliseconds since 1970.
    ///
    /// Whoever has a `resume` key takes the seat of the same user and key, on whatever node, even if
    /// somebody seems to sit there. Without a key it is a seat that waits for its user and has no key either.
    pub fn track(
        &mut self,
        connection: u64,
        user: &Arc<str>,
        meta: &Arc<str>,
        resume: Option<ResumeKey>,
        wall: u64,
        now: Instant,
    ) {
        let arrival = Arrival {
            user: Arc::clone(user),
            meta: Arc::clone(meta),
            resume,
            wall,
            at: Some(now),
            ended: None,
        };
        if self.live {
            self.seat(connection, arrival);
        } else {
            self.held.insert(connection, arrival);
        }
    }

    /// `connection`, if it is present, is that of `user`: the one who was shown leaves, and `user` shows the same.
    pub fn identify(&mut self, connection: u64, user: &Arc<str>, wall: u64, now: Instant) {
        if let Some(arrival) = self.held.get_mut(&connection) {
            arrival.user = Arc::clone(user);
            return;
        }
        let entry = self.seats.get(&connection).and_then(|seat| self.roster.own().seats.get(seat));
        let Some(meta) = entry.filter(|entry| entry.user != *user).map(|entry| Arc::clone(&entry.meta))
        else {
            return;
        };
        self.leave(connection, Some(now));
        self.track(connection, user, &meta, None, wall, now);
    }

    /// `connection` is present no more, by its own word: everybody is told without delay.
    pub fn untrack(&mut self, connection: u64, now: Instant) {
        self.leave(connection, Some(now));
    }

    /// The socket of `connection` has ended without a word: its seat waits for the grace, on all nodes.
    pub fn dropped(&mut self, connection: u64, wall: u64, now: Instant) {
        if let Some(arrival) = self.held.get_mut(&connection) {
            arrival.ended = Some((wall, now));
            return;
        }
        self.forget(connection);
        let Some(seat) = self.seats.remove(&connection) else { return };
        match self.roster.own().seats.get(&seat) {
            Some(entry) if !self.grace_period.is_zero() => {
                let waiting = Entry { waiting: Some(wall), ..Entry::clone(entry) };
                self.grace.keep(seat, now, self.grace_period);
                self.put(seat, waiting, Some(now));
            }
            _ => self.remove(seat, Some(now)),
        }
    }

    /// Something came from a connection that was asked for a sign of life: it is not the one that took its
    /// seat, but another one of the same user.
    pub fn alive(&mut self, connection: u64, now: Instant) {
        self.seat_anew(connection, Some(now));
    }

    /// Frees the seats whose grace is over, and shows those again that nobody has given up by now.
    pub fn end_grace(&mut self, now: Instant) {
        for seat in self.grace.expired(now) {
            self.remove(seat, Some(now));
        }
        for origin in self.roster.take_closed() {
            self.closed.push_back((now + CLOSED_FOR, origin));
        }
        while let Some((_, origin)) = self.closed.front().copied().filter(|(until, _)| *until <= now) {
            self.closed.pop_front();
            let change = self.roster.reopen(origin);
            self.gather(change);
        }
    }

    /// When [`ChannelState::end_grace`], [`ChannelState::audit`] or [`ChannelState::read_rest`] has something
    /// to do next.
    pub fn next_time(&self) -> Option<Instant> {
        let closed = self.closed.front().map(|(until, _)| *until);
        let suspicion = self.suspicion.as_ref().map(|(at, _)| *at);
        let unread = self.unread.as_ref().map(|unread| unread.at);
        self.grace.next().into_iter().chain(closed).chain(suspicion).chain(unread).min()
    }

    /// Frees all own seats, those in grace included: the node is going away.
    pub fn leave_all(&mut self, now: Instant) {
        self.grace.clear();
        self.seats.clear();
        self.doubted.clear();
        self.held.clear();
        let seats: Vec<u64> = self.roster.own().seats.keys().copied().collect();
        for seat in seats {
            self.remove(seat, Some(now));
        }
    }

    /// Takes in what another node announced. What cannot be placed waits for a reading, and while one is under
    /// way, so does a leave: who frees a seat may have taken another one of which the word was missed.
    pub fn hear(&mut self, node: NodeId, batch: Arc<Batch>) -> HeardAs {
        if self.catching_up.is_some() && self.frees_a_seat(node, &batch) {
            self.keep_for_later(node, batch);
            return HeardAs::Kept;
        }
        match self.roster.hear(node, &batch) {
            Heard::Applied(changes) => {
                self.gather(changes);
                self.yield_outdone();
                HeardAs::News
            }
            Heard::Old => HeardAs::Old,
            Heard::Gap => {
                self.read();
                self.keep_for_later(node, batch);
                HeardAs::Gap
            }
        }
    }

    /// Whether `batch` may take somebody away who is shown.
    fn frees_a_seat(&self, node: NodeId, batch: &Batch) -> bool {
        let replaces = batch.from == 0 && self.roster.peers().any(|peer| peer == node);
        replaces || batch.ops.iter().any(|op| op.entry.is_none())
    }

    /// `batch` is heard when the reading under way has come.
    fn keep_for_later(&mut self, node: NodeId, batch: Arc<Batch>) {
        let Some(catching_up) = &mut self.catching_up else { return };
        if catching_up.buffered.len() < MAX_BUFFERED {
            catching_up.buffered.push((node, batch));
        } else {
            catching_up.overflowed = true;
        }
    }

    /// Something may have been missed: asks for a reading, unless one is under way, which then will
    /// be followed by another.
    pub fn read(&mut self) {
        if self.catching_up.is_none() {
            self.catching_up = Some(CatchingUp::default());
            self.outputs.push(Output::Read(self.roster.known()));
        }
    }

    /// As [`ChannelState::read`], and a reading under way is not good enough.
    pub fn read_again(&mut self) {
        match &mut self.catching_up {
            Some(catching_up) => catching_up.overflowed = true,
            None => self.read(),
        }
    }

    /// Takes in a reading, or `None` when the store could not be read: then what is known here is shown, and
    /// [`ChannelState::read_rest`] asks again.
    pub fn merge(&mut self, reading: Option<Reading>, now: Instant) {
        let Some(catching_up) = self.catching_up.take() else { return };
        self.note_unread(reading.as_ref(), now);
        if let Some(reading) = reading {
            let changes = self.roster.merge(reading);
            self.count_repairs();
            self.gather(changes);
            self.yield_outdone();
            if catching_up.overflowed {
                self.read();
            }
            for (node, batch) in catching_up.buffered {
                self.hear(node, batch);
            }
        }
        self.go_live();
    }

    /// Notes what `reading` leaves open.
    fn note_unread(&mut self, reading: Option<&Reading>, now: Instant) {
        let parts = reading.map(|reading| {
            let known = self.roster.known();
            let open = |node: NodeId| {
                let asked = *reading.asked.get(&node)?;
                let is_found = reading.parts.contains_key(&node) || reading.settled.contains(&node);
                (!is_found && known.get(&node) == Some(&asked)).then_some((node, asked))
            };
            self.roster.peers().filter_map(open).collect::<Vec<_>>()
        });
        if parts.as_ref().is_some_and(Vec::is_empty) {
            (self.unread, self.read_after) = (None, READ_AFTER.0);
        } else {
            self.unread = Some(Unread { at: now + self.read_after, parts });
            self.read_after = (self.read_after * 2).min(READ_AFTER.1);
        }
    }

    /// Reads again what could not be read, if it is time and nothing was heard of it meanwhile.
    pub fn read_rest(&mut self, now: Instant) {
        let Some(unread) = self.unread.take_if(|unread| unread.at <= now) else { return };
        let known = self.roster.known();
        let is_open = |(node, version): &(NodeId, u64)| known.get(node) == Some(version);
        if unread.parts.is_none_or(|parts| parts.iter().any(is_open)) {
            self.read_again();
        }
    }

    /// Compares what the nodes state of their parts with what is known here. What differs is looked at again
    /// a moment later ([`ChannelState::audit`]): an announcement may be on its way.
    pub fn compare(&mut self, stated: &HashMap<NodeId, Stated>, now: Instant) {
        if self.suspicion.is_some() {
            return;
        }
        let known = self.roster.known();
        let differences = self.roster.differences(stated).into_iter();
        let suspects = differences.map(|(node, difference)| Suspect {
            node,
            difference,
            stated: stated.get(&node).copied(),
            known: known.get(&node).copied(),
        });
        let suspects: Vec<Suspect> = suspects.collect();
        if !suspects.is_empty() {
            self.suspicion = Some((now + ON_ITS_WAY, suspects));
        }
    }

    /// Looks again at what differed, if it is time: what still does is read.
    pub fn audit(&mut self, now: Instant) {
        let Some((_, suspects)) = self.suspicion.take_if(|(at, _)| *at <= now) else { return };
        let known = self.roster.known();
        for suspect in suspects {
            // It has moved meanwhile, and the next heartbeat compares again.
            if known.get(&suspect.node).copied() != suspect.known {
                continue;
            }
            match suspect.difference {
                // What is read just now may have it.
                _ if self.catching_up.is_some() => {}
                Difference::Missed => self.audit.skipped += 1,
                Difference::Diverged => {
                    let stated = suspect.stated.map(|stated| (suspect.node, stated)).into_iter().collect();
                    if self.roster.differences(&stated).is_empty() {
                        continue;
                    }
                    let shown = self.roster.shown_of(suspect.node);
                    self.distrusted.push((suspect.node, shown));
                    self.roster.distrust(suspect.node);
                }
                Difference::Gone => {}
            }
            self.read_again();
        }
    }

    /// What was repaired since the last call.
    #[must_use]
    pub fn take_audit(&mut self) -> Audit {
        std::mem::take(&mut self.audit)
    }

    /// What there is to count of this node's own connections since the last call.
    #[must_use]
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Counts what a reading put right of the parts that were distrusted.
    fn count_repairs(&mut self) {
        for (node, before) in std::mem::take(&mut self.distrusted) {
            let after = self.roster.shown_of(node);
            self.audit.ghosts += before.difference(&after).count() as u64;
            self.audit.missing += after.difference(&before).count() as u64;
        }
    }

    /// Says goodbye to everyone on `node`, which is dead.
    pub fn node_down(&mut self, node: NodeId) {
        let changes = self.roster.forget(node);
        self.gather(changes);
        self.yield_outdone();
    }

    /// The roster can be shown, or there is nothing to read it from but what is known here. Whoever came
    /// meanwhile is seated, in that order.
    pub fn go_live(&mut self) {
        self.live = true;
        for (connection, arrival) in std::mem::take(&mut self.held) {
            match arrival.ended {
                None => self.seat(connection, arrival),
                Some((wall, at)) if self.is_waited_for(&arrival) => {
                    self.seat(connection, arrival);
                    self.dropped(connection, wall, at);
                }
                Some(_) => {}
            }
        }
    }

    /// Whether a seat waits for `arrival`: then who came back and was cut off again is waited for anew.
    fn is_waited_for(&self, arrival: &Arrival) -> bool {
        let waits = |entry: &Arc<Entry>| entry.waiting.is_some();
        match self.place(arrival) {
            Place::Own(seat) => self.roster.own().seats.get(&seat).is_some_and(waits),
            Place::Elsewhere { shown, .. } => waits(&shown),
            Place::New => false,
        }
    }

    /// Whether the roster can be shown.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The changes that wait to be told.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }

    /// The diff to tell now, and when the oldest own change in it happened.
    #[must_use]
    pub fn take_diff(&mut self) -> (Diff, Option<Instant>) {
        (self.pending.take(), self.oldest.take())
    }

    /// What must be done outside since the last call.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// The roster as it is now, numbered `version`.
    pub fn snapshot(&self, version: u64) -> Snapshot {
        self.roster.snapshot(version)
    }

    /// The digest of this node's own part.
    pub fn own_digest(&self) -> u64 {
        self.roster.own_digest()
    }

    /// How many users there are, on all nodes.
    pub fn online(&self) -> usize {
        self.roster.online()
    }

    /// The version of this node's own part, and who is in it.
    pub fn own(&self) -> (u64, Vec<(u64, Arc<Entry>)>) {
        let own = self.roster.own();
        (own.version, own.seats.iter().map(|(seat, entry)| (*seat, Arc::clone(entry))).collect())
    }

    /// As [`ChannelState::own`], to be written to a store that may hold something else: under a new version,
    /// so that nobody who thinks this node dead clears it away, and nothing late undoes it. Also where
    /// nobody of this node is: an earlier life of the channel may stand there.
    pub fn own_to_write(&mut self) -> (u64, Vec<(u64, Arc<Entry>)>) {
        self.roster.renumber(self.ids.number());
        self.own()
    }

    /// How many own seats are taken, those in grace included.
    pub fn own_seats(&self) -> usize {
        self.roster.own().seats.len()
    }

    /// How many of these own seats are still taken.
    pub fn still_taken(&self, seats: &[u64]) -> usize {
        seats.iter().filter(|seat| self.roster.own().seats.contains_key(seat)).count()
    }

    /// Seats an arrival for which the roster is known well enough.
    fn seat(&mut self, connection: u64, arrival: Arrival) {
        if let Some(seat) = self.seats.get(&connection).copied() {
            let held = self.roster.own().seats.get(&seat);
            if held.is_some_and(|entry| entry.user == arrival.user) {
                return self.show(seat, arrival.meta, arrival.at);
            }
            self.leave(connection, arrival.at);
        }
        // One that speaks is alive, and the key is the one's who took its seat.
        let is_other = self.doubted.remove(&connection).is_some_and(|doubted| doubted.user == arrival.user);
        let place = if is_other { Place::New } else { self.place(&arrival) };
        let resume = arrival.resume.filter(|_| !is_other);
        self.take_place(connection, Arrival { resume, ..arrival }, place);
    }

    fn place(&self, arrival: &Arrival) -> Place {
        let sittings = self.roster.sittings(&arrival.user);
        let fits = |entry: &Entry| match &arrival.resume {
            Some(_) => entry.resume == arrival.resume,
            None => entry.resume.is_none() && entry.waiting.is_some(),
        };
        // Best the one that shows the same meta: then nothing changes for anybody.
        let mut best = None;
        for sitting in sittings.filter(|sitting| fits(sitting.entry)) {
            let is_same = sitting.entry.meta == arrival.meta;
            if is_same || best.is_none() {
                best = Some(sitting);
            }
            if is_same {
                break;
            }
        }
        match best {
            None => Place::New,
            Some(found) if found.seat.node == self.ids.node() => Place::Own(found.seat.number),
            Some(found) => {
                let turn = found.entry.turn().saturating_add(1);
                let origin = Origin { seat: found.origin, turn, over: found.seat };
                Place::Elsewhere { origin, shown: Arc::clone(found.entry) }
            }
        }
    }

    /// Seats a connection that lost its seat, on one of its own and without a key.
    fn seat_anew(&mut self, connection: u64, at: Option<Instant>) {
        let Some(Doubted { user, meta, since }) = self.doubted.remove(&connection) else { return };
        let arrival = Arrival { user, meta, resume: None, wall: since, at, ended: None };
        self.take_place(connection, arrival, Place::New);
    }

    fn take_place(&mut self, connection: u64, arrival: Arrival, place: Place) {
        let Arrival { user, meta, resume, wall, at, .. } = arrival;
        match place {
            Place::Own(seat) => {
                if !self.grace.take(seat) {
                    self.displace(seat);
                }
                self.seats.insert(connection, seat);
                self.show(seat, meta, at);
            }
            Place::Elsewhere { origin, shown } => {
                let r#ref = if shown.meta == meta { shown.r#ref } else { self.ids.r#ref() };
                let mut entry = Entry::new(user, r#ref, meta, shown.since);
                (entry.resume, entry.origin) = (resume, Some(Box::new(origin)));
                self.take_seat(connection, entry, at);
            }
            Place::New => {
                let entry = Entry { resume, ..Entry::new(user, self.ids.r#ref(), meta, wall) };
                self.take_seat(connection, entry, at);
            }
        }
    }

    fn take_seat(&mut self, connection: u64, entry: Entry, at: Option<Instant>) {
        let seat = self.ids.number();
        self.seats.insert(connection, seat);
        // Who was on another node is only counted there.
        self.tally.joins += u64::from(entry.origin.is_none());
        self.tally.users.insert(Arc::clone(&entry.user));
        self.put(seat, entry, at);
    }

    /// Frees the own seats that other nodes' claims have outdone. Nobody sees anything of it.
    fn yield_outdone(&mut self) {
        for seat in self.roster.take_outdone() {
            let Some(entry) = self.roster.own().seats.get(&seat).map(Arc::clone) else { continue };
            let was_waiting = self.grace.take(seat);
            let displaced = if was_waiting { None } else { self.displace(seat) };
            self.remove(seat, None);
            // The user is elsewhere, and has not left.
            self.tally.leaves = self.tally.leaves.saturating_sub(1);
            // Without a key only seats that wait are taken: two took this one at once, and both are alive.
            if let Some(connection) = displaced.filter(|_| entry.resume.is_none()) {
                self.seat_anew(connection, None);
            }
        }
    }

    /// Takes the connection off that sits on the own `seat`, and asks it for a sign of life.
    fn displace(&mut self, seat: u64) -> Option<u64> {
        let connection = self.seats.iter().find(|(_, taken)| **taken == seat).map(|(id, _)| *id)?;
        self.seats.remove(&connection);
        let entry = self.roster.own().seats.get(&seat)?;
        let (user, meta) = (Arc::clone(&entry.user), Arc::clone(&entry.meta));
        self.doubted.insert(connection, Doubted { user, meta, since: entry.since });
        if entry.resume.is_some() {
            self.outputs.push(Output::Probe(connection));
        }
        Some(connection)
    }

    fn leave(&mut self, connection: u64, now: Option<Instant>) {
        self.forget(connection);
        if let Some(seat) = self.seats.remove(&connection) {
            self.remove(seat, now);
        }
    }

    /// `connection` waits for no seat any more.
    fn forget(&mut self, connection: u64) {
        self.held.shift_remove(&connection);
        self.doubted.remove(&connection);
    }

    /// Whoever sits on `seat` shows `meta`.
    fn show(&mut self, seat: u64, meta: Arc<str>, now: Option<Instant>) {
        let Some(held) = self.roster.own().seats.get(&seat) else { return };
        let is_same = held.meta == meta;
        if is_same && held.waiting.is_none() {
            return;
        }
        let r#ref = if is_same { held.r#ref } else { self.ids.r#ref() };
        self.put(seat, Entry { r#ref, meta, waiting: None, ..Entry::clone(held) }, now);
    }

    fn put(&mut self, seat: u64, mut entry: Entry, now: Option<Instant>) {
        let first = self.roster.first_meta(&entry.user);
        entry.first = first.filter(|first| **first != entry.meta).map(Arc::clone);
        let entry = Arc::new(entry);
        let (from, to) = (self.roster.own().version, self.ids.number());
        let change = self.roster.put(seat, Arc::clone(&entry), to);
        self.announce(from, to, Op { seat, user: Arc::clone(&entry.user), entry: Some(entry) });
        self.own_change(change, now);
    }

    fn remove(&mut self, seat: u64, now: Option<Instant>) {
        let Some(user) = self.roster.own().seats.get(&seat).map(|entry| Arc::clone(&entry.user)) else {
            return;
        };
        let (from, to) = (self.roster.own().version, self.ids.number());
        let Some(change) = self.roster.remove(seat, to) else { return };
        self.tally.leaves += 1;
        self.announce(from, to, Op { seat, user, entry: None });
        self.own_change(change, now);
    }

    fn announce(&mut self, from: u64, to: u64, op: Op) {
        let batch = Batch { from, to, ops: vec![op] };
        self.outputs.push(Output::Announce(batch, self.roster.own_digest()));
    }

    fn own_change(&mut self, change: Change, now: Option<Instant>) {
        if !change.is_silent() {
            self.oldest = self.oldest.or(now);
        }
        self.pending.add(change);
    }

    fn gather(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.pending.add(change);
        }
    }
}

/// What a batch from another node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeardAs {
    News,
    Old,
    Gap,
    /// It is heard after the reading under way.
    Kept,
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
