//! Egress: source NAT, which only IPv4 has.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{
    Be32, Reason, UNDERLAY_VNI, hash,
    maps::{ENDPOINT_LOCAL, NETWORK_INTERNAL, Network},
};

use super::{
    agent::is_of,
    bytes::{ICMP, TCP, UDP, bytes, half, put, updated},
    conntrack::first_octet,
    packet::{Flow, Ip, Part},
    published::dest,
    state::{Action, Entry, FlowKey, Marks, Name, Usage},
    walk::{End, Outcome, Walk},
};

const SECOND: u64 = 1_000_000_000;

/// The flow of an echo request (RFC 792): its identifier is the source port. Other ICMP has no
/// egress.
pub fn echo_request(walk: &mut Walk<'_>, ip: &Ip, vni: u32) -> Result<Flow, Reason> {
    let key = walk.fragments_of(ip, vni).ok_or(Reason::NoWayOut)?;
    let head = if ip.later {
        walk.first_fragment(&key)?
    } else {
        if ip.total < ip.header + 8 {
            return Err(Reason::Truncated);
        }
        bytes(&walk.frame, ip.payload()).ok_or(Reason::Truncated)?
    };
    let [kind, code, _, _, high, low, ..] = head;
    if [kind, code] != [8, 0] {
        return Err(Reason::NoWayOut);
    }
    if ip.more && !ip.later {
        walk.keep_fragment(key, ip.payload())?;
    }
    Ok(echo(ip, (u16::from_be_bytes([high, low]), 0), vni))
}

fn echo(ip: &Ip, (sport, dport): (u16, u16), vni: u32) -> Flow {
    let (src, dst) = (Name::inside(ip.src), Name::inside(ip.dst));
    let key = FlowKey { vni, src, dst, sport, dport, proto: ICMP, through: None };
    let part = if ip.later { Part::Later } else { Part::Whole };
    Flow { key, transport: ip.payload(), seen: Marks::default(), part }
}

/// A container's packet to the outside.
pub fn leave(
    walk: &mut Walk<'_>,
    ip: &Ip,
    network: &Network,
    (flow, found): (&Flow, Option<Entry>),
) -> Outcome {
    let known = found.filter(|e| e.action == Action::Snat && remind_reply(walk, flow, e));
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
    walk.route(entry.dst.ip)?;
    // A router takes one off the TTL.
    let old = half(&walk.frame, ip.at + 10).ok_or(Reason::Truncated)?;
    let new = updated(old, &[ip.ttl, ip.protocol], &[ip.ttl - 1, ip.protocol]);
    put(&mut walk.frame, ip.at + 8, &[ip.ttl - 1]);
    put(&mut walk.frame, ip.at + 10, &new.to_be_bytes());
    walk.translate(flow, &entry)?;
    Ok(End::Sent(Reason::Masqueraded))
}

/// Rejects flows from an internal network, and flows to this host or to a network of the cluster.
fn may_leave(walk: &Walk<'_>, flow: &Flow, network: &Network) -> bool {
    let to = flow.key.dst;
    let accepts = flow.seen.any(Marks::SYN) && flow.seen.any(Marks::ACK);
    let is_late = flow.key.proto == TCP && (accepts || flow.seen.any(Marks::RST));
    network.flags & NETWORK_INTERNAL == 0
        && flow.part != Part::Quoted
        && !matches!(first_octet(to), Some(0 | 127))
        && !walk.tables.is_local(to.ip)
        && !walk.tables.is_inside(to.ip)
        && !is_late
}

/// A new flow: through the interface of the route, from that interface's address and a free port.
fn open(walk: &mut Walk<'_>, flow: &Flow) -> Result<Entry, Reason> {
    let config = walk.tables.config;
    let hop = walk.host.next_hop(&config, flow.key.dst.ip, walk.longest())?;
    let address = *walk.tables.agent.egress.get(&hop.ifindex).ok_or(Reason::NoWayOut)?;
    keep_limit(walk)?;
    let now = walk.now;
    let back = FlowKey { vni: flow.key.vni, ..flow.key.reversed() };
    let reply = Entry::unchanged(&back, Action::Unsnat, now);
    for attempt in 0..16 {
        let sport = port(&flow.key, config.outside_ports, attempt);
        let is_tunnels = flow.key.proto == UDP && sport == config.vxlan_port.get();
        if is_tunnels || walk.tables.published(flow.key.proto, sport).is_some() {
            continue;
        }
        let src = Name::inside(Ipv4Addr::from(address));
        let outer = FlowKey { src, sport, vni: UNDERLAY_VNI, ..flow.key };
        let answer = outer.reversed();
        let taken = walk.tables.conntrack.get(&answer);
        let is_others =
            |old: &Entry| old.client() != reply.client() && !old.is_over(answer.proto, now);
        if !taken.is_some_and(is_others) {
            let unchanged = Entry::unchanged(&outer, Action::Snat, now);
            let forward = Entry { marks: flow.seen, ..unchanged };
            walk.tables.conntrack.insert(answer, reply);
            walk.tables.conntrack.insert(flow.key, forward);
            let usage = walk.tables.usage.entry(walk.ifindex);
            let usage = usage.or_insert(Usage { flows: 0, counted: now });
            usage.flows = usage.flows.wrapping_add(1);
            return Ok(forward);
        }
    }
    Err(Reason::MasqueradePortsExhausted)
}

/// The source port of an attempt: spread evenly over the range.
fn port(key: &FlowKey, [first, last]: [u16; 2], attempt: u32) -> u16 {
    let raw = |name: Name| match name.ip {
        IpAddr::V4(ip) => Be32::from(ip).raw(),
        IpAddr::V6(_) => unreachable!("IPv6 has no way out"),
    };
    let addresses = raw(key.src) ^ raw(key.dst).rotate_left(16) ^ key.vni.rotate_left(8);
    let numbers = u32::from(key.sport.to_be()) << 16 | u32::from(key.dport.to_be());
    let spread = u64::from(hash::mix(addresses ^ attempt, numbers));
    let count = u64::from(last.wrapping_sub(first)) + 1;
    first.wrapping_add(((spread * count) >> 32) as u16)
}

/// "A limit per endpoint; while the number is not corrected for a minute, it is halved."
fn keep_limit(walk: &mut Walk<'_>) -> Result<(), Reason> {
    let limit = walk.tables.config.outside_flows;
    let now = walk.now;
    let mut none = Usage::default();
    let usage = walk.tables.usage.get_mut(&walk.ifindex).unwrap_or(&mut none);
    if usage.flows >= limit && now.saturating_sub(usage.counted) > 60 * SECOND {
        usage.flows /= 2;
        usage.counted = now;
    }
    if usage.flows < limit { Ok(()) } else { Err(Reason::MasqueradeLimit) }
}

/// Whether the other entry must be updated: once a second, and for a reset.
fn is_news(flow: &Flow, entry: &Entry, now: u64) -> bool {
    let resets = flow.seen.any(Marks::RST) && !entry.marks.any(Marks::RST);
    now.wrapping_sub(entry.last_seen) > SECOND || resets
}

/// Updates the reply entry when the container sends. Returns false without such an entry, or if
/// this host no longer has the address.
fn remind_reply(walk: &mut Walk<'_>, flow: &Flow, entry: &Entry) -> bool {
    let now = walk.now;
    if !is_news(flow, entry, now) {
        return true;
    }
    if !walk.tables.is_local(entry.src.ip) {
        return false;
    }
    let answer = entry.answers(flow.key.proto);
    let Some(reply) = walk.tables.conntrack.get_mut(&answer) else { return false };
    let to = (reply.action, reply.dst, reply.dport, reply.vni);
    if to != (Action::Unsnat, flow.key.src, flow.key.sport, flow.key.vni) {
        return false;
    }
    reply.last_seen = now;
    reply.marks |= flow.seen.and(Marks::RST);
    true
}

/// Updates the forward entry when the outside has answered.
fn remind_forward(walk: &mut Walk<'_>, flow: &Flow, entry: &Entry) {
    let now = walk.now;
    let is_first = flow.key.proto == UDP && !entry.marks.any(Marks::ANSWERED);
    if !is_first && !is_news(flow, entry, now) {
        return;
    }
    let inner = entry.answers(flow.key.proto);
    if let Some(forward) = walk.tables.conntrack.get_mut(&inner)
        && (forward.action, forward.src, forward.sport)
            == (Action::Snat, flow.key.dst, flow.key.dport)
    {
        forward.last_seen = now;
        forward.marks |= if is_first { Marks::ANSWERED } else { flow.seen.and(Marks::RST) };
    }
    if is_first && let Some(reply) = walk.tables.conntrack.get_mut(&flow.key) {
        reply.marks |= Marks::ANSWERED;
    }
}

/// Handles a packet to a port that egress flows use, or an ICMP error about one. Returns `None` for
/// other packets. `head` has the first bytes behind the packet's header; for a later fragment,
/// those of its first fragment.
pub fn receive(walk: &mut Walk<'_>, ip: &Ip, head: &[u8; 8]) -> Option<Outcome> {
    let [first, last] = walk.tables.config.outside_ports;
    let is_ours = |port: u16| (first..=last).contains(&port);
    let id = u16::from_be_bytes([head[4], head[5]]);
    let flow = match ip.protocol {
        TCP | UDP if is_ours(dest(head)) => {
            ip.check(walk).ok()?;
            walk.flow(ip, UNDERLAY_VNI).ok()??
        }
        // An echo reply.
        ICMP if head[..2] == [0, 0] => {
            if !is_ours(id) || (!ip.later && ip.total < ip.header + 8) {
                return None;
            }
            ip.check(walk).ok()?;
            if ip.more && !ip.later {
                let key = walk.fragments_of(ip, UNDERLAY_VNI)?;
                walk.keep_fragment(key, ip.payload()).ok()?;
            }
            echo(ip, (0, id), UNDERLAY_VNI)
        }
        ICMP => {
            ip.check(walk).ok()?;
            walk.flow(ip, UNDERLAY_VNI).ok()?.filter(|flow| is_ours(flow.key.dport))?
        }
        _ => return None,
    };
    let entry = walk.find_action(&flow, Action::Unsnat)?;
    let IpAddr::V4(source) = ip.src else { return None };
    let network = walk.tables.network(entry.vni);
    // "A router outside cannot have an address of the container's network."
    if flow.part == Part::Quoted && network.is_some_and(|network| is_of(&network, source)) {
        return Some(Err(Reason::SpoofedInnerSource));
    }
    let owner = walk.tables.endpoint(entry.vni, entry.dst.ip);
    let owner = owner.filter(|owner| owner.kind == ENDPOINT_LOCAL);
    let (Some(owner), Some(gateway)) = (owner, walk.tables.gateway_mac(entry.vni)) else {
        return Some(Err(Reason::NoEndpoint));
    };
    remind_forward(walk, &flow, &entry);
    let translated = walk.translate(&flow, &entry);
    let reason = Reason::ReturnedFromOutside;
    Some(translated.and_then(|_| walk.deliver((&owner, gateway), false, reason)))
}
