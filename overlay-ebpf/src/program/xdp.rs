//! `xdp_underlay`: tunnel packets to endpoints of this node, and the way of published-port traffic
//! through a node that has no backend itself, before the kernel makes an skb of them. What it does
//! not handle passes to `from_underlay`; both share one conntrack table. IPv6 is in `program::xdp6`.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_redirect, bpf_xdp_adjust_head},
    programs::XdpContext,
};
use overlay_common::{
    Be16, Be32, Mac, Plain, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD, checksum, hash,
    maps::{
        CONFIG_XDP_DECAP, CONNTRACK_REPLY, Config, ENDPOINT_FLAG_BACKEND, ENDPOINT_FLAG_HOST,
        ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, EndpointKey, Published,
    },
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, Encapsulation, Ethernet, Ipv4, PROTO_SCTP, PROTO_TCP,
        PROTO_UDP, Udp, Vxlan,
    },
};

use crate::{
    forward::next_hop,
    maps::{
        cache, config,
        work::{Flow, Work, work},
    },
    nat::{TCP_CHECKSUM, UDP_CHECKSUM},
    observe::Party,
    outcome::{Outcome, Verdict},
    packet::{
        ecn,
        frame::{self, ETH_LEN},
        ipv4::{IPV4_LEN, check_ipv4, holds_transport},
        transport::{TCP_FLAGS, possible, tcp_flags},
    },
    program::{
        underlay::{check_backend, check_other, check_peer, is_tunnel, vni_of},
        xdp6,
    },
    service::{conntrack, dsr, published, route, stats},
    tunnel::{
        next_hop, peers, underlay,
        vxlan::{self, INNER},
    },
};

/// A pointer to a header in the packet, valid until the packet is changed in size.
#[inline(always)]
fn at<T: Plain>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() { None } else { Some(start as *mut T) }
}

/// A header in the packet; `None` when it ends before.
#[inline(always)]
pub fn read<T: Plain>(ctx: &XdpContext, offset: usize) -> Option<T> {
    at::<T>(ctx, offset).map(|header| frame::read(header.cast_const()))
}

/// Writes a header into the packet.
///
/// # Errors
/// [`Reason::RewriteRefused`] when it ends before.
#[inline(always)]
pub fn write<T: Plain>(ctx: &XdpContext, offset: usize, value: T) -> Result<(), Reason> {
    let header = at::<T>(ctx, offset).ok_or(Reason::RewriteRefused)?;
    const { assert!(align_of::<T>() <= 2, "headers are at even addresses, no more") };
    // SAFETY: `at` checked the bounds; on the address see `frame::read`.
    unsafe { header.write(value) };
    Ok(())
}

/// What the NIC receives.
#[inline(always)]
pub fn receive(ctx: &XdpContext, receiver: &mut Party) -> Outcome {
    if is_ipv6(ctx, 0) {
        return xdp6::receive(ctx);
    }
    let Some((ip, udp)) = outer_headers(ctx) else {
        return Ok(Verdict::Pass);
    };
    let Some(config) = config() else {
        return Ok(Verdict::Pass);
    };
    if is_tunnel(config, &ip, &udp) {
        // What routers marked is TC's to bring inside.
        if ecn::is_marked(ip.tos) {
            return Ok(Verdict::Pass);
        }
        return from_tunnel(ctx, config, ip.saddr(), receiver);
    }
    if ip.protocol == PROTO_SCTP {
        return Ok(Verdict::Pass);
    }
    match published::find_on_host(&ip, udp.dest) {
        Some(published) => to_published(ctx, config, &ip, &published),
        None => Ok(Verdict::Pass),
    }
}

/// Whether the Ethernet header at `offset` says that IPv6 is behind it.
#[inline(always)]
fn is_ipv6(ctx: &XdpContext, offset: usize) -> bool {
    read::<Ethernet>(ctx, offset).is_some_and(|ethernet| ethernet.ethertype.get() == ETHERTYPE_IPV6)
}

/// IPv4 without options and the first eight bytes behind it; fragments and headers with options are
/// for TC or for the host.
#[inline(always)]
fn outer_headers(ctx: &XdpContext) -> Option<(Ipv4, Udp)> {
    // One bound for all three, because each by itself lets LLVM look at headers that are not there.
    let _: *mut [u8; ETH_LEN + IPV4_LEN + size_of::<Udp>()] = at(ctx, 0)?;
    let ethernet: Ethernet = read(ctx, 0)?;
    let ip: Ipv4 = read(ctx, ETH_LEN)?;
    if ethernet.ethertype.get() != ETHERTYPE_IPV4 || ip.version_ihl != 0x45 || ip.is_fragment() {
        return None;
    }
    Some((ip, read(ctx, ETH_LEN + IPV4_LEN)?))
}

/// Fills `out` with the flow of a packet with its IPv4 header, without options, at `offset`.
#[inline(always)]
fn flow(
    ctx: &XdpContext,
    ip: &Ipv4,
    offset: usize,
    vni: u32,
    out: &mut Flow,
) -> Result<(), Reason> {
    if !holds_transport(ip) {
        return Err(Reason::Truncated);
    }
    let transport = offset + IPV4_LEN;
    let ports: Udp = read(ctx, transport).ok_or(Reason::Truncated)?;
    let flags = match ip.protocol {
        PROTO_TCP => {
            possible(tcp_flags(read(ctx, transport + TCP_FLAGS).ok_or(Reason::Truncated)?))?
        }
        PROTO_UDP => 0,
        _ => return Err(Reason::ServiceProtocol),
    };
    out.set(ip, [ports.source, ports.dest], vni, transport);
    out.flags = flags;
    Ok(())
}

/// A client outside asked a port of the host: if the backend is elsewhere, the packet goes there
/// from here.
#[inline(always)]
fn to_published(ctx: &XdpContext, config: &Config, ip: &Ipv4, published: &Published) -> Outcome {
    // On an IPv6 underlay both ways are TC's.
    if underlay::is_ipv6() {
        return Ok(Verdict::Pass);
    }
    let length = (ctx.data_end() - ctx.data()) as u32;
    check_ipv4(ip, length - ETH_LEN as u32, false)?;
    // Aggregates (generic XDP) and packets that do not fit the tunnel are for TC.
    if length + VXLAN_OVERHEAD > config.underlay_mtu + ETH_LEN as u32 {
        return Ok(Verdict::Pass);
    }
    let work = work()?;
    flow(ctx, ip, ETH_LEN, UNDERLAY_VNI, &mut work.flow)?;
    match route::route(work, published.service, published.target, (length, 0)) {
        // The answer is TC's to give.
        Err(Reason::NoBackend | Reason::BackendGone) => return Ok(Verdict::Pass),
        routed => routed?,
    }
    let backend = &work.backend;
    if backend.node == Be32::ZERO {
        return Ok(Verdict::Pass);
    }
    let total = length + VXLAN_OVERHEAD - ETH_LEN as u32;
    let hop = match next_hop::to_node(ctx.ctx.cast(), config, backend.node, total) {
        // TC can wait for the neighbour and tell the client what fits, XDP cannot.
        Err(Reason::TooBig) => return Ok(Verdict::Pass),
        hop => hop?,
    };
    if hop.resolved == 0 {
        return Ok(Verdict::Pass);
    }
    stats::asked(work, length);
    translate(ctx, ip, ETH_LEN, work)?;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(VXLAN_OVERHEAD as i32)) } != 0 {
        return Err(Reason::TunnelRefused);
    }
    let outer = hop.ethernet;
    let inner = Ethernet { dst: backend.mac, src: Mac::default(), ..outer };
    let inner = dsr::header(work, inner);
    let key = &work.flow.key;
    let flow_hash = hash::of_flow(key.saddr, key.daddr, [key.sport, key.dport]);
    let tunnel = (backend.vni, flow_hash, ecn::outer(ip.tos));
    let headers: Encapsulation =
        vxlan::headers(config, outer, backend.node, tunnel, (inner, length));
    write(ctx, 0, headers)?;
    Ok(Verdict::Done(send(ctx, hop.ifindex), Reason::XdpEncapsulated))
}

/// A checked tunnel packet whose inner IPv4 header has no options and is no fragment.
struct Inner {
    vni: u32,
    /// VTEP of the node it came from.
    sender: Be32,
    ip: Ipv4,
}

/// A tunnel packet: dropped here unless it comes from a node of the cluster. Packets to endpoints of
/// this node and replies to clients outside leave from here.
#[inline(always)]
fn from_tunnel(ctx: &XdpContext, config: &Config, sender: Be32, receiver: &mut Party) -> Outcome {
    check_other(config, sender)?;
    let outcome = accept(ctx, config, sender, receiver);
    if let Ok(Verdict::Done(..) | Verdict::Delivered(..)) = outcome {
        return outcome;
    }
    // What a stranger sends is dropped as that, whatever else is wrong with it.
    check_peer(sender).inspect_err(|_| *receiver = Party::receiver())?;
    match outcome {
        Err(reason) => Err(peers::judge(receiver.vni, sender, reason)),
        passed => passed,
    }
}

#[inline(always)]
fn accept(ctx: &XdpContext, config: &Config, sender: Be32, receiver: &mut Party) -> Outcome {
    let vxlan: Vxlan = read(ctx, ETH_LEN + IPV4_LEN + size_of::<Udp>()).ok_or(Reason::Truncated)?;
    let vni = vni_of(&vxlan)?;
    receiver.vni = vni;
    if is_ipv6(ctx, INNER) {
        return xdp6::from_tunnel(ctx, vni, sender);
    }
    let _: *mut [u8; INNER + ETH_LEN + IPV4_LEN] = at(ctx, 0).ok_or(Reason::Truncated)?;
    let ethernet: Ethernet = read(ctx, INNER).ok_or(Reason::Truncated)?;
    let ip: Ipv4 = read(ctx, INNER + ETH_LEN).ok_or(Reason::Truncated)?;
    let length = (ctx.data_end() - ctx.data()) as u32;
    // Aggregates (generic XDP) are for TC.
    let simple = ethernet.ethertype.get() == ETHERTYPE_IPV4
        && ip.version_ihl == 0x45
        && !ip.is_fragment()
        && length <= config.underlay_mtu + ETH_LEN as u32;
    if !simple {
        return Ok(Verdict::Pass);
    }
    check_ipv4(&ip, length - (INNER + ETH_LEN) as u32, false)?;
    let inner = Inner { vni, sender, ip };
    match cache::endpoint(&EndpointKey { vni, ip: ip.daddr() }) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => {
            receiver.slot = endpoint.slot;
            to_local(ctx, config, &inner, &endpoint)
        }
        Some(_) => Ok(Verdict::Pass),
        None => reply(ctx, config, &inner),
    }
}

/// To an endpoint of this node, from another endpoint of the network. TCP is left to TC: GRO joins
/// its segments on their way there, with checksums that the NIC has verified, and one look at an
/// aggregate costs less than many at its parts. So are flows that are translated here.
#[inline(always)]
fn to_local(ctx: &XdpContext, config: &Config, inner: &Inner, endpoint: &Endpoint) -> Outcome {
    let Inner { vni, sender, ip } = inner;
    if config.flags & CONFIG_XDP_DECAP == 0
        || endpoint.flags & ENDPOINT_FLAG_HOST != 0
        || ip.protocol == PROTO_TCP
    {
        return Ok(Verdict::Pass);
    }
    let Some(from) = cache::endpoint(&EndpointKey { vni: *vni, ip: ip.saddr() }) else {
        return Ok(Verdict::Pass);
    };
    if from.kind != ENDPOINT_REMOTE || from.node != *sender {
        return Err(Reason::SpoofedInnerSource);
    }
    if from.flags & ENDPOINT_FLAG_BACKEND != 0 {
        // Replies of SCTP and ICMP errors about flows are TC's.
        if ip.protocol != PROTO_UDP {
            return Ok(Verdict::Pass);
        }
        let work = work()?;
        if flow(ctx, ip, INNER + ETH_LEN, *vni, &mut work.flow).is_ok()
            && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
        {
            return Ok(Verdict::Pass);
        }
    }
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, VXLAN_OVERHEAD as i32) } != 0 {
        return Err(Reason::TunnelRefused);
    }
    let ethertype = Be16::new(ETHERTYPE_IPV4);
    write(ctx, 0, Ethernet { dst: endpoint.mac, src: from.mac, ethertype })?;
    // What leaves by the host's end of a veth arrives at the container's, where NAPI takes it.
    // SAFETY: a helper without preconditions.
    let action = unsafe { bpf_redirect(endpoint.ifindex, 0) };
    Ok(Verdict::Delivered(action as i32, Reason::XdpDecapsulated, endpoint.slot))
}

/// To nobody's address: it may be the reply of a flow from outside.
#[inline(always)]
fn reply(ctx: &XdpContext, config: &Config, inner: &Inner) -> Outcome {
    let Inner { vni, sender, ip } = inner;
    check_peer(*sender)?;
    let work = work()?;
    if flow(ctx, ip, INNER + ETH_LEN, *vni, &mut work.flow).is_err()
        || conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_REPLY
    {
        // To a group of the network, or to nobody.
        peers::check(*vni, *sender)?;
        return Ok(Verdict::Pass);
    }
    if work.entry.vni != UNDERLAY_VNI {
        return Ok(Verdict::Pass);
    }
    check_backend(&work.entry, *sender)?;
    to_client(ctx, config, ip, work)
}

#[inline(always)]
fn to_client(ctx: &XdpContext, config: &Config, ip: &Ipv4, work: &Work) -> Outcome {
    let addresses = (work.entry.saddr, work.entry.daddr);
    let total = u32::from(ip.total_length.get());
    let hop = match next_hop(ctx.ctx.cast(), config, addresses, total) {
        // TC can tell the backend what fits.
        Err(Reason::TooBig) => return Ok(Verdict::Pass),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(Verdict::Pass);
    }
    stats::answered(work, total + ETH_LEN as u32);
    translate(ctx, ip, INNER + ETH_LEN, work)?;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, VXLAN_OVERHEAD as i32) } != 0 {
        return Err(Reason::TunnelRefused);
    }
    write(ctx, 0, hop.ethernet)?;
    Ok(Verdict::Done(send(ctx, hop.ifindex), Reason::XdpSentToClient))
}

/// Sends the packet out of an interface: back where it came from, or by another one.
#[inline(always)]
pub fn send(ctx: &XdpContext, ifindex: u32) -> i32 {
    if ifindex as usize == ctx.ingress_ifindex() {
        return xdp_action::XDP_TX as i32;
    }
    // SAFETY: a helper without preconditions.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Rewrites a packet with its IPv4 header, without options, at `offset`. A NIC has verified or
/// will verify whole checksums here, so they are updated in place.
#[inline(always)]
fn translate(ctx: &XdpContext, ip: &Ipv4, offset: usize, work: &Work) -> Result<(), Reason> {
    let Work { flow, entry, .. } = work;
    let key = &flow.key;
    let addresses = checksum::diff32(key.saddr.raw(), entry.saddr.raw())
        + checksum::diff32(key.daddr.raw(), entry.daddr.raw());
    let all = addresses
        + checksum::diff16(key.sport.raw(), entry.sport.raw())
        + checksum::diff16(key.dport.raw(), entry.dport.raw());
    transport(ctx, offset + IPV4_LEN, work, all)?;
    let mut header = *ip;
    header.checksum = Be16::from_raw(checksum::apply(ip.checksum.raw(), addresses));
    header.src = entry.saddr.octets();
    header.dst = entry.daddr.octets();
    write(ctx, offset, header)
}

/// Rewrites the ports of the transport header at `offset`, from those of `work.flow` to those of `work.entry`, and
/// brings its checksum up to date, in which the addresses and ports change by `difference`.
#[inline(always)]
pub fn transport(
    ctx: &XdpContext,
    offset: usize,
    work: &Work,
    difference: u64,
) -> Result<(), Reason> {
    let Work { flow, entry, .. } = work;
    let refused = Reason::Truncated;
    if flow.key.proto == PROTO_TCP {
        let old: Be16 = read(ctx, offset + TCP_CHECKSUM).ok_or(refused)?;
        let new = Be16::from_raw(checksum::apply(old.raw(), difference));
        write(ctx, offset + TCP_CHECKSUM, new)?;
    } else {
        let old: Be16 = read(ctx, offset + UDP_CHECKSUM).ok_or(refused)?;
        let new = Be16::from_raw(checksum::apply_udp(old.raw(), difference));
        write(ctx, offset + UDP_CHECKSUM, new)?;
    }
    write(ctx, offset, entry.sport)?;
    write(ctx, offset + 2, entry.dport)
}
