//! Names of Redis keys: every one is built here, so that no two things can share a key.
//!
//! A name that comes from outside becomes one part of a key through [`encode`]. Parts are joined
//! with `:`, and an encoded part holds none, so a key can be read back in only one way. This
//! module asks Redis nothing; it works the same when Redis is away.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

/// Whether `byte` would be taken for a part of the key's own grammar: the separator, the escape,
/// the braces of a Redis Cluster hash tag, or a control character.
fn is_reserved(byte: u8) -> bool {
    matches!(byte, b'%' | b':' | b'{' | b'}') || byte.is_ascii_control()
}

/// Makes `name` safe as one part of a key: `%`, `:`, `{`, `}` and ASCII control characters become
/// `%` and two upper-case hexadecimal digits; all else, spaces and non-ASCII too, stays as it is.
pub fn encode(name: &str) -> Cow<'_, str> {
    if !name.bytes().any(is_reserved) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        match u8::try_from(c) {
            Ok(byte) if is_reserved(byte) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The session that `token` proves: `session:{token}`.
pub fn session(token: &str) -> String {
    format!("session:{}", encode(token))
}

/// The list of a user's sessions: `cache:session:user:{id}`.
pub fn sessions_of(user: &str) -> String {
    format!("cache:session:user:{}", encode(user))
}

/// The calls counted for an address: `ratelimit:ip:{addr}`.
///
/// IPv4 counts by address, `ratelimit:ip:192.0.2.1`, and so does IPv4 written as IPv6. IPv6
/// counts by its /64, which is what one household or machine is given and can use up freely:
/// `2001:db8:1:2:3::4` counts in `ratelimit:ip:2001%3Adb8%3A1%3A2%3A%3A/64`.
pub fn ratelimit_ip(addr: IpAddr) -> String {
    format!("ratelimit:ip:{}", household(addr))
}

/// An address as it is counted, as part of a key.
fn household(addr: IpAddr) -> String {
    match addr.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let network = std::net::Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX));
            format!("{}/64", encode(&network.to_string()))
        }
    }
}

/// The attempts to sign in counted for an address: `cache:signin:ip:{addr}`, as for [`ratelimit_ip`].
pub fn sign_in_ip(addr: IpAddr) -> String {
    format!("cache:signin:ip:{}", household(addr))
}

/// The attempts to sign in counted for an account: `cache:signin:account:{e-mail}`.
pub fn sign_in_account(email: &str) -> String {
    format!("cache:signin:account:{}", encode(email))
}

/// The calls counted for a user: `ratelimit:user:{id}`.
pub fn ratelimit_user(user: &str) -> String {
    format!("ratelimit:user:{}", encode(user))
}

/// The owner of a lock: `lock:{name}`.
pub fn lock(name: &str) -> String {
    format!("lock:{}", encode(name))
}

/// The last fencing number of a lock: `cache:fence:lock:{name}`. In a cluster the lock's own key stands in braces, so
/// that both are in one slot: a tag of `lock:name` and a key of that name are.
pub fn fence(name: &str, cluster: bool) -> String {
    let lock = lock(name);
    if cluster { format!("cache:fence:{{{lock}}}") } else { format!("cache:fence:{lock}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reserved_characters_are_encoded_in_upper_case() {
        assert_eq!(encode("room:1"), "room%3A1");
        assert_eq!(encode("{a}%\n\x7f\0"), "%7Ba%7D%25%0A%7F%00");
    }

    #[test]
    fn all_else_stays_and_costs_no_copy() {
        for name in ["", "u1", "two words", "Zoë 東京 🙂", "a/b?c=d&e"] {
            assert!(matches!(encode(name), Cow::Borrowed(same) if same == name));
        }
    }

    #[test]
    fn addresses_count_as_documented() {
        for (addr, key) in [
            ("192.0.2.1", "ratelimit:ip:192.0.2.1"),
            ("::ffff:192.0.2.1", "ratelimit:ip:192.0.2.1"),
            ("2001:db8:1:2:3::4", "ratelimit:ip:2001%3Adb8%3A1%3A2%3A%3A/64"),
            ("2001:db8:1:2:ffff::", "ratelimit:ip:2001%3Adb8%3A1%3A2%3A%3A/64"),
            ("::1", "ratelimit:ip:%3A%3A/64"),
        ] {
            assert_eq!(ratelimit_ip(addr.parse().unwrap()), key);
        }
    }

    proptest! {
        #[test]
        fn decoding_gives_the_name_back(name in any::<String>()) {
            let encoded = encode(&name).into_owned();
            prop_assert!(!encoded.bytes().any(|b| b != b'%' && is_reserved(b)));
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded, name);
        }
    }
}
