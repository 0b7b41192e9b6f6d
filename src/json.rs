//! JSON written by hand, where it is written often.

use std::io::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Appends `text` as a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    // Writing to a Vec cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Appends `text` as a JSON string, or null.
pub fn optional_string(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends a number.
pub fn number(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}");
}

/// Appends `items`, each by `write`, with commas between them.
pub fn list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

/// Appends `text`, which is JSON already, on one line: between its tokens it may have line breaks,
/// and nowhere else.
pub fn one_line(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
}

/// Appends a time in milliseconds since 1970 as RFC 3339 writes it; null where no calendar reaches.
pub fn time(out: &mut Vec<u8>, unix_ms: u64) {
    optional_string(out, rfc3339(unix_ms).as_deref());
}

/// A time in milliseconds since 1970 as RFC 3339 writes it; none where no calendar reaches.
pub fn rfc3339(unix_ms: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()?;
    time.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(rfc3339(1_700_000_000_123).as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(rfc3339(u64::MAX), None);
    }

    #[test]
    fn text_is_escaped() {
        let mut out = Vec::new();
        list(&mut out, ["a\"b\\\n", "é"], string);
        assert_eq!(out, br#"["a\"b\\\n",""#.iter().copied().chain("é\"]".bytes()).collect::<Vec<u8>>());
    }
}
