//! Parsers of what several commands take. Every error quotes what was given; clap adds which
//! option it was.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

pub(super) use crate::model::duration::duration;
use crate::model::{InvalidName, Port, PortParseError, check_name};

/// What one `--publish` stands for: a range gives several ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(Vec<Port>);

impl FromStr for Ports {
    type Err = PortParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Port::parse(text).map(Self)
    }
}

/// The ports of all `--publish` options in their order.
pub(super) fn flatten(ports: Vec<Ports>) -> Vec<Port> {
    ports.into_iter().flat_map(|Ports(ports)| ports).collect()
}

/// `--label K=V`; `K` alone has an empty value, as in Docker.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() || key.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{text:?} is not KEY=VALUE with a key without blanks"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `--aux-address NAME=IP`.
pub(super) fn aux_address(text: &str) -> Result<(String, Ipv4Addr), String> {
    let (name, address) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=IP"))?;
    if name.is_empty() {
        return Err(format!("{text:?} has no name before the ="));
    }
    let address =
        address.parse().map_err(|_| format!("{address:?} in {text:?} is no IPv4 address"))?;
    Ok((name.to_owned(), address))
}

/// A subnet in CIDR notation without host bits.
pub(super) fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net =
        text.parse().map_err(|_| format!("{text:?} is no IPv4 subnet; write it as 10.1.0.0/24"))?;
    if net.addr() != net.network() {
        return Err(format!("{text} has host bits set; the subnet would be {}", net.trunc()));
    }
    Ok(net)
}

/// As [`subnet`], of either family.
pub(super) fn any_subnet(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is no subnet; write it as 10.1.0.0/24 or as fd00:1::/64"))?;
    if net.addr() != net.network() {
        return Err(format!("{text} has host bits set; the subnet would be {}", net.trunc()));
    }
    Ok(net)
}

/// As [`duration`], but not nothing.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is no time at all")),
        duration => Ok(duration),
    }
}

/// A range of ports, `FIRST-LAST`, none of them below 1024.
pub(super) fn port_range(text: &str) -> Result<[u16; 2], String> {
    let wrong = || format!("{text:?} is no range of ports; write it as 61000-65535");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first > last {
        return Err(format!("{text:?}: the first port is above the last"));
    }
    if first < 1024 {
        return Err(format!("{text:?}: ports below 1024 are those of services"));
    }
    Ok([first, last])
}

/// A DNS server: an address, port 53 unless given.
pub(super) fn dns_server(text: &str) -> Result<SocketAddr, String> {
    address_and_port(text, 53)
        .ok_or_else(|| format!("{text:?} is no address; write it as 9.9.9.9 or 9.9.9.9:53"))
}

/// `IP` or `IP:PORT`; `None` when it is neither.
pub(super) fn address_and_port(text: &str, default_port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, default_port));
    }
    text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0)
}

/// An IP protocol by name or number.
pub(super) fn protocol(text: &str) -> Result<u8, String> {
    use overlay_common::wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP};
    match text {
        "icmp" => Ok(PROTO_ICMP),
        "tcp" => Ok(PROTO_TCP),
        "udp" => Ok(PROTO_UDP),
        "sctp" => Ok(PROTO_SCTP),
        number => number.parse().ok().filter(|number| *number != 0).ok_or_else(|| {
            format!("{text:?} is none of tcp, udp, sctp, icmp and no number from 1 to 255")
        }),
    }
}

/// Name of a network.
pub(super) fn network_name(text: &str) -> Result<String, InvalidName> {
    check_name("network", text).map(|()| text.to_owned())
}

/// Name of a service.
pub(super) fn service_name(text: &str) -> Result<String, InvalidName> {
    check_name("service", text).map(|()| text.to_owned())
}

/// Name of a node.
pub(super) fn node_name(text: &str) -> Result<String, InvalidName> {
    check_name("node", text).map(|()| text.to_owned())
}

/// Name or alias of a container.
pub(super) fn container_name(text: &str) -> Result<String, InvalidName> {
    check_name("container", text).map(|()| text.to_owned())
}

/// Host name inside a container.
pub(super) fn host_name(text: &str) -> Result<String, InvalidName> {
    check_name("host", text).map(|()| text.to_owned())
}

/// Milliseconds as the API counts them.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_may_have_no_value_but_must_have_a_key() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(label("a"), Ok(("a".to_owned(), String::new())));
        for text in ["", "=b", "a b=c", "a\n=c"] {
            assert!(label(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn auxiliary_addresses_are_a_name_and_an_address() {
        assert_eq!(aux_address("r=10.1.0.9"), Ok(("r".to_owned(), Ipv4Addr::new(10, 1, 0, 9))));
        assert!(aux_address("10.1.0.9").unwrap_err().contains("\"10.1.0.9\" is not NAME=IP"));
        assert!(aux_address("r=10.1.0").unwrap_err().contains("\"10.1.0\" in \"r=10.1.0\""));
        assert!(aux_address("=10.1.0.9").is_err());
    }

    #[test]
    fn a_subnet_with_host_bits_is_refused_with_the_one_that_was_meant() {
        assert_eq!(subnet("10.1.0.0/24").map(|n| n.to_string()), Ok("10.1.0.0/24".to_owned()));
        assert!(subnet("10.1.0.7/24").unwrap_err().contains("would be 10.1.0.0/24"));
        for text in ["10.1.0.0", "10.1.0/24", "10.1.0.0/33", "fd00::/64", ""] {
            assert!(subnet(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(positive_duration("0s").is_err());
        for text in ["5", "", "x", "-5s", "5 fortnights"] {
            assert!(duration(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn a_range_of_ports_has_a_first_and_a_last() {
        assert_eq!(port_range("61000-65535"), Ok([61_000, 65_535]));
        assert_eq!(port_range("2000-2000"), Ok([2000, 2000]));
        for text in ["", "61000", "61000-", "-5", "a-b", "61000-70000", "3000-2000", "80-90"] {
            assert!(port_range(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn protocols_are_names_or_numbers() {
        assert_eq!(protocol("tcp"), Ok(6));
        assert_eq!((protocol("132"), protocol("sctp")), (Ok(132), Ok(132)));
        for text in ["0", "256", "gre", "", "-1"] {
            assert!(protocol(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn dns_servers_default_to_port_53() {
        assert_eq!(dns_server("9.9.9.9"), Ok("9.9.9.9:53".parse().expect("an address")));
        assert_eq!(dns_server("9.9.9.9:5353"), Ok("9.9.9.9:5353".parse().expect("an address")));
        assert_eq!(dns_server("fd00::1"), Ok("[fd00::1]:53".parse().expect("an address")));
        for text in ["9.9.9", "dns.example", "9.9.9.9:0", "9.9.9.9:x", ""] {
            assert!(dns_server(text).expect_err(text).contains(&format!("{text:?}")));
        }
    }
}
