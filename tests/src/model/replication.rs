//! Head-end replication of multicast and broadcast: "a copy to every endpoint here but the sender,
//! and one to every other node", on IPv4 networks with replication.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{
    Be32, Mac, Reason,
    maps::{ENDPOINT_REMOTE, Flood, Link, NETWORK_REPLICATE},
    observe::Traffic,
};

use super::{
    bytes::{Ethernet, put},
    packet::Ip,
    walk::{End, Outcome, Walk},
};

/// IGMP, which is not copied.
const IGMP: u8 = 2;

/// Replicates a packet from an endpoint.
pub fn send(walk: &mut Walk<'_>, link: &Link, dst: Mac, ip: &Ip) -> Outcome {
    if !is_copied(walk, link.vni, dst, ip).unwrap_or(false) {
        return Err(Reason::Multicast);
    }
    let flood = flood(walk, link.vni);
    to_endpoints(walk, &flood);
    let nodes = &flood.vteps[..within(flood.nodes) as usize];
    let is_known = |node: &&Be32| !walk.tables.ipv6 || walk.tables.agent.vteps6.contains_key(node);
    let takes = walk.host.takes(walk.tables.config.vxlan_ifindex, walk.frame.len());
    let sent = if takes { nodes.iter().filter(is_known).count() } else { 0 };
    copied(walk, within(flood.nodes) - sent as u32, flood.nodes);
    Ok(End::Copied(Reason::Replicated))
}

/// Replicates a packet from another node.
pub fn receive(walk: &mut Walk<'_>, (vni, sender): (u32, Ipv4Addr), dst: Mac, ip: &Ip) -> Outcome {
    if !is_copied(walk, vni, dst, ip).ok_or(Reason::NoEndpoint)? {
        return Err(Reason::Multicast);
    }
    let source = walk.tables.endpoint(vni, ip.src);
    let source = source
        .filter(|from| from.kind == ENDPOINT_REMOTE && from.node == Be32::from(sender))
        .ok_or(Reason::SpoofedInnerSource)?;
    walk.pop(ip, false)?;
    put(&mut walk.frame, 0, &Ethernet::of_ip(source.mac, dst, false).bytes());
    let flood = flood(walk, vni);
    to_endpoints(walk, &flood);
    Ok(End::Copied(Reason::Replicated))
}

/// Whether the network copies the packet. An unknown network copies none.
fn is_copied(walk: &Walk<'_>, vni: u32, dst: Mac, ip: &Ip) -> Option<bool> {
    let network = walk.tables.network(vni)?;
    let IpAddr::V4(group) = ip.dst else { return Some(false) };
    let [a, b, c, d] = group.octets();
    let subnet_broadcast = network.subnet.get() | !network.mask.get();
    let mac = if group.is_broadcast() || u32::from(group) == subnet_broadcast {
        [0xff; 6]
    } else if (224..240).contains(&a) {
        // RFC 1112, section 6.4: the low 23 bits.
        [0x01, 0x00, 0x5e, b % 128, c, d]
    } else {
        return Some(false);
    };
    let wanted = network.flags & NETWORK_REPLICATE != 0 && ip.protocol != IGMP;
    Some(wanted && dst.bytes() == mac)
}

fn flood(walk: &Walk<'_>, vni: u32) -> Flood {
    walk.tables.agent.flood.get(&vni).map(|flood| **flood).unwrap_or_default()
}

fn within(count: u32) -> u32 {
    count.min(64)
}

fn to_endpoints(walk: &mut Walk<'_>, flood: &Flood) {
    let links = &flood.links[..within(flood.endpoints) as usize];
    let (ifindex, length) = (walk.ifindex, walk.frame.len());
    let mut refused = 0;
    for link in links.iter().filter(|link| **link != ifindex) {
        if !walk.host.takes(*link, length) {
            refused += 1;
        } else if let Some(link) = walk.tables.agent.links.get(link) {
            let counter = link.counter;
            walk.tell(counter, Traffic::Received, Reason::Replicated, length);
        }
    }
    copied(walk, refused, flood.endpoints);
}

/// Counts what did not become of `count` copies.
fn copied(walk: &mut Walk<'_>, refused: u32, count: u32) {
    let length = walk.frame.len();
    for _ in 0..refused {
        walk.count(Reason::ReplicateRefused, length);
        walk.tell_dropped(Reason::ReplicateRefused, length);
    }
    if count > 64 {
        walk.count(Reason::ReplicateLimit, length);
        walk.tell_dropped(Reason::ReplicateLimit, length);
    }
}
