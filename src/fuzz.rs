//! Fuzzing: every decoder is fed valid inputs that were damaged in a few places, and must not break.
//!
//! It runs under `cargo test` on the stable toolchain, with proptest, which shrinks what it finds: a
//! strategy takes a sample from a target's corpus and applies mutations that know the format (its tokens
//! are inserted, parts are cut, doubled, spliced from another sample), so that most inputs get deep into a
//! decoder. Each target runs for half a second; `ROLLCALL_FUZZ_SECONDS=600 cargo test --release --lib fuzz`
//! runs each for ten minutes. What fails is printed with a seed, and `ROLLCALL_FUZZ_SEED` begins with it.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// For how long each target runs, unless told otherwise.
const A_WHILE: Duration = Duration::from_millis(500);
/// Inputs from one seed.
const CASES: u32 = 256;

/// Feeds inputs to `check`, which panics where something is wrong, until the time is over.
pub fn fuzz<S: Strategy>(inputs: &S, check: impl Fn(S::Value))
where
    S::Value: Debug + Clone,
{
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let time = setting("ROLLCALL_FUZZ_SECONDS").map_or(A_WHILE, Duration::from_secs);
    let first = setting("ROLLCALL_FUZZ_SEED").unwrap_or_else(|| getrandom::u64().unwrap_or(1) >> 16);
    let start = Instant::now();
    let mut seed = first;
    while seed == first || start.elapsed() < time {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let run = TestRunner::new_with_rng(config, rng).run(inputs, |input| {
            check(input);
            Ok(())
        });
        match run {
            Ok(()) => seed += 1,
            Err(TestError::Fail(why, input)) => {
                panic!("ROLLCALL_FUZZ_SEED={seed}: {why}\nsmallest input: {input:?}")
            }
            Err(TestError::Abort(why)) => panic!("ROLLCALL_FUZZ_SEED={seed}: gave up: {why}"),
        }
    }
}

/// One way to damage an input.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, Index),
    Double(Index, Index),
    Splice(Index, Vec<u8>),
    Many(Index, u16),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Self::Flip(index, bits) => {
                let at = at(index, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Self::Insert(index, token) => {
                let at = at(index, bytes);
                bytes.splice(at..at, token.iter().copied());
            }
            Self::Cut(from, to) => {
                let (from, to) = (at(from, bytes), at(to, bytes));
                bytes.drain(from.min(to)..from.max(to));
            }
            Self::Double(from, to) => {
                let (from, to) = (at(from, bytes), at(to, bytes));
                let part = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.splice(from.min(to)..from.min(to), part);
            }
            Self::Splice(index, other) => {
                let at = at(index, bytes);
                bytes.truncate(at);
                bytes.extend(&other[at.min(other.len())..]);
            }
            Self::Many(index, times) => {
                let at = at(index, bytes);
                if let Some(byte) = bytes.get(at).copied() {
                    bytes.splice(at..at, std::iter::repeat_n(byte, usize::from(*times)));
                }
            }
        }
    }
}

/// Samples of `corpus` with some damage; `tokens` are what the format is made of.
pub fn damaged(
    corpus: &'static [&'static [u8]],
    tokens: &'static [&'static [u8]],
) -> impl Strategy<Value = Vec<u8>> {
    let at = any::<Index>;
    let mutation = prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        4 => (at(), select(tokens)).prop_map(|(at, token)| Mutation::Insert(at, token.to_vec())),
        2 => (at(), at()).prop_map(|(from, to)| Mutation::Cut(from, to)),
        2 => (at(), at()).prop_map(|(from, to)| Mutation::Double(from, to)),
        1 => (at(), select(corpus)).prop_map(|(at, other)| Mutation::Splice(at, other.to_vec())),
        1 => (at(), 0..600u16).prop_map(|(at, times)| Mutation::Many(at, times)),
    ];
    (select(corpus), vec(mutation, 0..6)).prop_map(|(sample, mutations)| {
        let mut bytes = sample.to_vec();
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        bytes
    })
}

/// The same as text.
pub fn damaged_text(
    corpus: &'static [&'static [u8]],
    tokens: &'static [&'static [u8]],
) -> impl Strategy<Value = String> {
    damaged(corpus, tokens).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// What JSON is made of, with what is hard to read.
pub const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"\\u005f",
    b"null",
    b"true",
    b"0",
    b"-0",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"0.1",
    b"\"\"",
    b"{}",
    b"[]",
    b" ",
    b"\n",
    b"\xff",
    b"\xe2\x80\xa8",
    b"\"a\":",
    b"__proto__",
    b"phx_ref",
    b"ids",
    b"[[[[[[[[[[[[[[[[",
];

/// A JSON object as text, nested, with strings of all kinds.
pub fn object() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>()
            .prop_map(|n| serde_json::Number::from_f64(n).map_or(serde_json::Value::Null, Into::into)),
        any::<String>().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            vec((any::<String>(), inner), 0..4)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    });
    vec((any::<String>(), value), 0..4)
        .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect()).to_string())
}
