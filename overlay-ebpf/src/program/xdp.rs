//! `xdp_underlay`: tunnel packets to endpoints of this node, and published-port traffic through a
//! node without the backend, before the kernel makes an skb of them. Other packets pass to
//! `from_underlay`; both programs share one conntrack table.

use aya_ebpf::{helpers::bpf_redirect, programs::XdpContext};
use overlay_common::{
    Be16, Be32, Reason, VXLAN_OVERHEAD,
    maps::{
        CONFIG_XDP_DECAP, CONNTRACK_REPLY, Config, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
        ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, EndpointKey,
    },
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, PROTO_TCP, PROTO_UDP, Udp, Vxlan},
};

use crate::{
    family::{
        V4, V6,
        xdp::{XdpFamily, may_be_reply6},
    },
    maps::{cache, config, work::area},
    observe::Party,
    outcome::{Outcome, Verdict},
    packet::{
        ecn,
        frame::ETH_LEN,
        ipv4::{IPV4_LEN, check_ipv4},
        xdp_flow::{flow, outer_headers},
        xdp_frame::{at, is_of, length, push, read, write},
    },
    service::conntrack,
    tunnel::{
        outer::is_tunnel,
        peers::{self, check_other, check_peer, vni_of},
        underlay,
        vxlan::INNER,
    },
    walk::xdp,
};

/// Handles a packet from the NIC.
#[inline(always)]
pub fn receive(ctx: &XdpContext, receiver: &mut Party) -> Outcome {
    let Some(config) = config() else {
        return Ok(Verdict::PASS);
    };
    if is_of(ctx, 0, ETHERTYPE_IPV6) {
        return to_published::<V6>(ctx, config, ());
    }
    let Some((ip, udp)) = outer_headers(ctx) else {
        return Ok(Verdict::PASS);
    };
    if is_tunnel(config, &ip, &udp) {
        // TC combines ECN marks of routers into the inner header.
        if ecn::is_marked(ip.tos) {
            return Ok(Verdict::PASS);
        }
        return from_tunnel(ctx, config, ip.saddr(), receiver);
    }
    to_published::<V4>(ctx, config, (ip, udp))
}

/// Handles a packet to the host, which may be from a client outside to a published port.
#[inline(always)]
fn to_published<F: XdpFamily>(ctx: &XdpContext, config: &Config, head: F::Head) -> Outcome {
    // On an IPv6 underlay TC handles both families.
    if underlay::is_ipv6() {
        return Ok(Verdict::PASS);
    }
    match F::frontend_port(ctx, config, head)? {
        Some((ip, published, work)) => xdp::to_published::<F>(ctx, &ip, &published, work),
        None => Ok(Verdict::PASS),
    }
}

/// A checked tunnel packet whose inner IPv4 header has no options and is no fragment.
struct Inner {
    vni: u32,
    /// VTEP of the node that sent it.
    sender: Be32,
    ip: Ipv4,
}

/// Handles a tunnel packet. It is dropped unless it comes from a node of the cluster. Packets to
/// endpoints of this node and replies to clients outside leave from here.
#[inline(always)]
fn from_tunnel(ctx: &XdpContext, config: &Config, sender: Be32, receiver: &mut Party) -> Outcome {
    check_other(config, sender)?;
    let outcome = accept(ctx, config, sender, receiver);
    if outcome.is_ok_and(|verdict| verdict != Verdict::PASS) {
        return outcome;
    }
    // A packet of a non-peer is dropped as such, before any other fault.
    check_peer(sender).inspect_err(|_| *receiver = Party::receiver())?;
    match outcome {
        Err(reason) => Err(peers::classify(receiver.vni, sender, reason)),
        passed => passed,
    }
}

#[inline(always)]
fn accept(ctx: &XdpContext, config: &Config, sender: Be32, receiver: &mut Party) -> Outcome {
    let vxlan: Vxlan = read(ctx, ETH_LEN + IPV4_LEN + size_of::<Udp>()).ok_or(Reason::Truncated)?;
    let vni = vni_of(&vxlan)?;
    receiver.vni = vni;
    if is_of(ctx, INNER, ETHERTYPE_IPV6) {
        if !may_be_reply6(ctx, vni, sender)? {
            return Ok(Verdict::PASS);
        }
        return Ok(xdp::reply::<V6>(ctx, &(), sender, area()?)?.unwrap_or(Verdict::PASS));
    }
    let _: *mut [u8; INNER + ETH_LEN + IPV4_LEN] = at(ctx, 0).ok_or(Reason::Truncated)?;
    let ethernet: Ethernet = read(ctx, INNER).ok_or(Reason::Truncated)?;
    let ip: Ipv4 = read(ctx, INNER + ETH_LEN).ok_or(Reason::Truncated)?;
    let length = length(ctx);
    // TC handles aggregates (generic XDP).
    let simple = ethernet.ethertype.get() == ETHERTYPE_IPV4
        && ip.version_ihl == 0x45
        && !ip.is_fragment()
        && length <= config.underlay_mtu + ETH_LEN as u32;
    if !simple {
        return Ok(Verdict::PASS);
    }
    check_ipv4(&ip, length - (INNER + ETH_LEN) as u32, false)?;
    let inner = Inner { vni, sender, ip };
    match cache::endpoint(&EndpointKey { vni, ip: ip.daddr() }) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => {
            receiver.counter = endpoint.counter;
            to_local(ctx, config, &inner, &endpoint)
        }
        Some(_) => Ok(Verdict::PASS),
        None => to_client(ctx, &inner),
    }
}

/// Delivers a packet from another endpoint of the network to an endpoint of this node. TC handles
/// TCP: GRO joins its segments on the way there, with checksums that the NIC has verified, and one
/// look-up for an aggregate costs less than many for its segments. TC also handles flows that this
/// node translates.
#[inline(always)]
fn to_local(ctx: &XdpContext, config: &Config, inner: &Inner, endpoint: &Endpoint) -> Outcome {
    let Inner { vni, sender, ip } = inner;
    if config.flags & CONFIG_XDP_DECAP == 0
        || endpoint.flags & ENDPOINT_FLAG_HOST != 0
        || ip.protocol == PROTO_TCP
    {
        return Ok(Verdict::PASS);
    }
    let Some(from) = cache::endpoint(&EndpointKey { vni: *vni, ip: ip.saddr() }) else {
        return Ok(Verdict::PASS);
    };
    if from.kind != ENDPOINT_REMOTE || from.node != *sender {
        return Err(Reason::SpoofedInnerSource);
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 {
        // TC handles SCTP replies and ICMP errors about flows.
        if ip.protocol != PROTO_UDP {
            return Ok(Verdict::PASS);
        }
        let work = &mut *area()?;
        if flow(ctx, ip, INNER + ETH_LEN, *vni, &mut work.flow).is_ok()
            && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
        {
            return Ok(Verdict::PASS);
        }
    }
    push(ctx, -(VXLAN_OVERHEAD as i32))?;
    let ethertype = Be16::new(ETHERTYPE_IPV4);
    write(ctx, 0, Ethernet { dst: endpoint.mac, src: from.mac, ethertype })?;
    // A packet that leaves by the host's end of a veth arrives at the container's end, where NAPI
    // takes it.
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect(endpoint.ifindex, 0) };
    Ok(Verdict::delivered(action as i32, Reason::XdpDecapsulated, endpoint.counter))
}

/// Handles a packet to an address that no endpoint has: it may be the reply of a flow from outside.
#[inline(always)]
fn to_client(ctx: &XdpContext, inner: &Inner) -> Outcome {
    let Inner { vni, sender, ip } = inner;
    check_peer(*sender)?;
    let mut work = area()?;
    if flow(ctx, ip, INNER + ETH_LEN, *vni, &mut work.flow).is_ok()
        && let Some(verdict) = xdp::reply::<V4>(ctx, ip, *sender, work)?
    {
        return Ok(verdict);
    }
    // The packet is for a group of the network, or for an unknown address.
    peers::check(*vni, *sender)?;
    Ok(Verdict::PASS)
}
