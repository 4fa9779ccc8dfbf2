//! `from_container`: packets that an endpoint sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        Backend, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY, ENDPOINT_LOCAL,
        ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint, Link, Link6, NETWORK_INTERNAL, Network,
        Published, STALE_RESETS,
    },
    observe::Traffic,
};

use super::{
    agent::{Naming, has_subnet, is_of, link_local},
    balance::Balanced,
    bytes::{ARP, Ethernet, ICMP, IPV4, IPV6, SCTP, TCP, bytes},
    dsr,
    host::MTU,
    icmp::{self, Router},
    neighbour,
    observe::Party,
    packet::{Flow, Ip, Part, Said},
    reject::{Rejected, reject},
    replication, snat,
    state::{Action, Entry, Marks},
    tunnel::Way,
    walk::{End, Outcome, Walk},
};

/// A packet that has passed the checks of its interface.
struct Sent {
    link: Link,
    /// Configuration of the interface, which has IPv6.
    own: Link6,
    ethernet: Ethernet,
    ip: Ip,
}

impl Sent {
    fn is_from(&self, flag: u8) -> bool {
        self.link.flags & u16::from(flag) != 0
    }

    fn is_ipv6(&self) -> bool {
        self.ip.is_ipv6()
    }

    /// Whether the source is the address that flows name its sender by: "flows have no link-local
    /// addresses".
    fn is_own(&self) -> bool {
        !self.is_ipv6() || self.ip.src == Ipv6Addr::from(self.own.ip)
    }
}

/// A packet that came in by an endpoint's interface.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    walk.party.traffic = Traffic::Sent;
    let link = *walk.tables.agent.links.get(&walk.ifindex).ok_or(Reason::UnknownLink)?;
    walk.party = Party { traffic: Traffic::Sent, vni: link.vni, counter: link.counter };
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    if ethernet.src != link.mac {
        return Err(Reason::SpoofedMac);
    }
    if ethernet.kind == ARP {
        return neighbour::arp(walk, &link);
    }
    if ethernet.kind != IPV4 && ethernet.kind != IPV6 {
        return Err(Reason::UnsupportedProtocol);
    }
    let ipv6 = ethernet.kind == IPV6;
    // "An interface without an entry speaks no IPv6."
    let own = match walk.tables.link6(walk.ifindex) {
        None if ipv6 => return Err(Reason::UnsupportedProtocol),
        own => own.unwrap_or_default(),
    };
    let ip = walk.ip(ipv6)?;
    ip.check(walk)?;
    let sources: &[IpAddr] = match ipv6 {
        true => &[
            Ipv6Addr::from(own.ip).into(),
            link_local(link.mac).into(),
            Ipv6Addr::UNSPECIFIED.into(),
        ],
        false => &[Ipv4Addr::from(link.ip).into()],
    };
    if !sources.contains(&ip.src) {
        return Err(Reason::SpoofedSource);
    }
    let sent = Sent { link, own, ethernet, ip };
    if let Some(outcome) = to_link(walk, &sent) {
        return outcome;
    }
    let Some(endpoint) = walk.tables.endpoint(link.vni, ip.dst) else {
        return to_no_endpoint(walk, &sent);
    };
    match endpoint.kind {
        ENDPOINT_GATEWAY => to_gateway(walk, &sent),
        ENDPOINT_SERVICE => to_vip(walk, &sent, endpoint.service),
        ENDPOINT_LOCAL | ENDPOINT_REMOTE => to_endpoint(walk, &sent, &endpoint),
        _ => Err(Reason::NoEndpoint),
    }
}

/// Handles packets to all endpoints of the link: groups, which IPv4 networks may copy, and
/// neighbour discovery.
fn to_link(walk: &mut Walk<'_>, sent: &Sent) -> Option<Outcome> {
    let Sent { link, own, ethernet, ip } = sent;
    let to_group = ethernet.dst.is_group();
    if let IpAddr::V4(dst) = ip.dst {
        let to_group = to_group || dst.octets()[0] >= 224;
        return to_group.then(|| replication::send(walk, link, ethernet.dst, ip));
    }
    if ip.is_icmp() {
        let kind = bytes(&walk.frame, ip.payload()).filter(|_| ip.total >= 44);
        let Some([kind]) = kind else { return Some(Err(Reason::Truncated)) };
        if neighbour::is_discovery(kind) {
            return Some(neighbour::discovery(walk, link, own, ip));
        }
    }
    if ip.dst.is_multicast() || to_group {
        return Some(Err(Reason::Multicast));
    }
    ip.src.is_unspecified().then_some(Err(Reason::SpoofedSource))
}

fn to_endpoint(walk: &mut Walk<'_>, sent: &Sent, endpoint: &Endpoint) -> Outcome {
    if sent.is_ipv6() {
        neighbour::hidden(walk, &sent.ip)?;
    }
    // "Only packets from and to backends are looked up in conntrack."
    let mut translated = None;
    let with_backend =
        sent.is_from(ENDPOINT_FLAG_BACKEND) || endpoint.flags & ENDPOINT_FLAG_BACKEND != 0;
    if with_backend
        && sent.is_own()
        && let Ok(Some(flow)) = walk.flow(&sent.ip, sent.link.vni)
    {
        let entry = match walk.find(&flow) {
            Some(entry) if entry.action == Action::Reply => {
                return reply(walk, sent, &flow, &entry);
            }
            Some(entry) if entry.action == Action::Forward => Some(entry),
            _ => walk.open_direct(&flow)?,
        };
        if let Some(entry) = entry {
            walk.translate(&flow, &entry)?;
            translated = Some((flow, entry));
        }
    }
    if endpoint.kind == ENDPOINT_LOCAL {
        let to = (endpoint, sent.ethernet.src);
        return walk.deliver(to, sent.is_ipv6(), Reason::DeliveredLocal);
    }
    let inner = Ethernet { dst: endpoint.mac, ..sent.ethernet };
    let way = Way { vni: sent.link.vni, node: endpoint.node.into(), inner };
    tunnel(walk, sent, way, translated.as_ref())
}

/// Sends into the tunnel. The sender learns the length that fits.
fn tunnel(
    walk: &mut Walk<'_>,
    sent: &Sent,
    way: Way,
    translated: Option<&(Flow, Entry)>,
) -> Outcome {
    let outcome = walk.tunnel(way);
    let mtu = MTU - walk.tunnel_length();
    or_told(walk, sent, outcome, (mtu, translated))
}

/// "A packet with DF that does not fit is answered by the gateway of the sender's network." The
/// answer does not show its translation.
fn or_told(
    walk: &mut Walk<'_>,
    sent: &Sent,
    outcome: Outcome,
    (mtu, translated): (usize, Option<&(Flow, Entry)>),
) -> Outcome {
    if !matches!(outcome, Err(Reason::TooBig)) {
        return outcome;
    }
    if let Some((flow, entry)) = translated {
        walk.undo(flow, entry)?;
    }
    let network = walk.tables.network(sent.link.vni).ok_or(Reason::TooBig)?;
    icmp::too_big(walk, gateway(sent, &network), mtu)
}

fn gateway(sent: &Sent, network: &Network) -> Router {
    let ip = match sent.is_ipv6() {
        true => Ipv6Addr::from(sent.own.gateway).into(),
        false => Ipv4Addr::from(network.gateway).into(),
    };
    Router { ip, mac: Mac::of_ip(network.gateway) }
}

fn to_vip(walk: &mut Walk<'_>, sent: &Sent, service: u32) -> Outcome {
    let ip = &sent.ip;
    if sent.is_ipv6() && ip.is_icmp() && walk.frame[ip.payload()] == 128 {
        return neighbour::echo(walk, ip);
    }
    if !sent.is_own() {
        return Err(Reason::ServiceProtocol);
    }
    let flow = match walk.flow(ip, sent.link.vni) {
        Err(_) if ip.protocol == ICMP && !sent.is_ipv6() => return neighbour::echo(walk, ip),
        flow => flow?.ok_or(Reason::ServiceProtocol)?,
    };
    if sent.is_from(ENDPOINT_FLAG_BACKEND)
        && let Some(entry) = walk.find_action(&flow, Action::Reply)
    {
        return reply(walk, sent, &flow, &entry);
    }
    match walk.balance(&flow, service, (flow.key.dport, Marks::VIP))? {
        Balanced::To(entry, backend) => to_backend(walk, sent, (flow, entry), &backend),
        rejected => reject(walk, ip, &flow, &rejected),
    }
}

/// Only the host itself, by IPv4, sends to published ports at gateways.
fn to_gateway(walk: &mut Walk<'_>, sent: &Sent) -> Outcome {
    if sent.ip.is_icmp() {
        return neighbour::echo(walk, &sent.ip);
    }
    if sent.is_ipv6() || !sent.is_from(ENDPOINT_FLAG_HOST) {
        return Err(Reason::GatewayPort);
    }
    let flow = walk.flow(&sent.ip, sent.link.vni)?.ok_or(Reason::GatewayPort)?;
    let published = walk.tables.published(flow.key.proto, flow.key.dport);
    let published = published.ok_or(Reason::GatewayPort)?;
    to_published(walk, sent, &flow, &published)
}

fn to_published(walk: &mut Walk<'_>, sent: &Sent, flow: &Flow, published: &Published) -> Outcome {
    let target = (published.target.get(), Marks::default());
    let (entry, backend) = match walk.balance(flow, published.service, target)? {
        Balanced::To(entry, backend) => (entry, backend),
        rejected => return reject(walk, &sent.ip, flow, &rejected),
    };
    // "No packet comes from outside with an address from inside."
    let is_inside = match sent.ip.src {
        IpAddr::V4(ip) => walk.tables.network(backend.vni).is_some_and(|n| is_of(&n, ip)),
        IpAddr::V6(ip) => walk.tables.has_inside6(backend.vni, ip),
    };
    let is_hosts = !sent.is_ipv6() && sent.is_from(ENDPOINT_FLAG_HOST);
    if backend.vni != sent.link.vni && is_inside && !is_hosts {
        return Err(Reason::SpoofedInnerSource);
    }
    walk.keep_both(flow, &entry);
    to_backend(walk, sent, (*flow, entry), &backend)
}

fn to_backend(
    walk: &mut Walk<'_>,
    sent: &Sent,
    translated: (Flow, Entry),
    backend: &Backend,
) -> Outcome {
    let (flow, entry) = &translated;
    walk.count_received(flow, entry);
    walk.translate(flow, entry)?;
    if backend.node == Be32::ZERO {
        let endpoint =
            Endpoint { mac: backend.mac, counter: backend.counter, ..Endpoint::default() };
        let to = (&endpoint, sent.ethernet.src);
        return walk.deliver(to, sent.is_ipv6(), Reason::DeliveredLocal);
    }
    let inner = Ethernet { dst: backend.mac, ..sent.ethernet };
    let way = Way { vni: backend.vni, node: backend.node.into(), inner };
    tunnel(walk, sent, way, Some(&translated))
}

/// Handles a packet to an address that no endpoint has.
fn to_no_endpoint(walk: &mut Walk<'_>, sent: &Sent) -> Outcome {
    let network = walk.tables.network(sent.link.vni);
    let of_network = match sent.ip.dst {
        IpAddr::V4(ip) => is_of(&network.ok_or(Reason::NoEndpoint)?, ip),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || has_subnet(&sent.own, ip),
    };
    match (of_network, sent.is_own()) {
        (true, true) => to_stale_backend(walk, sent),
        (true, false) => Err(Reason::NoEndpoint),
        (false, true) => to_egress(walk, sent, &network.ok_or(Reason::NoEndpoint)?),
        (false, false) => Err(Reason::NoWayOut),
    }
}

/// "A connection that was given its backend at once, and has outlived it, is told as its service
/// says." An IPv6 backend's MAC is its address id.
fn to_stale_backend(walk: &mut Walk<'_>, sent: &Sent) -> Outcome {
    let ip = &sent.ip;
    let number = match ip.dst {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => return Err(Reason::NoEndpoint),
        IpAddr::V6(_) => {
            let [_, _, a, b, c, d] = sent.ethernet.dst.bytes();
            Be32::from_octets([a, b, c, d])
        }
    };
    let stale = walk.tables.stale_backend(sent.link.vni, number);
    let flags = stale.filter(|_| ip.protocol == TCP).ok_or(Reason::NoEndpoint)?;
    if flags & STALE_RESETS == 0 {
        return Err(Reason::BackendGone);
    }
    if sent.is_ipv6() && walk.said(ip).map_or(true, |said| said.fault.is_some()) {
        return Err(Reason::BackendGone);
    }
    let part = if ip.later { Part::Later } else { Part::Whole };
    reject(walk, ip, Rejected::tcp(part, ip.payload()), &Balanced::Lost)
}

/// Handles a packet that leaves the network: to a port of this host, back along the reverse path,
/// or out through the uplink.
fn to_egress(walk: &mut Walk<'_>, sent: &Sent, network: &Network) -> Outcome {
    if sent.is_ipv6() {
        let said = walk.said(&sent.ip).map_err(|_| Reason::NoWayOut)?;
        if said.fault.is_some() {
            return Err(Reason::NoWayOut);
        }
        if network.flags & NETWORK_INTERNAL == 0
            && let Some((flow, published)) = own_port6(walk, sent, &said)?
        {
            return to_published(walk, sent, &flow, &published);
        }
        let flow = walk.named(&said, sent.link.vni, Naming::default())?;
        let flow = flow.ok_or(Reason::NoWayOut)?;
        return match walk.find(&flow) {
            Some(entry) if entry.action == Action::Reply => reply(walk, sent, &flow, &entry),
            Some(entry) if entry.action == Action::Reverse => {
                reverse(walk, sent, network, (flow, entry))
            }
            // IPv6 has no egress.
            _ => Err(Reason::NoWayOut),
        };
    }
    let flow = match walk.flow(&sent.ip, sent.link.vni) {
        Err(_) if sent.ip.is_icmp() => snat::echo_request(walk, &sent.ip, sent.link.vni)?,
        flow => flow?.ok_or(Reason::NoWayOut)?,
    };
    let found = walk.find(&flow);
    if let Some(published) = own_port(walk, sent, network, (&flow, found)) {
        return to_published(walk, sent, &flow, &published);
    }
    match found {
        Some(entry) if entry.action == Action::Reply => reply(walk, sent, &flow, &entry),
        Some(entry) if entry.action == Action::Reverse => {
            reverse(walk, sent, network, (flow, entry))
        }
        // "SCTP has no way out."
        _ if sent.ip.protocol == SCTP => Err(Reason::ServiceProtocol),
        // "The host itself has ways of its own."
        _ if sent.is_from(ENDPOINT_FLAG_HOST) => Err(Reason::NoWayOut),
        found => match snat::leave(walk, &sent.ip, network, (&flow, found)) {
            Err(Reason::TtlExceeded) => {
                let gateway = (Mac::of_ip(network.gateway), network.gateway.into());
                icmp::time_exceeded(walk, gateway)
            }
            outcome => or_told(walk, sent, outcome, (MTU, None)),
        },
    }
}

/// A backend's answer on the reverse path: directly to its client, or through the ingress node.
fn reverse(
    walk: &mut Walk<'_>,
    sent: &Sent,
    network: &Network,
    (flow, entry): (Flow, Entry),
) -> Outcome {
    if dsr::applies(&flow, &entry) {
        match dsr::send(walk, &flow, &entry) {
            // "Through the ingress node where there is no way from here."
            Err(Reason::NoRoute) => {}
            outcome => return or_told(walk, sent, outcome, (MTU, None)),
        }
    }
    let translated = (entry.dport != flow.key.dport).then_some((flow, entry));
    if translated.is_some() {
        walk.translate(&flow, &entry)?;
    }
    let inner = Ethernet { dst: Mac::of_ip(network.gateway), ..sent.ethernet };
    let node = entry.node.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let way = Way { vni: sent.link.vni, node, inner };
    tunnel(walk, sent, way, translated.as_ref())
}

/// "A container reaches the ports that its own host publishes, unless its network is internal."
fn own_port(
    walk: &Walk<'_>,
    sent: &Sent,
    network: &Network,
    (flow, found): (&Flow, Option<Entry>),
) -> Option<Published> {
    let is_other = found.is_some_and(|entry| entry.action != Action::Forward);
    if network.flags & NETWORK_INTERNAL != 0 || sent.is_from(ENDPOINT_FLAG_HOST) || is_other {
        return None;
    }
    if flow.part == Part::Quoted {
        return found.map(|_| Published::default());
    }
    walk.tables.published_at(sent.ip.dst, sent.ip.protocol, flow.key.dport)
}

/// The same for IPv6, with the flow: under the container's own name if it is on the service's
/// network, otherwise as a client outside.
fn own_port6(
    walk: &mut Walk<'_>,
    sent: &Sent,
    said: &Said,
) -> Result<Option<(Flow, Published)>, Reason> {
    let vni = sent.link.vni;
    if !walk.tables.is_local(sent.ip.dst) {
        return Ok(None);
    }
    let outside = Naming { source_outside: true, may_be_new: false };
    let (mut proto, mut port) = (said.proto, said.ports[1]);
    match said.part {
        Part::Quoted => {
            for how in [Naming::default(), outside] {
                if let Some(flow) = walk.named(said, vni, how)?
                    && walk.find_action(&flow, Action::Forward).is_some()
                {
                    return Ok(Some((flow, Published::default())));
                }
            }
            return Ok(None);
        }
        Part::Later => {
            let flow = match walk.named(said, vni, Naming::default()) {
                Ok(None) | Err(Reason::Fragment) => walk.named(said, vni, outside)?,
                flow => flow?,
            };
            let Some(flow) = flow else { return Ok(None) };
            (proto, port) = (flow.key.proto, flow.key.dport);
        }
        Part::Whole => {}
    }
    let published = walk.tables.published_at(sent.ip.dst, proto, port);
    let Some(published) = published else { return Ok(None) };
    let service = walk.tables.service(published.service);
    let source_outside = service.is_none_or(|service| service.vni != vni);
    let flow = walk.named(said, vni, Naming { source_outside, may_be_new: true })?;
    Ok(flow.map(|flow| (flow, published)))
}

/// A backend's reply goes to the client of its flow, from the frontend.
fn reply(walk: &mut Walk<'_>, sent: &Sent, flow: &Flow, entry: &Entry) -> Outcome {
    walk.count_sent(flow, entry, walk.frame.len());
    let [_, to] = walk.translate(flow, entry)?;
    if entry.vni != UNDERLAY_VNI {
        return walk.deliver_reply(entry, to, Reason::DeliveredLocal);
    }
    let routed = walk.route(to).map(|()| End::Sent(Reason::SentToClient));
    or_told(walk, sent, routed, (MTU, Some(&(*flow, *entry))))
}
