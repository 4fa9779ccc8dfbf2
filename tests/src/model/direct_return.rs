//! "Replies that go straight to the client": who asked what, and when an answer takes the short way.

use std::net::{Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI, hash,
    maps::{
        ANSWERED, Backend, Conntrack, DSR, Frontend6Key, PUBLISHED_IPV6, Published, PublishedKey,
        SERVICE_DSR, TCP_SEEN_FIN, TCP_SEEN_RST, TCP_SEEN_SYN, VNI_FLAG_IPV6,
    },
};

use super::{
    Tables,
    conntrack::{Flow, Part},
    frame::{ETHERNET, Ethernet},
    walk::{End, Outcome, Walk},
};

/// The address, of IPv6 its number, and the port that a client asked.
pub type Asked = (Be32, Be16);

/// How the source MAC begins that says so.
const MARK: [u8; 4] = *b"\x06ask";

/// The bit that a new flow's entry begins with: "of a service that says so, from a client outside to a backend
/// elsewhere".
pub fn bit(tables: &Tables, flow: &Flow, service: u32, backend: &Backend) -> u32 {
    let service = tables.agent.services.get(&service);
    let says_so = service.is_some_and(|service| service.flags & SERVICE_DSR != 0);
    let is_elsewhere = flow.key.vni & !VNI_FLAG_IPV6 == UNDERLAY_VNI && backend.node != Be32::ZERO;
    if says_so && is_elsewhere { DSR } else { 0 }
}

/// The header inside the tunnel: "the destination is 02:42 and the address that was asked, the source 06:61:73:6b
/// and the port". Not for a flow whose source port was changed here.
pub fn header(flow: &Flow, entry: &Conntrack, otherwise: Ethernet) -> Ethernet {
    tell(flow, entry, flow.key.daddr, otherwise)
}

/// The same of IPv6: "instead of the address its number", by which other hosts know it.
pub fn header6(flow: &Flow, entry: &Conntrack, asked: Ipv6Addr, otherwise: Ethernet) -> Ethernet {
    tell(flow, entry, hash::of_node(&asked.into()), otherwise)
}

fn tell(flow: &Flow, entry: &Conntrack, address: Be32, otherwise: Ethernet) -> Ethernet {
    if entry.flags & DSR == 0 || entry.sport != flow.key.sport {
        return otherwise;
    }
    let [e, f] = flow.key.dport.get().to_be_bytes();
    let [a, b, c, d] = MARK;
    let (src, dst) = (Mac::new([a, b, c, d, e, f]), Mac::of_ip(address));
    Ethernet { src, dst, ..otherwise }
}

/// What a frame says: the address and port that its client asked.
pub fn asked(ethernet: &Ethernet) -> Option<Asked> {
    let [mark @ .., e, f] = ethernet.src.bytes();
    let [_, _, a, b, c, d] = ethernet.dst.bytes();
    let said = (Be32::from_octets([a, b, c, d]), Be16::new(u16::from_be_bytes([e, f])));
    (mark == MARK).then_some(said)
}

/// What a frame of a client of IPv6 says, whose address is of those that its node is known to have: with the number
/// that it has here.
pub fn frontends6(walk: &mut Walk<'_>, ethernet: &Ethernet, sender: Ipv4Addr) -> Option<Asked> {
    let (number, port) = asked(ethernet)?;
    let key = Frontend6Key { node: sender.into(), number };
    let address = *walk.tables.agent.frontends6.get(&key)?;
    Some((walk.outside6(address.into(), true)?, port))
}

/// As [`believed`], of an IPv6 client: the port must be one of IPv6.
pub fn believed6(
    tables: &Tables,
    flow: &Flow,
    client: Ipv6Addr,
    said: Option<Asked>,
) -> Option<Asked> {
    let (_, port) = said?;
    let published = straight_port(tables, flow, port)?;
    let is_right = published.flags & PUBLISHED_IPV6 != 0
        && !tables.agent.local_addrs6.contains_key(&client.into())
        && !tables.is_inside6(client);
    said.filter(|_| is_right)
}

/// "A port that is published here too, to the port that the backend is asked on, of a service that says so."
fn straight_port(tables: &Tables, flow: &Flow, port: Be16) -> Option<Published> {
    let key = PublishedKey { port, proto: flow.key.proto, pad: 0 };
    let published = tables.agent.published.get(&key)?;
    let service = tables.agent.services.get(&published.service)?;
    let is_right = published.target == flow.key.dport && service.flags & SERVICE_DSR != 0;
    is_right.then_some(*published)
}

/// What is believed of what a frame of `flow` says: "only of a port that is published here too, to the port that the
/// backend is asked on, of a service that says so", and nothing about this host itself or a container as the client, or as who was asked.
pub fn believed(tables: &Tables, flow: &Flow, said: Option<Asked>) -> Option<Asked> {
    let (address, port) = said?;
    straight_port(tables, flow, port)?;
    let is_right = !matches!(address.octets()[0], 0 | 127 | 224..)
        && [address, flow.key.saddr]
            .iter()
            .all(|ip| !tables.agent.local_addrs.contains_key(ip) && !tables.is_inside(*ip));
    is_right.then_some((address, port))
}

/// Whether a reply goes straight: not the first one, no SYN, no FIN, no reset and no ICMP error.
pub fn is_straight(flow: &Flow, entry: &Conntrack) -> bool {
    entry.flags & DSR != 0
        && entry.flags & ANSWERED != 0
        && flow.part != Part::Quoted
        && flow.seen & (TCP_SEEN_SYN | TCP_SEEN_FIN | TCP_SEEN_RST) == 0
}

/// Sends a reply straight to its client, if there is a way.
pub fn send(walk: &mut Walk<'_>, flow: &Flow, entry: &Conntrack) -> Outcome {
    walk.route(entry)?;
    walk.translate(ETHERNET, flow.transport, entry, Reason::RewriteRefused)?;
    Ok(End::Sent(Reason::SentDsr))
}
