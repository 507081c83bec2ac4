//! Whose request it is where proxies stand in front: the right-most address that no trusted proxy has. Pure.
//!
//! Whatever stands left of that was written by the client itself and may be invented. One header is believed, the one
//! that the proxies are known to write: a client's own other header would pass them untouched.

use core::net::IpAddr;

use ipnet::IpNet;

/// The header in which proxies tell for whom they ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum ClientHeader {
    /// `X-Forwarded-For: client, proxy`.
    #[default]
    #[serde(rename = "X-Forwarded-For")]
    XForwardedFor,
    /// `Forwarded: for=client, for=proxy` (RFC 7239).
    Forwarded,
}

impl ClientHeader {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }

    fn address(self, element: &str) -> Option<IpAddr> {
        match self {
            Self::XForwardedFor => node(element.trim()),
            Self::Forwarded => element.split(';').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                name.trim()
                    .eq_ignore_ascii_case("for")
                    .then(|| node(value.trim().trim_matches('"')))?
            }),
        }
    }
}

/// The client: `peer` itself, unless that is a trusted proxy. `lines` are the header's, in order. What is not an
/// address ends the search: the proxy that wrote it is then all that is known.
pub fn client<'a>(
    peer: IpAddr,
    header: ClientHeader,
    lines: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer.to_canonical();
    for element in lines.rev().flat_map(|line| line.rsplit(',')) {
        if !is_in(trusted, client) {
            break;
        }
        match header.address(element) {
            Some(address) => client = address.to_canonical(),
            None => break,
        }
    }
    client
}

/// Whether one of these networks has the address.
pub fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// An address, alone or with a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map(|(address, _)| address);
    let bare = bracketed.unwrap_or(text);
    bare.parse().ok().or_else(|| {
        let (address, port) = bare.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        address.parse().ok().filter(IpAddr::is_ipv4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, header: ClientHeader, lines: &[&str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        client(peer.parse().unwrap(), header, lines.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn the_right_most_address_that_no_trusted_proxy_has_is_the_clients() {
        let asked = |peer, lines: &[&str]| asked(peer, ClientHeader::XForwardedFor, lines);
        assert_eq!(asked("10.1.1.1", &["192.0.2.7"]), "192.0.2.7");
        assert_eq!(
            asked("10.1.1.1", &["198.51.100.1, 192.0.2.7, 10.2.2.2"]),
            "192.0.2.7"
        );
        assert_eq!(
            asked("10.1.1.1", &["198.51.100.1", "192.0.2.7 , 10.2.2.2"]),
            "192.0.2.7"
        );
        assert_eq!(asked("::ffff:10.1.1.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(asked("10.1.1.1", &["192.0.2.7:4711"]), "192.0.2.7");
        assert_eq!(
            asked("10.1.1.1", &["10.3.3.3, 10.2.2.2"]),
            "10.3.3.3",
            "all are proxies"
        );
    }

    #[test]
    fn what_a_client_writes_itself_is_not_believed() {
        let asked = |peer, lines: &[&str]| asked(peer, ClientHeader::XForwardedFor, lines);
        assert_eq!(
            asked("192.0.2.7", &["203.0.113.9"]),
            "192.0.2.7",
            "no proxy is in front"
        );
        assert_eq!(asked("10.1.1.1", &["203.0.113.9, 192.0.2.7"]), "192.0.2.7");
        assert_eq!(asked("10.1.1.1", &["203.0.113.9, unknown"]), "10.1.1.1");
        assert_eq!(asked("10.1.1.1", &["203.0.113.9, , 10.2.2.2"]), "10.2.2.2");
        assert_eq!(asked("10.1.1.1", &[]), "10.1.1.1");
        assert_eq!(asked("10.1.1.1", &["2001:db8::1:99999, [::1"]), "10.1.1.1");
    }

    #[test]
    fn the_standards_header_is_read_where_it_is_the_one() {
        let asked = |lines: &[&str]| asked("fd00::1", ClientHeader::Forwarded, lines);
        assert_eq!(asked(&["for=192.0.2.7;proto=https;by=10.0.0.1"]), "192.0.2.7");
        assert_eq!(
            asked(&["proto=https; For=\"[2001:db8::1]:4711\", for=10.1.1.1"]),
            "2001:db8::1"
        );
        assert_eq!(asked(&["for=_hidden"]), "fd00::1");
        assert_eq!(asked(&["192.0.2.7"]), "fd00::1", "the other header's form");
    }
}
