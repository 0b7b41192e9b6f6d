//! JSON Web Tokens: who they name and whether to believe them. Signed with a shared secret (HS256), or with an
//! issuer's private key of which the public half is known (RS256, ES256, EdDSA).
//!
//! A token's header chooses among the keys and nothing else: each key stands for one algorithm. `exp` and
//! `nbf` are checked where they are there, `aud` is not looked at. A token must name its subject, except one
//! with the role `anon`: a Supabase project key, which opens the door and is nobody.
//!
//! All of it is arithmetic in this process: it works the same **when Redis is away**. What was verified lately is
//! kept in L1, and nowhere else: asking Redis would take longer than verifying, and whoever can write there could
//! put words into a token's mouth.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode_header};
use serde::Deserialize;

use crate::cache::{Found, Keeps, Loaded, Near};
use crate::config::{IssuerKey, Secret};
use crate::metrics::Metrics;

/// How far ahead the clock of who signed may be. `exp` gets no such grace: a socket is closed at
/// `exp`, and one accepted after it would be closed and come back over and over.
const NBF_LEEWAY: f64 = 5.0;
/// Far more than honest claims need, and little enough to refuse cheaply.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Verified tokens that are kept, and for how long at most.
const KEPT: u64 = 10_000;
const KEPT_FOR: Duration = Duration::from_secs(600);
/// The role that needs no subject.
const ANON_ROLE: &str = "anon";

/// Why a token is not believed. None of these holds any of it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum JwtError {
    #[error("this server has no key to verify tokens with")]
    NotConfigured,
    #[error("not a JSON Web Token, or a claim is not of the type it should be")]
    Malformed,
    #[error("the token is signed in a way that this server does not accept")]
    WrongAlgorithm,
    #[error("the token is signed with a key that this server does not know")]
    UnknownKey,
    #[error("the signature is not valid")]
    BadSignature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token names no subject")]
    NoSubject,
}

/// What a believed token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user; `None` only where the role is `anon`.
    pub sub: Option<String>,
    pub email: Option<String>,
    pub role: Option<String>,
    pub tier: Option<String>,
    /// Unix seconds from which on it is no longer valid.
    pub exp: Option<u64>,
    /// Whether the user signed in without an account (`is_anonymous`, as Supabase writes it).
    pub anonymous: bool,
}

/// The claims as written. Dates may have fractions (RFC 7519, NumericDate).
#[derive(Deserialize)]
struct Written {
    sub: Option<String>,
    email: Option<String>,
    role: Option<String>,
    tier: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    is_anonymous: Option<bool>,
}

/// Verifies tokens.
#[derive(Clone)]
pub struct JwtVerifier {
    keys: Arc<[IssuerKey]>,
    verified: Near<Arc<Claims>, JwtError>,
}

impl JwtVerifier {
    /// A verifier for `secret` and the issuers' `keys`; without any (or with an empty secret) every token is
    /// refused.
    pub fn new(secret: Option<&Secret>, keys: &[IssuerKey]) -> Self {
        Self::counted(secret, keys, &Metrics::default())
    }

    /// The same, which counts in `metrics`.
    pub fn counted(secret: Option<&Secret>, keys: &[IssuerKey], metrics: &Metrics) -> Self {
        let secret = secret.map(Secret::expose).filter(|secret| !secret.is_empty());
        let shared = secret.map(|secret| IssuerKey {
            id: None,
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(secret.as_bytes()),
        });
        Self {
            keys: shared.into_iter().chain(keys.iter().cloned()).collect(),
            verified: Near::new(KEPT, Keeps::Own { longest: KEPT_FOR }, metrics.cache("jwt").l1),
        }
    }

    /// What `token` says, if it is to be believed at `now` (unix seconds). One that was verified lately is
    /// looked up, and its end checked.
    ///
    /// # Errors
    /// See [`JwtError`].
    pub async fn verified(&self, token: &str, now: u64) -> Result<Arc<Claims>, JwtError> {
        let known = match self.verified.get(token).await {
            Some(Found::Sure(claims)) => claims,
            _ => {
                let verify = || async {
                    let value = Arc::new(self.verify(token, now)?);
                    Ok(Loaded { value, life: KEPT_FOR })
                };
                Box::pin(self.verified.load(token, verify)).await?
            }
        };
        if known.exp.is_some_and(|exp| exp <= now) { Err(JwtError::Expired) } else { Ok(known) }
    }

    /// What `token` says, if it is to be believed at `now` (unix seconds).
    ///
    /// # Errors
    /// See [`JwtError`]; the signature comes before anything it protects.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, JwtError> {
        if self.keys.is_empty() {
            return Err(JwtError::NotConfigured);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::Malformed);
        }
        let header = decode_header(token).map_err(reason)?;
        let decoded = self.checked(token, header.alg, header.kid.as_deref())?;
        if decoded.header.crit.is_some() {
            // It demands an understanding that we do not have (RFC 7515, 4.1.11).
            return Err(JwtError::Malformed);
        }
        check_dates(&decoded.claims, now as f64)?;
        into_claims(decoded.claims)
    }

    /// `token`, signed with one of the keys for `algorithm` that the name, if there is one, does not exclude.
    fn checked(
        &self,
        token: &str,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> Result<TokenData<Written>, JwtError> {
        let mut result = Err(JwtError::WrongAlgorithm);
        for known in self.keys.iter().filter(|known| known.algorithm == algorithm) {
            if known.id.as_deref().zip(id).is_some_and(|(known, id)| known != id) {
                if matches!(result, Err(JwtError::WrongAlgorithm)) {
                    result = Err(JwtError::UnknownKey);
                }
                continue;
            }
            match jsonwebtoken::decode(token, &known.key, &signature_only(algorithm)).map_err(reason) {
                Err(JwtError::BadSignature) => result = Err(JwtError::BadSignature),
                settled => return settled,
            }
        }
        result
    }
}

/// Dates are checked against the caller's clock, not by the library.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut signature_only = Validation::new(algorithm);
    signature_only.required_spec_claims.clear();
    signature_only.validate_exp = false;
    signature_only.validate_nbf = false;
    signature_only.validate_aud = false;
    signature_only
}

/// Whether `token` has the outer form of a JWT, and so is not an opaque session: three parts with
/// dots between them, the first beginning as `{"` does in base64.
pub fn looks_like_jwt(token: &str) -> bool {
    let mut parts = token.split('.');
    let three = [parts.next(), parts.next(), parts.next()];
    token.starts_with("eyJ")
        && three.iter().all(|p| p.is_some_and(|p| !p.is_empty()))
        && parts.next().is_none()
}

fn reason(error: jsonwebtoken::errors::Error) -> JwtError {
    match error.kind() {
        ErrorKind::InvalidSignature => JwtError::BadSignature,
        // An algorithm that the library does not know fails as JSON: that is "malformed" too.
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            JwtError::WrongAlgorithm
        }
        _ => JwtError::Malformed,
    }
}

fn check_dates(claims: &Written, now: f64) -> Result<(), JwtError> {
    if claims.exp.is_some_and(|exp| exp <= now) {
        return Err(JwtError::Expired);
    }
    if claims.nbf.is_some_and(|nbf| nbf > now + NBF_LEEWAY) {
        return Err(JwtError::NotYetValid);
    }
    Ok(())
}

fn into_claims(written: Written) -> Result<Claims, JwtError> {
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (sub, role) = (filled(written.sub), filled(written.role));
    if sub.is_none() && role.as_deref() != Some(ANON_ROLE) {
        return Err(JwtError::NoSubject);
    }
    Ok(Claims {
        sub,
        email: filled(written.email),
        role,
        tier: filled(written.tier),
        // Later than `now`, so positive; a date past all clocks saturates.
        exp: written.exp.map(|exp| exp as u64),
        anonymous: written.is_anonymous.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    const SECRET: &str = "a secret of thirty-two characters";
    const NOW: u64 = 1_800_000_000;

    fn signed_with(header: &Header, claims: &Value, secret: &str) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn signed(claims: &Value) -> String {
        signed_with(&Header::default(), claims, SECRET)
    }

    fn verify(token: &str) -> Result<Claims, JwtError> {
        JwtVerifier::new(Some(&Secret::new(SECRET)), &[]).verify(token, NOW)
    }

    #[test]
    fn a_supabase_token_is_read() {
        let claims = verify(&signed(&json!({
            "sub": "u1", "email": "", "role": "authenticated", "tier": "pro", "aud": "authenticated",
            "iss": "x", "exp": NOW + 60, "nbf": NOW, "is_anonymous": true, "app_metadata": {"a": 1},
        })));
        let (role, tier) = (Some("authenticated".into()), Some("pro".into()));
        let expected =
            Claims { sub: Some("u1".into()), email: None, role, tier, exp: Some(NOW + 60), anonymous: true };
        assert_eq!(claims, Ok(expected));
    }

    #[tokio::test]
    async fn what_was_verified_is_looked_up_until_it_ends() {
        let metrics = Metrics::default();
        let verifier = JwtVerifier::counted(Some(&Secret::new(SECRET)), &[], &metrics);
        let token = signed(&json!({"sub": "u1", "exp": NOW + 60}));
        for now in [NOW, NOW + 59] {
            assert_eq!(verifier.verified(&token, now).await.unwrap().sub.as_deref(), Some("u1"));
        }
        assert_eq!(verifier.verified(&token, NOW + 60).await, Err(JwtError::Expired));
        assert_eq!((metrics.cache("jwt").l1.hits.get(), metrics.cache("jwt").l1.misses.get()), (2, 1));
        // A refusal is not kept: the same token may be believed later.
        let early = signed(&json!({"sub": "u1", "nbf": NOW + 100}));
        assert_eq!(verifier.verified(&early, NOW).await, Err(JwtError::NotYetValid));
        assert!(verifier.verified(&early, NOW + 100).await.is_ok());
    }

    #[test]
    fn only_the_anon_role_needs_no_subject() {
        assert_eq!(verify(&signed(&json!({"role": "anon"}))).unwrap().sub, None);
        for claims in [json!({}), json!({"role": "service_role"}), json!({"sub": ""}), json!({"sub": null})] {
            assert_eq!(verify(&signed(&claims)), Err(JwtError::NoSubject), "{claims}");
        }
    }

    #[test]
    fn dates_are_checked_against_the_callers_clock() {
        for (claims, expected) in [
            (json!({"sub": "u", "exp": NOW}), Err(JwtError::Expired)),
            (json!({"sub": "u", "exp": -1}), Err(JwtError::Expired)),
            (json!({"sub": "u", "exp": NOW + 1}), Ok(Some(NOW + 1))),
            (json!({"sub": "u", "exp": NOW as f64 + 1.5}), Ok(Some(NOW + 1))),
            (json!({"sub": "u", "exp": 1e300}), Ok(Some(u64::MAX))),
            (json!({"sub": "u", "nbf": NOW + 5}), Ok(None)),
            (json!({"sub": "u", "nbf": NOW + 6}), Err(JwtError::NotYetValid)),
        ] {
            assert_eq!(verify(&signed(&claims)).map(|c| c.exp), expected, "{claims}");
        }
    }

    #[test]
    fn claims_of_other_types_are_refused() {
        for claims in [
            json!({"sub": 7}),
            json!({"sub": ["u"]}),
            json!({"sub": "u", "role": 1}),
            json!({"sub": "u", "exp": "tomorrow"}),
            json!(["u"]),
            json!("u"),
        ] {
            assert_eq!(verify(&signed(&claims)), Err(JwtError::Malformed), "{claims}");
        }
    }

    #[test]
    fn another_algorithm_is_refused_whatever_it_is_signed_with() {
        let claims = json!({"sub": "u"});
        for alg in [Algorithm::HS384, Algorithm::HS512] {
            let token = signed_with(&Header::new(alg), &claims, SECRET);
            assert_eq!(verify(&token), Err(JwtError::WrongAlgorithm));
        }
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for alg in ["none", "None", "RS256"] {
            let token = format!("{}.{}.", part(&format!(r#"{{"alg":"{alg}"}}"#)), part(r#"{"sub":"u"}"#));
            assert!(matches!(verify(&token), Err(JwtError::WrongAlgorithm | JwtError::Malformed)), "{alg}");
        }
    }

    #[test]
    fn a_token_chooses_a_key_and_a_key_stands_for_one_algorithm() {
        // The example key of RFC 7517, A.1. Signatures of such keys are made by the tests from the outside.
        let jwk = json!({"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"});
        let key = DecodingKey::from_jwk(&serde_json::from_value(jwk).unwrap()).unwrap();
        let known = IssuerKey { id: Some("a".into()), algorithm: Algorithm::ES256, key };
        let verifier = JwtVerifier::new(None, &[known]);
        let token = |header: &Value| {
            let [header, claims] = [header.to_string(), json!({"sub": "u"}).to_string()];
            let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
            format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode([7; 64]))
        };
        for (header, expected) in [
            (json!({"alg": "ES256", "kid": "a"}), JwtError::BadSignature),
            (json!({"alg": "ES256"}), JwtError::BadSignature),
            (json!({"alg": "ES256", "kid": "b"}), JwtError::UnknownKey),
            (json!({"alg": "HS256", "kid": "a"}), JwtError::WrongAlgorithm),
            (json!({"alg": "EdDSA", "kid": "a"}), JwtError::WrongAlgorithm),
        ] {
            assert_eq!(verifier.verify(&token(&header), NOW), Err(expected), "{header}");
        }
    }

    #[test]
    fn a_false_signature_is_refused() {
        let token = signed_with(&Header::default(), &json!({"sub": "u"}), "another secret, just as long");
        assert_eq!(verify(&token), Err(JwtError::BadSignature));
        let token = signed(&json!({"sub": "u"}));
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(r#"{"sub":"root"}"#), parts[2]);
        assert_eq!(verify(&forged), Err(JwtError::BadSignature));
    }

    #[test]
    fn an_unknown_critical_header_is_refused() {
        let header = Header { crit: Some(vec!["b64".into()]), ..Header::default() };
        assert_eq!(verify(&signed_with(&header, &json!({"sub": "u"}), SECRET)), Err(JwtError::Malformed));
    }

    #[test]
    fn no_secret_believes_nothing() {
        let token = signed_with(&Header::default(), &json!({"sub": "u"}), "");
        for secret in [None, Some(&Secret::new(""))] {
            assert_eq!(JwtVerifier::new(secret, &[]).verify(&token, NOW), Err(JwtError::NotConfigured));
        }
    }

    /// A token that was damaged is believed only if it still says what was signed.
    #[test]
    fn fuzz_tokens() {
        use proptest::prelude::*;
        let token = signed(&json!({"sub": "u", "exp": NOW + 60, "email": "a@b.example"}));
        let honest = verify(&token).unwrap();
        let pieces = [".", "=", "eyJhbGciOiJub25lIn0", "A", "-", "_", "é", "\0", "{\"alg\":\"none\"}", "e30"];
        let places = any::<proptest::sample::Index>;
        let damage =
            proptest::collection::vec((places(), places(), proptest::sample::select(pieces.to_vec())), 0..4);
        crate::fuzz::fuzz(&damage, |damage| {
            let mut parts: Vec<char> = token.chars().collect();
            for (from, length, piece) in damage {
                let from = from.index(parts.len() + 1);
                let to = (from + length.index(8)).min(parts.len());
                parts.splice(from..to, piece.chars());
            }
            let damaged: String = parts.into_iter().collect();
            let _ = looks_like_jwt(&damaged);
            if let Ok(claims) = verify(&damaged) {
                assert_eq!(claims, honest);
            }
        });
    }

    #[test]
    fn rubbish_is_malformed() {
        for token in ["", "a.b.c", "eyJ.eyJ.x", "....", &"eyJ".repeat(10_000)] {
            assert_eq!(verify(token), Err(JwtError::Malformed));
        }
    }

    #[test]
    fn the_outer_form_tells_jwt_from_session() {
        assert!(looks_like_jwt(&signed(&json!({"sub": "u"}))));
        for token in ["", "eyJ", "eyJ.a", "eyJ.a.", "eyJ..b", "eyJ.a.b.c", "abc.d.e", "x-yz_0"] {
            assert!(!looks_like_jwt(token), "{token}");
        }
    }
}
