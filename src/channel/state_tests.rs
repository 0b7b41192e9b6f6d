use super::*;

struct Bench {
    state: ChannelState,
    now: Instant,
}

const GRACE: Duration = Duration::from_secs(2);

impl Bench {
    fn new() -> Self {
        let mut state = ChannelState::new(Ids::new(NodeId::random()), GRACE);
        state.go_live();
        Self { state, now: Instant::now() }
    }

    fn track(&mut self, connection: u64, user: &str, meta: &str) {
        self.state.track(connection, &user.into(), &meta.into(), None, 0, self.now);
    }

    fn track_with(&mut self, connection: u64, user: &str, meta: &str, key: &str) {
        let resume = Some(ResumeKey::new(user, key));
        self.state.track(connection, &user.into(), &meta.into(), resume, 0, self.now);
    }

    /// The connections that are asked for a sign of life; what is announced besides is let go.
    fn probed(&mut self) -> Vec<u64> {
        let outputs = self.state.take_outputs().into_iter();
        let probed = outputs.filter_map(|output| match output {
            Output::Probe(connection) => Some(connection),
            _ => None,
        });
        probed.collect()
    }

    /// A heartbeat told these versions, and what differs stays so.
    fn compare(&mut self, versions: &HashMap<NodeId, u64>) {
        let stated = |(node, version): (&NodeId, &u64)| (*node, Stated { version: *version, digest: None });
        self.state.compare(&versions.iter().map(stated).collect(), self.now);
        self.state.audit(self.now + ON_ITS_WAY);
    }

    fn merge(&mut self, reading: impl Into<Option<Reading>>) {
        self.state.merge(reading.into(), self.now);
    }

    /// What viewers are told, as (joined, updated, left).
    fn told(&mut self) -> (usize, usize, usize) {
        let (diff, _) = self.state.take_diff();
        let updated = diff.joins.iter().filter(|(_, old)| old.is_some()).count();
        (diff.joins.len() - updated, updated, diff.leaves.len() - updated)
    }

    fn users(&self) -> Vec<(String, usize)> {
        let snapshot = self.state.snapshot(0);
        snapshot.members.iter().map(|m| (m.user.to_string(), m.seats.len())).collect()
    }
}

const QUIET: (usize, usize, usize) = (0, 0, 0);

#[test]
fn the_same_again_is_nothing_and_another_meta_is_an_update() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    assert_eq!(bench.told(), (1, 0, 0));
    bench.track(1, "ada", "{}");
    assert_eq!(bench.told(), QUIET);
    bench.track(1, "ada", r#"{"a":1}"#);
    assert_eq!(bench.told(), (0, 1, 0));
    assert_eq!(bench.users(), [("ada".into(), 1)]);
}

#[test]
fn a_connection_that_changes_its_user_leaves_as_the_old_one() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    let _ = bench.told();
    bench.track(1, "bob", "{}");
    assert_eq!(bench.told(), (1, 0, 1));
    assert_eq!(bench.users(), [("bob".into(), 1)]);
}

#[test]
fn an_explicit_leave_is_immediate_and_a_lost_socket_has_its_grace() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    bench.track(2, "bob", "{}");
    let _ = bench.told();
    bench.state.untrack(1, bench.now);
    assert_eq!(bench.told(), (0, 0, 1));
    bench.state.dropped(2, 9, bench.now);
    assert_eq!(bench.told(), QUIET);
    assert_eq!(bench.state.next_time(), Some(bench.now + GRACE));
    bench.state.end_grace(bench.now + GRACE);
    assert_eq!(bench.told(), (0, 0, 1));
    assert!(bench.users().is_empty());
}

#[test]
fn coming_back_within_the_grace_shows_nobody_anything() {
    let mut bench = Bench::new();
    bench.track(1, "ada", r#"{"a":1}"#);
    let _ = (bench.told(), bench.state.take_outputs());
    bench.state.dropped(1, 9, bench.now);
    bench.track(2, "ada", r#"{"a":1}"#);
    bench.state.end_grace(bench.now + GRACE);
    assert_eq!(bench.told(), QUIET);
    let words = announced(&mut bench);
    let shown: Vec<_> =
        words.iter().flat_map(|batch| &batch.ops).map(|op| op.entry.clone().unwrap()).collect();
    assert_eq!(shown.iter().map(|entry| entry.waiting).collect::<Vec<_>>(), [Some(9), None]);
    assert_eq!(shown[0].r#ref, shown[1].r#ref);
    // The new connection holds the seat now.
    bench.state.untrack(2, bench.now);
    assert_eq!(bench.told(), (0, 0, 1));
}

#[test]
fn coming_back_with_another_meta_is_an_update() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    let _ = bench.told();
    bench.state.dropped(1, 9, bench.now);
    bench.track(2, "ada", r#"{"a":1}"#);
    assert_eq!(bench.told(), (0, 1, 0));
}

#[test]
fn two_tabs_that_reload_take_their_own_seats_again() {
    let mut bench = Bench::new();
    bench.track(1, "ada", r#"{"tab":1}"#);
    bench.track(2, "ada", r#"{"tab":2}"#);
    let _ = bench.told();
    bench.state.dropped(1, 9, bench.now);
    bench.state.dropped(2, 9, bench.now);
    bench.track(3, "ada", r#"{"tab":2}"#);
    bench.track(4, "ada", r#"{"tab":1}"#);
    assert_eq!(bench.told(), QUIET);
    assert_eq!(bench.users(), [("ada".into(), 2)]);
}

#[test]
fn announcements_form_a_chain_and_own_what_they_say() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    bench.track(2, "bob", "{}");
    bench.state.leave_all(bench.now);
    let mut last = 0;
    for output in bench.state.take_outputs() {
        let Output::Announce(batch, _) = output else { panic!("{output:?}") };
        assert_eq!(batch.from, last);
        assert!(batch.to > batch.from);
        last = batch.to;
    }
    assert_eq!(bench.state.own(), (last, vec![]));
    assert_eq!(bench.state.own_seats(), 0);
}

/// A channel on two nodes, whose words reach each other only when the test says so.
fn two() -> (Bench, Bench) {
    (Bench::new(), Bench::new())
}

fn announced(bench: &mut Bench) -> Vec<Arc<Batch>> {
    let outputs = bench.state.take_outputs().into_iter();
    outputs
        .filter_map(|output| match output {
            Output::Announce(batch, _) => Some(Arc::new(batch)),
            Output::Read(_) | Output::Probe(_) => None,
        })
        .collect()
}

fn reading_of(bench: &Bench) -> Reading {
    let (version, seats) = bench.state.own();
    let part = crate::presence::Part { version, seats: seats.into_iter().collect() };
    Reading { parts: HashMap::from([(bench.state.ids.node(), part)]), ..Reading::default() }
}

#[test]
fn a_gap_is_read_once_and_what_came_meanwhile_is_heard_after() {
    let (mut a, mut b) = two();
    let node = a.state.ids.node();
    for (connection, user) in ["ada", "bob", "cyd", "dan"].iter().enumerate() {
        a.track(connection as u64, user, "{}");
    }
    let words = announced(&mut a);
    assert_eq!(b.state.hear(node, words[0].clone()), HeardAs::News);
    // The second is lost; the third shows it, and a reading taken before the fourth is on its way.
    assert_eq!(b.state.hear(node, words[2].clone()), HeardAs::Gap);
    assert_eq!(b.state.hear(node, words[3].clone()), HeardAs::Gap);
    let outputs = b.state.take_outputs();
    assert_eq!(outputs, [Output::Read(HashMap::from([(node, words[0].to)]))]);
    let mut early = reading_of(&a);
    let part = early.parts.get_mut(&node).unwrap();
    part.version = words[2].to;
    part.seats.retain(|_, entry| &*entry.user != "dan");
    b.merge(early);
    assert_eq!(b.users(), a.users());
    assert!(b.state.take_outputs().is_empty(), "nothing is missing any more");
    assert_eq!(b.told(), (4, 0, 0));
}

/// The word of the move was missed, and the word that the old seat is free is heard before the reading comes.
#[test]
fn who_moved_while_a_node_was_deaf_is_not_shown_to_leave() {
    let (mut a, mut b) = two();
    let mut deaf = Bench::new();
    let [node_a, node_b] = [&a, &b].map(|bench| bench.state.ids.node());
    a.track_with(1, "ada", "{}", "key");
    for word in announced(&mut a) {
        assert_eq!(b.state.hear(node_a, Arc::clone(&word)), HeardAs::News);
        assert_eq!(deaf.state.hear(node_a, word), HeardAs::News);
    }
    assert_eq!(deaf.told(), (1, 0, 0));
    b.track_with(2, "ada", "{}", "key");
    for word in announced(&mut b) {
        assert_eq!(a.state.hear(node_b, word), HeardAs::News);
    }
    deaf.state.read_again();
    for word in announced(&mut a) {
        assert_eq!(deaf.state.hear(node_a, word), HeardAs::Kept);
    }
    assert_eq!(deaf.told(), QUIET);
    // The reading has the new seat.
    deaf.merge(reading_of(&b));
    assert_eq!((deaf.told(), deaf.users()), (QUIET, vec![("ada".into(), 1)]));
    b.state.untrack(2, b.now);
    for word in announced(&mut b) {
        assert_eq!(deaf.state.hear(node_b, word), HeardAs::News);
    }
    assert_eq!(deaf.told(), (0, 0, 1));
}

#[test]
fn a_channel_that_could_not_be_read_shows_what_it_knows() {
    let mut bench =
        Bench { state: ChannelState::new(Ids::new(NodeId::random()), GRACE), now: Instant::now() };
    bench.track(1, "ada", "{}");
    bench.state.read_again();
    assert!(!bench.state.is_live());
    bench.merge(None);
    assert!(bench.state.is_live());
    assert_eq!(bench.users(), [("ada".into(), 1)]);
}

#[test]
fn a_reading_that_is_not_good_enough_is_followed_by_another() {
    let mut bench = Bench::new();
    bench.state.read_again();
    bench.state.read_again();
    assert_eq!(bench.state.take_outputs().len(), 1);
    bench.merge(Reading::default());
    assert_eq!(bench.state.take_outputs().len(), 1);
    bench.merge(Reading::default());
    assert!(bench.state.take_outputs().is_empty());
}

#[test]
fn who_comes_back_and_is_cut_off_before_the_roster_is_known_is_waited_for_anew() {
    let (mut a, now) = (Bench::new(), Instant::now());
    a.track_with(1, "ada", "{}", "key");
    a.state.dropped(1, 9, a.now);
    let _ = a.told();
    let mut b = Bench { state: ChannelState::new(Ids::new(NodeId::random()), GRACE), now };
    b.state.read();
    b.track_with(2, "ada", "{}", "key");
    b.track_with(3, "bo", "{}", "key");
    b.state.dropped(2, 10, now);
    b.state.dropped(3, 10, now);
    b.merge(reading_of(&a));
    assert_eq!(b.users(), [("ada".into(), 1)], "nobody ever saw the other");
    for batch in announced(&mut b) {
        let _ = a.state.hear(b.state.ids.node(), batch);
    }
    a.state.end_grace(now + GRACE - Duration::from_millis(1));
    assert_eq!((a.users(), a.told()), (vec![("ada".into(), 1)], QUIET));
    assert_eq!(a.state.own_seats(), 0, "it waits at the other node");
    b.state.end_grace(now + GRACE);
    assert_eq!(b.users(), []);
}

#[test]
fn what_could_not_be_read_is_read_again_less_and_less_often() {
    let (mut a, mut b) = two();
    a.track(1, "ada", "{}");
    b.state.read();
    b.merge(reading_of(&a));
    assert_eq!(b.state.next_time(), None, "all was found");
    let mut waits = Vec::new();
    for at in 0..8 {
        b.state.read();
        let _ = b.state.take_outputs();
        // It fails, or a node that is writing does not stand there.
        let asked = b.state.roster.known();
        b.merge((at % 2 == 0).then(|| Reading { asked, ..Reading::default() }));
        let next = b.state.next_time().unwrap();
        waits.push((next - b.now).as_secs());
        b.state.read_rest(next - Duration::from_millis(1));
        assert!(b.state.take_outputs().is_empty());
        b.state.read_rest(next);
        assert_eq!(b.state.take_outputs(), [Output::Read(b.state.roster.known())]);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 20, 20, 20]);
    // What was heard meanwhile needs no reading.
    b.merge(Reading { asked: b.state.roster.known(), ..Reading::default() });
    a.track(2, "bo", "{}");
    for batch in announced(&mut a) {
        let _ = b.state.hear(a.state.ids.node(), batch);
    }
    b.state.read_rest(b.state.next_time().unwrap());
    assert!(b.state.take_outputs().is_empty());
}

#[test]
fn a_heartbeat_finds_what_was_missed() {
    let (mut a, mut b) = two();
    let node = a.state.ids.node();
    a.track(1, "ada", "{}");
    b.compare(&HashMap::from([(node, a.state.own().0)]));
    assert_eq!(b.state.take_outputs(), [Output::Read(HashMap::new())]);
    b.merge(reading_of(&a));
    b.compare(&HashMap::from([(node, a.state.own().0)]));
    assert!(b.state.take_outputs().is_empty());
    // The node is known to have somebody, but its part is gone from the store.
    b.compare(&HashMap::new());
    assert_eq!(b.state.take_outputs().len(), 1);
}

#[test]
fn what_was_missing_in_the_store_is_read_again_by_whoever_read_without_it() {
    let (mut a, mut b) = two();
    a.track(1, "ada", "{}");
    let (version, seats) = a.state.own();
    let mut without = reading_of(&a);
    without.parts.values_mut().for_each(|part| part.seats.clear());
    b.state.read();
    b.merge(without);
    assert_eq!(a.state.still_taken(&[seats[0].0, 999]), 1);
    let (again, seats) = a.state.own_to_write();
    assert!(again > version && seats.len() == 1);
    let _ = b.state.take_outputs();
    b.compare(&HashMap::from([(a.state.ids.node(), again)]));
    assert_eq!(b.state.take_outputs().len(), 1);
    b.merge(reading_of(&a));
    assert_eq!(b.users(), a.users());
}

#[test]
fn a_dead_node_is_said_goodbye_to_once() {
    let (mut a, mut b) = two();
    let node = a.state.ids.node();
    a.track(1, "ada", "{}");
    b.track(1, "ada", "{}");
    for word in announced(&mut a) {
        b.state.hear(node, word);
    }
    let _ = b.told();
    b.state.node_down(node);
    b.state.node_down(node);
    assert_eq!(b.told(), (0, 0, 1));
    assert_eq!(b.users(), [("ada".into(), 1)], "still here with the other connection");
}

/// Hands each what the other has announced, until neither has anything more to say. Gives the connections
/// that are asked for a sign of life.
fn exchange(a: &mut Bench, b: &mut Bench) -> Vec<u64> {
    let mut probed = Vec::new();
    let (node_a, node_b) = (a.state.ids.node(), b.state.ids.node());
    loop {
        let (from_a, from_b) = (a.state.take_outputs(), b.state.take_outputs());
        if from_a.is_empty() && from_b.is_empty() {
            return probed;
        }
        for (outputs, from, to) in [(from_a, node_a, &mut *b), (from_b, node_b, &mut *a)] {
            for output in outputs {
                match output {
                    Output::Announce(batch, _) => {
                        assert_eq!(to.state.hear(from, Arc::new(batch)), HeardAs::News);
                    }
                    Output::Probe(connection) => probed.push(connection),
                    Output::Read(_) => panic!("nothing was lost"),
                }
            }
        }
    }
}

#[test]
fn coming_back_on_another_node_shows_nobody_anything() {
    let (mut a, mut b) = two();
    a.track(1, "ada", r#"{"a":1}"#);
    exchange(&mut a, &mut b);
    assert_eq!((a.told(), b.told()), ((1, 0, 0), (1, 0, 0)));
    a.state.dropped(1, 9, a.now);
    exchange(&mut a, &mut b);
    b.track(2, "ada", r#"{"a":1}"#);
    assert!(exchange(&mut a, &mut b).is_empty());
    assert_eq!((a.told(), b.told()), (QUIET, QUIET));
    assert_eq!((a.state.own_seats(), b.state.own_seats()), (0, 1));
    a.state.end_grace(a.now + GRACE);
    assert_eq!((a.users(), b.users()), (vec![("ada".into(), 1)], vec![("ada".into(), 1)]));
    // And back, with another meta: an update.
    b.state.dropped(2, 9, b.now);
    exchange(&mut a, &mut b);
    a.track(3, "ada", "{}");
    exchange(&mut a, &mut b);
    assert_eq!((a.told(), b.told()), ((0, 1, 0), (0, 1, 0)));
    a.state.untrack(3, a.now);
    exchange(&mut a, &mut b);
    assert_eq!((a.told(), b.told()), ((0, 0, 1), (0, 0, 1)));
}

/// What Pusher's clients are shown of a user.
fn first_meta(bench: &Bench) -> String {
    bench.state.snapshot(0).members[0].first_meta.to_string()
}

#[test]
fn what_a_user_came_with_is_the_same_on_all_nodes_until_the_user_is_gone() {
    let (mut a, mut b) = two();
    a.track(1, "ada", r#"{"v":1}"#);
    a.track(1, "ada", r#"{"v":2}"#);
    exchange(&mut a, &mut b);
    // A second connection on the other node, and a node that hears of the user only then.
    b.track(2, "ada", r#"{"v":3}"#);
    exchange(&mut a, &mut b);
    a.state.untrack(1, a.now);
    exchange(&mut a, &mut b);
    let mut late = Bench::new();
    late.state.read();
    late.merge(reading_of(&b));
    for bench in [&a, &b, &late] {
        assert_eq!(first_meta(bench), r#"{"v":1}"#);
    }
    b.state.untrack(2, b.now);
    b.track(3, "ada", r#"{"v":4}"#);
    exchange(&mut a, &mut b);
    assert_eq!((first_meta(&a), first_meta(&b)), (r#"{"v":4}"#.into(), r#"{"v":4}"#.into()));
}

#[test]
fn only_a_seat_that_waits_is_taken_without_a_key_and_none_that_has_one() {
    let (mut a, mut b) = two();
    a.track(1, "ada", "{}");
    a.track_with(2, "ada", "{}", "her key");
    a.state.dropped(2, 9, a.now);
    exchange(&mut a, &mut b);
    let _ = b.told();
    b.track(3, "ada", "{}");
    assert_eq!(b.told(), (1, 0, 0), "a third connection");
    b.track_with(4, "ada", "{}", "another key");
    assert_eq!(b.told(), (1, 0, 0), "a fourth");
    b.track_with(5, "ada", "{}", "her key");
    assert_eq!(b.told(), QUIET);
}

#[test]
fn a_connection_that_hangs_is_replaced_and_one_that_lives_is_another() {
    let (mut a, mut b) = two();
    a.track_with(1, "ada", "{}", "her key");
    exchange(&mut a, &mut b);
    let _ = (a.told(), b.told());
    b.track_with(2, "ada", "{}", "her key");
    assert_eq!(exchange(&mut a, &mut b), [1]);
    assert_eq!((a.told(), b.told()), (QUIET, QUIET));
    assert_eq!(a.state.own_seats(), 0);
    // Here as there: a third one takes the seat of the second.
    b.track_with(3, "ada", "{}", "her key");
    assert_eq!(b.probed(), [2]);
    // The first hangs, and ends; the second lives.
    a.state.dropped(1, 9, a.now);
    b.state.alive(2, b.now);
    b.state.alive(2, b.now);
    assert!(exchange(&mut a, &mut b).is_empty());
    assert_eq!((a.told(), b.told()), ((1, 0, 0), (1, 0, 0)));
    // It has no key: who comes with it takes the other's seat.
    b.track_with(2, "ada", r#"{"a":1}"#, "her key");
    assert_eq!((b.told(), b.probed()), ((0, 1, 0), vec![]));
    assert_eq!(a.users(), [("ada".into(), 2)]);
    b.state.untrack(2, b.now);
    b.state.untrack(3, b.now);
    assert!(b.users().is_empty());
}

#[test]
fn a_word_of_a_connection_in_doubt_is_a_sign_of_life() {
    let mut bench = Bench::new();
    bench.track_with(1, "ada", "{}", "her key");
    bench.track_with(2, "ada", "{}", "her key");
    assert_eq!((bench.told(), bench.probed()), ((1, 0, 0), vec![1]));
    bench.track_with(1, "ada", r#"{"a":1}"#, "her key");
    assert_eq!((bench.told(), bench.probed()), ((1, 0, 0), vec![]));
    bench.track_with(3, "ada", "{}", "her key");
    assert_eq!(bench.probed(), [2]);
    bench.state.untrack(2, bench.now);
    bench.state.alive(2, bench.now);
    assert_eq!(bench.told(), QUIET, "who leaves in doubt has nothing to leave");
    assert_eq!(bench.users(), [("ada".into(), 2)]);
}

#[test]
fn two_who_take_a_seat_at_once_are_two_connections() {
    let (mut a, mut b) = two();
    let mut c = Bench::new();
    a.track(1, "ada", "{}");
    a.state.dropped(1, 9, a.now);
    for word in announced(&mut a) {
        b.state.hear(a.state.ids.node(), Arc::clone(&word));
        c.state.hear(a.state.ids.node(), word);
    }
    b.track(2, "ada", "{}");
    c.track(3, "ada", "{}");
    assert!(exchange(&mut b, &mut c).is_empty(), "both are known to live");
    assert_eq!(b.users(), [("ada".into(), 2)]);
    assert_eq!(b.users(), c.users());
}

#[test]
fn the_node_that_held_the_seat_may_die_meanwhile() {
    let (mut a, mut b) = two();
    a.track_with(1, "ada", "{}", "her key");
    exchange(&mut a, &mut b);
    let _ = b.told();
    b.track_with(2, "ada", "{}", "her key");
    b.state.node_down(a.state.ids.node());
    assert_eq!(b.told(), QUIET);
    b.state.untrack(2, b.now);
    assert_eq!(b.told(), (0, 0, 1));
}

#[test]
fn who_left_is_not_shown_again_until_it_is_sure_that_nobody_said_so() {
    let (mut a, mut b) = two();
    a.track_with(1, "ada", "{}", "her key");
    exchange(&mut a, &mut b);
    let _ = b.told();
    b.track_with(2, "ada", "{}", "her key");
    b.state.untrack(2, b.now);
    b.state.end_grace(b.now);
    assert_eq!(b.told(), (0, 0, 1));
    // Nothing is heard of the old seat's end, or of the node's.
    assert_eq!(b.state.next_time(), Some(b.now + CLOSED_FOR));
    b.state.end_grace(b.now + CLOSED_FOR);
    assert_eq!(b.told(), (1, 0, 0));
    assert_eq!(b.state.next_time(), None);
}

#[test]
fn nobody_is_seated_before_it_is_known_who_waits() {
    let mut a = Bench::new();
    for (connection, user) in ["ada", "bob", "cyd"].iter().enumerate() {
        a.track(connection as u64, user, "{}");
        a.state.dropped(connection as u64, 9, a.now);
    }
    let mut b = Bench { state: ChannelState::new(Ids::new(NodeId::random()), GRACE), now: a.now };
    b.state.read();
    for (connection, user) in ["ada", "bob", "cyd", "dan"].iter().enumerate() {
        b.track(connection as u64, user, "{}");
    }
    b.state.untrack(1, b.now);
    b.state.dropped(2, 9, b.now);
    assert_eq!((b.state.own_seats(), announced(&mut b).len()), (0, 0));
    b.merge(reading_of(&a));
    assert_eq!(b.state.own_seats(), 3, "one of them is waited for anew");
    for word in announced(&mut b) {
        a.state.hear(b.state.ids.node(), word);
    }
    a.state.end_grace(a.now + GRACE);
    assert_eq!(a.users(), [("ada".into(), 1), ("cyd".into(), 1), ("dan".into(), 1)]);
    for word in announced(&mut a) {
        b.state.hear(a.state.ids.node(), word);
    }
    b.state.end_grace(b.now + GRACE);
    assert_eq!(b.users(), [("ada".into(), 1), ("dan".into(), 1)]);
}

#[test]
fn a_part_that_shows_something_else_than_its_node_states_is_read_anew_and_counted() {
    let (mut a, mut b) = two();
    a.track(1, "ada", "{}");
    b.state.read();
    b.merge(reading_of(&a));
    let _ = b.state.take_outputs();
    let node = a.state.ids.node();
    let version = a.state.own().0;
    let stated = |digest| HashMap::from([(node, Stated { version, digest: Some(digest) })]);
    b.state.compare(&stated(a.state.own_digest()), b.now);
    assert_eq!(b.state.next_time(), None, "they are the same");
    // Of the same version, and yet with somebody else on the seat.
    let mut other = reading_of(&a);
    for entry in other.parts.values_mut().flat_map(|part| part.seats.values_mut()) {
        *entry = Arc::new(Entry { r#ref: a.state.ids.r#ref(), ..Entry::clone(entry) });
    }
    let part = other.parts.values().next().cloned().unwrap();
    b.state.compare(&stated(part.digest()), b.now);
    let later = b.state.next_time().unwrap();
    b.state.audit(later);
    assert_eq!(b.state.take_outputs().len(), 1);
    b.merge(other);
    let audit = Audit { ghosts: 1, missing: 1, skipped: 0 };
    assert_eq!((b.state.take_audit(), b.state.take_audit()), (audit, Audit::default()));
    b.state.compare(&stated(part.digest()), b.now);
    assert_eq!(b.state.next_time(), None);
    // Somebody who is news, a moment too late for the first look.
    b.state.compare(&HashMap::from([(NodeId::random(), Stated { version: 9, digest: Some(1) })]), b.now);
    b.state.audit(later);
    assert_eq!(b.state.take_audit().skipped, 1);
}
