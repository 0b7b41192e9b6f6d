//! `docs/errors.md` is what this file says, word for word.

use std::fmt::Write as _;

use super::*;

const DIALECTS: [Dialect; 3] = [Dialect::Phoenix, Dialect::Supabase, Dialect::Pusher];

/// The tables of the document, made of the code.
fn tables() -> String {
    let mut out = String::from(
        "| refused | Phoenix | Supabase | Pusher: message | code | status |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for reject in Reject::all() {
        let debug = format!("{reject:?}");
        let name = debug.split([' ', '(', '{']).next().unwrap();
        let told = |dialect| match reject.is_told(dialect) {
            true => format!("`{}`", reject.reason(dialect)),
            false => String::new(),
        };
        let [phoenix, supabase, pusher] = DIALECTS.map(told);
        let (code, status) = match reject.is_told(Dialect::Pusher) {
            true => (
                reject.pusher_code().map_or("null".into(), |code| code.to_string()),
                reject.pusher_status().to_string(),
            ),
            false => Default::default(),
        };
        writeln!(out, "| {name} | {phoenix} | {supabase} | {pusher} | {code} | {status} |").unwrap();
    }
    out.push_str("\n| closed | reason | Phoenix | Supabase | Pusher |\n| --- | --- | --- | --- | --- |\n");
    for close in Close::ALL {
        let told = |dialect| {
            close.then(dialect).map_or(String::new(), |then| format!("{}: {then}", close.code(dialect)))
        };
        let [phoenix, supabase, pusher] = DIALECTS.map(told);
        writeln!(out, "| {close:?} | {} | {phoenix} | {supabase} | {pusher} |", close.reason()).unwrap();
    }
    out
}

#[test]
fn the_document_lists_every_reason_and_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
    let document = std::fs::read_to_string(path).unwrap();
    let tables = tables();
    let missing = tables.lines().find(|line| !line.is_empty() && !document.contains(line));
    assert_eq!(missing, None, "the tables must be:\n\n{tables}");
    let rows = |text: &str| text.lines().filter(|line| line.starts_with("| ")).count();
    assert_eq!(rows(&document), rows(&tables), "there is a row too many");
}

#[test]
fn no_code_sends_anybody_away_who_should_come_back() {
    for close in Close::ALL {
        for dialect in DIALECTS {
            let code = close.code(dialect);
            assert!(code != 1000 && !(4300..4400).contains(&code), "{close:?} {dialect:?}");
            // Pusher's clients alone know these.
            assert!(dialect == Dialect::Pusher || code < 4000 || close.then(dialect).is_none());
        }
    }
    for reject in Reject::all() {
        assert!(!reject.reason(Dialect::Phoenix).is_empty());
        assert!(DIALECTS.iter().any(|dialect| reject.is_told(*dialect)), "{reject:?} is told to nobody");
    }
}
