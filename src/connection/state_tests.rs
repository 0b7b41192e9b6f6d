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
            proven_names: false,
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
    bench.say(r#"["3","3","r","phx_join",{}]"#);
    let beat = r#"[null,"1","phoenix","heartbeat",{}]"#;
    assert!(bench.say(beat)[0].contains("ok"));
    let wave = r#"["3","4","r","broadcast",{"event":"wave"}]"#;
    let refused = &bench.say(wave)[0];
    assert!(refused.contains("rate limited") && refused.contains("retry_after_ms"), "{refused}");
    // Whoever goes on all the same is read more slowly, whatever it sends.
    assert_eq!(bench.say(wave)[1], "slow");
    // What a client says once, and believes to be heard, is heard.
    let left = bench.say(r#"["3","5","r","phx_leave",{}]"#);
    assert!(left.contains(&"untrack r".to_owned()) && left.contains(&"slow".to_owned()), "{left:?}");
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

fn supabase() -> Bench {
    Bench::of(Names::Supabase, &[])
}

fn told(effects: &[String]) -> Vec<serde_json::Value> {
    effects.iter().filter_map(|effect| serde_json::from_str(effect).ok()).collect()
}

const LOBBY: &str =
    r#"["6","6","realtime:lobby","phx_join",{"config":{"presence":{"key":"ada","enabled":true}}}]"#;

#[test]
fn who_joins_at_supabase_watches_and_is_present_once_it_tracks() {
    let mut bench = supabase();
    let effects = bench.say(LOBBY);
    let reply =
        r#"["6","6","realtime:lobby","phx_reply",{"status":"ok","response":{"postgres_changes":[]}}]"#;
    assert_eq!(effects, [reply.to_owned(), r#"view lobby Some("6")"#.into()]);
    let track =
        r#"["6","7","realtime:lobby","presence",{"type":"presence","event":"track","payload":{"s":1}}]"#;
    assert_eq!(bench.say(track)[0], r#"track lobby ada {"s":1}"#);
    // What it says, by its own wish, is not told to it, and not answered.
    let say = r#"["6","8","realtime:lobby","broadcast",{"type":"broadcast","event":"wave","payload":{}}]"#;
    let effects = bench.say(say);
    assert!(
        effects.len() == 1 && effects[0].contains("except: Some(SocketId { node: 123, connection: 456 })")
    );
    let asked = LOBBY.replace(r#"{"presence""#, r#"{"broadcast":{"self":true,"ack":true},"presence""#);
    bench.say(&asked);
    let effects = bench.say(say);
    assert!(effects[0].contains("except: None") && effects[1].contains(r#""status":"ok""#), "{effects:?}");
    // Where presence is not wanted, only what is said is told.
    let quiet = LOBBY.replace("true", "false");
    let incoming = decode_text(Dialect::Supabase, &quiet, &bench.limits).unwrap();
    let effects = bench.state.on_message(incoming, bench.now);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::View { view, .. } if !view.roster)));
}

#[test]
fn who_has_no_key_at_supabase_gets_another_name_with_each_join() {
    let mut bench = supabase();
    let mut named = || {
        bench.say(&LOBBY.replace("ada", ""));
        bench.say(r#"["6","7","realtime:lobby","presence",{"type":"presence","event":"track","payload":{}}]"#)
            [0]
        .clone()
    };
    let (first, second) = (named(), named());
    assert!(first != second && first.len() == "track lobby  {}".len() + 36, "{first} {second}");
}

#[test]
fn a_token_that_comes_later_says_who_the_client_is() {
    let mut bench = supabase();
    let user = |name: &str| Verdict::User { user: name.into(), tie: Tie::Jwt { expires: Some(9) } };
    bench.say(LOBBY);
    bench.say(r#"["6","7","realtime:lobby","presence",{"type":"presence","event":"track","payload":{}}]"#);
    let token =
        |text: &str| format!(r#"["6","8","realtime:lobby","access_token",{{"access_token":"{text}"}}]"#);
    let mut renew = |text: &str, verdict: Verdict| {
        let incoming = decode_text(Dialect::Supabase, &token(text), &bench.limits).unwrap();
        if let Some(token) = bench.state.unread_token(&incoming) {
            bench.state.note_token(token, verdict);
        }
        bench.state.on_message(incoming, bench.now).iter().map(short).collect::<Vec<_>>()
    };
    assert_eq!(renew("bad", Verdict::Nobody), [""; 0], "in open mode a token need not be one");
    assert_eq!(renew("sb_publishable_x", user("eve")), [""; 0], "a project's key says nothing");
    assert_eq!(renew("good", user("ada-1")), ["bind", "identify lobby ada-1"]);
    assert_eq!(renew("newer", user("ada-1")), ["bind"]);
    let effects = renew("other", user("eve"));
    assert_eq!(effects[..2], ["untrack lobby", "unview lobby"]);
    let told = told(&effects);
    assert_eq!((&told[0][3], &told[1][3]), (&"system".into(), &"phx_close".into()));
}

#[test]
fn private_channels_need_a_proof() {
    let mut bench = supabase();
    let private = LOBBY.replace(r#"{"presence""#, r#"{"private":true,"presence""#);
    let refused = told(&bench.say(&private));
    let reason = "Unauthorized: You do not have permissions to read from this Channel topic: lobby";
    assert_eq!(refused[0][4]["response"]["reason"], reason);
    bench.state.client.session_user = Some("ada".into());
    assert_eq!(told(&bench.say(&private))[0][4]["status"], "ok");
    bench.state.client.strict = true;
    let with_token = LOBBY.replace(r#"{"config""#, r#"{"access_token":"x","config""#);
    let incoming = decode_text(Dialect::Supabase, &with_token, &bench.limits).unwrap();
    bench.state.note_token(bench.state.unread_token(&incoming).unwrap(), Verdict::Nobody);
    assert_eq!(bench.state.unread_token(&incoming), None, "it is read once");
    let refused = told(&bench.say(&with_token));
    assert_eq!(refused[0][4]["status"], "error");
    let wrong = r#"["6","6","realtime:","phx_join",{}]"#;
    assert!(bench.say(wrong)[0].contains("TopicNameRequired"));
}

fn pusher() -> Bench {
    let secret = Secret::new("app-secret");
    let app = crate::config::PusherApp { id: "7".into(), key: "app-key".into(), secret, bridged: true };
    Bench::of(Names::Pusher(Arc::new(app)), &[])
}

const PRIVATE: &str = r#"{"event":"pusher:subscribe","data":{"auth":"app-key:7d39f26d4d655bd56b11cb2cbca1c97b1d12e8dfc0381368cab350f5f50b5487","channel":"private-room"}}"#;
const PRESENCE: &str = r#"{"event":"pusher:subscribe","data":{"auth":"app-key:bbf7ef7f91ea43583266fe913e966578e28e7d315b4e00ff28015426ebe2b716","channel_data":"{\"user_id\":\"u1\",\"user_info\":{\"name\":\"Ada\"}}","channel":"presence-room"}}"#;
const SIGN_IN: &str = r#"{"event":"pusher:signin","data":{"auth":"app-key:b291393dce2108060c768aa06b328705c6601bc45babaaad6f4636de8cc8354e","user_data":"{\"id\":\"u1\"}"}}"#;

#[test]
fn subscriptions_at_pusher_are_signed_joins() {
    let mut bench = pusher();
    let effects = bench.say(PRESENCE);
    assert_eq!(effects, ["view room None", r#"track room u1 {"name":"Ada"}"#]);
    let effects = bench.say(PRIVATE);
    assert!(effects[0].contains("subscription_succeeded"));
    assert_eq!(effects[1..], ["view pusher:7:private-room None", "track pusher:7:private-room 123.456 {}"]);
    for wrong in
        [PRIVATE.replace("7d39", "7d38"), PRESENCE.replace("Ada", "Eve"), PRIVATE.replace("room", "hall")]
    {
        let told = told(&bench.say(&wrong));
        assert_eq!(
            (&told[0]["event"], &told[1]["event"]),
            (&"pusher:error".into(), &"pusher:subscription_error".into())
        );
    }
    // The wrong signatures ended what was joined by their names.
    assert_eq!(bench.say(r#"{"event":"pusher:unsubscribe","data":{"channel":"presence-room"}}"#), [""; 0]);
    let effects = bench.say(r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"cache-news"}}"#);
    assert_eq!(effects[2], "tell last pusher:7:cache-news");
}

#[test]
fn client_events_need_a_subscription_and_have_a_rate() {
    let mut bench = pusher();
    let say = |channel: &str| format!(r#"{{"event":"client-wave","channel":"{channel}","data":{{}}}}"#);
    let refused = |effects: Vec<String>| told(&effects)[0]["data"]["code"].clone();
    assert_eq!(refused(bench.say(&say("private-room"))), serde_json::Value::Null);
    bench.say(PRESENCE);
    for _ in 0..10 {
        let effects = bench.say(&say("presence-room"));
        assert!(effects.len() == 1 && effects[0].contains(r#"user: Some("u1")"#), "{effects:?}");
    }
    assert_eq!(refused(bench.say(&say("presence-room"))), 4301);
    bench.now += Duration::from_millis(110);
    assert!(bench.say(&say("presence-room"))[0].starts_with("say room"));
}

#[test]
fn who_signs_in_is_online_by_the_channel_of_the_user() {
    let mut bench = pusher();
    let own = r##"{"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-u1"}}"##;
    assert!(told(&bench.say(own))[0]["data"]["message"].as_str().unwrap().contains("sign in"));
    let effects = bench.say(SIGN_IN);
    let channel = "pusher:7:#server-to-user-u1";
    assert!(effects[0].contains("signin_success"));
    assert_eq!(effects[1..], [format!("view {channel} None"), format!("track {channel} 123.456 {{}}")]);
    assert_eq!(bench.say(SIGN_IN).len(), 1, "again is no more");
    let effects = bench.say(own);
    assert!(effects.len() == 1 && effects[0].contains("subscription_succeeded"), "{effects:?}");
    assert!(
        told(&bench.say(&own.replace("u1", "u2")))[0]["data"]["message"]
            .as_str()
            .unwrap()
            .contains("another user")
    );
    let wrong = SIGN_IN.replace("b291", "b292");
    assert!(
        told(&bench.say(&wrong))[0]["data"]["message"].as_str().unwrap().starts_with("Invalid signature")
    );
}
