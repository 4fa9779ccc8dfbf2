//! How numbers of the maps are written.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use overlay_common::{
    Be32, Ip6,
    maps::EndpointKey,
    wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use crate::datapath::{DatapathState, TableDump};

/// An IPv4 address; `-` for none.
pub fn ip(address: Be32) -> String {
    if address == Be32::ZERO { "-".to_owned() } else { Ipv4Addr::from(address).to_string() }
}

/// An IPv6 address.
pub fn ip6(address: Ip6) -> String {
    Ipv6Addr::from(address).to_string()
}

/// The IPv6 address beside an IPv4 one; `-` for none.
pub fn beside(state: &DatapathState, vni: u32, ip: Be32) -> String {
    state.addresses6.get(&EndpointKey { vni, ip }).map_or("-".to_owned(), |address| ip6(*address))
}

/// The words of the bits that are set; `-` for none.
pub fn flags(value: u32, words: &[(u32, &str)]) -> String {
    let set: Vec<&str> =
        words.iter().filter(|(bit, _)| value & bit != 0).map(|(_, word)| *word).collect();
    if set.is_empty() { "-".to_owned() } else { set.join(",") }
}

/// The name of a protocol; its number where it has none here.
pub fn protocol(number: u8) -> String {
    match number {
        PROTO_ICMP => "icmp".to_owned(),
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        PROTO_SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// A table with a row for each entry of a map.
pub fn table<K, V>(
    name: &str,
    columns: &[&str],
    map: &BTreeMap<K, V>,
    row: impl Fn(&K, &V) -> Vec<String>,
) -> TableDump {
    TableDump {
        name: name.to_owned(),
        columns: columns.iter().map(|&c| c.to_owned()).collect(),
        rows: map.iter().map(|(key, value)| row(key, value)).collect(),
    }
}

/// Words with commas between them; `-` for none.
pub fn list(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    if words.is_empty() { "-".to_owned() } else { words.join(",") }
}
