//! Tunnel packets of translated flows: from clients outside whose flow another node has translated,
//! and replies of flows that this node translated.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be16, Be32, Mac, Reason, UNDERLAY_VNI,
    maps::{CONNTRACK_REPLY, ENDPOINT_FLAG_PUBLISHED, Endpoint, VNI_FLAG_IPV6},
    wire::Ethernet,
};

use crate::{
    family::Family,
    forward::deliver::deliver_as,
    maps::{
        BACKENDS, NETWORKS, lookup,
        work::{Area, area},
    },
    outcome::{Outcome, Stop, Verdict},
    packet::frame::{ETH_LEN, has_vlan_tag},
    service::{conntrack, reverse, stats},
    tunnel::{encap, peers::check_peer},
};

/// The outcome of a tunnel packet.
pub type Way = Result<Verdict, Stop>;

/// A checked tunnel packet.
pub struct Inner<'a, F: Family> {
    /// The packet.
    pub ctx: &'a TcContext,
    /// Its network.
    pub vni: u32,
    /// VTEP of the node that sent it.
    pub sender: Be32,
    /// Bytes of outer headers in front of it; 0 if the kernel's device has removed them.
    pub outer: usize,
    /// Its IP header.
    pub ip: F::Header,
}

impl<F: Family> Inner<'_, F> {
    /// Fills the flow of the work area.
    ///
    /// # Errors
    /// Those of [`Family::flow`].
    #[inline(always)]
    pub fn flow(&self, work: Area) -> Result<(), Reason> {
        F::flow(self.ctx, &self.ip, self.outer + ETH_LEN, self.vni, work)
    }

    /// Removes the outer headers, if there are any. `leaves` says that the packet then leaves the
    /// host.
    ///
    /// # Errors
    /// Those of [`Family::pop`].
    #[inline(always)]
    pub fn pop(&self, leaves: bool) -> Result<(), Stop> {
        if self.outer == 0 { Ok(()) } else { F::pop(self.ctx, &self.ip, self.outer, leaves) }
    }

    /// Whether the frame has a VLAN tag. Frames with a tag under outer headers go to the kernel's
    /// device, so a tag is seen without outer headers only.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        self.outer == 0 && has_vlan_tag(self.ctx)
    }

    /// Rejects a frame with a VLAN tag where tags have no meaning.
    ///
    /// # Errors
    /// [`Reason::UnsupportedProtocol`] for a frame with a tag.
    #[inline(always)]
    fn reject_tag(&self) -> Result<(), Reason> {
        if self.is_tagged() { Err(Reason::UnsupportedProtocol) } else { Ok(()) }
    }

    /// Whether the packet is the reply of a flow that this node translated; its entry is in the
    /// work area then.
    #[inline(always)]
    pub fn is_reply(&self, mut work: Area) -> bool {
        if self.flow(work).is_err() {
            return false;
        }
        let work = &mut *work;
        conntrack::find(&work.flow, &mut work.entry) == CONNTRACK_REPLY
    }

    /// Offset of the transport header after the removal of the outer headers.
    #[inline(always)]
    fn transport(&self, work: Area) -> usize {
        usize::from(work.flow.transport) - self.outer
    }
}

/// Handles a packet of a client outside, whose flow another node has translated. Records the
/// reverse path and delivers the packet to `endpoint` of this node, with the gateway's MAC as
/// source.
#[inline(always)]
pub fn from_outside<F: Family>(inner: &Inner<'_, F>, endpoint: &Endpoint) -> Way {
    check_peer(inner.sender)?;
    inner.reject_tag()?;
    let network = lookup(&NETWORKS, &inner.vni).ok_or(Reason::NoEndpoint)?;
    if F::is_in_subnet(&inner.ip, &network, endpoint)? {
        return Err(Reason::SpoofedInnerSource.into());
    }
    if endpoint.flags & ENDPOINT_FLAG_PUBLISHED == 0 {
        return Err(Reason::NotPublished.into());
    }
    let mut work = area()?;
    F::flow_from_outside(inner.ctx, &inner.ip, inner.outer + ETH_LEN, inner.vni, work)?;
    let frontend = F::dsr_frontend(inner.ctx, inner.outer)?;
    let translate = {
        let work = &mut *work;
        reverse::note_reverse(&work.flow, inner.sender, frontend, &mut work.entry)?
    };
    F::keep_reverse(work);
    inner.pop(false)?;
    if translate {
        F::translate(inner.ctx, &inner.ip, inner.transport(work), work)?;
    }
    let from = Mac::of_ip(network.gateway);
    Ok(deliver_as(F::ETHERTYPE, inner.ctx, endpoint, from, Reason::Decapsulated)?)
}

/// Handles a packet to an address that no endpoint has: a backend's reply of a flow that this node
/// translated, to a client outside or to a container of this node that sent to a port of this host.
#[inline(always)]
pub fn to_client<F: Family>(inner: &Inner<'_, F>) -> Way {
    check_peer(inner.sender)?;
    inner.reject_tag()?;
    let work = area()?;
    if !inner.is_reply(work) {
        return Err(Reason::NoEndpoint.into());
    }
    conntrack::check_backend(&work.entry, inner.sender)?;
    reply(inner, work)
}

/// Pops the tunnel headers of a reply, translates it back and sends it to the client.
#[inline(always)]
pub fn reply<F: Family>(inner: &Inner<'_, F>, work: Area) -> Way {
    let Inner { ctx, ip, .. } = inner;
    let vni = work.entry.vni & !VNI_FLAG_IPV6;
    inner.pop(vni == UNDERLAY_VNI)?;
    let transport = inner.transport(work);
    stats::reply(&work, ctx.len());
    F::translate(ctx, ip, transport, work)?;
    if vni == UNDERLAY_VNI {
        return match F::route_egress(ctx, work) {
            Err(Reason::TooBig) => Ok(notify_backend(inner, transport, work)?),
            sent => Ok(sent?),
        };
    }
    let client = F::local_client(work, vni)?;
    let from = Mac::of_ip(work.entry.saddr);
    Ok(deliver_as(F::ETHERTYPE, ctx, &client, from, Reason::Decapsulated)?)
}

/// Tells a backend on another node that its reply does not fit the path to the client outside. The
/// reply is translated as in the work area. The ICMP error comes from the frontend's address, as
/// from a router.
#[inline(always)]
fn notify_backend<F: Family>(inner: &Inner<'_, F>, transport: usize, mut work: Area) -> Outcome {
    let Inner { ctx, vni, .. } = inner;
    let mtu = F::egress_mtu(ctx, work)?;
    work.backend = lookup(&BACKENDS, &work.entry.backend).ok_or(Reason::BackendGone)?;
    // Calls in sequence, not in a function of their own: they share the stack.
    F::too_big_to_backend(ctx, transport, mtu, work)?;
    let ethertype = Be16::new(F::ETHERTYPE);
    let frame = Ethernet { dst: work.backend.mac, src: Mac::default(), ethertype };
    Ok(encap::encapsulate(ctx, *vni, work.backend.node, &frame)?.because(Reason::TooBigAnswered))
}
