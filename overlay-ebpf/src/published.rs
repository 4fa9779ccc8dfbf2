//! Ports that a service answers on the hosts.

use overlay_common::{
    Be16, Be32,
    maps::{Published, PublishedKey},
    wire::Ipv4,
};

use crate::{
    maps::{LOCAL_ADDRS, PUBLISHED, lookup},
    packet::has_ports,
};

/// What is published under a protocol and port.
#[inline(always)]
pub fn find(proto: u8, port: Be16) -> Option<Published> {
    lookup(&PUBLISHED, &PublishedKey { port, proto, pad: 0 })
}

/// As [`find`], for a packet from the underlay: only on addresses of the host.
#[inline(always)]
pub fn find_on_host(ip: &Ipv4, port: Be16) -> Option<Published> {
    if !has_ports(ip.protocol) {
        return None;
    }
    let published = find(ip.protocol, port)?;
    let address: Be32 = ip.daddr();
    lookup(&LOCAL_ADDRS, &address).map(|_| published)
}
