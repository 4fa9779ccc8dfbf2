//! IPv6 in `xdp_underlay`: the way of published-port traffic through a node that has no backend itself, as `program::xdp`
//! has it for IPv4. TCP and UDP right behind their IPv6 header, over an IPv4 underlay. What is anything else, or
//! wrong with it, passes to `from_underlay`, which says so.
//!
//! Both ways are two functions with the look-up of the flow between them, one after the other from the entry
//! point: what they call has used their part of the stack only while they run.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_load_bytes, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use overlay_common::{
    Be16, Be32, Plain, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD, checksum, hash,
    maps::{Backend, CONNTRACK_REPLY, IPV6_SIDE},
    wire::{ETHERTYPE_IPV6, Ethernet, Ipv6, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::{
    forward::route6::next_hop_from,
    maps::{
        addr6_id, config,
        work::{PART_WHOLE, Work, scratch, work},
    },
    nat::rewrite6,
    outcome::{self, Outcome, Verdict},
    packet::{
        ecn, flow6,
        frame::ETH_LEN,
        ipv6::{IPV6_LEN, NOBODY, check_ipv6, find},
        transport::{TCP_FLAGS, possible, tcp_flags},
    },
    program::{
        host6::gateway_mac,
        underlay::{check_backend, check_peer},
        xdp::{read, send, transport, write},
    },
    service::{conntrack, dsr, published, route, stats},
    tunnel::{
        next_hop, underlay,
        vxlan::{self, INNER},
    },
};

/// In place of a service's number, none of which is zero, and beside "1": the packet is not for XDP.
const PASS: u32 = 0;
/// The packet is one for XDP.
const OURS: u32 = 1;

/// Offset of the transport header.
const TRANSPORT: usize = ETH_LEN + IPV6_LEN;
/// The same inside the tunnel.
const INNER_TRANSPORT: usize = INNER + TRANSPORT;

/// A packet to the host, which may be a client outside that asks a published port.
#[inline(always)]
pub fn receive(ctx: &XdpContext) -> Outcome {
    // On an IPv6 underlay both ways are TC's.
    if underlay::is_ipv6() {
        return Ok(Verdict::Pass);
    }
    let number = outcome::unpack(is_to_published_packed(ctx.ctx))?;
    if number == PASS {
        return Ok(Verdict::Pass);
    }
    let work = work()?;
    let (length, target) = ((ctx.data_end() - ctx.data()) as u32, work.ipv6.target);
    match route::route(work, number, target, (length, 0)) {
        // The answer is TC's to give.
        Err(Reason::NoBackend | Reason::BackendGone) => return Ok(Verdict::Pass),
        routed => routed?,
    }
    let action = outcome::unpack(to_backend_packed(ctx.ctx))?;
    Ok(verdict(action, Reason::XdpEncapsulated))
}

/// An action that is a function's result.
#[inline(always)]
fn verdict(action: u32, reason: Reason) -> Verdict {
    if action == xdp_action::XDP_PASS {
        Verdict::Pass
    } else {
        Verdict::Done(action as i32, reason)
    }
}

/// A tunnel packet with IPv6 in it, of network `vni` from the node `sender`: the reply of a flow that was
/// translated here, or TC's.
#[inline(always)]
pub fn from_tunnel(ctx: &XdpContext, vni: u32, sender: Be32) -> Outcome {
    if outcome::unpack(may_be_reply_packed(ctx.ctx, vni, sender))? == PASS {
        return Ok(Verdict::Pass);
    }
    let work = work()?;
    if conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_REPLY
        || work.entry.vni & !IPV6_SIDE != UNDERLAY_VNI
    {
        return Ok(Verdict::Pass);
    }
    check_backend(&work.entry, sender)?;
    let action = outcome::unpack(to_client_packed(ctx.ctx))?;
    Ok(verdict(action, Reason::XdpSentToClient))
}

/// The number of the service that a packet asks, with its port in the work area, and the flow.
#[inline(never)]
fn is_to_published_packed(ctx: *mut xdp_md) -> i64 {
    outcome::pack(is_to_published(&XdpContext::new(ctx)))
}

#[inline(always)]
fn is_to_published(ctx: &XdpContext) -> Result<u32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    if !load(ctx, ETH_LEN)? {
        return Ok(PASS);
    }
    let work = work()?;
    let ip = &work.ipv6.ip;
    let Some(ports) = read::<Udp>(ctx, TRANSPORT) else { return Ok(PASS) };
    let Some(published) = published::find_on_host6(&ip.dst, ip.next_header, ports.dest) else {
        return Ok(PASS);
    };
    let length = (ctx.data_end() - ctx.data()) as u32;
    // Aggregates (generic XDP) and packets that do not fit the tunnel are for TC.
    if length + VXLAN_OVERHEAD > config.underlay_mtu + ETH_LEN as u32 || !flow(ctx, TRANSPORT, work)
    {
        return Ok(PASS);
    }
    let key = &mut work.flow.key;
    key.vni = UNDERLAY_VNI | IPV6_SIDE;
    key.saddr = addr6_id::outside(&work.ipv6.ip.src, true);
    key.daddr = addr6_id::outside(&work.ipv6.ip.dst, true);
    if key.saddr == addr6_id::NOBODY || key.daddr == addr6_id::NOBODY {
        return Ok(PASS);
    }
    work.ipv6.target = published.target;
    Ok(published.service)
}

/// Whether there is an IPv6 header of TCP or UDP at `offset`, which is in the work area then, and that is as long
/// as the frame.
#[inline(always)]
fn load(ctx: &XdpContext, offset: usize) -> Result<bool, Reason> {
    let ip = &mut work()?.ipv6.ip;
    let length = size_of::<Ipv6>() as u32;
    // SAFETY: the memory is a whole header, for which any bit pattern is valid (Linux 5.18).
    let loaded =
        unsafe { bpf_xdp_load_bytes(ctx.ctx, offset as u32, (&raw mut *ip).cast(), length) } == 0;
    let available = (ctx.data_end() - ctx.data()) as u32;
    Ok(loaded
        && matches!(ip.next_header, PROTO_TCP | PROTO_UDP)
        && available > offset as u32
        && check_ipv6(ip, available - offset as u32, false).is_ok())
}

/// Fills `work.flow`, but for its network and addresses, by the transport header at `offset`. `false` when there is
/// none that can be.
#[inline(always)]
fn flow(ctx: &XdpContext, offset: usize, work: &mut Work) -> bool {
    let ip = &work.ipv6.ip;
    let is_tcp = ip.next_header == PROTO_TCP;
    let shortest = if is_tcp { 20 } else { size_of::<Udp>() as u16 };
    let Some(ports) = read::<Udp>(ctx, offset) else { return false };
    if ip.payload_length.get() < shortest {
        return false;
    }
    let mut flags = 0;
    if is_tcp {
        let Some(said) = read(ctx, offset + TCP_FLAGS) else { return false };
        match possible(tcp_flags(said)) {
            Ok(known) => flags = known,
            Err(_) => return false,
        }
    }
    work.ipv6.fragment = flow6::NO_FRAGMENT;
    let flow = &mut work.flow;
    flow.key.sport = ports.source;
    flow.key.dport = ports.dest;
    flow.key.proto = ip.next_header;
    flow.key.scope = [0; 3];
    flow.transport = offset as u16;
    flow.flags = flags;
    flow.part = PART_WHOLE;
    true
}

#[inline(never)]
fn to_backend_packed(ctx: *mut xdp_md) -> i64 {
    outcome::pack(to_backend(&XdpContext::new(ctx)).map(|action| action as u32))
}

/// Sends a packet of the flow in the work area to its backend, if that is elsewhere and the way there is known.
#[inline(always)]
fn to_backend(ctx: &XdpContext) -> Result<i32, Reason> {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    let config = config().ok_or(Reason::NotConfigured)?;
    let work = work()?;
    let Backend { vni, node, mac, ifindex, .. } = work.backend;
    if node == Be32::ZERO {
        return Ok(PASS);
    }
    let gateway = gateway_mac(vni, ifindex)?;
    let length = (ctx.data_end() - ctx.data()) as u32;
    let hop = match next_hop::to_node(
        ctx.ctx.cast(),
        config,
        node,
        length + VXLAN_OVERHEAD - ETH_LEN as u32,
    ) {
        // TC can wait for the neighbour and tell the client what fits, XDP cannot.
        Err(Reason::TooBig) => return Ok(PASS),
        hop => hop?,
    };
    if hop.resolved == 0 {
        return Ok(PASS);
    }
    addr6_id::keep_both(work);
    stats::asked(work, length);
    rewrite6::resolve()?;
    translate(ctx, ETH_LEN)?;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(VXLAN_OVERHEAD as i32)) } != 0 {
        return Err(Reason::TunnelRefused);
    }
    let key = &work.flow.key;
    let flow_hash = hash::of_flow(key.saddr, key.daddr, [key.sport, key.dport]);
    let [first, second, ..] = work.ipv6.ip.version_class_flow;
    let class = ecn::class(Be16::new(u16::from_be_bytes([first, second])));
    let inner = Ethernet { dst: mac, src: gateway, ethertype: Be16::new(ETHERTYPE_IPV6) };
    let inner = dsr::header6(work, &work.ipv6.ip.dst, inner);
    let tunnel = (vni, flow_hash, ecn::outer(class));
    let headers = &mut scratch()?.headers;
    *headers = vxlan::headers(config, hop.ethernet, node, tunnel, (inner, length));
    store(ctx, 0, headers)?;
    Ok(send(ctx, hop.ifindex))
}

/// Whether a tunnel packet may be the reply of a flow that was translated here; the flow is in the work area then.
#[inline(never)]
fn may_be_reply_packed(ctx: *mut xdp_md, vni: u32, sender: Be32) -> i64 {
    outcome::pack(may_be_reply(&XdpContext::new(ctx), vni, sender))
}

#[inline(always)]
fn may_be_reply(ctx: &XdpContext, vni: u32, sender: Be32) -> Result<u32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    let length = (ctx.data_end() - ctx.data()) as u32;
    // Aggregates (generic XDP) are for TC.
    if length > config.underlay_mtu + ETH_LEN as u32 || !load(ctx, INNER + ETH_LEN)? {
        return Ok(PASS);
    }
    let work = work()?;
    let to = work.ipv6.ip.dst;
    if to.is_link_local() || to.is_group() || find(&mut work.ipv6, vni, to) != NOBODY {
        return Ok(PASS);
    }
    check_peer(sender)?;
    if !flow(ctx, INNER_TRANSPORT, work) {
        return Ok(PASS);
    }
    let key = &mut work.flow.key;
    key.vni = vni | IPV6_SIDE;
    key.saddr = addr6_id::of(vni, &work.ipv6.ip.src, false, &mut work.ipv6.key);
    key.daddr = addr6_id::of(vni, &to, false, &mut work.ipv6.key);
    let is_named = key.saddr != addr6_id::NOBODY && key.daddr != addr6_id::NOBODY;
    Ok(if is_named { OURS } else { PASS })
}

#[inline(never)]
fn to_client_packed(ctx: *mut xdp_md) -> i64 {
    outcome::pack(to_client(&XdpContext::new(ctx)).map(|action| action as u32))
}

/// Sends a reply of the flow in the work area out of the tunnel to its client, if the way there is known.
#[inline(always)]
fn to_client(ctx: &XdpContext) -> Result<i32, Reason> {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    let config = config().ok_or(Reason::NotConfigured)?;
    rewrite6::resolve()?;
    let work = work()?;
    let total = u32::from(work.ipv6.ip.payload_length.get()) + IPV6_LEN as u32;
    let [from, to] = &work.ipv6.new;
    let hop = match next_hop_from(ctx.ctx.cast(), config, (from, to), total) {
        // TC can tell the backend what fits.
        Err(Reason::TooBig) => return Ok(PASS),
        hop => hop?,
    };
    if !hop.resolved {
        return Ok(PASS);
    }
    stats::answered(work, total + ETH_LEN as u32);
    translate(ctx, INNER + ETH_LEN)?;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, VXLAN_OVERHEAD as i32) } != 0 {
        return Err(Reason::TunnelRefused);
    }
    write(ctx, 0, hop.ethernet)?;
    Ok(send(ctx, hop.ifindex))
}

/// Rewrites the packet with its IPv6 header at `offset` and its transport header behind that, from the tuple of
/// `work.flow` to that of `work.entry` with the addresses in `work.ipv6.new`. A NIC has verified or will verify
/// whole checksums here, so they are updated in place.
#[inline(always)]
fn translate(ctx: &XdpContext, offset: usize) -> Result<(), Reason> {
    let work = work()?;
    let Work { flow, entry, ipv6, .. } = &*work;
    let key = &flow.key;
    let all = rewrite6::difference(&ipv6.ip.src, &ipv6.new[0])
        + rewrite6::difference(&ipv6.ip.dst, &ipv6.new[1])
        + checksum::diff16(key.sport.raw(), entry.sport.raw())
        + checksum::diff16(key.dport.raw(), entry.dport.raw());
    transport(ctx, offset + IPV6_LEN, work, all)?;
    store(ctx, offset + offset_of!(Ipv6, src), &ipv6.new)
}

/// Writes what is in memory of a map into the packet.
#[inline(always)]
fn store<T: Plain>(ctx: &XdpContext, offset: usize, value: &T) -> Result<(), Reason> {
    let from = (&raw const *value).cast_mut().cast();
    // SAFETY: the memory is a whole `T`, which the kernel only reads (Linux 5.18).
    match unsafe { bpf_xdp_store_bytes(ctx.ctx, offset as u32, from, size_of::<T>() as u32) } {
        0 => Ok(()),
        _ => Err(Reason::RewriteRefused),
    }
}
