//! The way out: source NAT, as docs/architecture.md describes it.

use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI, hash,
    maps::{
        ANSWERED, CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, Conntrack, ConntrackKey,
        ENDPOINT_LOCAL, Endpoint, NETWORK_INTERNAL, Network, SnatUsage, TCP_SEEN_ACK, TCP_SEEN_RST,
        TCP_SEEN_SYN,
    },
    wire::Udp,
};

use super::{
    conntrack::{Flow, Part, reversed},
    fragment,
    frame::{ETHERNET, ICMP, Ip, TCP, UDP, bytes, half, put, updated},
    walk::{End, Outcome, Walk},
};

const SECOND: u64 = 1_000_000_000;

/// The flow of an echo request (RFC 792): its identifier is the source port. Other ICMP has no way
/// out.
pub fn echo_request(walk: &mut Walk<'_>, ip: &Ip, vni: u32) -> Result<Flow, Reason> {
    let id = if ip.later {
        let head = fragment::head(walk, ip, vni)?;
        if head.source.get() != 0x0800 {
            return Err(Reason::NoWayOut);
        }
        head.length
    } else {
        if ip.total < ip.header + 8 {
            return Err(Reason::Truncated);
        }
        let [kind, code, _, _, high, low, ..]: [u8; 8] =
            bytes(&walk.frame, ip.payload()).ok_or(Reason::Truncated)?;
        if [kind, code] != [8, 0] {
            return Err(Reason::NoWayOut);
        }
        if ip.more {
            fragment::keep(walk, ip, vni)?;
        }
        Be16::new(u16::from_be_bytes([high, low]))
    };
    walk.part = part(ip);
    Ok(echo(ip, (id, Be16::ZERO), vni))
}

fn part(ip: &Ip) -> Part {
    if ip.later { Part::Later } else { Part::Whole }
}

fn echo(ip: &Ip, ids: (Be16, Be16), vni: u32) -> Flow {
    Flow { key: tuple(ip, ids, vni), transport: ip.payload(), seen: 0, part: part(ip) }
}

fn tuple(ip: &Ip, (sport, dport): (Be16, Be16), vni: u32) -> ConntrackKey {
    let (saddr, daddr) = (ip.src.into(), ip.dst.into());
    ConntrackKey { saddr, daddr, sport, dport, vni, proto: ip.protocol, scope: [0; 3] }
}

/// A container's packet to the outside.
pub fn leave(
    walk: &mut Walk<'_>,
    ip: &Ip,
    network: &Network,
    (flow, found): (&Flow, Option<Conntrack>),
) -> Outcome {
    let known = found
        .filter(|entry| entry.action == CONNTRACK_MASQUERADE && remind_reply(walk, flow, entry));
    if known.is_none() && !may_leave(walk, flow, network) {
        return Err(Reason::NoWayOut);
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let entry = match known {
        Some(entry) => entry,
        None => open(walk, flow)?,
    };
    walk.route(&entry)?;
    // A router takes one off the TTL.
    let old = half(&walk.frame, ip.at + 10).ok_or(Reason::Truncated)?;
    let new = updated(old, &[ip.ttl, ip.protocol], &[ip.ttl - 1, ip.protocol]);
    put(&mut walk.frame, ip.at + 8, &[ip.ttl - 1]);
    put(&mut walk.frame, ip.at + 10, &new.to_be_bytes());
    walk.translate(ETHERNET, flow.transport, &entry, Reason::RewriteRefused)?;
    Ok(End::Sent(Reason::Masqueraded))
}

/// Not from an internal network, and not to this host or a network of the cluster.
fn may_leave(walk: &Walk<'_>, flow: &Flow, network: &Network) -> bool {
    let to = flow.key.daddr;
    let agent = &walk.tables.agent;
    let accepts = flow.seen & TCP_SEEN_SYN != 0 && flow.seen & TCP_SEEN_ACK != 0;
    let is_late = flow.key.proto == TCP && (accepts || flow.seen & TCP_SEEN_RST != 0);
    network.flags & NETWORK_INTERNAL == 0
        && flow.part != Part::Quoted
        && ![0, 127].contains(&to.octets()[0])
        && !agent.local_addrs.contains_key(&to)
        && !walk.tables.is_inside(to)
        && !is_late
}

/// A new flow: by the interface that the route leads to, under the address of that, from a port
/// that nobody has.
fn open(walk: &mut Walk<'_>, flow: &Flow) -> Result<Conntrack, Reason> {
    let config = walk.tables.config;
    let total = walk.longest();
    let hop = walk.host.next_hop(&config, flow.key.daddr.into(), total)?;
    let address = *walk.tables.agent.egress.get(&hop.ifindex).ok_or(Reason::NoWayOut)?;
    keep_limit(walk)?;
    let reply = Conntrack {
        saddr: flow.key.daddr,
        daddr: flow.key.saddr,
        sport: flow.key.dport,
        dport: flow.key.sport,
        vni: flow.key.vni,
        action: CONNTRACK_UNMASQUERADE,
        last_seen: walk.now,
        ..Conntrack::default()
    };
    for attempt in 0..16 {
        let sport = port(&flow.key, config.outside_ports, attempt);
        let is_tunnels = flow.key.proto == UDP && sport == config.vxlan_port;
        if is_tunnels || walk.published(flow.key.proto, sport).is_some() {
            continue;
        }
        let outer = ConntrackKey { saddr: address, sport, vni: UNDERLAY_VNI, ..flow.key };
        let answer = reversed(outer);
        if walk.is_free_for(&answer, &reply) {
            let forward = Conntrack {
                saddr: address,
                daddr: flow.key.daddr,
                sport,
                dport: flow.key.dport,
                vni: UNDERLAY_VNI,
                action: CONNTRACK_MASQUERADE,
                flags: flow.seen,
                last_seen: walk.now,
                ..Conntrack::default()
            };
            walk.tables.conntrack.insert(answer, reply);
            walk.tables.conntrack.insert(flow.key, forward);
            count(walk);
            return Ok(forward);
        }
    }
    Err(Reason::MasqueradePortsExhausted)
}

/// The source port of an attempt: spread evenly over the range.
fn port(key: &ConntrackKey, [first, last]: [u16; 2], attempt: u32) -> Be16 {
    let addresses = key.saddr.raw() ^ key.daddr.raw().rotate_left(16) ^ key.vni.rotate_left(8);
    let numbers = u32::from(key.sport.raw()) << 16 | u32::from(key.dport.raw());
    let spread = u64::from(hash::mix(addresses ^ attempt, numbers));
    let count = u64::from(last.wrapping_sub(first)) + 1;
    Be16::new(first.wrapping_add(((spread * count) >> 32) as u16))
}

/// "A limit per endpoint; while nobody counts for a minute, the number is halved."
fn keep_limit(walk: &mut Walk<'_>) -> Result<(), Reason> {
    let limit = walk.tables.config.outside_flows;
    let now = walk.now;
    let mut none = SnatUsage::default();
    let usage = walk.tables.usage.get_mut(&walk.ifindex).unwrap_or(&mut none);
    if usage.flows >= limit && now.saturating_sub(usage.counted) > 60 * SECOND {
        usage.flows /= 2;
        usage.counted = now;
    }
    if usage.flows < limit { Ok(()) } else { Err(Reason::MasqueradeLimit) }
}

fn count(walk: &mut Walk<'_>) {
    let now = walk.now;
    let usage = walk.tables.usage.entry(walk.ifindex);
    let usage = usage.or_insert(SnatUsage { flows: 0, pad: 0, counted: now });
    usage.flows = usage.flows.wrapping_add(1);
}

/// Whether the other entry is to be told: once a second, and of a reset.
fn is_news(flow: &Flow, entry: &Conntrack, now: u64) -> bool {
    now.wrapping_sub(entry.last_seen) > SECOND || flow.seen & !entry.flags & TCP_SEEN_RST != 0
}

/// Tells the way back that the container speaks. False when there is none, or the address is not
/// the host's any more.
fn remind_reply(walk: &mut Walk<'_>, flow: &Flow, entry: &Conntrack) -> bool {
    let now = walk.now;
    if !is_news(flow, entry, now) {
        return true;
    }
    if !walk.tables.agent.local_addrs.contains_key(&entry.saddr) {
        return false;
    }
    let answer = ConntrackKey {
        saddr: entry.daddr,
        daddr: entry.saddr,
        sport: entry.dport,
        dport: entry.sport,
        vni: entry.vni,
        proto: flow.key.proto,
        scope: [0; 3],
    };
    let Some(reply) = walk.tables.conntrack.get_mut(&answer) else { return false };
    let to = (reply.action, reply.daddr, reply.dport, reply.vni);
    if to != (CONNTRACK_UNMASQUERADE, flow.key.saddr, flow.key.sport, flow.key.vni) {
        return false;
    }
    reply.last_seen = now;
    reply.flags |= flow.seen & TCP_SEEN_RST;
    true
}

/// Tells the way out that the outside has answered.
fn remind_forward(walk: &mut Walk<'_>, flow: &Flow, entry: &Conntrack) {
    let now = walk.now;
    let is_first = flow.key.proto == UDP && entry.flags & ANSWERED == 0;
    if !is_first && !is_news(flow, entry, now) {
        return;
    }
    let inner = ConntrackKey {
        saddr: entry.daddr,
        daddr: entry.saddr,
        sport: entry.dport,
        dport: entry.sport,
        vni: entry.vni,
        proto: flow.key.proto,
        scope: [0; 3],
    };
    if let Some(forward) = walk.tables.conntrack.get_mut(&inner)
        && (forward.action, forward.saddr, forward.sport)
            == (CONNTRACK_MASQUERADE, flow.key.daddr, flow.key.dport)
    {
        forward.last_seen = now;
        forward.flags |= if is_first { ANSWERED } else { flow.seen & TCP_SEEN_RST };
    }
    if is_first && let Some(reply) = walk.tables.conntrack.get_mut(&flow.key) {
        reply.flags |= ANSWERED;
    }
}

/// What comes to a port that flows leave from, or an ICMP error about one. `None` is not ours. `head` is
/// how the packet goes on behind its header; of a later fragment, how its first one did.
pub fn receive(walk: &mut Walk<'_>, ip: &Ip, head: &Udp) -> Option<Outcome> {
    let is_ours = |walk: &Walk<'_>, port: Be16| {
        let [first, last] = walk.tables.config.outside_ports;
        (first..=last).contains(&port.get())
    };
    let flow = match ip.protocol {
        TCP | UDP if is_ours(walk, head.dest) => {
            walk.check(ip).ok()?;
            walk.flow(ip, UNDERLAY_VNI).ok()?
        }
        ICMP if head.source.get() == 0 => {
            if !is_ours(walk, head.length) || (!ip.later && ip.total < ip.header + 8) {
                return None;
            }
            walk.check(ip).ok()?;
            if ip.more && !ip.later {
                fragment::keep(walk, ip, UNDERLAY_VNI).ok()?;
            }
            walk.part = part(ip);
            echo(ip, (Be16::ZERO, head.length), UNDERLAY_VNI)
        }
        ICMP => {
            walk.check(ip).ok()?;
            let flow = walk.flow(ip, UNDERLAY_VNI).ok()?;
            is_ours(walk, flow.key.dport).then_some(flow)?
        }
        _ => return None,
    };
    let entry = walk.find_action(&flow, CONNTRACK_UNMASQUERADE)?;
    let is_inside =
        |network: Network| Be32::from(ip.src).get() & network.mask.get() == network.subnet.get();
    // "A router outside cannot have an address of the container's network."
    if flow.part == Part::Quoted && walk.network(entry.vni).is_some_and(is_inside) {
        return Some(Err(Reason::SpoofedInnerSource));
    }
    let Some((endpoint, gateway)) = owner(walk, &entry) else {
        return Some(Err(Reason::NoEndpoint));
    };
    remind_forward(walk, &flow, &entry);
    let translated = walk.translate(ETHERNET, flow.transport, &entry, Reason::RewriteRefused);
    Some(translated.and_then(|()| walk.deliver(&endpoint, gateway, Reason::ReturnedFromOutside)))
}

/// The endpoint of a flow and its gateway's MAC.
fn owner(walk: &Walk<'_>, entry: &Conntrack) -> Option<(Endpoint, Mac)> {
    let network = walk.network(entry.vni)?;
    let endpoint = walk.endpoint(entry.vni, entry.daddr.into())?;
    (endpoint.kind == ENDPOINT_LOCAL).then(|| (endpoint, Mac::of_ip(network.gateway)))
}
