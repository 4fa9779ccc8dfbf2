//! IPv6 in XDP: TCP and UDP directly behind their IPv6 header, over an IPv4 underlay. Other
//! packets, and faulty ones, pass to TC, which counts the reason.

use core::mem::offset_of;

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD, hash,
    maps::{CachedNextHop, Config, Published, VNI_FLAG_IPV6},
    wire::{ETHERTYPE_IPV6, Ethernet, Ipv6, PROTO_TCP, PROTO_UDP, Udp},
};

use super::{XdpFamily, port_difference, rewrite_transport};
use crate::{
    family::{Family, V6},
    forward::route::{self, NextHop},
    maps::{
        addr6_id, config,
        endpoint::find6,
        work::{Area, PART_WHOLE, Work, area, scratch, work},
    },
    nat::rewrite6,
    outcome,
    packet::{
        ecn, flow6,
        frame::ETH_LEN,
        ipv6::{IPV6_LEN, check_ipv6},
        transport::{TCP_FLAGS, possible, tcp_flags},
        xdp_frame::{length, load_into, read, store},
    },
    service::{dsr, published},
    tunnel::{
        peers::check_peer,
        vxlan::{self, INNER},
    },
};

/// In place of a service's number, which is never zero: XDP does not handle the packet.
const PASS: u32 = 0;
/// XDP handles the packet.
const OURS: u32 = 1;

/// Offset of the transport header.
const TRANSPORT: usize = ETH_LEN + IPV6_LEN;
/// Offset of the transport header inside the tunnel.
const INNER_TRANSPORT: usize = INNER + TRANSPORT;

impl XdpFamily for V6 {
    const OWN_FUNCTIONS: bool = true;
    type Head = ();

    #[inline(always)]
    fn frontend_port(
        ctx: &XdpContext,
        _config: &Config,
        _head: (),
    ) -> Result<Option<((), Published, Area)>, Reason> {
        let service = outcome::unpack(is_to_published_packed(ctx.ctx))?;
        if service == PASS {
            return Ok(None);
        }
        let work = area()?;
        let target = work.ipv6.target;
        Ok(Some(((), Published { service, target, ..Published::default() }, work)))
    }

    #[inline(always)]
    fn inner_source(ip: &(), work: Area) -> Result<Mac, Reason> {
        Self::gateway_mac(ip, work)
    }

    #[inline(always)]
    fn resolve() -> Result<(), Reason> {
        rewrite6::resolve()
    }

    #[inline(always)]
    fn rewrite(ctx: &XdpContext, _ip: &(), offset: usize, work: Area) -> Result<(), Reason> {
        let ipv6 = &work.ipv6;
        let all = rewrite6::difference(&ipv6.ip.src, &ipv6.new[0])
            + rewrite6::difference(&ipv6.ip.dst, &ipv6.new[1])
            + port_difference(&work);
        rewrite_transport(ctx, offset + IPV6_LEN, &work, all)?;
        store(ctx, offset + offset_of!(Ipv6, src), &ipv6.new)
    }

    #[inline(always)]
    fn total_length(_ip: &(), work: Area) -> u32 {
        u32::from(work.ipv6.ip.payload_length.get()) + IPV6_LEN as u32
    }

    #[inline(always)]
    fn next_hop(
        ctx: &XdpContext,
        config: &Config,
        total: u32,
        work: Area,
    ) -> Result<NextHop, Reason> {
        let [from, to] = &work.ipv6.new;
        route::next_hop(ctx.ctx.cast(), config, (from, to), total)
    }

    #[inline(always)]
    fn write_headers(
        ctx: &XdpContext,
        config: &Config,
        hop: &CachedNextHop,
        _ip: &(),
        (source, length): (Mac, u32),
        work: Area,
    ) -> Result<(), Reason> {
        let backend = &work.backend;
        let key = &work.flow.key;
        let flow_hash = hash::of_flow(key.saddr, key.daddr, [key.sport, key.dport]);
        let [first, second, ..] = work.ipv6.ip.version_class_flow;
        let class = ecn::class(Be16::new(u16::from_be_bytes([first, second])));
        let ethertype = Be16::new(ETHERTYPE_IPV6);
        let inner = Ethernet { dst: backend.mac, src: source, ethertype };
        let inner = dsr::header6(&work, &work.ipv6.ip.dst, inner);
        let tunnel = (backend.vni, flow_hash, ecn::outer(class));
        let headers = &mut scratch()?.headers;
        *headers = vxlan::headers(config, hop.ethernet, backend.node, tunnel, (inner, length));
        store(ctx, 0, headers)
    }
}

/// The number of the service of the packet's published port. Leaves the backends' port and the flow
/// in the work area.
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
    let length = length(ctx);
    // TC handles aggregates (generic XDP) and packets that do not fit the tunnel.
    if length + VXLAN_OVERHEAD > config.underlay_mtu + ETH_LEN as u32 || !flow(ctx, TRANSPORT, work)
    {
        return Ok(PASS);
    }
    let key = &mut work.flow.key;
    key.vni = UNDERLAY_VNI | VNI_FLAG_IPV6;
    key.saddr = addr6_id::outside(&work.ipv6.ip.src, true);
    key.daddr = addr6_id::outside(&work.ipv6.ip.dst, true);
    if key.saddr == addr6_id::NONE || key.daddr == addr6_id::NONE {
        return Ok(PASS);
    }
    work.ipv6.target = published.target;
    Ok(published.service)
}

/// Whether there is an IPv6 header with TCP or UDP at `offset` whose length fits the frame. Leaves
/// the header in the work area.
#[inline(always)]
fn load(ctx: &XdpContext, offset: usize) -> Result<bool, Reason> {
    let ip = &mut work()?.ipv6.ip;
    let loaded = load_into(ctx, offset, ip);
    let available = length(ctx);
    Ok(loaded
        && matches!(ip.next_header, PROTO_TCP | PROTO_UDP)
        && available > offset as u32
        && check_ipv6(ip, available - offset as u32, false).is_ok())
}

/// Fills `work.flow` from the transport header at `offset`, without network and addresses. Returns
/// `false` for an impossible header.
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

/// Whether a tunnel packet of network `vni` from the node `sender` may be the reply of a flow that
/// this node translated. The flow is in the work area then.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn may_be_reply(ctx: &XdpContext, vni: u32, sender: Be32) -> Result<bool, Reason> {
    Ok(outcome::unpack(may_be_reply_packed(ctx.ctx, vni, sender))? == OURS)
}

#[inline(never)]
fn may_be_reply_packed(ctx: *mut xdp_md, vni: u32, sender: Be32) -> i64 {
    outcome::pack(find_reply(&XdpContext::new(ctx), vni, sender))
}

#[inline(always)]
fn find_reply(ctx: &XdpContext, vni: u32, sender: Be32) -> Result<u32, Reason> {
    let config = config().ok_or(Reason::NotConfigured)?;
    // TC handles aggregates (generic XDP).
    if length(ctx) > config.underlay_mtu + ETH_LEN as u32 || !load(ctx, INNER + ETH_LEN)? {
        return Ok(PASS);
    }
    let work = work()?;
    let to = work.ipv6.ip.dst;
    if to.is_link_local() || to.is_group() || find6(&mut work.ipv6, vni, to).is_some() {
        return Ok(PASS);
    }
    check_peer(sender)?;
    if !flow(ctx, INNER_TRANSPORT, work) {
        return Ok(PASS);
    }
    let key = &mut work.flow.key;
    key.vni = vni | VNI_FLAG_IPV6;
    key.saddr = addr6_id::of(vni, &work.ipv6.ip.src, false, &mut work.ipv6.key);
    key.daddr = addr6_id::of(vni, &to, false, &mut work.ipv6.key);
    let is_named = key.saddr != addr6_id::NONE && key.daddr != addr6_id::NONE;
    Ok(if is_named { OURS } else { PASS })
}
