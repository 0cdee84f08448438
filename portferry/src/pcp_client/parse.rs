//! The words of the command line: what each looks like, and what is wrong with one that does not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::codec::{Reader, Wire};
use wire::pcp::{Filter, Nonce, OptionCode, PcpOption, Prefix64, Protocol, SERVER_PORT, ip_to_wire};

use super::hex;

/// An external address and port to suggest; either may be left to the server.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Suggestion {
    pub(super) addr: Option<IpAddr>,
    /// 0: any.
    pub(super) port: u16,
}

/// A PCP server, as somebody types it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ServerName {
    pub(super) addr: IpAddr,
    pub(super) port: u16,
    /// The interface of a link-local address: a name or a number.
    pub(super) zone: Option<String>,
}

/// `tcp`, `UDP`, `all`, or an IP protocol's number.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    let named =
        Protocol::KNOWN.iter().find(|known| known.name().is_some_and(|n| n.eq_ignore_ascii_case(text)));
    match (named, text.parse()) {
        (Some(known), _) => Ok(*known),
        (None, Ok(number)) => Ok(Protocol(number)),
        (None, Err(_)) => Err("expected tcp, udp, sctp, dccp, udplite, all, or a number up to 255".into()),
    }
}

/// A port's number; `all` is 0.
pub(super) fn port(text: &str) -> Result<u16, String> {
    match text {
        "all" => Ok(0),
        number => number.parse().map_err(|_| "expected a port up to 65535, or all".into()),
    }
}

/// `8080`, `198.51.100.7` or `198.51.100.7:8080`.
pub(super) fn suggestion(text: &str) -> Result<Suggestion, String> {
    if let Ok(port) = text.parse() {
        return Ok(Suggestion { addr: None, port });
    }
    if let Ok(addr) = text.parse() {
        return Ok(Suggestion { addr: Some(addr), port: 0 });
    }
    let both: SocketAddr = text.parse().map_err(|_| "expected a port, an address, or address:port")?;
    Ok(Suggestion { addr: Some(both.ip()), port: both.port() })
}

/// `203.0.113.0/24`, `203.0.113.9,80`, `2001:db8::/32,443`.
pub(super) fn filter(text: &str) -> Result<Filter, String> {
    let (prefix, port) = text.split_once(',').unwrap_or((text, "all"));
    let remote_port = self::port(port)?;
    let (addr, bits) = match prefix.split_once('/') {
        Some((addr, bits)) => (addr, Some(bits)),
        None => (prefix, None),
    };
    let addr: IpAddr = addr.parse().map_err(|_| format!("`{addr}` is no IP address"))?;
    let (most, skipped) = if addr.is_ipv4() { (32, 96) } else { (128, 0) };
    let bits =
        bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| format!("`/{bits}` is no prefix length")))?;
    match bits {
        0 if addr.is_ipv6() => Err("::/0 is how FILTER drops filters: --reset-filters".into()),
        bits if bits > most => Err(format!("a prefix of {addr} has {most} bits at most")),
        bits => Ok(Filter { prefix_len: bits + skipped, remote_port, remote_addr: ip_to_wire(addr) }),
    }
}

/// `224:00112233`: an option's number and its data. One that is known, and would be written with the same octets, has its
/// meaning.
pub(super) fn option(text: &str) -> Result<PcpOption, String> {
    let (code, data) = text.split_once(':').ok_or("expected CODE:HEX, for example 224:00112233")?;
    let code = code.parse().map_err(|_| "an option's code is a number up to 255")?;
    let raw = PcpOption::Unknown { code: OptionCode(code), data: hex::parse(data)? };
    let octets = |option: &PcpOption| {
        let mut octets = Vec::new();
        option.encode(&mut octets);
        octets
    };
    let typed = octets(&raw);
    let known = PcpOption::decode(&mut Reader::new(&typed)).ok();
    Ok(known.filter(|known| octets(known) == typed).unwrap_or(raw))
}

/// 24 hexadecimal digits.
pub(super) fn nonce(text: &str) -> Result<Nonce, String> {
    let octets = hex::parse(text)?;
    octets.try_into().map(Nonce).map_err(|_| "a nonce has 12 octets, 24 hexadecimal digits".into())
}

/// `100.64.0.1`, `100.64.0.1:5351`, `2001:db8::1`, `[fe80::1%wan0]:5351`.
pub(super) fn server(text: &str) -> Result<ServerName, String> {
    let expected = || "expected an address, or address:port ([address]:port for IPv6)".to_owned();
    let parsed = |addr: &str, port: u16| {
        let (addr, zone) = match addr.split_once('%') {
            Some((addr, zone)) => (addr, Some(zone.to_owned())),
            None => (addr, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| expected())?;
        if zone.is_some() && addr.is_ipv4() {
            return Err(expected());
        }
        Ok(ServerName { addr, port, zone })
    };
    let port_of = |port: &str| port.parse().ok().filter(|port| *port != 0).ok_or_else(expected);
    if let Some(rest) = text.strip_prefix('[') {
        let (addr, rest) = rest.split_once(']').ok_or_else(expected)?;
        return match rest.strip_prefix(':') {
            Some(port) => parsed(addr, port_of(port)?),
            None if rest.is_empty() => parsed(addr, SERVER_PORT),
            None => Err(expected()),
        };
    }
    match text.split_once(':') {
        Some((addr, port)) if !port.contains(':') => parsed(addr, port_of(port)?),
        _ => parsed(text, SERVER_PORT),
    }
}

/// Seconds, `2.5` for example; more than none and a day at most.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let expected = || "expected seconds, from 0.01 to 86400".to_owned();
    let seconds: f64 = text.parse().map_err(|_| expected())?;
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err(expected());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// What a client sends to be told the prefix: ::/96 (RFC 7225 §4.1).
pub(super) fn prefix64_request() -> PcpOption {
    PcpOption::Prefix64(Prefix64 { prefix: vec![0; 12], suffix: Vec::new(), ipv4_prefixes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_by_name_and_number() {
        for (text, number) in [("tcp", 6), ("UDP", 17), ("all", 0), ("0", 0), ("sctp", 132), ("47", 47)] {
            assert_eq!(protocol(text), Ok(Protocol(number)), "{text}");
        }
        assert!(protocol("256").is_err() && protocol("icmp").is_err());
        assert_eq!(port("all"), Ok(0));
        assert!(port("65536").is_err());
    }

    #[test]
    fn suggestions_are_ports_addresses_or_both() {
        let both = |addr: Option<&str>, port| Suggestion { addr: addr.map(|a| a.parse().unwrap()), port };
        for (text, expected) in [
            ("8080", both(None, 8080)),
            ("198.51.100.7", both(Some("198.51.100.7"), 0)),
            ("198.51.100.7:80", both(Some("198.51.100.7"), 80)),
            ("2001:db8::1", both(Some("2001:db8::1"), 0)),
            ("[2001:db8::1]:80", both(Some("2001:db8::1"), 80)),
        ] {
            assert_eq!(suggestion(text), Ok(expected), "{text}");
        }
        assert!(suggestion("70000").is_err() && suggestion("host").is_err());
    }

    /// RFC 6887 §13.3: IPv4 prefix lengths count from 96; 0 is something else.
    #[test]
    fn filters_have_the_prefix_lengths_of_the_wire() {
        for (text, prefix_len, port, addr) in [
            ("203.0.113.9", 128, 0, "::ffff:203.0.113.9"),
            ("203.0.113.0/24,80", 120, 80, "::ffff:203.0.113.0"),
            ("0.0.0.0/0", 96, 0, "::ffff:0.0.0.0"),
            ("2001:db8::/32,443", 32, 443, "2001:db8::"),
        ] {
            let expected = Filter { prefix_len, remote_port: port, remote_addr: addr.parse().unwrap() };
            assert_eq!(filter(text), Ok(expected), "{text}");
        }
        assert!(filter("::/0").unwrap_err().contains("--reset-filters"));
        for wrong in ["203.0.113.9/33", "203.0.113.9/", "example.net", "203.0.113.9,http", "2001:db8::/129"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn servers_with_ports_and_interfaces() {
        let name = |addr: &str, port, zone: Option<&str>| ServerName {
            addr: addr.parse().unwrap(),
            port,
            zone: zone.map(str::to_owned),
        };
        for (text, expected) in [
            ("100.64.0.1", name("100.64.0.1", 5351, None)),
            ("100.64.0.1:53510", name("100.64.0.1", 53510, None)),
            ("2001:db8::1", name("2001:db8::1", 5351, None)),
            ("[2001:db8::1]", name("2001:db8::1", 5351, None)),
            ("[2001:db8::1]:53510", name("2001:db8::1", 53510, None)),
            ("fe80::1%wan0", name("fe80::1", 5351, Some("wan0"))),
            ("[fe80::1%2]:53510", name("fe80::1", 53510, Some("2"))),
        ] {
            assert_eq!(server(text), Ok(expected), "{text}");
        }
        for wrong in ["router", "100.64.0.1:0", "100.64.0.1%wan0", "[::1]x", "[::1", "100.64.0.1:99999"] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nonces_options_and_seconds() {
        assert_eq!(nonce("000102030405060708090a0b").map(|n| n.0[11]), Ok(11));
        assert!(nonce("00").unwrap_err().contains("24 hexadecimal digits"));
        let data = vec![0xab, 0xcd];
        assert_eq!(option("224:abcd"), Ok(PcpOption::Unknown { code: OptionCode(224), data }));
        assert_eq!(option("2:"), Ok(PcpOption::PreferFailure));
        let third = "01:00000000000000000000ffff0a000005";
        assert_eq!(option(third), Ok(PcpOption::ThirdParty("::ffff:10.0.0.5".parse().unwrap())));
        // What would not be sent as it was typed stays as it is: FILTER's reserved octet.
        let odd = "3:01800000".to_owned() + &"0".repeat(32);
        assert!(matches!(option(&odd), Ok(PcpOption::Unknown { code: OptionCode::FILTER, .. })));
        assert!(matches!(option("1:00"), Ok(PcpOption::Unknown { code: OptionCode::THIRD_PARTY, .. })));
        assert!(option("300:").is_err() && option("abcd").is_err() && option("2:a").is_err());
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("nan").is_err());
    }
}
