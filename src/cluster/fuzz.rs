//! What nodes write for each other: read again it is the same, and what is damaged is read or refused.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{keys, wire};
use crate::fuzz::{JSON, damaged_text, fuzz, object};
use crate::presence::{Batch, Entry, Ids, NodeId, Op, Origin, ResumeKey, Seat};

const ANNOUNCEMENTS: &[&[u8]] = &[
    br#"{"node":"6fa459ea-ee8a-3ca4-894e-db77e160355e","from":3,"to":5,"ops":[{"seat":1,"user":"a\"b","ref":"AAAAAAAAAAAAAAAA","meta":{"n":[1, 2]},"since":7},{"seat":2,"user":"gone"}]}"#,
    br#"{"node":"6fa459ea-ee8a-3ca4-894e-db77e160355e","from":0,"to":18446744073709551615,"ops":[]}"#,
];
const VALUES: &[&[u8]] = &[
    br#"{"node":"6fa459ea-ee8a-3ca4-894e-db77e160355e","ref":"AAAAAAAAAAAAAAAA","meta":{"name":"Ada"},"since":1700000000000}"#,
    br#"{"node":"6fa459ea-ee8a-3ca4-894e-db77e160355e","ref":"zzzzzzzzzzzzzzzz","meta":{},"since":0,"waiting":1700000000001}"#,
];

#[test]
fn damaged_announcements() {
    fuzz(&damaged_text(ANNOUNCEMENTS, JSON), |text| {
        let Ok((node, batch)) = wire::parse_announcement(&text) else { return };
        let again = wire::announcement(node, &batch).unwrap();
        assert_eq!(wire::parse_announcement(&again).unwrap(), (node, batch));
        assert!(again.starts_with(&wire::own_prefix(node)), "a node must know its own words");
    });
}

#[test]
fn damaged_values() {
    let (user, field): (Arc<str>, _) = ("ada".into(), keys::field(NodeId(uuid::Uuid::nil()), 7));
    fuzz(&damaged_text(VALUES, JSON), |text| {
        let Ok((node, seat, entry)) = wire::parse_value(&user, &field, &text) else { return };
        let again = wire::value(node, &entry).unwrap();
        assert_eq!(wire::parse_value(&user, &field, &again).unwrap(), (node, seat, entry));
    });
}

#[test]
fn fields() {
    const FIELDS: &[&[u8]] = &[
        b"6fa459ea-ee8a-3ca4-894e-db77e160355e:7",
        b"6fa459eaee8a3ca4894edb77e160355e:18446744073709551615",
    ];
    fuzz(&damaged_text(FIELDS, &[b":", b"-", b"{", b"}", b"+", b"0", b"urn:uuid:"]), |field| {
        if let Some((node, seat)) = keys::parse_field(&field) {
            assert_eq!(keys::parse_field(&keys::field(node, seat)), Some((node, seat)));
        }
    });
}

#[test]
fn whatever_a_node_can_say() {
    let ids = Ids::new(NodeId::random());
    let origin = (any::<u64>(), any::<u32>(), any::<u64>());
    let more = (any::<Option<u64>>(), any::<Option<String>>(), proptest::option::of(origin));
    let op = (any::<u64>(), any::<String>(), proptest::option::of((object(), any::<u64>(), more)));
    fuzz(&(any::<u64>(), any::<u64>(), vec(op, 0..6)), |(one, other, ops)| {
        let ops = ops.into_iter().map(|(seat, user, shown)| {
            let user: Arc<str> = user.into();
            let entry = shown.map(|(meta, since, (waiting, key, origin))| {
                // Refs are made by a node: any will do here.
                let resume = key.map(|key| ResumeKey::new(&user, &key));
                let seat = |number| Seat { node: ids.node(), number };
                let origin = origin.map(|(first, turn, over)| {
                    Box::new(Origin { seat: seat(first), turn, over: seat(over) })
                });
                let (user, meta) = (Arc::clone(&user), meta.into());
                let first = waiting.is_some().then(|| r#"{"n":1}"#.into());
                let entry = Entry::new(user, ids.r#ref(), meta, since);
                Arc::new(Entry { first, waiting, resume, origin, ..entry })
            });
            Op { seat, user, entry }
        });
        let batch = Batch { from: one.min(other), to: one.max(other), ops: ops.collect() };
        for entry in batch.ops.iter().filter_map(|op| op.entry.as_ref()) {
            let value = wire::value(ids.node(), entry).unwrap();
            let field = keys::field(ids.node(), one);
            let read = wire::parse_value(&entry.user, &field, &value).unwrap();
            assert_eq!(read, (ids.node(), one, (**entry).clone()));
        }
        let text = wire::announcement(ids.node(), &batch).unwrap();
        assert_eq!(wire::parse_announcement(&text).unwrap(), (ids.node(), batch));
    });
}
