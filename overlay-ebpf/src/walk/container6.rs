//! The checks of an IPv6 packet from a container, and its destination. A separate program
//! (`container_flow6`) handles packets that may belong to translated flows, so that the IPv4 path
//! does not pay for it.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Ip6, Reason,
    maps::{
        ENDPOINT_FLAG_BACKEND, ENDPOINT_GATEWAY, ENDPOINT_LOCAL, ENDPOINT_REMOTE, ENDPOINT_SERVICE,
        Link, Link6, TAIL_CALL_CONTAINER,
    },
    wire::{Ethernet, ICMP6_ECHO_REQUEST, ND_SOLICITATION, PROTO_ICMPV6, PROTO_TCP},
};

use crate::{
    answer::{echo, nd},
    family::{Sent, V6},
    maps::{
        LINKS6,
        endpoint::find6,
        lookup, tail_call,
        work::{Ipv6Work, work},
    },
    outcome::{self, Outcome},
    packet::{
        frame::{ETH_LEN, ifindex, is_gso, load_at, load_into, reject_vlan_tag},
        ipv6::{ICMPV6, check_ipv6, is_discovery, reject_hidden_discovery},
    },
    service::stale,
    walk::container,
};

/// Bytes of every ICMPv6 header (RFC 4443, section 2.1).
const ICMPV6_LEN: u16 = 4;
/// Kind of a container's packet, from [`examine`]: plain traffic between two endpoints.
const PLAIN: u32 = 0;
/// As [`PLAIN`]: a neighbour solicitation.
const DISCOVERY: u32 = 1;
/// As [`PLAIN`]: ICMPv6 to the gateway, or a ping to a VIP.
const ECHO: u32 = 2;
/// As [`PLAIN`]: a packet that may belong to a translated flow.
const FLOW: u32 = 3;

/// In [`Ipv6Work::aim`], for `container_flow6`: the packet goes to another endpoint.
pub const AIM_ENDPOINT: u32 = 0;
/// In [`Ipv6Work::aim`]: to a VIP.
pub const AIM_SERVICE: u32 = 1;
/// In [`Ipv6Work::aim`]: to an address outside of the network.
pub const AIM_OUTSIDE: u32 = 2;
/// In [`Ipv6Work::aim`]: to the address of a stale backend.
pub const AIM_STALE: u32 = 3;

/// Handles an endpoint's packet. `kept` is the result of [`crate::observe::event::keep`].
#[inline(always)]
pub fn receive(ctx: &TcContext, link: Link, ethernet: Ethernet, kept: i64) -> Outcome {
    let work = &mut work()?.ipv6;
    work.link = link;
    work.ethernet = ethernet;
    work.kept = kept;
    // Calls in sequence, not nested: their stacks do not add up.
    match outcome::unpack(examine_packed(ctx.skb.skb))? {
        DISCOVERY => nd::answer(ctx),
        ECHO => echo::answer6(ctx),
        FLOW => {
            tail_call(ctx, TAIL_CALL_CONTAINER);
            Err(Reason::NotConfigured)
        }
        _ => {
            let packet = Sent::<V6> { ctx, link, ethernet, ip: () };
            container::pass_on(&packet, &work.endpoint, false)
        }
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn examine_packed(skb: *mut __sk_buff) -> i64 {
    outcome::pack(examine(&TcContext::new(skb)))
}

/// Checks a container's packet and leaves its destination endpoint in `work.ipv6`.
#[inline(always)]
fn examine(ctx: &TcContext) -> Result<u32, Reason> {
    let own = lookup(&LINKS6, &ifindex(ctx)).ok_or(Reason::UnsupportedProtocol)?;
    // Solicitations in a VLAN get no answer, so no other tagged packet is legitimate.
    reject_vlan_tag(ctx)?;
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
    // Only packets to groups may have no source (RFC 4291, section 2.5.2).
    if is_unspecified {
        return Err(Reason::SpoofedSource);
    }
    let (vni, destination) = (work.link.vni, work.ip.dst);
    work.aim = AIM_ENDPOINT;
    let Some(kind) = find6(work, vni, destination) else {
        work.aim = AIM_OUTSIDE;
        return match nowhere(&own, destination) {
            Reason::NoWayOut if source == own.ip => Ok(FLOW),
            Reason::NoEndpoint if source == own.ip && was_backend(work) => {
                work.aim = AIM_STALE;
                Ok(FLOW)
            }
            reason => Err(reason),
        };
    };
    match kind {
        ENDPOINT_LOCAL | ENDPOINT_REMOTE => {
            if next != PROTO_ICMPV6 {
                reject_hidden_discovery(ctx, next)?;
            }
            // Flows have no link-local addresses.
            let backend = u16::from(work.endpoint.flags) | work.link.flags;
            let may_be_flow = backend & u16::from(ENDPOINT_FLAG_BACKEND) != 0;
            Ok(if may_be_flow && source == own.ip { FLOW } else { PLAIN })
        }
        ENDPOINT_GATEWAY if next == PROTO_ICMPV6 => Ok(ECHO),
        ENDPOINT_GATEWAY => Err(Reason::GatewayPort),
        ENDPOINT_SERVICE if next == PROTO_ICMPV6 && is_ping(ctx) => Ok(ECHO),
        ENDPOINT_SERVICE if source != own.ip => Err(Reason::ServiceProtocol),
        ENDPOINT_SERVICE => {
            work.aim = AIM_SERVICE;
            Ok(FLOW)
        }
        _ => Err(Reason::NoEndpoint),
    }
}

/// Whether a packet to no endpoint belongs to a connection to a stale backend.
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

/// Why a packet to an address that no endpoint has is dropped.
#[inline(always)]
fn nowhere(own: &Link6, destination: Ip6) -> Reason {
    if destination.is_link_local() || destination.is_equal_under(&own.ip, &own.mask) {
        Reason::NoEndpoint
    } else {
        Reason::NoWayOut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
