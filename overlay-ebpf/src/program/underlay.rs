//! `from_underlay`: what the host's NIC receives. Tunnel packets are checked, popped and delivered;
//! published ports are balanced; the rest is the host's. `from_vxlan`: what the kernel's vxlan device
//! has popped.

use core::mem::offset_of;

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use overlay_common::{
    Asked, BRIDGE_VNI, Be16, Be32, Mac, Reason, UNDERLAY_VNI, VXLAN_OVERHEAD,
    maps::{
        CALL_HOST, CONNTRACK_FORWARD, CONNTRACK_REPLY, Config, Conntrack, ENDPOINT_FLAG_BACKEND,
        ENDPOINT_FLAG_PUBLISHED, ENDPOINT_LOCAL, ENDPOINT_REMOTE, Endpoint, EndpointKey, PeerKey,
        Published,
    },
    wire::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, Ethernet, Ipv4, PROTO_TCP, PROTO_UDP, Udp,
        Vxlan,
    },
};

use crate::{
    answer::{
        icmp::{self, Router},
        reject,
    },
    forward::{back_out, deliver, deliver_backend, outside_mtu, route_out},
    maps::{
        BACKENDS, ENDPOINTS, LOCAL_ADDRS, NETWORKS, PEERS, cache, config, lookup,
        work::{Work, work},
    },
    nat,
    observe::Party,
    outcome::{self, Outcome, Verdict},
    packet::{
        ecn,
        flow::flow,
        fragment,
        frame::{ETH_LEN, has_vlan_tag, is_gso, load, load_at, pull},
        ipv4::{IPV4_LEN, check_ipv4, is_icmp},
        ipv6, related,
    },
    program::underlay6,
    service::{conntrack, dsr, published, reverse, route, snat, stats},
    tunnel::{
        fallback, head_end, peers, underlay,
        vxlan::{self, INNER},
        vxlan6::{self, INNER6},
    },
};

/// Headers of a frame that are read directly: Ethernet, IPv4 and TCP.
pub const HEADERS: u32 = 54;

/// A checked tunnel packet, with `OUTER` bytes of outer headers in front: [`INNER`], or none where
/// the kernel's device has removed them.
struct Inner<'a, const OUTER: usize> {
    ctx: &'a TcContext,
    vni: u32,
    /// VTEP of the node it came from.
    sender: Be32,
    ip: Ipv4,
}

impl<const OUTER: usize> Inner<'_, OUTER> {
    /// Fills `work.flow`.
    #[inline(always)]
    fn flow(&self, work: &mut Work) -> Result<(), Reason> {
        flow(self.ctx, &self.ip, OUTER + ETH_LEN, self.vni, &mut work.flow)
    }

    /// Removes the outer headers, if there are any. `leaves` says that the packet goes out of the
    /// host.
    ///
    /// # Errors
    /// [`Reason::TunnelRefused`] when it is for the kernel's device to do that.
    #[inline(always)]
    fn pop(&self, leaves: bool) -> Result<(), Reason> {
        if OUTER == 0 {
            return Ok(());
        }
        let config = config().ok_or(Reason::NotConfigured)?;
        // Where the kernel cannot be told, an aggregate keeps the mark of a tunnel that it is no
        // longer in. A TCP socket does not mind. Cutting datagrams apart for a UDP socket fails by
        // it (seen on Linux 6.18), and a NIC might.
        let may_keep_mark = self.ip.protocol == PROTO_TCP && !leaves;
        if config.decap_flags == 0 && is_gso(self.ctx) && !may_keep_mark {
            return Err(Reason::TunnelRefused);
        }
        if OUTER == INNER6 {
            // As in front of IPv6 on an IPv4 underlay: the kernel finds out too late.
            ipv6::refuse_aggregate(self.ctx, self.ip.protocol, config.decap_flags)?;
            return vxlan6::remove(self.ctx, ETHERTYPE_IPV4, config.decap_flags);
        }
        vxlan::remove(self.ctx, config.decap_flags)
    }

    /// What the frame says of the address and port that were asked: [`Asked::bits`].
    #[inline(always)]
    fn asked(&self) -> Result<u64, Reason> {
        let ethernet: Ethernet = load(self.ctx, OUTER)?;
        Ok(Asked::bits(&ethernet))
    }

    /// Whether the frame has a VLAN tag. Under outer headers none is seen: those that say so are left
    /// to the kernel's device.
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        OUTER == 0 && has_vlan_tag(self.ctx)
    }

    /// As [`refuse_vlan_tag`].
    ///
    /// # Errors
    /// [`Reason::UnsupportedProtocol`] when the frame has one.
    #[inline(always)]
    fn refuse_tag(&self) -> Result<(), Reason> {
        if self.is_tagged() { Err(Reason::UnsupportedProtocol) } else { Ok(()) }
    }
}

/// What the NIC receives.
#[inline(always)]
pub fn receive(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, VXLAN_OVERHEAD + HEADERS);
    let (Some((ip, udp)), Some(config)) = (outer_headers(ctx), config()) else {
        return not_ipv4(ctx);
    };
    if is_tunnel(config, &ip, &udp) {
        return from_tunnel(ctx, config, &ip, receiver);
    }
    to_host(ctx, config, &ip, &udp)
}

/// What an interface receives that is not the underlay's.
#[inline(always)]
pub fn receive_outside(ctx: &TcContext) -> Outcome {
    // As much as the packet that an ICMP error quotes needs.
    pull(ctx, VXLAN_OVERHEAD + HEADERS);
    let Some(config) = config() else {
        return Ok(Verdict::Pass);
    };
    if has_vlan_tag(ctx) {
        // The VLAN's own interface sees it again, without the tag.
        return Ok(Verdict::Pass);
    }
    let is_to_vtep = if underlay::is_ipv6() {
        underlay6::is_to_vtep(ctx, config)
    } else {
        is_to_vtep(ctx, config)
    };
    if is_to_vtep {
        return Err(Reason::NotPeer);
    }
    match outer_headers(ctx) {
        Some((ip, udp)) => to_host(ctx, config, &ip, &udp),
        None => not_ipv4(ctx),
    }
}

/// What is not IPv4, or has options: the host's, but for IPv6 to published ports.
#[inline(always)]
fn not_ipv4(ctx: &TcContext) -> Outcome {
    if load::<Ethernet>(ctx, 0).is_ok_and(|e| e.ethertype.get() == ETHERTYPE_IPV6) {
        // Where there is none to go on with, the host is not cut off.
        let _ = ipv6::go_on(ctx, CALL_HOST);
    }
    Ok(Verdict::Pass)
}

/// Whether the packet is, or begins, what the kernel's vxlan device would take for a tunnel packet:
/// only the underlay is trusted with the nodes' addresses.
#[inline(always)]
fn is_to_vtep(ctx: &TcContext, config: &Config) -> bool {
    let (Ok(ethernet), Ok(ip)) = (load::<Ethernet>(ctx, 0), load::<Ipv4>(ctx, ETH_LEN)) else {
        return false;
    };
    if ethernet.ethertype.get() != ETHERTYPE_IPV4
        || ip.protocol != PROTO_UDP
        || ip.is_later_fragment()
    {
        return false;
    }
    let udp = load_at::<Udp>(ctx, ETH_LEN + usize::from(ip.version_ihl & 0xf) * 4);
    // The device listens on all of the host's addresses.
    udp.is_ok_and(|udp| udp.dest == config.vxlan_port)
        && (ip.daddr() == config.vtep || lookup(&LOCAL_ADDRS, &ip.daddr()).is_some())
}

/// To an address of the host, as far as we can tell.
#[inline(always)]
pub fn to_host(ctx: &TcContext, config: &Config, ip: &Ipv4, udp: &Udp) -> Outcome {
    // As above.
    if has_vlan_tag(ctx) {
        return Ok(Verdict::Pass);
    }
    if let Some(outcome) = snat::receive(ctx, config, ip, udp) {
        return outcome;
    }
    if is_icmp(ip) {
        return error_to_host(ctx, ip);
    }
    // TCP, UDP and SCTP start with the two ports.
    match published::find_on_host(ip, udp.dest) {
        Some(published) => to_published(ctx, ip, &published),
        None => Ok(Verdict::Pass),
    }
}

/// ICMP to an address of the host: errors about what a backend has sent to a client outside are the backend's.
#[inline(always)]
fn error_to_host(ctx: &TcContext, ip: &Ipv4) -> Outcome {
    let work = work()?;
    if related::flow(ctx, ETH_LEN, UNDERLAY_VNI, &mut work.flow).is_err()
        || conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_FORWARD
    {
        return Ok(Verdict::Pass);
    }
    // Its flow has a backend, or had one: nothing is looked up of what is published.
    to_published(ctx, ip, &Published::default())
}

/// What the kernel's vxlan device receives, without the outer headers. Nothing of it is the host's.
#[inline(always)]
pub fn receive_inner(ctx: &TcContext, receiver: &mut Party) -> Outcome {
    pull(ctx, HEADERS);
    let (vni, sender) = fallback::origin(ctx)?;
    check_peer(sender)?;
    receiver.vni = vni_of(&Vxlan::new(vni))?;
    // The device has combined the marks of RFC 6040.
    match accept::<0>(ctx, sender, 0, receiver) {
        Err(reason) => Err(peers::judge(receiver.vni, sender, reason)),
        outcome => outcome,
    }
}

/// IPv4 without options and the first eight bytes behind it, of a later fragment those of its first one;
/// what is anything else is the host's.
#[inline(always)]
pub fn outer_headers(ctx: &TcContext) -> Option<(Ipv4, Udp)> {
    let ethernet: Ethernet = load(ctx, 0).ok()?;
    if ethernet.ethertype.get() != ETHERTYPE_IPV4 {
        return None;
    }
    let ip: Ipv4 = load(ctx, ETH_LEN).ok()?;
    if ip.version_ihl != 0x45 {
        return None;
    }
    if ip.is_later_fragment() {
        // Known of packets that went to a port of ours.
        return Some((ip, fragment::head(ctx, ETH_LEN, UNDERLAY_VNI).ok()?));
    }
    Some((ip, load(ctx, ETH_LEN + IPV4_LEN).ok()?))
}

/// Whether the packet is VXLAN to this node. What is not seen as that here (fragments, headers with
/// options) comes back from the kernel's vxlan device.
#[inline(always)]
pub fn is_tunnel(config: &Config, ip: &Ipv4, udp: &Udp) -> bool {
    !underlay::is_ipv6()
        && ip.protocol == PROTO_UDP
        && udp.dest == config.vxlan_port
        && ip.daddr() == config.vtep
        && !ip.is_fragment()
}

/// A client outside asked a port of the host.
#[inline(always)]
fn to_published(ctx: &TcContext, ip: &Ipv4, published: &Published) -> Outcome {
    check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))?;
    let work = work()?;
    flow(ctx, ip, ETH_LEN, UNDERLAY_VNI, &mut work.flow)?;
    if let Err(reason) = route::route(work, published.service, published.target, (ctx.len(), 0)) {
        return reject::answer(ctx, work, reason);
    }
    let gateway = gateway_mac(ip, work.backend.vni)?;
    stats::asked(work, ctx.len());
    nat::translate(ctx, ip, ETH_LEN + IPV4_LEN, work)?;
    let backend = &work.backend;
    if backend.node == Be32::ZERO {
        return deliver_backend(ctx, backend, gateway);
    }
    let ethertype = Be16::new(ETHERTYPE_IPV4);
    let inner = Ethernet { dst: backend.mac, src: gateway, ethertype };
    let inner = dsr::header(work, inner);
    match vxlan::encapsulate(ctx, backend.vni, backend.node, &inner) {
        Err(Reason::TooBig) => {
            let mtu = vxlan::inner_mtu(ctx, backend.node)?;
            outcome::unpack(too_big_packed(ctx.skb.skb, mtu))?;
            Ok(back_out(ctx, Reason::TooBigAnswered))
        }
        sent => sent,
    }
}

/// Answers a client outside whose packet, translated as the work area has it, a path of `mtu` bytes
/// does not take: from the address that it asked.
#[inline(never)]
fn too_big_packed(skb: *mut __sk_buff, mtu: u32) -> i64 {
    let ctx = TcContext::new(skb);
    outcome::pack(answer_too_big(&ctx, mtu).map(|()| 0))
}

#[inline(always)]
fn answer_too_big(ctx: &TcContext, mtu: u32) -> Result<(), Reason> {
    let work = work()?;
    let asked = work.flow.key.daddr;
    nat::undo(ctx, usize::from(work.flow.transport), work)?;
    let ethernet: Ethernet = load(ctx, 0)?;
    icmp::too_big(ctx, &Router { ip: asked, mac: ethernet.dst }, mtu)
}

/// The MAC that a client's packets come from: the gateway's, where the network is known here. Where
/// it is not, the backend is elsewhere and its node makes the same check and has the MAC.
///
/// # Errors
/// [`Reason::SpoofedInnerSource`] when a packet from outside says it is from inside.
#[inline(always)]
fn gateway_mac(ip: &Ipv4, vni: u32) -> Result<Mac, Reason> {
    match lookup(&NETWORKS, &vni) {
        Some(network) if network.contains(ip.saddr()) => Err(Reason::SpoofedInnerSource),
        Some(network) => Ok(Mac::of_ip(network.gateway)),
        None => Ok(Mac::default()),
    }
}

/// The VNI of a tunnel packet.
///
/// # Errors
/// [`Reason::InvalidVni`].
#[inline(always)]
pub fn vni_of(vxlan: &Vxlan) -> Result<u32, Reason> {
    match vxlan.vni() {
        None | Some(UNDERLAY_VNI | BRIDGE_VNI) => Err(Reason::InvalidVni),
        Some(vni) => Ok(vni),
    }
}

/// Whether `sender` is a node of the cluster.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_peer(sender: Be32) -> Result<(), Reason> {
    let peer = PeerKey { vni: UNDERLAY_VNI, node: sender };
    lookup(&PEERS, &peer).map(|_| ()).ok_or(Reason::NotPeer)
}

/// Whether `sender` can be another node at all: what is on it is then proof enough that it is one.
///
/// # Errors
/// [`Reason::NotPeer`].
#[inline(always)]
pub fn check_other(config: &Config, sender: Be32) -> Result<(), Reason> {
    if sender == Be32::ZERO || sender == config.vtep { Err(Reason::NotPeer) } else { Ok(()) }
}

/// Most packets are from an endpoint on the node that they come from, so that one look-up says both
/// whose they are and that their node is of the cluster; only the rest are looked up in `peers`.
#[inline(always)]
fn from_tunnel(ctx: &TcContext, config: &Config, outer: &Ipv4, receiver: &mut Party) -> Outcome {
    let sender = outer.saddr();
    check_other(config, sender)?;
    let reason = match under_headers(ctx, sender, outer.tos, receiver) {
        Err(reason) => reason,
        outcome => return outcome,
    };
    // What a stranger sends is dropped as that, whatever else is wrong with it.
    if let Err(stranger) = check_peer(sender) {
        *receiver = Party::receiver();
        return Err(stranger);
    }
    // Nobody says so after anything else has changed the packet.
    if reason == Reason::TunnelRefused {
        return fallback::leave(ctx);
    }
    Err(peers::judge(receiver.vni, sender, reason))
}

/// A packet with the outer headers in front. [`Reason::TunnelRefused`] leaves it to the kernel's
/// device.
#[inline(always)]
fn under_headers(ctx: &TcContext, sender: Be32, outer_tos: u8, receiver: &mut Party) -> Outcome {
    let vxlan: Vxlan = load(ctx, ETH_LEN + IPV4_LEN + size_of::<Udp>())?;
    receiver.vni = vni_of(&vxlan)?;
    let ethertype: Be16 = load(ctx, INNER + offset_of!(Ethernet, ethertype))?;
    if ethertype.get() == ETHERTYPE_VLAN {
        return Err(Reason::TunnelRefused);
    }
    accept::<INNER>(ctx, sender, outer_tos, receiver)
}

/// A frame of network `receiver.vni` from node `sender`, under an outer TOS byte.
#[inline(always)]
pub fn accept<const OUTER: usize>(
    ctx: &TcContext,
    sender: Be32,
    outer_tos: u8,
    receiver: &mut Party,
) -> Outcome {
    let vni = receiver.vni;
    let ethernet: Ethernet = load(ctx, OUTER)?;
    match ethernet.ethertype.get() {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => return ipv6::from_tunnel::<OUTER>(ctx, (sender, outer_tos), receiver),
        _ => return Err(Reason::UnsupportedProtocol),
    }
    let mut ip: Ipv4 = load(ctx, OUTER + ETH_LEN)?;
    check_ipv4(&ip, ctx.len() - (OUTER + ETH_LEN) as u32, is_gso(ctx))?;
    ecn::combine(ctx, outer_tos, &mut ip, OUTER + ETH_LEN)?;
    let inner = Inner::<OUTER> { ctx, vni, sender, ip };
    match cache::endpoint(&EndpointKey { vni, ip: ip.daddr() }) {
        Some(endpoint) if endpoint.kind == ENDPOINT_LOCAL => {
            receiver.slot = endpoint.slot;
            to_local(&inner, &endpoint)
        }
        _ if ethernet.dst.is_group() => {
            let source = head_end::source(&PeerKey { vni, node: sender }, &ethernet, &ip)?;
            inner.pop(false)?;
            head_end::receive(ctx, vni, &Ethernet { src: source, ..ethernet })
        }
        _ => to_client(&inner),
    }
}

/// To an endpoint of this node: from another endpoint of the network, or from a client outside
/// whose flow another node has translated.
#[inline(always)]
fn to_local<const OUTER: usize>(inner: &Inner<'_, OUTER>, endpoint: &Endpoint) -> Outcome {
    let Inner { ctx, vni, sender, ip } = inner;
    let source = match cache::endpoint(&EndpointKey { vni: *vni, ip: ip.saddr() }) {
        Some(from) => {
            if from.kind != ENDPOINT_REMOTE || from.node != *sender {
                return Err(Reason::SpoofedInnerSource);
            }
            if from.flags & ENDPOINT_FLAG_BACKEND != 0 && !inner.is_tagged() {
                let work = work()?;
                if inner.flow(work).is_ok()
                    && conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
                {
                    return reply(inner, work);
                }
            }
            from.mac
        }
        None => return from_outside(inner, endpoint),
    };
    inner.pop(false)?;
    deliver(ctx, endpoint, source, Reason::Decapsulated)
}

/// From a client outside, whose flow another node has translated: notes the way back, and delivers
/// with the gateway's MAC.
#[inline(always)]
fn from_outside<const OUTER: usize>(inner: &Inner<'_, OUTER>, endpoint: &Endpoint) -> Outcome {
    check_peer(inner.sender)?;
    inner.refuse_tag()?;
    let network = lookup(&NETWORKS, &inner.vni).ok_or(Reason::NoEndpoint)?;
    if network.contains(inner.ip.saddr()) {
        return Err(Reason::SpoofedInnerSource);
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished);
    }
    let work = work()?;
    inner.flow(work)?;
    let asked = inner.asked()?;
    let translate = reverse::note_return(&work.flow, inner.sender, asked, &mut work.entry)?;
    inner.pop(false)?;
    if translate {
        nat::translate(inner.ctx, &inner.ip, usize::from(work.flow.transport) - OUTER, work)?;
    }
    deliver(inner.ctx, endpoint, Mac::of_ip(network.gateway), Reason::Decapsulated)
}

/// A backend's reply for a flow that was translated here: to a client outside or to the host.
#[inline(always)]
fn to_client<const OUTER: usize>(inner: &Inner<'_, OUTER>) -> Outcome {
    check_peer(inner.sender)?;
    inner.refuse_tag()?;
    let work = work()?;
    if inner.flow(work).is_err() || conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_REPLY
    {
        return Err(Reason::NoEndpoint);
    }
    check_backend(&work.entry, inner.sender)?;
    reply(inner, work)
}

/// Whether a reply comes from the node that its backend is on.
///
/// # Errors
/// [`Reason::BackendGone`] and [`Reason::SpoofedInnerSource`].
#[inline(always)]
pub fn check_backend(entry: &Conntrack, sender: Be32) -> Result<(), Reason> {
    let backend = lookup(&BACKENDS, &entry.backend).ok_or(Reason::BackendGone)?;
    if backend.node == sender { Ok(()) } else { Err(Reason::SpoofedInnerSource) }
}

/// Pops the tunnel headers of a reply, translates it back and sends it to the client.
#[inline(always)]
fn reply<const OUTER: usize>(inner: &Inner<'_, OUTER>, work: &mut Work) -> Outcome {
    let Inner { ctx, ip, .. } = inner;
    inner.pop(work.entry.vni == UNDERLAY_VNI)?;
    let transport = usize::from(work.flow.transport) - OUTER;
    stats::answered(work, ctx.len());
    nat::translate(ctx, ip, transport, work)?;
    let entry = &work.entry;
    if entry.vni == UNDERLAY_VNI {
        return match route_out(ctx, entry.saddr, entry.daddr) {
            Err(Reason::TooBig) => tell_backend(ctx, transport, work),
            sent => sent,
        };
    }
    let client = lookup(&ENDPOINTS, &EndpointKey { vni: entry.vni, ip: entry.daddr })
        .ok_or(Reason::NoEndpoint)?;
    if client.kind != ENDPOINT_LOCAL {
        return Err(Reason::NoEndpoint);
    }
    deliver(ctx, &client, Mac::of_ip(entry.saddr), Reason::Decapsulated)
}

/// Tells a backend elsewhere what fits the way to its client outside, whose reply is translated as the work
/// area has it: in the name of the address that the client asked, as a router on that way would.
#[inline(always)]
fn tell_backend(ctx: &TcContext, transport: usize, work: &mut Work) -> Outcome {
    let (asked, client) = (work.entry.saddr, work.entry.daddr);
    let mtu = outside_mtu(ctx, asked, client)?;
    work.backend = lookup(&BACKENDS, &work.entry.backend).ok_or(Reason::BackendGone)?;
    // One call after the other and not in a function of their own: they share the stack.
    nat::undo(ctx, transport, work)?;
    icmp::too_big(ctx, &Router { ip: asked, mac: Mac::default() }, mtu)?;
    let Work { flow, backend, .. } = work;
    let ethertype = Be16::new(ETHERTYPE_IPV4);
    let inner = Ethernet { dst: backend.mac, src: Mac::default(), ethertype };
    match vxlan::encapsulate(ctx, flow.key.vni, backend.node, &inner)? {
        Verdict::Done(action, _) => Ok(Verdict::Done(action, Reason::TooBigAnswered)),
        other => Ok(other),
    }
}
