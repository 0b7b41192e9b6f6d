use super::super::sender::Queue;
use super::*;
use crate::config::Secret;
use crate::presence::{Entry, Ids, NodeId, Roster as Members, Snapshot};
use crate::redis_pool::test_redis::TestRedis;

fn apps() -> Vec<Arc<PusherApp>> {
    let app = PusherApp { id: "7".into(), key: "k".into(), secret: Secret::new("s"), bridged: true };
    vec![Arc::new(app)]
}

/// A node on which one channel lives, with this roster.
fn known(roster: Arc<std::sync::Mutex<Snapshot>>) -> Known {
    Known {
        node: NodeId::random(),
        roster: Box::new(move |_, show| show(&roster.lock().unwrap())),
        channels: Box::new(|| vec!["room".into()]),
    }
}

fn node(pool: &RedisPool) -> (Transitions, Queue) {
    let (sender, queue) = Sender::new(Arc::new(crate::metrics::Metrics::new()));
    let told =
        Told::Shared { pool: pool.clone(), keys: Keys::new(false), is_marked: false, rests_until: None };
    let known = known(Arc::default());
    (Transitions { apps: apps(), counts: true, known, told, sender }, queue)
}

fn names(queue: &mut Queue) -> Vec<String> {
    let text = |event: HookEvent| {
        let event = serde_json::to_value(&event).unwrap();
        format!("{} {}", event["name"].as_str().unwrap(), event["user_id"].as_str().unwrap_or_default())
    };
    queue.take().into_iter().map(text).collect()
}

async fn set(pool: &RedisPool, user: &str, there: bool) {
    let (hash, users) = (Keys::new(false).user("room", user), Keys::new(false).users("room"));
    let mut pipeline = redis::pipe();
    match there {
        true => pipeline.hset(hash, "seat", "{}").ignore().sadd(users, user).ignore(),
        false => pipeline.del(hash).ignore().srem(users, user).ignore(),
    };
    pool.pipeline::<()>(&pipeline).await.unwrap();
}

fn question(user: &str, expected: bool) -> Questions {
    let one = Question { expected, tries: 0, at: Instant::now() };
    HashMap::from([("room".into(), HashMap::from([(user.into(), one)]))])
}

#[actix_web::test]
async fn of_two_nodes_that_see_it_one_tells() {
    let redis = TestRedis::start();
    let pool = redis.pool();
    let ((mut a, mut told_a), (mut b, mut told_b)) = (node(&pool), node(&pool));
    let (mut all, mut see) = (Vec::new(), Vec::new());
    for there in [true, false] {
        set(&pool, "ada", there).await;
        let (mut by_a, mut by_b) = (question("ada", there), question("ada", there));
        tokio::join!(a.ask(&mut by_a), b.ask(&mut by_b));
        assert!(by_a.is_empty() && by_b.is_empty(), "both have their answer");
        see = [names(&mut told_a), names(&mut told_b)].concat();
        all.append(&mut see.clone());
    }
    assert_eq!(all, ["channel_occupied ", "member_added ada", "member_removed ada", "channel_vacated "]);
    assert_eq!(see.len(), 2);
}

#[actix_web::test]
async fn what_is_not_written_yet_is_asked_again_and_what_was_undone_is_not_told() {
    let redis = TestRedis::start();
    let pool = redis.pool();
    let (mut a, mut told) = node(&pool);
    let mut questions = question("ada", true);
    a.ask(&mut questions).await;
    assert_eq!((names(&mut told), questions.len()), (vec![], 1));
    set(&pool, "ada", true).await;
    questions.values_mut().flat_map(HashMap::values_mut).for_each(|one| one.at = Instant::now());
    a.ask(&mut questions).await;
    assert_eq!((names(&mut told).len(), questions.len()), (2, 0));
    // Left and back before anybody asked.
    a.ask(&mut question("ada", true)).await;
    assert_eq!(names(&mut told), [""; 0]);
    // Never there, and asked often enough.
    let mut questions = question("eve", true);
    for _ in 0..TRIES {
        questions.values_mut().flat_map(HashMap::values_mut).for_each(|one| one.at = Instant::now());
        a.ask(&mut questions).await;
    }
    assert!(questions.is_empty() && names(&mut told).is_empty());
}

#[actix_web::test]
async fn a_sweep_tells_what_nobody_saw_and_one_node_sweeps() {
    let redis = TestRedis::start();
    let pool = redis.pool();
    let ((mut a, mut told_a), (mut b, mut told_b)) = (node(&pool), node(&pool));
    set(&pool, "ada", true).await;
    a.ask(&mut question("ada", true)).await;
    assert_eq!(names(&mut told_a).len(), 2);
    // Its node dies, and nobody looks at the channel; another user has come unseen.
    set(&pool, "ada", false).await;
    set(&pool, "bo", true).await;
    let (one, two) = tokio::join!(a.sweep(), b.sweep());
    assert!(one.is_ok() && two.is_ok());
    let mut told = [names(&mut told_a), names(&mut told_b)].concat();
    told.sort();
    assert_eq!(told, ["member_added bo", "member_removed ada"]);
    set(&pool, "bo", false).await;
    a.sweep().await.unwrap();
    assert_eq!(names(&mut told_a), ["member_removed bo", "channel_vacated "]);
    let left: usize = pool.query(redis::cmd("SCARD").arg(INDEX)).await.unwrap();
    assert_eq!(left, 0, "there is nothing left to sweep");
}

#[actix_web::test]
async fn without_redis_the_roster_of_the_node_is_the_truth() {
    let ids = Ids::new(NodeId::random());
    let members = Arc::new(std::sync::Mutex::new(Snapshot::default()));
    let known = known(Arc::clone(&members));
    let (sender, mut queue) = Sender::new(Arc::new(crate::metrics::Metrics::new()));
    let told = Told::Own(HashMap::new());
    let mut node = Transitions { apps: apps(), counts: false, known, told, sender };
    let mut room = Members::new(ids.node());
    let entry = Entry::new("ada".into(), ids.r#ref(), "{}".into(), 1);
    let _ = room.put(1, Arc::new(entry), 1);
    *members.lock().unwrap() = room.snapshot(1);
    node.ask(&mut question("ada", true)).await;
    node.ask(&mut question("ada", true)).await;
    assert_eq!(names(&mut queue), ["channel_occupied ", "member_added ada"]);
    let _ = room.remove(1, 2);
    *members.lock().unwrap() = room.snapshot(2);
    node.ask(&mut question("ada", false)).await;
    assert_eq!(names(&mut queue), ["member_removed ada", "channel_vacated "]);
    let Told::Own(told) = &node.told else { panic!() };
    assert!(told.is_empty(), "nothing is kept of a channel in which nobody is");
}

#[actix_web::test]
async fn a_redis_that_has_forgotten_is_told_again_what_was_told() {
    let redis = TestRedis::start();
    let pool = redis.pool();
    let (mut node, mut told) = node(&pool);
    let members = Arc::new(std::sync::Mutex::new(Snapshot::default()));
    node.known = known(Arc::clone(&members));
    assert!(node.may_ask(&Questions::new()).await, "at the start there is nothing to recall");
    let ids = Ids::new(NodeId::random());
    let mut room = Members::new(ids.node());
    for (seat, user) in [(1, "ada"), (2, "bo")] {
        let _ = room.put(seat, Arc::new(Entry::new(user.into(), ids.r#ref(), "{}".into(), seat)), seat);
        set(&pool, user, true).await;
        node.ask(&mut question(user, true)).await;
    }
    *members.lock().unwrap() = room.snapshot(2);
    assert_eq!(names(&mut told), ["channel_occupied ", "member_added ada", "member_added bo"]);
    pool.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
    // One leaves and another comes before anybody has noticed.
    let _ =
        (room.remove(2, 3), room.put(3, Arc::new(Entry::new("cy".into(), ids.r#ref(), "{}".into(), 4)), 4));
    *members.lock().unwrap() = room.snapshot(4);
    let mut questions = question("bo", false);
    questions.get_mut("room").unwrap().extend(question("cy", true).remove("room").unwrap());
    assert!(!node.may_ask(&questions).await, "Redis does not know yet who is there");
    for user in ["ada", "cy"] {
        set(&pool, user, true).await;
    }
    if let Told::Shared { rests_until, .. } = &mut node.told {
        *rests_until = Some(Instant::now());
    }
    assert!(node.may_ask(&questions).await);
    node.ask(&mut questions).await;
    node.sweep().await.unwrap();
    let mut seen = names(&mut told);
    seen.sort();
    assert_eq!(seen, ["member_added cy", "member_removed bo"]);
}
