//! Direct server return: how a backend's node learns the frontend, and which replies it sends
//! directly.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{
    Be32, Mac, Reason, hash,
    maps::{Frontend6Key, PUBLISHED_IPV6, SERVICE_DSR},
};

use super::{
    bytes::Ethernet,
    conntrack::first_octet,
    packet::{Flow, Part},
    state::{Entry, Marks, Name, Tables},
    walk::{End, Outcome, Walk},
};

/// The frontend that a client sent to.
pub type Frontend = (Name, u16);

/// How the source MAC begins that says so.
const MARK: [u8; 4] = *b"\x06ask";

/// The header inside the tunnel: "the destination is 02:42 and the frontend's address, the source
/// 06:61:73:6b and its port". For IPv6, "instead of the address its number", by which other hosts
/// know it. A flow whose source port was changed here has no such header.
pub fn header(flow: &Flow, entry: &Entry, frontend: IpAddr, otherwise: Ethernet) -> Ethernet {
    if !entry.marks.any(Marks::DSR) || entry.sport != flow.key.sport {
        return otherwise;
    }
    let address = match frontend {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => hash::of_node(&ip.into()),
    };
    let [e, f] = flow.key.dport.to_be_bytes();
    let [a, b, c, d] = MARK;
    Ethernet { src: Mac::new([a, b, c, d, e, f]), dst: Mac::of_ip(address), ..otherwise }
}

/// Reads the frontend from a node's frame. An IPv6 address must be one that its node is known to
/// have, and gets an address id here.
pub fn said(tables: &mut Tables, frame: &Ethernet, node: Ipv4Addr, ipv6: bool) -> Option<Frontend> {
    let [mark @ .., e, f] = frame.src.bytes();
    if mark != MARK {
        return None;
    }
    let [_, _, a, b, c, d] = frame.dst.bytes();
    let number = Be32::from_octets([a, b, c, d]);
    let name = if ipv6 {
        let key = Frontend6Key { node: node.into(), number };
        let address = *tables.agent.frontends6.get(&key)?;
        tables.client(address.into(), true)?
    } else {
        Name::inside(Ipv4Addr::from(number))
    };
    Some((name, u16::from_be_bytes([e, f])))
}

/// Accepts that frontend under conditions: "only of a port that is published here too, to the port
/// that the backend is asked on, of a service that says so". Neither the client nor the frontend
/// may be this host or a container.
pub fn believed(tables: &Tables, flow: &Flow, said: Option<Frontend>) -> Option<Frontend> {
    let (name, port) = said?;
    let published = tables.published(flow.key.proto, port)?;
    let service = tables.service(published.service)?;
    let is_right = published.target.get() == flow.key.dport && service.flags & SERVICE_DSR != 0;
    let is_elsewhere = |name: Name| !tables.is_local(name.ip) && !tables.is_inside(name.ip);
    // The agent must have declared an IPv6 frontend, and the port must be an IPv6 port.
    let may_be = match first_octet(name) {
        Some(octet) => !matches!(octet, 0 | 127 | 224..) && is_elsewhere(name),
        None => published.flags & PUBLISHED_IPV6 != 0,
    };
    (is_right && may_be && is_elsewhere(flow.key.src)).then_some((name, port))
}

/// Whether this node sends a reply directly. It does not send the first reply, a SYN, a FIN, a
/// reset or an ICMP error so.
pub fn applies(flow: &Flow, entry: &Entry) -> bool {
    entry.marks.any(Marks::DSR)
        && entry.marks.any(Marks::ANSWERED)
        && flow.part != Part::Quoted
        && !flow.seen.any(Marks::SYN | Marks::FIN | Marks::RST)
}

/// Sends a reply to its client from here, if there is a route.
pub fn send(walk: &mut Walk<'_>, flow: &Flow, entry: &Entry) -> Outcome {
    walk.tables.address(entry.vni, entry.src).ok_or(Reason::NoRoute)?;
    walk.route(entry.dst.ip)?;
    walk.translate(flow, entry)?;
    Ok(End::Sent(Reason::SentDsr))
}
