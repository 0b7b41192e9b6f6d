//! Names in paths, cursors, and the ids of events.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::events::version_here;
use super::input::{cursor, decoded, uncursor};
use crate::fuzz::{damaged_text, fuzz};
use crate::presence::NodeId;

#[test]
fn names_in_paths() {
    const NAMES: &[&[u8]] = &[b"room%3A1", b"caf%C3%A9%2F%25", b"plain", b"%00%7f", b"a+b"];
    fuzz(
        &damaged_text(NAMES, &[b"%", b"%2", b"%zz", b"%FF", b"%C3", b"%2F", b"/", b"\xc3\xa9", b"%25"]),
        |raw| {
            let Some(name) = decoded(&raw) else { return };
            let again = utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string();
            assert_eq!(decoded(&again).as_deref(), Some(&*name));
        },
    );
}

#[test]
fn any_name_can_be_written_in_a_path_and_in_a_cursor() {
    fuzz(&any::<String>(), |name| {
        let raw = utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string();
        assert_eq!(decoded(&raw).as_deref(), Some(&*name));
        assert_eq!(uncursor(&cursor(&name)), Some(name).filter(|name| !name.is_empty()));
    });
    fuzz(&damaged_text(&[b"cm9vbTox", b"_-_-"], &[b"=", b"+", b"/", b"%", b"A"]), |text| {
        if let Some(name) = uncursor(&text) {
            assert_eq!(cursor(&name), text, "one name has one cursor");
        }
    });
}

#[test]
fn ids_of_events() {
    let node: NodeId = "6fa459ea-ee8a-3ca4-894e-db77e160355e".parse().unwrap();
    fuzz(
        &damaged_text(
            &[b"6fa459ea.7", b"6fa459ea.18446744073709551615", b"redis.0"],
            &[b".", b"-", b"+", b"0", b" "],
        ),
        |id| {
            if let Some(version) = version_here(&id, node) {
                assert!(
                    id.starts_with("6fa459ea.")
                        && version_here(&format!("6fa459ea.{version}"), node) == Some(version)
                );
            }
        },
    );
}
