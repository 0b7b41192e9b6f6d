//! What webhooks tell, and of which application a channel is. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use crate::config::PusherApp;
use crate::dialects::pusher_name;

/// Something that an application's backend wants to know. The fields stand in Pusher's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum HookEvent {
    ChannelOccupied {
        channel: String,
    },
    ChannelVacated {
        channel: String,
    },
    MemberAdded {
        channel: String,
        user_id: Arc<str>,
    },
    MemberRemoved {
        channel: String,
        user_id: Arc<str>,
    },
    ClientEvent {
        channel: String,
        event: String,
        data: String,
        socket_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<Arc<str>>,
    },
    CacheMiss {
        channel: String,
    },
    SubscriptionCount {
        channel: String,
        subscription_count: usize,
    },
}

#[derive(Serialize)]
struct Told<'a> {
    time_ms: u64,
    events: &'a [HookEvent],
}

/// The body of a call that tells `events`.
pub fn body(time_ms: u64, events: &[HookEvent]) -> Vec<u8> {
    // Made of strings and numbers: it always has a JSON form.
    serde_json::to_vec(&Told { time_ms, events }).unwrap_or_default()
}

/// Of which of `apps` the channel is, and what its clients call it. A bridged channel is the first one's.
pub fn owner<'a, 'b>(
    apps: &'a [Arc<PusherApp>],
    channel: &'b str,
) -> Option<(&'a Arc<PusherApp>, Cow<'b, str>)> {
    apps.iter().find_map(|app| Some((app, pusher_name(app, channel)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_body_is_what_the_libraries_verify() {
        let added = HookEvent::MemberAdded { channel: "presence-room".into(), user_id: "u1".into() };
        let text = String::from_utf8(body(1_700_000_000_000, &[added])).unwrap();
        assert_eq!(
            text,
            r#"{"time_ms":1700000000000,"events":[{"name":"member_added","channel":"presence-room","user_id":"u1"}]}"#
        );
        let app = PusherApp {
            id: "7".into(),
            key: "app-key".into(),
            secret: Secret::new("app-secret"),
            bridged: true,
        };
        let signed = crate::signature::sign(&app, text.as_bytes());
        assert_eq!(signed, "f501e6d0403eedede0c7a87f3717b33d594da392dc3a2df427079575dc3192e5");
        let apps = [Arc::new(app.clone()), Arc::new(PusherApp { id: "8".into(), bridged: false, ..app })];
        let owned = |channel| owner(&apps, channel).map(|(app, name)| (app.id.clone(), name.into_owned()));
        assert_eq!(owned("room:1"), Some(("7".into(), "presence-room:1".into())));
        assert_eq!(owned("pusher:8:private-a"), Some(("8".into(), "private-a".into())));
        assert_eq!(owned("pusher:9:private-a"), None);
        assert_eq!(owner(&apps[1..], "room:1"), None, "not bridged");
    }
}
