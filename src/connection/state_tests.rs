use clap::Parser as _;

use super::*;
use crate::config::Args;
use crate::dialects::decode_text;

struct Bench {
    state: ConnectionState,
    limits: Arc<Limits>,
    now: Instant,
}

impl Bench {
    fn new(args: &[&str]) -> Self {
        Self::of(Names::Phoenix, args)
    }

    fn of(names: Names, args: &[&str]) -> Self {
        let limits = Arc::new(Args::parse_from(std::iter::once(&"rollcall").chain(args)).limits);
        let client = Client {
            session_user: None,
            claimed_user: None,
            claimed_meta: None,
            claimed_resume: Ok(None),
            fallback: "0000000000000001".parse().unwrap(),
            names,
            socket: SocketId { node: 123, connection: 456 },
            strict: false,
            counts: false,
        };
        let now = Instant::now();
        Self { state: ConnectionState::new(client, Arc::clone(&limits), now), limits, now }
    }

    /// The effects of a frame, each as one short text.
    fn say(&mut self, frame: &str) -> Vec<String> {
        let dialect = self.state.client.names.dialect();
        let incoming = decode_text(dialect, frame, &self.limits).unwrap();
        self.state.on_message(incoming, self.now).iter().map(short).collect()
    }
}

fn short(effect: &Effect) -> String {
    match effect {
        Effect::Send(Frame::Text(text)) => String::from_utf8(text.to_vec()).unwrap(),
        Effect::Send(other) => format!("{other:?}"),
        Effect::Identify { channel, user } => format!("identify {channel} {user}"),
        Effect::Bind(_) => "bind".to_owned(),
        Effect::Say { channel, broadcast } => format!("say {channel} {broadcast:?}"),
        Effect::TellLast { channel, .. } => format!("tell last {channel}"),
        Effect::View { channel, view } => format!("view {channel} {:?}", view.join_ref.as_deref()),
        Effect::Unview { channel } => format!("unview {channel}"),
        Effect::Track { channel, user, meta, .. } => format!("track {channel} {user} {meta}"),
        Effect::Untrack { channel } => format!("untrack {channel}"),
        Effect::Active { users, active } => format!("active {} {active}", users.join(",")),
        Effect::Wake(_) => "wake".to_owned(),
        Effect::Slow(_) => "slow".to_owned(),
    }
}

fn ok_to(join: &str, reference: &str) -> String {
    format!(r#"["{join}","{reference}","r","phx_reply",{{"status":"ok","response":{{}}}}]"#)
}

fn error_to(join: &str, reference: &str, reason: &str) -> String {
    format!(
        r#"["{join}","{reference}","r","phx_reply",{{"status":"error","response":{{"reason":"{reason}"}}}}]"#
    )
}

#[test]
fn a_join_is_answered_then_viewed_then_present() {
    let mut bench = Bench::new(&[]);
    let effects = bench.say(r#"["3","3","r","phx_join",{"user_id":7,"meta":{"a":1}}]"#);
    assert_eq!(effects, [ok_to("3", "3"), r#"view r Some("3")"#.into(), r#"track r 7 {"a":1}"#.into()]);
    assert_eq!(
        bench.say(r#"["3","4","r","phx_leave",{}]"#)[..3],
        ["untrack r".to_owned(), "unview r".into(), ok_to("3", "4")]
    );
    // Leaving what is not joined is fine.
    assert_eq!(bench.say(r#"["3","5","r","phx_leave",{}]"#), [ok_to("3", "5")]);
}

#[test]
fn an_observer_is_not_present_until_it_tracks() {
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.say(r#"["3","3","r","phx_join",{"observe":true}]"#).len(), 2);
    let effects =
        bench.say(r#"["3","4","r","presence",{"type":"presence","event":"track","payload":{"b":2}}]"#);
    assert_eq!(effects, [r#"track r anon-0000000000000001 {"b":2}"#.to_owned(), ok_to("3", "4")]);
    let untrack = r#"["3","5","r","presence",{"type":"presence","event":"untrack"}]"#;
    assert_eq!(bench.say(untrack), ["untrack r".to_owned(), ok_to("3", "5")]);
    assert_eq!(bench.say(untrack), [ok_to("3", "5")]);
}

#[test]
fn a_second_join_replaces_the_first_and_keeps_its_seat() {
    let mut bench = Bench::new(&[]);
    bench.say(r#"["3","3","r","phx_join",{"user_id":"ada"}]"#);
    let effects = bench.say(r#"["5","5","r","phx_join",{"user_id":"ada","meta":{"a":1}}]"#);
    assert_eq!(
        effects,
        [
            r#"["3","3","r","phx_close",{}]"#.to_owned(),
            ok_to("5", "5"),
            r#"view r Some("5")"#.into(),
            r#"track r ada {"a":1}"#.into()
        ]
    );
    // As somebody else, or to observe: the old presence ends.
    assert!(bench.say(r#"["6","6","r","phx_join",{"user_id":"bob"}]"#).contains(&"untrack r".to_owned()));
    assert!(bench.say(r#"["7","7","r","phx_join",{"observe":true}]"#).contains(&"untrack r".to_owned()));
}

#[test]
fn words_of_a_join_that_has_ended_are_ignored() {
    let mut bench = Bench::new(&[]);
    bench.say(r#"["3","3","r","phx_join",{}]"#);
    bench.say(r#"["5","5","r","phx_join",{}]"#);
    for stale in [
        r#"["3","9","r","phx_leave",{}]"#,
        r#"["3","9","r","presence",{"type":"presence","event":"untrack"}]"#,
        r#"["3","9","r","say",{}]"#,
    ] {
        assert!(bench.say(stale).is_empty(), "{stale}");
    }
    // No join ref at all means the current join.
    assert_eq!(bench.say(r#"[null,"9","r","say",{}]"#).len(), 1);
}

#[test]
fn every_refusal_is_a_reply_and_the_rest_goes_on() {
    let mut bench = Bench::new(&["--max-channels", "1"]);
    assert_eq!(bench.say(r#"["1","1","r","say",{}]"#), [error_to("1", "1", "unmatched topic")]);
    assert_eq!(
        bench.say(r#"["1","1","r","phx_join",{"user_id":"ids"}]"#),
        [error_to("1", "1", "user_id is reserved")]
    );
    assert_eq!(
        bench.say(r#"["1","1","r","phx_join",{"meta":[]}]"#),
        [error_to("1", "1", "meta must be an object")]
    );
    let long = format!(r#"["1","1","{}","phx_join",{{}}]"#, "x".repeat(201));
    assert!(bench.say(&long)[0].contains("channel name"));
    bench.say(r#"["1","1","other","phx_join",{}]"#);
    assert_eq!(bench.say(r#"["2","2","r","phx_join",{}]"#), [error_to("2", "2", "too many channels joined")]);
    // A refused join of a topic that is joined ends that: the client holds it for not joined.
    let effects = bench.say(r#"["3","3","other","phx_join",{"meta":[]}]"#);
    assert_eq!(effects[..2], ["untrack other", "unview other"]);
    bench.say(r#"["3","3","other","phx_join",{}]"#);
    // The one that is joined may be joined again.
    assert!(bench.say(r#"["3","3","other","phx_join",{}]"#).iter().any(|e| e.starts_with("view")));
}

#[test]
fn a_sessions_user_is_the_user_whatever_the_payload_claims() {
    let mut bench = Bench::new(&[]);
    bench.state.client.session_user = Some("real".into());
    let effects = bench.say(r#"["3","3","r","phx_join",{"user_id":"fake"}]"#);
    assert!(effects.contains(&"track r real {}".to_owned()), "{effects:?}");
}

#[test]
fn presence_calls_over_the_rate_are_accepted_and_the_newest_is_applied() {
    let mut bench = Bench::new(&[]);
    bench.say(r#"["3","3","r","phx_join",{}]"#);
    let mut applied = 0;
    let mut wakes = 0;
    for n in 0..50 {
        let call = format!(
            r#"["3","{n}","r","presence",{{"type":"presence","event":"track","payload":{{"n":{n}}}}}]"#
        );
        let effects = bench.say(&call);
        assert!(effects.contains(&ok_to("3", &n.to_string())), "{effects:?}");
        applied += effects.iter().filter(|e| e.starts_with("track")).count();
        wakes += effects.iter().filter(|e| *e == "wake").count();
    }
    assert_eq!((applied, wakes), (20, 1));
    let effects = bench.state.wake(bench.now + Duration::from_millis(200));
    assert_eq!(effects.iter().map(short).collect::<Vec<_>>(), [r#"track r anon-0000000000000001 {"n":49}"#]);
    assert!(bench.state.wake(bench.now + Duration::from_secs(1)).is_empty());
}

#[test]
fn an_untrack_takes_a_held_meta_with_it() {
    let mut bench = Bench::new(&["--max-presence-burst", "1"]);
    bench.say(r#"["3","3","r","phx_join",{}]"#);
    let track = r#"["3","4","r","presence",{"type":"presence","event":"track","payload":{"n":1}}]"#;
    bench.say(track);
    assert!(bench.say(track).contains(&"wake".to_owned()));
    let untrack = r#"["3","5","r","presence",{"type":"presence","event":"untrack"}]"#;
    assert_eq!(bench.say(untrack)[0], "untrack r");
    assert!(bench.state.wake(bench.now + Duration::from_secs(1)).is_empty());
}

#[test]
fn messages_over_the_rate_are_refused_with_the_time_to_wait() {
    let mut bench = Bench::new(&["--max-message-rate", "1", "--max-channels", "1"]);
    let beat = r#"[null,"1","phoenix","heartbeat",{}]"#;
    assert!(bench.say(beat)[0].contains("ok") && bench.say(beat)[0].contains("ok"));
    let refused = &bench.say(beat)[0];
    assert!(refused.contains("rate limited") && refused.contains("retry_after_ms"), "{refused}");
    // Whoever goes on all the same is read more slowly, whatever it sends.
    assert_eq!(bench.say(beat)[1], "slow");
    assert!(matches!(bench.state.on_other(bench.now)[..], [Effect::Slow(_)]));
}

#[test]
fn a_resume_key_is_taken_from_the_join_or_the_connection_and_names_who_has_no_name() {
    let mut bench = Bench::new(&[]);
    bench.state.client.claimed_resume = Ok(Some(Secret::new("key of the connection")));
    let mut track = |frame: &str| {
        let incoming = decode_text(Dialect::Phoenix, frame, &bench.limits).unwrap();
        let effects = bench.state.on_message(incoming, bench.now);
        effects.into_iter().find_map(|effect| match effect {
            Effect::Track { user, resume, .. } => Some((user.to_string(), resume)),
            _ => None,
        })
    };
    let of = |user: &str, key| Some((user.to_owned(), Some(ResumeKey::new(user, key))));
    assert_eq!(track(r#"["1","1","r","phx_join",{"user_id":"ada"}]"#), of("ada", "key of the connection"));
    let named = r#"["2","2","r","phx_join",{"user_id":"ada","resume":"key of the join"}]"#;
    assert_eq!(track(named), of("ada", "key of the join"));
    let update = r#"["2","3","r","presence",{"type":"presence","event":"track","payload":{"n":1}}]"#;
    assert_eq!(track(update), of("ada", "key of the join"));
    let nameless = r#"["4","4","r","phx_join",{"resume":"key of the join"}]"#;
    assert_eq!(track(nameless), of(&anonymous("key of the join"), "key of the join"));
}

#[test]
fn a_resume_key_that_is_none_refuses_the_join_and_nothing_else() {
    let mut bench = Bench::new(&[]);
    let reason = "resume must be a string of 8 to 128 bytes";
    for wrong in ["7", "{}", r#""short""#, &format!("\"{}\"", "x".repeat(129))] {
        let frame = format!(r#"["1","1","r","phx_join",{{"user_id":"ada","resume":{wrong}}}]"#);
        assert_eq!(bench.say(&frame), [error_to("1", "1", reason)], "{wrong}");
    }
    assert!(bench.say(r#"["1","1","r","phx_join",{"resume":null}]"#).len() == 3);
    bench.state.client.claimed_resume = Err(Reject::ResumeInvalid);
    assert!(bench.say(r#"["2","2","s","phx_join",{}]"#)[0].contains(reason));
    assert_eq!(bench.say(r#"["2","2","s","phx_join",{"resume":"a good key"}]"#).len(), 3);
}

/// A node on which only one channel is open, in which only one more user may be.
#[derive(Debug)]
struct Narrow;

impl Room for Narrow {
    fn check(&self, channel: &str, user: Option<&str>, _: bool) -> Result<(), Reject> {
        match (channel, user) {
            ("open", None | Some("ada")) => Ok(()),
            ("open", Some(_)) => Err(Reject::ChannelFull(1)),
            _ => Err(Reject::TooManyOnNode),
        }
    }
}

#[test]
fn where_there_is_no_room_a_join_is_refused_and_so_is_the_first_meta_of_an_observer() {
    let mut bench = Bench::new(&[]);
    bench.state = std::mem::replace(&mut bench.state, Bench::new(&[]).state).within(Rc::new(Narrow));
    let join = |topic: &str, user: &str, observe: bool| {
        format!(r#"["1","1","{topic}","phx_join",{{"user_id":"{user}","observe":{observe}}}]"#)
    };
    let refused = |reason| [error_to("1", "1", reason).replace("\"r\"", "\"open\"")];
    assert!(bench.say(&join("other", "ada", true))[0].contains("too many channels on this node"));
    assert_eq!(bench.say(&join("open", "bob", false)), refused("channel has its 1 members"));
    assert!(bench.say(&join("open", "bob", true))[0].contains("ok"));
    let track = r#"["1","2","open","presence",{"type":"presence","event":"track","payload":{}}]"#;
    assert!(bench.say(track)[0].contains("channel has its 1 members"));
    assert!(bench.say(&join("open", "ada", false)).iter().any(|effect| effect.starts_with("track open ada")));
    // Who is in may show what it likes.
    assert!(bench.say(track).iter().any(|effect| effect.contains("ok")));
}

#[test]
fn that_somebody_uses_the_client_is_told_now_and_then_and_at_once_when_that_changes() {
    let mut bench = Bench::new(&[]);
    bench.state = std::mem::replace(&mut bench.state, Bench::new(&[]).state)
        .telling_activity(Some(Duration::from_secs(30)));
    let told = |bench: &mut Bench, frame: &str| -> Vec<String> {
        bench.say(frame).into_iter().filter(|effect| effect.starts_with("active")).collect()
    };
    let (heartbeat, other) = (r#"[null,"1","phoenix","heartbeat",{}]"#, r#"["3","9","r","wave",{}]"#);
    let says = |event: &str| format!(r#"["3","5","r","presence",{{"type":"presence","event":"{event}"}}]"#);
    let none: [String; 0] = [];
    assert_eq!(told(&mut bench, other), none, "nobody is anywhere yet");
    assert_eq!(told(&mut bench, r#"["3","3","r","phx_join",{"user_id":"ada"}]"#), ["active ada true"]);
    assert_eq!(told(&mut bench, r#"["4","4","s","phx_join",{"user_id":"bob"}]"#), ["active ada,bob true"]);
    assert_eq!(told(&mut bench, other), none);
    bench.now += Duration::from_secs(31);
    assert_eq!(told(&mut bench, heartbeat), none, "clients send those by themselves");
    assert_eq!(told(&mut bench, other), ["active ada,bob true"]);
    assert_eq!(told(&mut bench, &says("idle")), ["active ada,bob false"]);
    assert_eq!(told(&mut bench, &says("idle")), none);
    bench.now += Duration::from_secs(31);
    assert_eq!(told(&mut bench, other), none, "the client knows better");
    assert_eq!(told(&mut bench, &says("active")), ["active ada,bob true"]);
    assert_eq!(told(&mut bench, &says("active")), ["active ada,bob true"], "who says so is believed");
    bench.now += Duration::from_secs(31);
    assert_eq!(told(&mut bench, &says("active")), ["active ada,bob true"], "it had become idle by itself");
    assert_eq!(told(&mut bench, r#"["4","6","s","phx_leave",{}]"#), ["active bob false"]);
    assert_eq!(
        told(&mut bench, r#"["7","7","t","phx_join",{"user_id":"eve","observe":true}]"#),
        ["active ada true"]
    );
    assert!(bench.say(&says("idle").replace("\"r\"", "\"nowhere\""))[0].contains("unmatched topic"));
    assert_eq!(bench.say(&says("Idle"))[0], ok_to("3", "5"));
}
