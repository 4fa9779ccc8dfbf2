//! Maps a question to an answer, without any I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::{
    op::Query,
    rr::{DNSClass, Name, RecordType},
};

use super::directory::{self, Directory, Scope};
use crate::model::Id;

/// An answer to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, in the order of the state; the server shuffles them.
    Addresses(Vec<Ipv4Addr>),
    /// These IPv6 addresses, in the order of the state; the server shuffles them.
    Addresses6(Vec<Ipv6Addr>),
    /// This name, for an address.
    Name(String),
    /// The name exists but has no such record (NOERROR with no records).
    NoData,
    /// The name is in our namespace but does not exist (NXDOMAIN).
    NameError,
    /// The name is not ours, so the upstreams are queried.
    Forward,
    /// REFUSED: a zone transfer, or a name that is not ours if the container has only internal
    /// networks.
    Refused,
    /// The state does not contain the container yet (SERVFAIL, so that it asks again).
    NotReady,
}

/// Returns the answer to `query` from `container`.
pub fn resolve(directory: &Directory, container: &Id, query: &Query) -> Answer {
    if matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) {
        return Answer::Refused;
    }
    let Some(scopes) = directory.scopes(container) else {
        return Answer::NotReady;
    };
    let ours = || {
        // Names of the cluster exist only in class IN. Class ANY includes it.
        if !matches!(query.query_class, DNSClass::IN | DNSClass::ANY) {
            return None;
        }
        let name = text(&query.name)?;
        match address_of_reverse(&name) {
            Some(address) => reverse(&scopes, address, query.query_type),
            None => forward(&scopes, &name, query.query_type),
        }
    };
    match ours() {
        Some(answer) => answer,
        // Forwarding would give egress to containers without egress (CVE-2024-29018).
        None if scopes.iter().any(Scope::leads_out) => Answer::Forward,
        None => Answer::Refused,
    }
}

/// Returns the name in lower case without the final dot; `None` if it cannot be one of ours.
fn text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        // A dot inside a label would look like two labels.
        if label.iter().any(|b| *b == b'.' || !b.is_ascii_graphic()) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

/// Returns the address in `D.C.B.A.in-addr.arpa` or in 32 nibbles under `ip6.arpa`.
fn address_of_reverse(name: &str) -> Option<IpAddr> {
    if let Some(nibbles) = name.strip_suffix(".ip6.arpa") {
        return address_of_nibbles(nibbles).map(IpAddr::V6);
    }
    let mut octets: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.split('.').collect();
    octets.reverse();
    octets.join(".").parse().ok().map(IpAddr::V4)
}

/// Parses an address of 32 hexadecimal digits, the last one first (RFC 3596, section 2.5).
fn address_of_nibbles(nibbles: &str) -> Option<Ipv6Addr> {
    let digit = |label: &str| match label.as_bytes() {
        [digit] => char::from(*digit).to_digit(16),
        _ => None,
    };
    let digits: Vec<u32> = nibbles.split('.').map(digit).collect::<Option<_>>()?;
    if digits.len() != 32 {
        return None;
    }
    let bits = digits.iter().rev().fold(0_u128, |bits, digit| bits << 4 | u128::from(*digit));
    Some(Ipv6Addr::from_bits(bits))
}

fn reverse(scopes: &[Scope<'_>], address: IpAddr, asked: RecordType) -> Option<Answer> {
    let scope = scopes.iter().find(|s| s.network.contains(address))?;
    Some(match (scope.name_of(address), asked) {
        (Some(name), RecordType::PTR | RecordType::ANY) => Answer::Name(name),
        (Some(_), _) => Answer::NoData,
        // The subnet belongs to us alone, so no upstream knows the name.
        (None, _) => Answer::NameError,
    })
}

fn forward(scopes: &[Scope<'_>], name: &str, asked: RecordType) -> Option<Answer> {
    let Some(addresses) = addresses(scopes, name) else {
        return is_tasks(scopes, name).then_some(Answer::NameError);
    };
    match asked {
        // A subset of the records is a valid answer to ANY (RFC 8482, section 4.1).
        RecordType::A | RecordType::ANY if !addresses.v4.is_empty() => {
            Some(Answer::Addresses(addresses.v4))
        }
        RecordType::AAAA if !addresses.v6.is_empty() => Some(Answer::Addresses6(addresses.v6)),
        _ => Some(Answer::NoData),
    }
}

/// Returns the addresses of a name, with or without the name of a network after it.
fn addresses(scopes: &[Scope<'_>], name: &str) -> Option<directory::Addresses> {
    let qualified =
        || scopes.iter().find_map(|s| bare(std::slice::from_ref(s), without_network(s, name)?));
    bare(scopes, name).or_else(qualified)
}

/// Returns the addresses of a name without a network. Services on any network win over containers.
/// Among the networks, the container's first one wins.
fn bare(scopes: &[Scope<'_>], name: &str) -> Option<directory::Addresses> {
    let tasks = |s: &Scope<'_>| s.tasks(name.strip_prefix("tasks.")?);
    scopes
        .iter()
        .find_map(|s| s.service(name))
        .or_else(|| scopes.iter().find_map(tasks))
        .or_else(|| scopes.iter().find_map(|s| s.hosts(name)))
}

fn without_network<'a>(scope: &Scope<'_>, name: &'a str) -> Option<&'a str> {
    name.strip_suffix(scope.network.name.as_str())?.strip_suffix('.')
}

/// Returns true if an unknown name has the form `tasks.SERVICE` or `tasks.SERVICE.NETWORK`. Other
/// names that start with `tasks.` may exist outside the cluster.
fn is_tasks(scopes: &[Scope<'_>], name: &str) -> bool {
    let Some(service) = name.strip_prefix("tasks.") else { return false };
    !service.contains('.') || scopes.iter().any(|s| without_network(s, service).is_some())
}

#[cfg(test)]
mod tests;
