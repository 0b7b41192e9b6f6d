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
        self.state.track(connection, &user.into(), &meta.into(), 0, self.now);
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
    bench.state.dropped(2, bench.now);
    assert_eq!(bench.told(), QUIET);
    assert_eq!(bench.state.next_grace(), Some(bench.now + GRACE));
    bench.state.end_grace(bench.now + GRACE);
    assert_eq!(bench.told(), (0, 0, 1));
    assert!(bench.users().is_empty());
}

#[test]
fn coming_back_within_the_grace_shows_nobody_anything() {
    let mut bench = Bench::new();
    bench.track(1, "ada", r#"{"a":1}"#);
    let _ = (bench.told(), bench.state.take_outputs());
    bench.state.dropped(1, bench.now);
    bench.track(2, "ada", r#"{"a":1}"#);
    bench.state.end_grace(bench.now + GRACE);
    assert_eq!(bench.told(), QUIET);
    assert!(bench.state.take_outputs().is_empty(), "the other nodes have nothing to hear either");
    // The new connection holds the seat now.
    bench.state.untrack(2, bench.now);
    assert_eq!(bench.told(), (0, 0, 1));
}

#[test]
fn coming_back_with_another_meta_is_an_update() {
    let mut bench = Bench::new();
    bench.track(1, "ada", "{}");
    let _ = bench.told();
    bench.state.dropped(1, bench.now);
    bench.track(2, "ada", r#"{"a":1}"#);
    assert_eq!(bench.told(), (0, 1, 0));
}

#[test]
fn two_tabs_that_reload_take_their_own_seats_again() {
    let mut bench = Bench::new();
    bench.track(1, "ada", r#"{"tab":1}"#);
    bench.track(2, "ada", r#"{"tab":2}"#);
    let _ = bench.told();
    bench.state.dropped(1, bench.now);
    bench.state.dropped(2, bench.now);
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
        let Output::Announce(batch) = output else { panic!("{output:?}") };
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
            Output::Announce(batch) => Some(Arc::new(batch)),
            Output::Read(_) => None,
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
    b.state.merge(Some(early));
    assert_eq!(b.users(), a.users());
    assert!(b.state.take_outputs().is_empty(), "nothing is missing any more");
    assert_eq!(b.told(), (4, 0, 0));
}

#[test]
fn a_channel_that_could_not_be_read_shows_what_it_knows() {
    let mut bench =
        Bench { state: ChannelState::new(Ids::new(NodeId::random()), GRACE), now: Instant::now() };
    bench.track(1, "ada", "{}");
    bench.state.read_again();
    assert!(!bench.state.is_live());
    bench.state.merge(None);
    assert!(bench.state.is_live());
    assert_eq!(bench.users(), [("ada".into(), 1)]);
}

#[test]
fn a_reading_that_is_not_good_enough_is_followed_by_another() {
    let mut bench = Bench::new();
    bench.state.read_again();
    bench.state.read_again();
    assert_eq!(bench.state.take_outputs().len(), 1);
    bench.state.merge(Some(Reading::default()));
    assert_eq!(bench.state.take_outputs().len(), 1);
    bench.state.merge(Some(Reading::default()));
    assert!(bench.state.take_outputs().is_empty());
}

#[test]
fn a_heartbeat_finds_what_was_missed() {
    let (mut a, mut b) = two();
    let node = a.state.ids.node();
    a.track(1, "ada", "{}");
    b.state.compare(&HashMap::from([(node, a.state.own().0)]));
    assert_eq!(b.state.take_outputs(), [Output::Read(HashMap::new())]);
    b.state.merge(Some(reading_of(&a)));
    b.state.compare(&HashMap::from([(node, a.state.own().0)]));
    assert!(b.state.take_outputs().is_empty());
    // The node is known to have somebody, but its part is gone from the store.
    b.state.compare(&HashMap::new());
    assert_eq!(b.state.take_outputs().len(), 1);
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
