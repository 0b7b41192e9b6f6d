//! Public keys of who issues tokens: a JWK set (RFC 7517), as `/.well-known/jwks.json` gives it.

use std::path::Path;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Far more than an issuer has at a time.
const MAX_KEYS: usize = 100;
/// The shortest modulus of an RSA key, in bytes (RFC 7518, 3.3: 2048 bits).
const MIN_RSA_BYTES: usize = 256;

/// A key that verifies tokens, and which ones.
#[derive(Clone, Debug)]
pub struct IssuerKey {
    /// What tokens call it (`kid`); one without a name is tried for every token of its algorithm.
    pub id: Option<String>,
    /// RS256, ES256 or EdDSA.
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The keys in a file. Those for other purposes or of other algorithms are left out.
///
/// # Errors
/// What is wrong, in words: the file cannot be read, is no JWK set, or has no key that can be used.
pub fn read(path: &Path) -> Result<Vec<IssuerKey>, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(&text).map_err(|problem| format!("{}: {problem}", path.display()))
}

fn parse(text: &[u8]) -> Result<Vec<IssuerKey>, String> {
    let set: Set = serde_json::from_slice(text).map_err(|error| format!("is no JWK set: {error}"))?;
    let keys: Vec<IssuerKey> = set.keys.into_iter().filter_map(usable).collect();
    match keys.len() {
        0 => Err("holds no public key for RS256, ES256 or EdDSA".into()),
        1..=MAX_KEYS => Ok(keys),
        _ => Err(format!("holds more than {MAX_KEYS} keys")),
    }
}

fn usable(key: serde_json::Value) -> Option<IssuerKey> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|is_for| *is_for != PublicKeyUse::Signature) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if rsa.n.len() * 3 / 4 >= MIN_RSA_BYTES => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let named = match jwk.common.key_algorithm {
        None => algorithm,
        Some(KeyAlgorithm::RS256) => Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => Algorithm::ES256,
        Some(KeyAlgorithm::EdDSA) => Algorithm::EdDSA,
        Some(_) => return None,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    // Whether it is a key at all shows when it is used.
    let works = jsonwebtoken::crypto::verify("AAAA", b"", &key, algorithm).is_ok();
    (named == algorithm && works).then_some(IssuerKey { id: jwk.common.key_id, algorithm, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example keys of RFC 7517 (A.1) and RFC 8037 (A.2), whose private halves are public too.
    const SET: &str = r#"{"keys":[
        {"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"sig","kid":"1","alg":"ES256"},
        {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"2"},
        {"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","use":"enc","kid":"3"},
        {"kty":"oct","k":"c2VjcmV0","kid":"4"},
        {"kty":"RSA","n":"AQAB","e":"AQAB","kid":"5"},
        {"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA","kid":"6"},
        {"kty":"something new"}]}"#;

    #[test]
    fn keys_that_verify_are_taken_and_others_left_out() {
        let keys = parse(SET.as_bytes()).unwrap();
        let named: Vec<_> = keys.iter().map(|key| (key.id.as_deref().unwrap(), key.algorithm)).collect();
        assert_eq!(named, [("1", Algorithm::ES256), ("2", Algorithm::EdDSA)]);
    }

    #[test]
    fn what_is_no_set_of_keys_is_an_error() {
        for (text, problem) in [
            ("", "no JWK set"),
            ("[]", "no JWK set"),
            (r#"{"keys":[]}"#, "no public key"),
            (r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#, "no public key"),
        ] {
            assert!(parse(text.as_bytes()).unwrap_err().contains(problem), "{text}");
        }
    }
}
