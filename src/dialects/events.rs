//! Server-sent events: the roster as a `snapshot`, then `diff`s, for whoever only watches.
//!
//! Every event's id is the version it leads to. The data of a snapshot is what the members call
//! answers, without pages, and with the `refs` and the arrivals (`since`) of each member's
//! connections in the order of its `metas`:
//!
//! ```text
//! {"channel","online","connections","version",
//!  "members":[{"user","connections","metas":[…],"online_since","refs":[…],"since":[…]},…]}
//! ```
//!
//! The data of a diff is, with the counts after it:
//!
//! ```text
//! {"channel","online","connections","version",
//!  "joins":[{"user","ref","prev"?,"meta","since"},…],"leaves":[{"user","ref"},…]}
//! ```
//!
//! Whoever keeps entries by `ref`, puts in all joins and then takes out all leaves has the roster.
//! An update is a join whose `prev` is the ref that it replaces, which is also among the leaves.

use std::sync::Arc;

use crate::json;
use crate::presence::{Diff, Entry, Member, Snapshot};

/// Appends `"channel":…,"online":…,"connections":…`.
pub fn write_counts(out: &mut Vec<u8>, channel: &str, online: usize, connections: usize) {
    out.extend_from_slice(b"\"channel\":");
    json::string(out, channel);
    out.extend_from_slice(b",\"online\":");
    json::number(out, online);
    out.extend_from_slice(b",\"connections\":");
    json::number(out, connections);
}

/// Appends `"user":…,"connections":…,"metas":[…],"online_since":…`.
pub fn write_member_fields(out: &mut Vec<u8>, member: &Member) {
    out.extend_from_slice(b"\"user\":");
    json::string(out, &member.user);
    out.extend_from_slice(b",\"connections\":");
    json::number(out, member.seats.len());
    out.extend_from_slice(b",\"metas\":");
    // A meta is JSON already, checked when it came.
    json::list(out, &member.seats, |out, (_, entry)| json::one_line(out, &entry.meta));
    out.extend_from_slice(b",\"online_since\":");
    json::time(out, member.since());
}

pub(super) fn state_envelope(channel: &str, roster: &Snapshot) -> (String, &'static str) {
    let mut out = Vec::with_capacity(channel.len() + 160);
    begin(&mut out, "snapshot", channel, roster);
    out.extend_from_slice(b",\"members\":");
    // Made of strings and ASCII only.
    (String::from_utf8(out).unwrap_or_default(), "}\n\n")
}

pub(super) fn state_payload(roster: &Snapshot) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + roster.connections * 192);
    json::list(&mut out, &roster.members, |out, member| {
        out.push(b'{');
        write_member_fields(out, member);
        out.extend_from_slice(b",\"refs\":");
        json::list(out, &member.seats, |out, (_, entry)| json::string(out, entry.r#ref.as_str()));
        out.extend_from_slice(b",\"since\":");
        json::list(out, &member.seats, |out, (_, entry)| json::time(out, entry.since));
        out.push(b'}');
    });
    out
}

pub(super) fn diff(channel: &str, diff: &Diff, roster: &Snapshot) -> Vec<u8> {
    let size = channel.len() + 200 + diff.joins.len() * 192 + diff.leaves.len() * 64;
    let mut out = Vec::with_capacity(size);
    begin(&mut out, "diff", channel, roster);
    out.extend_from_slice(b",\"joins\":");
    json::list(&mut out, &diff.joins, |out, (new, old)| write_join(out, new, old.as_ref()));
    out.extend_from_slice(b",\"leaves\":");
    json::list(&mut out, &diff.leaves, |out, entry| {
        write_seat(out, entry);
        out.push(b'}');
    });
    out.extend_from_slice(b"}\n\n");
    out
}

/// The lines before the data, and the data's first fields.
fn begin(out: &mut Vec<u8>, event: &str, channel: &str, roster: &Snapshot) {
    let version = roster.version_name();
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\nevent: ");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\ndata: {");
    write_counts(out, channel, roster.online(), roster.connections);
    out.extend_from_slice(b",\"version\":");
    json::string(out, &version);
}

fn write_join(out: &mut Vec<u8>, new: &Entry, old: Option<&Arc<Entry>>) {
    write_seat(out, new);
    if let Some(old) = old {
        out.extend_from_slice(b",\"prev\":");
        json::string(out, old.r#ref.as_str());
    }
    out.extend_from_slice(b",\"meta\":");
    json::one_line(out, &new.meta);
    out.extend_from_slice(b",\"since\":");
    json::time(out, new.since);
    out.push(b'}');
}

/// An object that is still open, with user and ref.
fn write_seat(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(b"{\"user\":");
    json::string(out, &entry.user);
    out.extend_from_slice(b",\"ref\":");
    json::string(out, entry.r#ref.as_str());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::presence::{Ids, NodeId, Roster};

    fn entry(ids: &Ids, user: &str, meta: &str) -> Arc<Entry> {
        Arc::new(Entry::new(user.into(), ids.r#ref(), meta.into(), 1_000))
    }

    /// The fields of the one event in `text`: id, event, data.
    fn read(text: &str) -> (String, String, Value) {
        let lines: Vec<&str> = text.strip_suffix("\n\n").unwrap().split('\n').collect();
        let [id, event, data] = lines[..] else { panic!("{lines:?}") };
        let value = |line: &str, name: &str| line.strip_prefix(name).unwrap().to_owned();
        let data = serde_json::from_str(&value(data, "data: ")).unwrap();
        (value(id, "id: "), value(event, "event: "), data)
    }

    #[test]
    fn a_snapshot_is_one_event_with_metas_refs_and_arrivals_in_one_order() {
        let ids = Ids::new(NodeId::random());
        let mut roster = Roster::new(ids.node());
        let (first, second) = (entry(&ids, "a\n\"b", "{\"n\":[1,\n\r2]}"), entry(&ids, "a\n\"b", "{}"));
        let _ = roster.put(1, Arc::clone(&first), 1);
        let _ = roster.put(2, Arc::clone(&second), 2);
        let snapshot = roster.snapshot(7);
        let (head, tail) = state_envelope("room\n1", &snapshot);
        let payload = String::from_utf8(state_payload(&snapshot)).unwrap();
        let (id, event, data) = read(&format!("{head}{payload}{tail}"));
        assert_eq!((id.as_str(), event.as_str()), (snapshot.version_name().as_str(), "snapshot"));
        let since = "1970-01-01T00:00:01Z";
        assert_eq!(
            data,
            json!({"channel": "room\n1", "online": 1, "connections": 2, "version": id, "members": [{
                "user": "a\n\"b", "connections": 2, "metas": [{"n": [1, 2]}, {}], "online_since": since,
                "refs": [first.r#ref.as_str(), second.r#ref.as_str()], "since": [since, since]}]})
        );
    }

    #[test]
    fn an_update_is_a_join_that_names_the_old_ref_and_a_leave_of_it() {
        let ids = Ids::new(NodeId::random());
        let (old, new, other) =
            (entry(&ids, "u", "{}"), entry(&ids, "u", "{\"a\":\n1}"), entry(&ids, "v", "{}"));
        let change = Diff {
            joins: vec![(new.clone(), Some(old.clone())), (other.clone(), None)],
            leaves: vec![old.clone()],
        };
        let roster = Snapshot { node: Some(ids.node()), version: 9, connections: 2, ..Snapshot::default() };
        let (id, event, data) = read(&String::from_utf8(diff("room", &change, &roster)).unwrap());
        assert_eq!((id, event.as_str()), (format!("{}.9", ids.node().short()), "diff"));
        let since = "1970-01-01T00:00:01Z";
        let (old, new, other) = (old.r#ref.as_str(), new.r#ref.as_str(), other.r#ref.as_str());
        assert_eq!(
            data["joins"],
            json!([{"user": "u", "ref": new, "prev": old, "meta": {"a": 1}, "since": since},
                   {"user": "v", "ref": other, "meta": {}, "since": since}])
        );
        assert_eq!((&data["leaves"], &data["connections"]), (&json!([{"user": "u", "ref": old}]), &json!(2)));
    }
}
