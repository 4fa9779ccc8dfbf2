//! `from_container`: what an endpoint sends.

use overlay_common::{
    Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{
        Backend, CONNTRACK_FORWARD, CONNTRACK_REPLY, CONNTRACK_REVERSE, Conntrack,
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY, ENDPOINT_LOCAL,
        ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint, EndpointKey, Link, NETWORK_INTERNAL,
        Published, STALE_RESETS, VIA_VIP,
    },
    observe::Traffic,
};

use super::{
    balance::{self, Balanced},
    conntrack::{Flow, Part},
    direct_return,
    frame::{ARP, ETHERNET, Ethernet, ICMP, IPV4, IPV6, Ip, SCTP, TCP, bytes, half, put, updated},
    host::MTU,
    icmp, ipv6,
    observe::Party,
    outside, replicate,
    underlay::published_here,
    walk::{End, Outcome, Walk},
};

/// A packet that has passed the checks of its interface.
struct Checked {
    link: Link,
    ethernet: Ethernet,
    ip: Ip,
}

impl Checked {
    fn is_from(&self, flag: u8) -> bool {
        self.link.flags & u16::from(flag) != 0
    }
}

/// A packet that came in by an endpoint's interface.
pub fn receive(walk: &mut Walk<'_>) -> Outcome {
    walk.party.traffic = Traffic::Sent;
    let link = *walk.tables.agent.links.get(&walk.ifindex).ok_or(Reason::UnknownLink)?;
    walk.party = Party { traffic: Traffic::Sent, vni: link.vni, slot: link.slot };
    let ethernet = Ethernet::at(&walk.frame, 0)?;
    if ethernet.src != link.mac {
        return Err(Reason::SpoofedMac);
    }
    match ethernet.kind {
        ARP => arp(walk, &link),
        IPV4 => ipv4(walk, link, ethernet),
        IPV6 => ipv6::from_container(walk, walk.ifindex, link, ethernet),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

/// A request of the endpoint for an address that somebody has is answered (RFC 826).
fn arp(walk: &mut Walk<'_>, link: &Link) -> Outcome {
    let arp: [u8; 28] = bytes(&walk.frame, ETHERNET).ok_or(Reason::Truncated)?;
    // Ethernet, IPv4, and the lengths of their addresses.
    if arp[..6] != [0, 1, 0x08, 0x00, 6, 4] {
        return Err(Reason::Malformed);
    }
    if half(&arp, 6) != Some(1) {
        return Err(Reason::ArpUnknown);
    }
    let sender = &arp[14..18];
    // A probe comes from 0.0.0.0 (RFC 5227).
    let is_own = sender == link.ip.octets() || sender == [0; 4];
    if arp[8..14] != link.mac.bytes() || !is_own {
        return Err(Reason::SpoofedSource);
    }
    let target: [u8; 4] = bytes(&arp, 24).ok_or(Reason::Truncated)?;
    let owner = walk.endpoint(link.vni, target.into()).ok_or(Reason::ArpUnknown)?;
    if target == link.ip.octets() {
        return Err(Reason::ArpUnknown);
    }
    let mut reply = arp;
    put(&mut reply, 6, &2u16.to_be_bytes());
    put(&mut reply, 8, &owner.mac.bytes());
    put(&mut reply, 14, &target);
    put(&mut reply, 18, &link.mac.bytes());
    put(&mut reply, 24, sender);
    put(&mut walk.frame, ETHERNET, &reply);
    let ethernet = Ethernet { dst: link.mac, src: owner.mac, kind: ARP };
    put(&mut walk.frame, 0, &ethernet.bytes());
    Ok(End::Sent(Reason::ArpAnswered))
}

fn ipv4(walk: &mut Walk<'_>, link: Link, ethernet: Ethernet) -> Outcome {
    let ip = Ip::at(&walk.frame, ETHERNET).ok_or(Reason::Truncated)?;
    walk.check(&ip)?;
    if Be32::from(ip.src) != link.ip {
        return Err(Reason::SpoofedSource);
    }
    if ip.dst.octets()[0] >= 224 || ethernet.dst.is_group() {
        return replicate::send(walk, &link, ethernet.dst, &ip);
    }
    let packet = Checked { link, ethernet, ip };
    let Some(endpoint) = walk.endpoint(link.vni, ip.dst) else {
        return to_outside(walk, &packet);
    };
    match endpoint.kind {
        ENDPOINT_GATEWAY => to_gateway(walk, &packet),
        ENDPOINT_SERVICE => to_vip(walk, &packet, endpoint.service),
        ENDPOINT_LOCAL | ENDPOINT_REMOTE => to_endpoint(walk, &packet, &endpoint),
        _ => Err(Reason::NoEndpoint),
    }
}

fn to_endpoint(walk: &mut Walk<'_>, packet: &Checked, endpoint: &Endpoint) -> Outcome {
    // "Only packets from and to backends are looked up in conntrack."
    let mut translated = None;
    let with_backend =
        packet.is_from(ENDPOINT_FLAG_BACKEND) || endpoint.flags & ENDPOINT_FLAG_BACKEND != 0;
    if with_backend && let Ok(flow) = walk.flow(&packet.ip, packet.link.vni) {
        let entry = match walk.find(&flow) {
            Some(entry) if entry.action == CONNTRACK_REPLY => {
                return reply(walk, packet, &flow, &entry);
            }
            Some(entry) if entry.action == CONNTRACK_FORWARD => Some(entry),
            _ => walk.open_direct(&flow)?,
        };
        if let Some(entry) = entry {
            walk.translate(ETHERNET, flow.transport, &entry, Reason::RewriteRefused)?;
            translated = Some(flow);
        }
    }
    if endpoint.kind == ENDPOINT_LOCAL {
        return walk.deliver(endpoint, packet.ethernet.src, Reason::DeliveredLocal);
    }
    let inner = Ethernet { dst: endpoint.mac, ..packet.ethernet };
    let sent = walk.tunnel(packet.link.vni, endpoint.node.into(), inner);
    let mtu = MTU - walk.tunnel_length();
    or_told(walk, packet, sent, (mtu, translated.as_ref()))
}

/// "A packet with DF that does not fit is answered by the gateway of the sender's network." The
/// packet is not told of its translation.
fn or_told(
    walk: &mut Walk<'_>,
    packet: &Checked,
    sent: Outcome,
    (mtu, translated): (usize, Option<&Flow>),
) -> Outcome {
    if !matches!(sent, Err(Reason::TooBig)) {
        return sent;
    }
    if let Some(flow) = translated {
        icmp::undo(walk, flow)?;
    }
    let gateway = walk.network(packet.link.vni).ok_or(Reason::TooBig)?.gateway;
    icmp::fragmentation_needed(walk, (Mac::of_ip(gateway), gateway.into()), mtu)
}

fn to_vip(walk: &mut Walk<'_>, packet: &Checked, service: u32) -> Outcome {
    let flow = match walk.flow(&packet.ip, packet.link.vni) {
        Err(_) if packet.ip.protocol == ICMP => return echo(walk, packet),
        flow => flow?,
    };
    if packet.is_from(ENDPOINT_FLAG_BACKEND)
        && let Some(entry) = walk.find_action(&flow, CONNTRACK_REPLY)
    {
        return reply(walk, packet, &flow, &entry);
    }
    let balanced = walk.balance(&flow, service, (flow.key.dport, VIA_VIP))?;
    let Balanced::To(entry, backend) = balanced else {
        return balance::refuse(walk, &packet.ip, &balanced);
    };
    to_backend(walk, packet, &flow, (&entry, &backend))
}

fn to_gateway(walk: &mut Walk<'_>, packet: &Checked) -> Outcome {
    if packet.ip.protocol == ICMP {
        return echo(walk, packet);
    }
    if !packet.is_from(ENDPOINT_FLAG_HOST) {
        return Err(Reason::GatewayPort);
    }
    let flow = walk.flow(&packet.ip, packet.link.vni)?;
    let published = walk.published(flow.key.proto, flow.key.dport).ok_or(Reason::GatewayPort)?;
    let balanced = walk.balance(&flow, published.service, (published.target, 0))?;
    let Balanced::To(entry, backend) = balanced else {
        return balance::refuse(walk, &packet.ip, &balanced);
    };
    to_backend(walk, packet, &flow, (&entry, &backend))
}

fn to_backend(
    walk: &mut Walk<'_>,
    packet: &Checked,
    flow: &Flow,
    (entry, backend): (&Conntrack, &Backend),
) -> Outcome {
    walk.count_asked(flow, entry);
    walk.translate(ETHERNET, flow.transport, entry, Reason::RewriteRefused)?;
    if backend.node == Be32::ZERO {
        let endpoint = Endpoint { mac: backend.mac, slot: backend.slot, ..Endpoint::default() };
        return walk.deliver(&endpoint, packet.ethernet.src, Reason::DeliveredLocal);
    }
    let inner = Ethernet { dst: backend.mac, ..packet.ethernet };
    let sent = walk.tunnel(backend.vni, backend.node.into(), inner);
    let mtu = MTU - walk.tunnel_length();
    or_told(walk, packet, sent, (mtu, Some(flow)))
}

/// To an address of no endpoint: on the way that its flow came in, or out.
fn to_outside(walk: &mut Walk<'_>, packet: &Checked) -> Outcome {
    let Checked { link, ethernet, ip } = packet;
    let network = walk.network(link.vni).ok_or(Reason::NoEndpoint)?;
    let subnet = |address: Be32| address.get() & network.mask.get();
    if subnet(ip.dst.into()) == network.subnet.get() {
        return to_nobody(walk, link.vni, ip);
    }
    let flow = match walk.flow(ip, link.vni) {
        Err(_) if ip.protocol == ICMP => outside::echo_request(walk, ip, link.vni)?,
        flow => flow?,
    };
    let found = walk.find(&flow);
    if let Some(published) = own_port(walk, packet, &flow, found) {
        return to_own_port(walk, packet, &flow, &published);
    }
    match found {
        Some(entry) if entry.action == CONNTRACK_REPLY => reply(walk, packet, &flow, &entry),
        Some(entry) if entry.action == CONNTRACK_REVERSE => {
            if direct_return::is_straight(&flow, &entry) {
                match direct_return::send(walk, &flow, &entry) {
                    // "Through the node that was asked where there is no way from here."
                    Err(Reason::NoRoute) => {}
                    sent => return or_told(walk, packet, sent, (MTU, None)),
                }
            }
            if entry.dport != flow.key.dport {
                walk.translate(ETHERNET, flow.transport, &entry, Reason::RewriteRefused)?;
            }
            let inner = Ethernet { dst: Mac::of_ip(network.gateway), ..*ethernet };
            let sent = walk.tunnel(link.vni, entry.node.into(), inner);
            let translated = (entry.dport != flow.key.dport).then_some(&flow);
            let mtu = MTU - walk.tunnel_length();
            or_told(walk, packet, sent, (mtu, translated))
        }
        // "SCTP has no way out."
        _ if ip.protocol == SCTP => Err(Reason::ServiceProtocol),
        // "The host itself has ways of its own."
        _ if packet.is_from(ENDPOINT_FLAG_HOST) => Err(Reason::NoWayOut),
        found => match outside::leave(walk, ip, &network, (&flow, found)) {
            Err(Reason::TtlExceeded) => {
                icmp::time_exceeded(walk, (Mac::of_ip(network.gateway), network.gateway.into()))
            }
            sent => or_told(walk, packet, sent, (MTU, None)),
        },
    }
}

/// "A connection that was given its backend at once, and has outlived it, is told as its service says."
fn to_nobody(walk: &mut Walk<'_>, vni: u32, ip: &Ip) -> Outcome {
    let key = EndpointKey { vni, ip: ip.dst.into() };
    match walk.tables.agent.stale_backends.get(&key) {
        Some(flags) if ip.protocol == TCP && flags & STALE_RESETS != 0 => {
            balance::refuse(walk, ip, &Balanced::Lost)
        }
        Some(_) if ip.protocol == TCP => Err(Reason::BackendGone),
        _ => Err(Reason::NoEndpoint),
    }
}

/// "A container reaches the ports that its own host publishes, unless its network is internal."
fn own_port(
    walk: &Walk<'_>,
    packet: &Checked,
    flow: &Flow,
    found: Option<Conntrack>,
) -> Option<Published> {
    let network = walk.network(packet.link.vni)?;
    let is_other = found.is_some_and(|entry| entry.action != CONNTRACK_FORWARD);
    if network.flags & NETWORK_INTERNAL != 0 || packet.is_from(ENDPOINT_FLAG_HOST) || is_other {
        return None;
    }
    if flow.part == Part::Quoted {
        return found.map(|_| Published::default());
    }
    published_here(walk, &packet.ip, flow.key.dport)
}

fn to_own_port(
    walk: &mut Walk<'_>,
    packet: &Checked,
    flow: &Flow,
    published: &Published,
) -> Outcome {
    let balanced = walk.balance(flow, published.service, (published.target, 0))?;
    let Balanced::To(entry, backend) = balanced else {
        return balance::refuse(walk, &packet.ip, &balanced);
    };
    // "Nobody comes from outside with an address from inside."
    let is_inside = walk
        .network(backend.vni)
        .is_some_and(|n| Be32::from(packet.ip.src).get() & n.mask.get() == n.subnet.get());
    if backend.vni != packet.link.vni && is_inside {
        return Err(Reason::SpoofedInnerSource);
    }
    to_backend(walk, packet, flow, (&entry, &backend))
}

/// A backend's reply goes to the client of its flow, from the address that the client asked.
fn reply(walk: &mut Walk<'_>, packet: &Checked, flow: &Flow, entry: &Conntrack) -> Outcome {
    walk.count_answered(flow, entry, walk.frame.len());
    walk.translate(ETHERNET, flow.transport, entry, Reason::RewriteRefused)?;
    if entry.vni == UNDERLAY_VNI {
        let sent = walk.route_out(entry);
        return or_told(walk, packet, sent, (MTU, Some(flow)));
    }
    walk.deliver_reply(entry, Reason::DeliveredLocal)
}

/// Gateways and VIPs answer echo requests (RFC 792) and no other ICMP.
fn echo(walk: &mut Walk<'_>, packet: &Checked) -> Outcome {
    let Checked { ip, ethernet, .. } = packet;
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    let at = ip.payload();
    let kind: [u8; 2] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
    if kind != [8, 0] {
        return Err(Reason::GatewayPort);
    }
    let checksum = half(&walk.frame, at + 2).ok_or(Reason::Truncated)?;
    let frame = &mut walk.frame;
    put(frame, at, &[0, 0]);
    put(frame, at + 2, &updated(checksum, &kind, &[0, 0]).to_be_bytes());
    put(frame, ip.at + 12, &ip.dst.octets());
    put(frame, ip.at + 16, &ip.src.octets());
    put(frame, 0, &Ethernet { dst: ethernet.src, src: ethernet.dst, ..*ethernet }.bytes());
    Ok(End::Sent(Reason::EchoAnswered))
}
