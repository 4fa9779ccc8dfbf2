//! IPv6 on dual-stack networks: neighbour discovery, and packets from endpoint to endpoint. Services are
//! `service6`'s.

use std::net::Ipv6Addr;

use overlay_common::{
    Ip6, Mac, Reason,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY, ENDPOINT_LOCAL,
        ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint, Endpoint6Key, Link, Link6,
    },
};

use super::{
    frame::{ETHERNET, Ethernet, IPV6, TCP, UDP, bytes, half, ones_complement, put, updated},
    host::MTU,
    service6::{self, Sent},
    walk::{End, Outcome, Walk, marked},
};

/// Next-header number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// An IPv6 header (RFC 8200, section 3).
#[derive(Clone, Copy)]
pub struct Header {
    /// Offset of the header in the frame.
    pub at: usize,
    version: u8,
    /// Payload length.
    pub payload: usize,
    /// What follows the header.
    pub next: u8,
    hop_limit: u8,
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
}

impl Header {
    /// The header at an offset, if it is possible and the frame as long as it says.
    pub fn at(walk: &Walk<'_>, at: usize) -> Result<Self, Reason> {
        let header = Self::unchecked(walk, at).ok_or(Reason::Truncated)?;
        header.check(walk)?;
        Ok(header)
    }

    /// The header at an offset, whatever it says.
    pub fn unchecked(walk: &Walk<'_>, at: usize) -> Option<Self> {
        let header: [u8; 40] = bytes(&walk.frame, at)?;
        let address = |at| bytes::<16>(&header, at).map(Ipv6Addr::from);
        Some(Self {
            at,
            version: header[0] >> 4,
            payload: usize::from(header[4]) << 8 | usize::from(header[5]),
            next: header[6],
            hop_limit: header[7],
            src: address(8)?,
            dst: address(24)?,
        })
    }

    /// Whether the header is possible and the frame as long as it says.
    pub fn check(&self, walk: &Walk<'_>) -> Result<(), Reason> {
        if self.version != 6 {
            return Err(Reason::Malformed);
        }
        // As for IPv4, an aggregate's own length means nothing.
        if self.body() + self.payload > walk.frame.len() && walk.segment == 0 {
            return Err(Reason::Truncated);
        }
        Ok(())
    }

    /// Offset of what follows the header.
    pub fn body(&self) -> usize {
        self.at + 40
    }
}

/// `fe80::` and the modified EUI-64 of a MAC (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let id = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from(0xfe80 << 112 | u128::from(u64::from_be_bytes(id)))
}

impl Walk<'_> {
    /// What an IPv6 address of a network is. "Link-local addresses follow from the MAC": they are
    /// those of the endpoints that `endpoints` holds.
    pub fn endpoint6(&self, vni: u32, ip: Ipv6Addr) -> Option<Endpoint> {
        let agent = &self.tables.agent;
        let by_mac = || {
            let mut of_network = agent.endpoints.iter().filter(|(key, _)| key.vni == vni);
            of_network.find(|(key, _)| link_local(Mac::of_ip(key.ip)) == ip).map(|(_, e)| e)
        };
        let found = if ip.is_unicast_link_local() {
            by_mac()
        } else {
            agent.endpoints6.get(&Endpoint6Key { vni, ip: ip.into() })
        };
        // The node itself is reached by IPv4 only, and VIPs have no link.
        let is_linked = |e: &&Endpoint| e.kind != ENDPOINT_SERVICE || !ip.is_unicast_link_local();
        found.filter(|e| e.flags & ENDPOINT_FLAG_HOST == 0).filter(is_linked).copied()
    }
}

/// From an endpoint. "An interface without an entry [in links6] speaks no IPv6."
pub fn from_container(walk: &mut Walk<'_>, ifindex: u32, link: Link, sent: Ethernet) -> Outcome {
    let own = *walk.tables.agent.links6.get(&ifindex).ok_or(Reason::UnsupportedProtocol)?;
    let ip = Header::at(walk, ETHERNET)?;
    let its_own = [Ipv6Addr::from(own.ip), link_local(link.mac), Ipv6Addr::UNSPECIFIED];
    if !its_own.contains(&ip.src) {
        return Err(Reason::SpoofedSource);
    }
    if ip.next == ICMPV6 {
        let [kind] =
            bytes(&walk.frame, ip.body()).filter(|_| ip.payload >= 4).ok_or(Reason::Truncated)?;
        // RFC 4861, section 4: solicitations, advertisements and redirects.
        if (133..=137).contains(&kind) {
            return discovery(walk, &link, &own, &ip);
        }
    }
    if ip.dst.is_multicast() || sent.dst.is_group() {
        return Err(Reason::Multicast);
    }
    if ip.src.is_unspecified() {
        return Err(Reason::SpoofedSource);
    }
    // "Flows have no link-local addresses."
    let is_own = ip.src == Ipv6Addr::from(own.ip);
    let packet = Sent { link, own, ethernet: sent, ip };
    let Some(endpoint) = walk.endpoint6(link.vni, ip.dst) else {
        return match nowhere(&own, ip.dst) {
            Reason::NoWayOut if is_own => service6::to_outside(walk, &packet),
            Reason::NoEndpoint if is_own && !ip.dst.is_unicast_link_local() => {
                service6::to_nobody_here(walk, &packet)
            }
            reason => Err(reason),
        };
    };
    match endpoint.kind {
        ENDPOINT_GATEWAY if ip.next == ICMPV6 => echo(walk, &ip, sent),
        ENDPOINT_GATEWAY => Err(Reason::GatewayPort),
        ENDPOINT_SERVICE if ip.next == ICMPV6 && walk.frame[ip.body()] == 128 => {
            echo(walk, &ip, sent)
        }
        ENDPOINT_SERVICE if !is_own => Err(Reason::ServiceProtocol),
        ENDPOINT_SERVICE => service6::to_vip(walk, &packet, endpoint.service),
        ENDPOINT_LOCAL | ENDPOINT_REMOTE => {
            hidden_discovery(walk, &ip)?;
            let with_backend =
                (link.flags | u16::from(endpoint.flags)) & u16::from(ENDPOINT_FLAG_BACKEND) != 0;
            if with_backend
                && is_own
                && let Some(end) = service6::to_endpoint(walk, &packet, &endpoint)?
            {
                return Ok(end);
            }
            if endpoint.kind == ENDPOINT_LOCAL {
                return walk.deliver_as(IPV6, &endpoint, sent.src, Reason::DeliveredLocal);
            }
            let inner = Ethernet { dst: endpoint.mac, ..sent };
            match walk.tunnel(link.vni, endpoint.node.into(), inner) {
                Err(Reason::TooBig) => too_big(walk, (&link, &own), &ip),
                sent => sent,
            }
        }
        _ => Err(Reason::NoEndpoint),
    }
}

fn nowhere(own: &Link6, dst: Ipv6Addr) -> Reason {
    let bits = |ip: Ip6| Ipv6Addr::from(ip).to_bits();
    let mask = bits(own.mask);
    if dst.is_unicast_link_local() || dst.to_bits() & mask == bits(own.ip) & mask {
        Reason::NoEndpoint
    } else {
        Reason::NoWayOut
    }
}

/// "Packet too big" from the gateway (RFC 4443, section 3.2) that fills 1280 bytes: to no ICMPv6 error
/// (section 2.4 e).
fn too_big(walk: &mut Walk<'_>, (link, own): (&Link, &Link6), ip: &Header) -> Outcome {
    if ip.next == ICMPV6 && walk.frame[ip.body()] < 128 {
        return Err(Reason::TooBig);
    }
    let gateway = walk.network(link.vni).ok_or(Reason::TooBig)?.gateway;
    let from = Ipv6Addr::from(own.gateway);
    let quote: [u8; 1232] = bytes(&walk.frame, ETHERNET).ok_or(Reason::TooBig)?;
    let mut message = vec![2, 0, 0, 0];
    message.extend(((MTU - walk.tunnel_length()) as u32).to_be_bytes());
    message.extend(quote);
    let addresses = [from.octets(), ip.src.octets()].concat();
    let length = (message.len() as u16).to_be_bytes();
    let pseudo = [&addresses[..], &[0, 0], &length, &[0, 0, 0, ICMPV6], &message].concat();
    put(&mut message, 2, &ones_complement(&pseudo).to_be_bytes());
    let ethernet = Ethernet { dst: link.mac, src: Mac::of_ip(gateway), kind: IPV6 };
    let header = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 64], &addresses].concat();
    walk.frame = [&ethernet.bytes()[..], &header, &message].concat();
    Ok(End::Sent(Reason::TooBigAnswered))
}

/// Neighbour discovery behind up to eight extension headers (RFC 8200, section 4; RFC 4302;
/// RFC 6275; RFC 7401; RFC 5533) is refused as well.
fn hidden_discovery(walk: &Walk<'_>, ip: &Header) -> Result<(), Reason> {
    let (mut next, mut at) = (ip.next, ip.body());
    if next == ICMPV6 {
        return Ok(());
    }
    for _ in 0..8 {
        if next == ICMPV6 {
            let [kind] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
            return if (133..=137).contains(&kind) { Err(Reason::NdUnknown) } else { Ok(()) };
        }
        if ![0, 43, 51, 60, 135, 139, 140].contains(&next) {
            return Ok(());
        }
        let [following, length] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
        let length = usize::from(length);
        at += if next == 51 { (length + 2) * 4 } else { (length + 1) * 8 };
        next = following;
    }
    Err(Reason::Malformed)
}

/// A solicitation for what an endpoint or the gateway has is answered (RFC 4861, section 7.2.4).
fn discovery(walk: &mut Walk<'_>, link: &Link, own: &Link6, ip: &Header) -> Outcome {
    let at = ip.body();
    if walk.frame[at] != 135 {
        return Err(Reason::NdUnknown);
    }
    let message: [u8; 24] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
    if ip.payload < 24 {
        return Err(Reason::Truncated);
    }
    // An aggregate's header may say more than there is.
    let option: Option<[u8; 8]> = match ip.payload {
        32.. => Some(bytes(&walk.frame, at + 24).ok_or(Reason::Truncated)?),
        _ => None,
    };
    let target = Ipv6Addr::from(bytes::<16>(&message, 8).ok_or(Reason::Truncated)?);
    let is_empty = option.is_some_and(|option| option[1] == 0);
    if ip.hop_limit != 255 || message[1] != 0 || target.is_multicast() || is_empty {
        return Err(Reason::Malformed);
    }
    let tells = option.filter(|option| option[0] == 1);
    let is_probe = ip.src.is_unspecified();
    let to_solicited_node = ip.dst.octets()[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
    if is_probe && (tells.is_some() || !to_solicited_node) {
        return Err(Reason::Malformed);
    }
    if tells.is_some_and(|option| option[2..] != link.mac.bytes()) {
        return Err(Reason::SpoofedSource);
    }
    let owner = walk
        .endpoint6(link.vni, target)
        .filter(|owner| (ENDPOINT_LOCAL..=ENDPOINT_SERVICE).contains(&owner.kind))
        .filter(|_| target != Ipv6Addr::from(own.ip) && target != link_local(link.mac))
        .ok_or(Reason::NdUnknown)?;
    advertise(walk, (ip.src, link.mac), target, &owner);
    Ok(End::Sent(Reason::NdAnswered))
}

fn advertise(walk: &mut Walk<'_>, asker: (Ipv6Addr, Mac), target: Ipv6Addr, owner: &Endpoint) {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let is_probe = asker.0.is_unspecified();
    let to = if is_probe { all_nodes } else { asker.0 };
    let dst = if is_probe { Mac::new([0x33, 0x33, 0, 0, 0, 1]) } else { asker.1 };
    // Override; solicited unless it goes to all nodes; router.
    let mut flags = 0x20;
    flags |= if is_probe { 0 } else { 0x40 };
    flags |= if owner.kind == ENDPOINT_GATEWAY { 0x80 } else { 0 };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(owner.mac.bytes());
    let addresses = [target.octets(), to.octets()].concat();
    let pseudo = [&addresses[..], &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &message].concat();
    put(&mut message, 2, &ones_complement(&pseudo).to_be_bytes());
    let mut frame = Ethernet { dst, src: owner.mac, kind: IPV6 }.bytes().to_vec();
    frame.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    frame.extend(addresses);
    frame.extend(message);
    walk.frame = frame;
}

/// The gateway answers echo requests (RFC 4443, section 4) and no other ICMPv6.
fn echo(walk: &mut Walk<'_>, ip: &Header, sent: Ethernet) -> Outcome {
    let at = ip.body();
    let kind: [u8; 2] = bytes(&walk.frame, at).ok_or(Reason::Truncated)?;
    if kind != [128, 0] {
        return Err(Reason::GatewayPort);
    }
    let checksum = half(&walk.frame, at + 2).ok_or(Reason::Truncated)?;
    let frame = &mut walk.frame;
    put(frame, at, &[129, 0]);
    put(frame, at + 2, &updated(checksum, &kind, &[129, 0]).to_be_bytes());
    put(frame, ip.at + 8, &ip.dst.octets());
    put(frame, ip.at + 24, &ip.src.octets());
    put(frame, 0, &Ethernet { dst: sent.src, src: sent.dst, ..sent }.bytes());
    Ok(End::Sent(Reason::EchoAnswered))
}

/// "TCP between containers does not take this way", through the kernel's device, and UDP not where
/// the kernel knows the flag. Aggregates of anything else do.
pub fn is_popped(protocol: u8, decap_flags: u32) -> bool {
    protocol == TCP || (protocol == UDP && decap_flags != 0)
}

/// What becomes of an aggregate that is to be popped; `leaves` says that it goes out of the host.
pub fn refused_aggregate(walk: &mut Walk<'_>, next: u8, leaves: bool) -> Result<(), Reason> {
    let flags = walk.tables.config.decap_flags;
    let is_marked = leaves && flags == 0;
    if walk.segment != 0 && !walk.tables.ipv6 && is_popped(next, flags) && !is_marked {
        // BPF_PROG_TEST_RUN's aggregates are of no protocol, whatever is in them: the kernel refuses
        // them when the packet is an IPv6 packet already, whose header is 20 bytes longer.
        walk.frame.extend([0; 20]);
        return Err(Reason::RewriteRefused);
    }
    Ok(())
}

/// From another node: only for endpoints here, only from endpoints of that node.
pub fn from_tunnel(
    walk: &mut Walk<'_>,
    (vni, sender): (u32, std::net::Ipv4Addr),
    outer_ecn: u8,
) -> Outcome {
    let ip = Header::at(walk, walk.tunnel_length() + ETHERNET)?;
    // The ECN field is bits 10 and 11 of the header (RFC 8200, section 3; RFC 3168, section 5).
    let byte = walk.frame[ip.at + 1];
    let ecn = marked(byte >> 4 & 3, outer_ecn).ok_or(Reason::EcnUnexpected)?;
    walk.frame[ip.at + 1] = byte & 0xcf | ecn << 4;
    let endpoint = match walk.endpoint6(vni, ip.dst) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => endpoint,
        None if !ip.dst.is_unicast_link_local() && !ip.dst.is_multicast() => {
            return service6::to_nobody(walk, (vni, sender), &ip);
        }
        _ => return Err(Reason::NoEndpoint),
    };
    walk.party.slot = endpoint.slot;
    let from = match walk.endpoint6(vni, ip.src) {
        Some(from) if from.kind == ENDPOINT_REMOTE && from.node == sender.into() => from,
        None if !ip.src.is_unicast_link_local() => {
            return service6::from_outside(walk, (vni, sender), &ip, &endpoint);
        }
        _ => return Err(Reason::SpoofedInnerSource),
    };
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 && !ip.src.is_unicast_link_local() {
        return service6::from_backend(walk, (vni, &ip), (&endpoint, from.mac));
    }
    service6::pop(walk, &ip, false)?;
    walk.deliver_as(IPV6, &endpoint, from.mac, Reason::Decapsulated)
}
