//! Egress: flows from containers to addresses outside leave under this host's address (source NAT,
//! RFC 3022 and RFC 4787), and replies are translated back.
//!
//! The host's routing table chooses the interface. The source port is one of
//! `config.outside_ports`, so that ports of the host's own sockets stay free, and a packet from
//! outside to any other port costs one comparison.

use aya_ebpf::{bindings::__sk_buff, btf_maps::lpm_trie::Key, programs::TcContext};
use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI, checksum,
    maps::{
        CONNTRACK_MASQUERADE, CONNTRACK_UNMASQUERADE, Config, ENDPOINT_LOCAL, Endpoint,
        EndpointKey, NETWORK_INTERNAL, Network, TCP_SEEN_ACK, TCP_SEEN_RST, TCP_SEEN_SYN,
    },
    wire::{Ipv4, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::{
    forward::{
        deliver::deliver,
        route::{next_hop, route_egress},
    },
    maps::{
        EGRESS, ENDPOINTS, LOCAL_ADDRS, NETWORKS, SUBNETS, config, lookup,
        work::{Flow, PART_LATER, PART_QUOTED, Work, work},
    },
    nat,
    outcome::{self, Outcome},
    packet::{
        flow::flow,
        fragment,
        frame::{ETH_LEN, ifindex, is_gso, load_at, longest, store},
        ipv4::{ECHO_REPLY, ECHO_REQUEST, IPV4_LEN, check_ipv4},
        related,
    },
    service::{conntrack, snat_flow, snat_limit},
};

/// Length of an ICMP echo header.
const ECHO_LEN: usize = 8;
/// Offset of TTL and protocol in an IPv4 header.
const IPV4_TTL: usize = 8;

/// Fills `out` with the flow of an ICMP echo request of network `vni`.
///
/// # Errors
/// [`Reason::NoWayOut`] for other ICMP, [`Reason::Fragment`] and [`Reason::Truncated`].
#[inline(always)]
pub fn echo_flow(ctx: &TcContext, ip: &Ipv4, vni: u32, out: &mut Flow) -> Result<(), Reason> {
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    // In the layout of UDP: type and code, checksum, identifier, sequence number.
    let echo: Udp = if ip.is_later_fragment() {
        fragment::head(ctx, ETH_LEN, vni)?
    } else if usize::from(ip.total_length.get()) < header + ECHO_LEN {
        return Err(Reason::Truncated);
    } else {
        load_at(ctx, ETH_LEN + header)?
    };
    if echo.source.get() != ECHO_REQUEST {
        return Err(Reason::NoWayOut);
    }
    if ip.is_fragment() && !ip.is_later_fragment() {
        fragment::head(ctx, ETH_LEN, vni)?;
    }
    out.set(ip, [echo.length, Be16::ZERO], vni, ETH_LEN + header);
    if ip.is_later_fragment() {
        out.part = PART_LATER;
    }
    Ok(())
}

/// Sends a container's packet of `work.flow` outside. `action` is that of the flow's entry in
/// `work.entry`, or 0 without one.
///
/// # Errors
/// [`Reason::NoWayOut`], those of opening a flow and those of [`route_egress`].
/// [`Reason::TtlExceeded`] and [`Reason::TooBig`] leave the packet as sent.
#[inline(always)]
pub fn send(ctx: &TcContext, ip: &Ipv4, network: &Network, work: &mut Work, action: u8) -> Outcome {
    let known = action == CONNTRACK_MASQUERADE && snat_flow::keep(work);
    if !known {
        outcome::unpack(may_leave(work, network.flags))?;
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if !known {
        let address = Be32::from_raw(outcome::unpack(egress_packed(ctx.skb.skb, work))?);
        snat_flow::open(&work.flow, address, &mut work.entry)?;
        snat_limit::add(ifindex(ctx));
    }
    // Routed first: a packet that does not fit must stay unchanged.
    let routed = route_egress(ctx, work.entry.saddr, work.entry.daddr)?;
    let ip = count_down(ctx, ip)?;
    nat::translate(ctx, &ip, usize::from(work.flow.transport), work)?;
    Ok(routed.because(Reason::Masqueraded))
}

/// Whether a flow may go outside: not from an internal network, not to this host itself and not to
/// a network of the cluster, for any routes of the host.
#[inline(never)]
fn may_leave(work: &Work, network: u32) -> i64 {
    let Flow { key, flags, part, .. } = &work.flow;
    let [first, ..] = key.daddr.octets();
    // "This network" and loopback (RFC 1122, section 3.2.1.3).
    let nowhere = first == 0 || first == 127;
    // Without its flow a reset or a SYN-ACK has no effect. Any other segment may belong to a
    // connection whose entries were lost.
    let accepts = flags & (TCP_SEEN_SYN | TCP_SEEN_ACK) == TCP_SEEN_SYN | TCP_SEEN_ACK;
    let late = key.proto == PROTO_TCP && (accepts || flags & TCP_SEEN_RST != 0);
    // An error without a flow must not reach a host outside.
    let rejected = network & NETWORK_INTERNAL != 0
        || *part == PART_QUOTED
        || nowhere
        || late
        || lookup(&LOCAL_ADDRS, &key.daddr).is_some()
        || SUBNETS.get(&Key::new(32, key.daddr)).is_some();
    outcome::pack(if rejected { Err(Reason::NoWayOut) } else { Ok(0) })
}

/// The source address of a new flow, if its endpoint may have another flow.
#[inline(never)]
fn egress_packed(skb: *mut __sk_buff, work: &Work) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(egress_address(&ctx, work).map(Be32::raw))
}

#[inline(always)]
fn egress_address(ctx: &TcContext, work: &Work) -> Result<Be32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    // The look-up has no source address, as for a socket that is not bound: the route decides it.
    let addresses = (Be32::ZERO, work.flow.key.daddr);
    let hop = next_hop(ctx.skb.skb.cast(), config, addresses, longest(ctx, ETH_LEN))?;
    let address = lookup(&EGRESS, &hop.ifindex).ok_or(Reason::NoWayOut)?;
    snat_limit::check(ifindex(ctx), config.outside_flows)?;
    Ok(address)
}

/// Decrements the TTL as a router does (RFC 1812, section 5.3.1). Returns the new header.
#[inline(always)]
fn count_down(ctx: &TcContext, ip: &Ipv4) -> Result<Ipv4, Reason> {
    let word = |ttl: u8| u16::from_ne_bytes([ttl, ip.protocol]);
    let ttl = ip.ttl - 1;
    let diff = checksum::diff16(word(ip.ttl), word(ttl));
    let checksum = Be16::from_raw(checksum::apply(ip.checksum.raw(), diff));
    store(ctx, ETH_LEN + IPV4_TTL, &ttl)?;
    Ok(Ipv4 { ttl, checksum, ..*ip })
}

/// Handles a packet from outside that belongs to a container's flow; `None` for other packets.
/// `head` is the first bytes behind the IPv4 header, which has no options.
#[inline(always)]
pub fn receive(ctx: &TcContext, config: &Config, ip: &Ipv4, head: &Udp) -> Option<Outcome> {
    let work = work().ok()?;
    match ip.protocol {
        PROTO_TCP | PROTO_UDP if config.is_outside_port(head.dest) => {
            check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx)).ok()?;
            flow(ctx, ip, ETH_LEN, UNDERLAY_VNI, &mut work.flow).ok()?;
        }
        PROTO_ICMP if head.source.get() == ECHO_REPLY => {
            // The identifier has the offset of UDP's length.
            let is_later = ip.is_later_fragment();
            let is_whole = usize::from(ip.total_length.get()) >= IPV4_LEN + ECHO_LEN || is_later;
            if !config.is_outside_port(head.length) || !is_whole {
                return None;
            }
            check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx)).ok()?;
            if ip.is_fragment() && !is_later {
                fragment::head(ctx, ETH_LEN, UNDERLAY_VNI).ok()?;
            }
            work.flow.set(ip, [Be16::ZERO, head.length], UNDERLAY_VNI, ETH_LEN + IPV4_LEN);
            if is_later {
                work.flow.part = PART_LATER;
            }
        }
        PROTO_ICMP => {
            check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx)).ok()?;
            related::flow(ctx, ETH_LEN, UNDERLAY_VNI, &mut work.flow).ok()?;
            if !config.is_outside_port(work.flow.key.dport) {
                return None;
            }
        }
        _ => return None,
    }
    if conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_UNMASQUERADE {
        return None;
    }
    // A router outside cannot have an address of the container's network.
    if work.flow.part == PART_QUOTED && is_inside(work.entry.vni, ip.saddr()) {
        return Some(Err(Reason::SpoofedInnerSource));
    }
    Some(give_back(ctx, ip, work))
}

#[inline(always)]
fn is_inside(vni: u32, address: Be32) -> bool {
    lookup(&NETWORKS, &vni).is_some_and(|network| network.contains(address))
}

#[inline(always)]
fn give_back(ctx: &TcContext, ip: &Ipv4, work: &mut Work) -> Outcome {
    let (endpoint, gateway) = destination(work)?;
    snat_flow::answered(work);
    nat::translate(ctx, ip, usize::from(work.flow.transport), work)?;
    deliver(ctx, &endpoint, gateway, Reason::ReturnedFromOutside)
}

/// The endpoint of the flow of `work.entry`, and the MAC of its gateway.
///
/// # Errors
/// [`Reason::NoEndpoint`] if the endpoint is gone.
#[inline(always)]
pub fn destination(work: &Work) -> Result<(Endpoint, Mac), Reason> {
    let network = lookup(&NETWORKS, &work.entry.vni).ok_or(Reason::NoEndpoint)?;
    let key = EndpointKey { vni: work.entry.vni, ip: work.entry.daddr };
    let endpoint = lookup(&ENDPOINTS, &key).ok_or(Reason::NoEndpoint)?;
    if endpoint.kind != ENDPOINT_LOCAL {
        return Err(Reason::NoEndpoint);
    }
    Ok((endpoint, Mac::of_ip(network.gateway)))
}
