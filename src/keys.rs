//! stub
use std::borrow::Cow;
pub fn encode(name: &str) -> Cow<'_, str> {
    if !name.bytes().any(|b| b < 0x20 || matches!(b, b'%' | b':' | b'{' | b'}' | 0x7f)) { return name.into(); }
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_control() || matches!(c, '%' | ':' | '{' | '}') { out.push_str(&format!("%{:02X}", c as u32)); } else { out.push(c) }
    }
    out.into()
}
