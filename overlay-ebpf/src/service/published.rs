//! Look-ups of published ports.

use overlay_common::{
    Be16, Be32, Ip6,
    maps::{PUBLISHED_IPV6, Published, PublishedKey},
    wire::Ipv4,
};

use crate::{
    maps::{LOCAL_ADDRS, LOCAL_ADDRS6, PUBLISHED, lookup},
    packet::transport::has_ports,
};

/// The published port with a protocol and port number.
#[inline(always)]
pub fn find(proto: u8, port: Be16) -> Option<Published> {
    lookup(&PUBLISHED, &PublishedKey { port, proto, pad: 0 })
}

/// As [`find`], for a packet from the underlay: its destination must be an address of the host.
#[inline(always)]
pub fn find_on_host(ip: &Ipv4, port: Be16) -> Option<Published> {
    if !has_ports(ip.protocol) {
        return None;
    }
    let published = find(ip.protocol, port)?;
    let address: Be32 = ip.daddr();
    lookup(&LOCAL_ADDRS, &address).map(|_| published)
}

/// As [`find_on_host`], for an IPv6 address, a protocol and a port.
#[inline(always)]
pub fn find_on_host6(address: &Ip6, proto: u8, port: Be16) -> Option<Published> {
    if !is_on_host6(address) {
        return None;
    }
    find(proto, port).filter(|published| published.flags & PUBLISHED_IPV6 != 0)
}

/// Whether ports are published on this IPv6 address of the host.
#[inline(always)]
pub fn is_on_host6(address: &Ip6) -> bool {
    LOCAL_ADDRS6.get_ptr(address).is_some()
}
