//! IPv6 on dual-stack networks: checks and delivery between endpoints as for IPv4.
//!
//! Nothing here needs a port, so extension headers and fragments cross untouched. The IPv4 path
//! pays one comparison for all of this: it lives in functions of its own, called for IPv6 only. What needs
//! a look at flows is left to programs of their own (`program::container6`, `program::host6` and `program::tunnel6`), called by `tail`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Be32, Ip6, Reason,
    maps::{
        CALL_CONTAINER, CALL_TUNNEL, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST, ENDPOINT_GATEWAY,
        ENDPOINT_LOCAL, ENDPOINT_REMOTE, ENDPOINT_SERVICE, Endpoint6Key, EndpointKey, Link, Link6,
    },
    wire::{
        ETHERTYPE_IPV6, Ethernet, ICMP6_ECHO_REQUEST, Ipv6, ND_FIRST, ND_LAST, ND_SOLICITATION,
        PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
    },
};

use crate::{
    answer::{echo, icmp6, nd},
    forward::{back_out, deliver_as},
    maps::{
        CALLED, ENDPOINTS, ENDPOINTS6, LINKS6, config, lookup,
        work::{Ipv6Work, work},
    },
    observe::Party,
    outcome::{self, Outcome, Verdict},
    packet::{
        ecn,
        frame::{ETH_LEN, ifindex, is_gso, load_at, load_into, refuse_vlan_tag},
    },
    service::stale,
    tunnel::{underlay, vxlan, vxlan6},
};

/// Length of an IPv6 header.
pub const IPV6_LEN: usize = size_of::<Ipv6>();
/// Offset of an ICMPv6 header that follows the IPv6 header.
pub const ICMPV6: usize = ETH_LEN + IPV6_LEN;
/// Bytes of every ICMPv6 header (RFC 4443, section 2.1).
const ICMPV6_LEN: u16 = 4;
/// More extension headers than any sender needs (RFC 8504, section 5.3, lets hosts drop at 8).
const MOST_EXTENSIONS: usize = 8;

/// What a container's packet asks for, as [`examine`] finds.
const TO_ENDPOINT: u32 = 0;
/// As above: who has an address.
const DISCOVERY: u32 = 1;
/// As above: ICMPv6 to the gateway, or a ping to a VIP.
const ECHO: u32 = 2;
/// As above: it may be of a flow that is translated.
const FLOW: u32 = 3;

/// What [`find`] says of an address that is no endpoint's and not the gateway's: no kind of endpoint.
pub const NOBODY: u8 = u8::MAX;

/// Beside [`NOBODY`], the address of a backend that is gone.
pub const GONE: u8 = NOBODY - 1;

/// What an endpoint sends. `kept` is what [`crate::observe::event::keep`] returned.
#[inline(always)]
pub fn from_container(ctx: &TcContext, link: Link, ethernet: Ethernet, kept: i64) -> Outcome {
    let work = &mut work()?.ipv6;
    work.link = link;
    work.ethernet = ethernet;
    work.kept = kept;
    // Two calls one after the other, not one inside the other: their stacks do not add up.
    match outcome::unpack(examine_packed(ctx.skb.skb))? {
        DISCOVERY => nd::answer(ctx),
        ECHO => echo::answer6(ctx),
        FLOW => Err(go_on(ctx, CALL_CONTAINER)),
        _ => to_endpoint(ctx),
    }
}

/// Goes on with another program, which has the work area as it is and does not return. The reason is for where
/// there is none.
#[inline(always)]
pub fn go_on(ctx: &TcContext, program: u32) -> Reason {
    // SAFETY: nothing waits to be dropped, and the programs called end with a verdict as this one would.
    unsafe { CALLED.tail_call(ctx, program) };
    Reason::NotConfigured
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn examine_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(examine(&TcContext::new(skb)))
}

/// Checks a container's packet and leaves the endpoint it is for in `work.ipv6`.
#[inline(always)]
fn examine(ctx: &TcContext) -> Result<u32, Reason> {
    let own = lookup(&LINKS6, &ifindex(ctx)).ok_or(Reason::UnsupportedProtocol)?;
    // Solicitations in a VLAN of the containers' own are not answered, so nothing else comes either.
    refuse_vlan_tag(ctx)?;
    let work = &mut work()?.ipv6;
    load_into(ctx, ETH_LEN, &mut work.ip)?;
    check_ipv6(&work.ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))?;
    let source = work.ip.src;
    let is_unspecified = source == Ip6::UNSPECIFIED;
    if source != own.ip && source != Ip6::link_local(work.link.mac) && !is_unspecified {
        return Err(Reason::SpoofedSource);
    }
    let next = work.ip.next_header;
    if next == PROTO_ICMPV6 {
        if work.ip.payload_length.get() < ICMPV6_LEN {
            return Err(Reason::Truncated);
        }
        let kind: u8 = load_at(ctx, ICMPV6)?;
        if kind == ND_SOLICITATION {
            return Ok(DISCOVERY);
        }
        if is_discovery(kind) {
            return Err(Reason::NdUnknown);
        }
    }
    if work.ip.dst.is_group() || work.ethernet.dst.is_group() {
        return Err(Reason::Multicast);
    }
    // Nothing but what goes to a group comes from nobody (RFC 4291, section 2.5.2).
    if is_unspecified {
        return Err(Reason::SpoofedSource);
    }
    let (vni, destination) = (work.link.vni, work.ip.dst);
    let kind = find(work, vni, destination);
    work.kind = kind.into();
    match kind {
        ENDPOINT_LOCAL | ENDPOINT_REMOTE => {
            if next != PROTO_ICMPV6 {
                refuse_hidden_discovery(ctx, next)?;
            }
            // Flows have no link-local addresses.
            let backend = u16::from(work.endpoint.flags) | work.link.flags;
            let may_be_flow = backend & u16::from(ENDPOINT_FLAG_BACKEND) != 0;
            Ok(if may_be_flow && source == own.ip { FLOW } else { TO_ENDPOINT })
        }
        ENDPOINT_GATEWAY if next == PROTO_ICMPV6 => Ok(ECHO),
        ENDPOINT_GATEWAY => Err(Reason::GatewayPort),
        ENDPOINT_SERVICE if next == PROTO_ICMPV6 && is_ping(ctx) => Ok(ECHO),
        ENDPOINT_SERVICE if source != own.ip => Err(Reason::ServiceProtocol),
        ENDPOINT_SERVICE => Ok(FLOW),
        NOBODY => match nowhere(&own, work.ip.dst) {
            Reason::NoWayOut if source == own.ip => Ok(FLOW),
            Reason::NoEndpoint if source == own.ip && was_backend(work) => {
                work.kind = GONE.into();
                Ok(FLOW)
            }
            reason => Err(reason),
        },
        _ => Err(Reason::NoEndpoint),
    }
}

/// Whether a packet to nobody is of a connection to a backend that is gone.
#[inline(always)]
fn was_backend(work: &Ipv6Work) -> bool {
    work.ip.next_header == PROTO_TCP
        && !work.ip.dst.is_link_local()
        && stale::is_known6(work.link.vni, work.ethernet.dst)
}

#[inline(always)]
fn is_ping(ctx: &TcContext) -> bool {
    load_at::<u8>(ctx, ICMPV6).is_ok_and(|kind| kind == ICMP6_ECHO_REQUEST)
}

/// Why a packet to an address that nobody has is dropped.
#[inline(always)]
fn nowhere(own: &Link6, destination: Ip6) -> Reason {
    if destination.is_link_local() || destination.is_equal_under(&own.ip, &own.mask) {
        Reason::NoEndpoint
    } else {
        Reason::NoWayOut
    }
}

/// Checks what every IPv6 header must satisfy. `available` is the length of the packet from this
/// header on; aggregates over 64 KiB have a payload length of 0 (BIG TCP, Linux 5.19).
#[inline(always)]
pub fn check_ipv6(ip: &Ipv6, available: u32, gso: bool) -> Result<(), Reason> {
    if ip.version_class_flow[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    if u32::from(ip.payload_length.get()) + IPV6_LEN as u32 > available && !gso {
        return Err(Reason::Truncated);
    }
    Ok(())
}

/// Whether an ICMPv6 type belongs to neighbour discovery (RFC 4861, section 4).
#[inline(always)]
fn is_discovery(kind: u8) -> bool {
    matches!(kind, ND_FIRST..=ND_LAST)
}

/// Refuses neighbour discovery behind extension headers, where Linux would still take it. `first`
/// is the header behind the IPv6 header. Hosts ignore fragments of it themselves (RFC 6980).
///
/// # Errors
/// [`Reason::NdUnknown`]; [`Reason::Malformed`] for more than [`MOST_EXTENSIONS`] headers;
/// [`Reason::Truncated`].
#[inline(always)]
fn refuse_hidden_discovery(ctx: &TcContext, first: u8) -> Result<(), Reason> {
    let mut next = first;
    let mut at = ETH_LEN + IPV6_LEN;
    for _ in 0..MOST_EXTENSIONS {
        let Some(unit) = extension_unit(next) else {
            return if next == PROTO_ICMPV6 && is_discovery(load_at(ctx, at)?) {
                Err(Reason::NdUnknown)
            } else {
                Ok(())
            };
        };
        let header: [u8; 2] = load_at(ctx, at)?;
        next = header[0];
        at += extension_length(unit, header[1]);
    }
    Err(Reason::Malformed)
}

/// For headers that have another behind them: the unit of their length field in bytes. Fragment
/// headers are none here.
#[inline(always)]
pub fn extension_unit(header: u8) -> Option<usize> {
    match header {
        // Hop-by-hop options, routing, destination options (RFC 8200), mobility (RFC 6275), host
        // identity (RFC 7401), shim6 (RFC 5533).
        0 | 43 | 60 | 135 | 139 | 140 => Some(8),
        // Authentication (RFC 4302, section 2.2): words less 2.
        51 => Some(4),
        _ => None,
    }
}

/// Length in bytes of an extension header by its length field.
#[inline(always)]
pub fn extension_length(unit: usize, field: u8) -> usize {
    let extra = if unit == 4 { 2 } else { 1 };
    (usize::from(field) + extra) * unit
}

/// The kind of what has an address of a network, if it is an endpoint, a VIP or the gateway; what is found
/// is in `work.endpoint` then. Link-local addresses say the IPv4 address of theirs.
#[inline(always)]
pub fn find(work: &mut Ipv6Work, vni: u32, ip: Ip6) -> u8 {
    let found = if ip.is_link_local() {
        match ip.ipv4_of_link_local() {
            Some(ip) => ENDPOINTS.get_ptr(&EndpointKey { vni, ip }),
            None => None,
        }
    } else {
        work.key = Endpoint6Key { vni, ip };
        ENDPOINTS6.get_ptr(&work.key)
    };
    let Some(endpoint) = found else { return NOBODY };
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    work.endpoint = unsafe { *endpoint };
    // The node itself has no IPv6, and VIPs have no link.
    let is_vip = work.endpoint.kind == ENDPOINT_SERVICE;
    if (is_vip && ip.is_link_local()) || work.endpoint.flags & ENDPOINT_FLAG_HOST != 0 {
        return NOBODY;
    }
    work.endpoint.kind
}

/// To the endpoint in `work.ipv6`.
#[inline(always)]
pub fn to_endpoint(ctx: &TcContext) -> Outcome {
    let Ipv6Work { link, ethernet, endpoint, .. } = &mut work()?.ipv6;
    if endpoint.kind == ENDPOINT_LOCAL {
        return deliver_as(ETHERTYPE_IPV6, ctx, endpoint, ethernet.src, Reason::DeliveredLocal);
    }
    ethernet.dst = endpoint.mac;
    match vxlan::encapsulate(ctx, link.vni, endpoint.node, ethernet) {
        Err(Reason::TooBig) => {
            let mtu = vxlan::inner_mtu(ctx, endpoint.node)?;
            icmp6::from_gateway(ctx)?;
            icmp6::too_big(ctx, mtu)?;
            Ok(back_out(ctx, Reason::TooBigAnswered))
        }
        sent => sent,
    }
}

/// In place of an action of [`from_tunnel_packed`]: it may be of a flow that is translated.
const GO_ON: u32 = 1 << 16;

/// A frame of network `receiver.vni` with an IPv6 packet in it, from a node and under an outer TOS
/// byte. `OUTER` bytes of outer headers are in front, or none where the kernel's device has removed
/// them.
#[inline(always)]
pub fn from_tunnel<const OUTER: usize>(
    ctx: &TcContext,
    (sender, outer_tos): (Be32, u8),
    receiver: &mut Party,
) -> Outcome {
    let packed = from_tunnel_packed(ctx.skb.skb, receiver.vni, sender, outer_tos, OUTER);
    receiver.slot = work()?.ipv6.slot;
    let action = outcome::unpack(packed)?;
    if action == GO_ON {
        let work = &mut work()?.ipv6;
        work.vni = receiver.vni;
        work.sender = sender;
        work.outer = OUTER as u32;
        return Err(go_on(ctx, CALL_TUNNEL));
    }
    Ok(Verdict::Delivered(action as i32, Reason::Decapsulated, receiver.slot))
}

#[inline(never)]
fn from_tunnel_packed(
    skb: *mut __sk_buff,
    vni: u32,
    sender: Be32,
    outer_tos: u8,
    outer: usize,
) -> i64 {
    outcome::pack(to_local(&TcContext::new(skb), (vni, sender), outer_tos, outer))
}

/// To an endpoint of this node, from another endpoint of the network. What is not that, or from a backend, is
/// looked up among flows.
#[inline(always)]
fn to_local(
    ctx: &TcContext,
    (vni, sender): (u32, Be32),
    outer_tos: u8,
    outer: usize,
) -> Result<u32, Reason> {
    let at = outer + ETH_LEN;
    let work = &mut work()?.ipv6;
    work.slot = 0;
    refuse_vlan_tag(ctx)?;
    load_into(ctx, at, &mut work.ip)?;
    check_ipv6(&work.ip, ctx.len() - at as u32, is_gso(ctx))?;
    ecn::combine_ipv6(ctx, outer_tos, at)?;
    let destination = work.ip.dst;
    match find(work, vni, destination) {
        ENDPOINT_LOCAL => {}
        NOBODY if !destination.is_link_local() && !destination.is_group() => return Ok(GO_ON),
        _ => return Err(Reason::NoEndpoint),
    }
    let endpoint = work.endpoint;
    work.slot = endpoint.slot;
    let source = work.ip.src;
    match find(work, vni, source) {
        ENDPOINT_REMOTE if work.endpoint.node == sender => {}
        NOBODY if !source.is_link_local() => return Ok(GO_ON),
        _ => return Err(Reason::SpoofedInnerSource),
    }
    if work.endpoint.flags & ENDPOINT_FLAG_BACKEND != 0 && !source.is_link_local() {
        return Ok(GO_ON);
    }
    pop(ctx, outer, false)?;
    let from = work.endpoint.mac;
    match deliver_as(ETHERTYPE_IPV6, ctx, &endpoint, from, Reason::Decapsulated)? {
        Verdict::Delivered(action, ..) | Verdict::Done(action, _) => Ok(action as u32),
        Verdict::Pass => Err(Reason::NoEndpoint),
    }
}

/// Removes `outer` bytes of outer headers in front of the packet in `work.ipv6`. `leaves` says that it goes out
/// of the host.
///
/// # Errors
/// [`Reason::TunnelRefused`] when it is for the kernel's device to do that.
#[inline(always)]
pub fn pop(ctx: &TcContext, outer: usize, leaves: bool) -> Result<(), Reason> {
    if outer == 0 {
        return Ok(());
    }
    let config = config().ok_or(Reason::NotConfigured)?;
    refuse_aggregate(ctx, work()?.ipv6.ip.next_header, config.decap_flags)?;
    // As in `underlay`: the mark that an aggregate may keep could mislead a NIC.
    if leaves && is_gso(ctx) && config.decap_flags == 0 {
        return Err(Reason::TunnelRefused);
    }
    if underlay::is_ipv6() {
        vxlan6::remove(ctx, ETHERTYPE_IPV6, config.decap_flags)
    } else {
        vxlan::remove_ipv6(ctx, config.decap_flags)
    }
}

/// Leaves to the kernel's device what cannot be taken apart here, while the packet is as it was: in
/// IPv4 the kernel refuses such aggregates itself, but here it has changed the packet by then (Linux
/// 5.14). UDP's keep the mark of a tunnel where the kernel cannot be told, as in IPv4.
///
/// # Errors
/// [`Reason::TunnelRefused`].
#[inline(always)]
pub fn refuse_aggregate(ctx: &TcContext, protocol: u8, decap_flags: u32) -> Result<(), Reason> {
    let is_taken = protocol == PROTO_TCP || (protocol == PROTO_UDP && decap_flags != 0);
    if is_gso(ctx) && !is_taken { Err(Reason::TunnelRefused) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_common::Be16;

    fn header(payload: u16) -> Ipv6 {
        Ipv6 {
            version_class_flow: [0x60, 0, 0, 0],
            payload_length: Be16::new(payload),
            ..Ipv6::default()
        }
    }

    #[test]
    fn an_ipv6_header_is_checked_against_the_packet() {
        assert_eq!(check_ipv6(&header(20), 60, false), Ok(()));
        assert_eq!(check_ipv6(&header(4), 60, false), Ok(()), "Ethernet pads short packets");
        assert_eq!(check_ipv6(&header(21), 60, false), Err(Reason::Truncated));
        assert_eq!(check_ipv6(&header(0), 80_000, true), Ok(()), "an aggregate");
        let version_4 = Ipv6 { version_class_flow: [0x45, 0, 0, 0], ..header(20) };
        assert_eq!(check_ipv6(&version_4, 60, false), Err(Reason::Malformed));
    }

    #[test]
    fn lengths_of_extension_headers_are_those_of_their_rfcs() {
        assert_eq!(extension_unit(60).map(|unit| extension_length(unit, 0)), Some(8));
        assert_eq!(extension_unit(0).map(|unit| extension_length(unit, 1)), Some(16));
        // RFC 4302: an integrity value of 96 bits has a length field of 4 and takes 24 bytes.
        assert_eq!(extension_unit(51).map(|unit| extension_length(unit, 4)), Some(24));
        for last in [6, 17, 44, 50, 58, 59] {
            assert_eq!(extension_unit(last), None);
        }
    }

    #[test]
    fn neighbour_discovery_is_five_types() {
        let of: Vec<u8> = (0..=255).filter(|kind| is_discovery(*kind)).collect();
        assert_eq!(of, [133, 134, 135, 136, 137]);
    }

    #[test]
    fn an_address_of_the_subnet_has_no_endpoint_and_another_no_way_out() {
        let ip6 = |text: &str| Ip6::from(text.parse::<core::net::Ipv6Addr>().expect("an address"));
        let own = Link6 { ip: ip6("fd00:1::2"), mask: Ip6::mask(64), ..Link6::default() };
        assert_eq!(nowhere(&own, ip6("fd00:1::77")), Reason::NoEndpoint);
        assert_eq!(nowhere(&own, ip6("fe80::77")), Reason::NoEndpoint);
        assert_eq!(nowhere(&own, ip6("fd00:1:0:1::77")), Reason::NoWayOut);
        assert_eq!(nowhere(&own, ip6("2001:db8::1")), Reason::NoWayOut);
    }
}
