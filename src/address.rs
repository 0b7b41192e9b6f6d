//! The address that counts as a client's, behind proxies too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

/// The address that counts as the client's: the peer's, or, where the peer is a trusted proxy, the
/// rightmost one in `X-Forwarded-For` that is not. What stands left of it anyone could have written.
pub fn client_address(peer: Option<SocketAddr>, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    // Without an address, as over a Unix socket, all share one.
    let mut nearest = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip().to_canonical());
    let is_trusted = |addr: &IpAddr| trusted.iter().any(|net| net.contains(addr));
    if trusted.is_empty() || !is_trusted(&nearest) {
        return nearest;
    }
    let lines: Vec<&str> =
        headers.get_all("x-forwarded-for").map(|line| line.to_str().unwrap_or_default()).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(addr) = hop_address(hop.trim()) else { break };
        nearest = addr;
        if !is_trusted(&addr) {
            break;
        }
    }
    nearest
}

/// An address as proxies write it: with or without port and brackets.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let addr = bare.parse().or_else(|_| hop.parse().map(|with_port: SocketAddr| with_port.ip())).ok()?;
    Some(IpAddr::to_canonical(&addr))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;

    use super::*;
    use crate::fuzz::{damaged, fuzz};

    fn from_peer(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut request = TestRequest::get();
        for line in forwarded {
            request = request.append_header(("x-forwarded-for", *line));
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let request = request.to_http_request();
        client_address(peer.parse().ok(), request.headers(), &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let peer = "10.0.0.1:99";
        assert_eq!(from_peer(peer, &["1.2.3.4"], &[]), "10.0.0.1");
        assert_eq!(from_peer("127.0.0.1:99", &["1.2.3.4"], &["10.0.0.0/8"]), "127.0.0.1");
        assert_eq!(from_peer("127.0.0.1:99", &["1.2.3.4"], &["127.0.0.0/8"]), "1.2.3.4");
        // What the client wrote itself stands to the left of what the proxies saw.
        assert_eq!(from_peer(peer, &["6.6.6.6, 1.2.3.4, 10.0.0.2"], &["10.0.0.0/8"]), "1.2.3.4");
        assert_eq!(from_peer(peer, &["6.6.6.6", "1.2.3.4", "10.0.0.2"], &["10.0.0.0/8"]), "1.2.3.4");
        assert_eq!(from_peer(peer, &[], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(from_peer(peer, &["10.0.0.3, 10.0.0.2"], &["10.0.0.0/8"]), "10.0.0.3");
        assert_eq!(from_peer(peer, &["1.2.3.4, unknown"], &["10.0.0.0/8"]), "10.0.0.1");
        assert_eq!(from_peer("", &["1.2.3.4"], &["10.0.0.0/8"]), "0.0.0.0");
    }

    #[test]
    fn addresses_are_read_as_proxies_write_them() {
        let peer = "[::ffff:10.0.0.1]:99";
        for (written, read) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(from_peer(peer, &[written], &["10.0.0.0/8"]), read, "{written}");
        }
    }
    const HOPS: &[&[u8]] = &[
        b"203.0.113.7, 10.0.0.1",
        b"[2001:db8::1]:4711, 10.0.0.1:80",
        b"::ffff:203.0.113.7,10.0.0.2 , 10.0.0.1",
        b"unknown, _hidden, 10.0.0.1",
    ];
    const PIECES: &[&[u8]] = &[
        b",",
        b" ",
        b":",
        b"[",
        b"]",
        b"::",
        b"10.0.0.1",
        b"1",
        b"256",
        b"%eth0",
        b"\xff",
        b"\t",
        b"10.0.0.1,",
    ];

    /// Whoever is not a proxy of ours is who it is; behind one, nobody can put words into the proxy's mouth:
    /// the nearest hop that is no proxy counts, whatever stands left of it.
    #[test]
    fn forwarded_for() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let stranger: SocketAddr = "198.51.100.1:5".parse().unwrap();
        let proxy: SocketAddr = "10.9.9.9:5".parse().unwrap();
        fuzz(&damaged(HOPS, PIECES), |bytes| {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return };
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for".parse().unwrap(), value.clone());
            assert_eq!(client_address(Some(stranger), &headers, &trusted), stranger.ip());
            let _ = client_address(Some(proxy), &headers, &trusted);
            let Ok(text) = value.to_str() else { return };
            let honest = HeaderValue::from_str(&format!("{text}, 192.0.2.1, 10.0.0.1")).unwrap();
            headers.insert("x-forwarded-for".parse().unwrap(), honest);
            assert_eq!(
                client_address(Some(proxy), &headers, &trusted),
                "192.0.2.1".parse::<IpAddr>().unwrap()
            );
        });
    }
}
