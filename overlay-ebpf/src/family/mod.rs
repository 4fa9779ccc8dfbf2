//! What differs between IPv4 and IPv6. The decisions in [`crate::walk`] are written once, over a
//! [`Family`]; what is different in truth stands here: how a flow is read, how addresses are rewritten,
//! where a packet is routed, and who may be told what.

mod v4;
mod v6;
pub mod xdp;

use aya_ebpf::programs::TcContext;
use overlay_common::{
    Be32, Mac, Reason,
    maps::{Endpoint, Link, Network, Published},
    wire::Ethernet,
};
pub use v4::V4;
pub use v6::{V6, pop as v6_pop};

use crate::{
    maps::work::Area,
    outcome::{Outcome, Stop},
    packet::frame::ETH_LEN,
};

/// A packet from an endpoint, after the checks that hold for all of them.
pub struct Sent<'a, F: Family> {
    /// The packet.
    pub ctx: &'a TcContext,
    /// The interface that it came in by.
    pub link: Link,
    /// Its Ethernet header.
    pub ethernet: Ethernet,
    /// Its IP header.
    pub ip: F::Header,
}

impl<F: Family> Sent<'_, F> {
    /// Whether the endpoint has any of `flags` (`ENDPOINT_FLAG_*`).
    #[inline(always)]
    pub fn is_from(&self, flags: u8) -> bool {
        self.link.flags & u16::from(flags) != 0
    }

    /// Fills the flow of the work area.
    ///
    /// # Errors
    /// Those of [`Family::flow`].
    #[inline(always)]
    pub fn flow(&self, work: Area) -> Result<(), Reason> {
        F::flow(self.ctx, &self.ip, ETH_LEN, self.link.vni, work)
    }
}

/// Where a container's packet goes that is for no address of its network.
pub enum Outward {
    /// To a port that this host publishes.
    OwnPort(Published),
    /// Anywhere else. The action of the flow's entry, which is in the work area then; 0 without one.
    Elsewhere(u8),
}

/// An address family, as the programs of TC see it. Offsets are in bytes from the start of the frame, a
/// `transport` is the offset of the transport header; the IP header is right behind the first Ethernet
/// header unless an offset is given.
pub trait Family: Sized {
    /// The family's EtherType.
    const ETHERTYPE: u16;
    /// What a program holds of the packet's IP header beside the work area.
    type Header: Copy;
    /// An address as the packet has it.
    type Address: Copy;

    /// Fills the flow of the work area for a packet of network `vni` with its IP header at `offset`.
    ///
    /// # Errors
    /// [`Reason::ServiceProtocol`] for what is of no flow, and the reasons why it cannot be read.
    fn flow(
        ctx: &TcContext,
        ip: &Self::Header,
        offset: usize,
        vni: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// As [`Family::flow`], for a packet of a client outside, whose address may be new.
    ///
    /// # Errors
    /// Those of [`Family::flow`]; [`Reason::ConntrackFull`] when there is no room for the address.
    fn flow_from_outside(
        ctx: &TcContext,
        ip: &Self::Header,
        offset: usize,
        vni: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// What a container's packet that is for no address of its network is for.
    ///
    /// # Errors
    /// Those of [`Family::flow`]; [`Reason::NoWayOut`] for what may not leave.
    fn outward(packet: &Sent<'_, Self>, network: &Network, work: Area) -> Result<Outward, Reason>;

    /// Whether a container's packet to no endpoint is for an address of its network, as far as the program that looked
    /// it up has left that open.
    fn is_in_own_subnet(packet: &Sent<'_, Self>, network: &Network) -> bool;

    /// The IPv4 address of the backend that a TCP packet to no endpoint may once have been for.
    fn stale_backend(packet: &Sent<'_, Self>) -> Option<Be32>;

    /// As [`Family::reset`], for such a packet, of which no flow has been read.
    ///
    /// # Errors
    /// Those of [`Family::flow`] and [`Family::reset`].
    fn reset_stale(ctx: &TcContext) -> Result<bool, Reason>;

    /// Sends a container's packet, which is of no tracked service, out of the cluster's networks.
    fn leave(packet: &Sent<'_, Self>, network: &Network, work: Area, action: u8) -> Outcome;

    /// Answers an echo request to an address that the programs answer for; `None` when the packet cannot
    /// be one.
    fn echo(packet: &Sent<'_, Self>) -> Option<Outcome>;

    /// Rewrites the packet from the tuple of the work area's flow to that of its entry; of an ICMP error
    /// also the packet that it quotes.
    ///
    /// # Errors
    /// [`Reason::RewriteRefused`]; [`Reason::NoEndpoint`] when an address of the entry is no longer known.
    fn translate(
        ctx: &TcContext,
        ip: &Self::Header,
        transport: usize,
        work: Area,
    ) -> Result<(), Reason>;

    /// Takes a translation back: what an answer quotes to a sender must be what it sent.
    ///
    /// # Errors
    /// Those of [`Family::translate`].
    fn undo(ctx: &TcContext, transport: usize, work: Area) -> Result<(), Reason>;

    /// The endpoint of network `vni` that a translated packet is for.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] when it is not on this node.
    fn local_client(work: Area, vni: u32) -> Result<Endpoint, Reason>;

    /// Whether the packet's source is an address of network `vni`, as far as this node knows.
    fn is_inside(ip: &Self::Header, vni: u32, work: Area) -> bool;

    /// Whether the source is in the subnet of the network that `endpoint`, of this node, is on.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] when the endpoint has no address of the family.
    fn is_in_subnet(
        ip: &Self::Header,
        network: &Network,
        endpoint: &Endpoint,
    ) -> Result<bool, Reason>;

    /// The MAC that the packets of a client outside have on the network of the work area's backend: the
    /// gateway's, where the network is known here. Elsewhere the backend's node makes the same check and
    /// has the MAC.
    ///
    /// # Errors
    /// [`Reason::SpoofedInnerSource`] when a packet from outside says that it is from inside.
    fn gateway_mac(ip: &Self::Header, work: Area) -> Result<Mac, Reason>;

    /// Keeps the addresses of the flow in the work area with the flow, where both sides have spoken.
    fn keep(work: Area);

    /// As [`Family::keep`], on the backend's node, for a flow that another node has translated.
    fn keep_reverse(work: Area);

    /// The address that the packet asks for.
    fn frontend(work: Area) -> Self::Address;

    /// The Ethernet header of a client's packet inside the tunnel: `otherwise`, or with DSR one that says
    /// which address and port of this node the client asked.
    fn dsr_header(work: Area, frontend: &Self::Address, otherwise: Ethernet) -> Ethernet;

    /// What the Ethernet header at `outer` says of that: [`overlay_common::Frontend::bits`].
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    fn dsr_frontend(ctx: &TcContext, outer: usize) -> Result<u64, Reason>;

    /// Sends a backend's reply to its client in the name of the ingress node.
    ///
    /// # Errors
    /// [`Reason::NoRoute`] and [`Reason::TooBig`], with which the packet is as it was sent; those of
    /// [`Family::translate`].
    fn send_dsr(ctx: &TcContext, ip: &Self::Header, work: Area) -> Outcome;

    /// Routes a translated reply out of the host to its client.
    ///
    /// # Errors
    /// [`Reason::NoRoute`] and [`Reason::TooBig`].
    fn route_egress(ctx: &TcContext, work: Area) -> Outcome;

    /// MTU in bytes of the path on which [`Family::route_egress`] or [`Family::send_dsr`] said
    /// [`Reason::TooBig`].
    ///
    /// # Errors
    /// [`Reason::NoRoute`].
    fn egress_mtu(ctx: &TcContext, work: Area) -> Result<u32, Reason>;

    /// Makes of a TCP packet, which is as it came, the reset that answers it. `false` when it is not TCP.
    ///
    /// # Errors
    /// [`Reason::NoBackend`] for what gets no answer.
    fn reset(ctx: &TcContext) -> Result<bool, Reason>;

    /// Makes of a packet, which is as it came, the answer that no program listens on its port: a reset, or
    /// ICMP "port unreachable".
    ///
    /// # Errors
    /// [`Reason::NoBackend`] for what gets no answer; [`Reason::RewriteRefused`].
    fn answer_closed_port(ctx: &TcContext) -> Result<(), Reason>;

    /// Makes the answer "too big" of a container's packet of network `vni`, from its gateway; a path takes
    /// `mtu` bytes. `translated` says that the packet was rewritten as the work area has it.
    ///
    /// # Errors
    /// [`Reason::TooBig`] for what no sender may be told of.
    fn too_big_from_gateway(
        ctx: &TcContext,
        vni: u32,
        mtu: u32,
        translated: bool,
    ) -> Result<(), Reason>;

    /// Makes the answer "too big" of a client's packet, translated as the work area has it, from the
    /// address that the client asked.
    ///
    /// # Errors
    /// As [`Family::too_big_from_gateway`].
    fn too_big_from_frontend(
        ctx: &TcContext,
        frontend: &Self::Address,
        mtu: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// Makes the answer "too big" of a backend's reply, translated as the work area has it, in the name of
    /// the address that its client asked.
    ///
    /// # Errors
    /// As [`Family::too_big_from_gateway`].
    fn too_big_to_backend(
        ctx: &TcContext,
        transport: usize,
        mtu: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// Removes `outer` bytes of outer headers. `leaves` says that the packet goes out of the host then.
    ///
    /// # Errors
    /// [`Stop::ToKernel`] when the kernel's device has to do that.
    fn pop(ctx: &TcContext, ip: &Self::Header, outer: usize, leaves: bool) -> Result<(), Stop>;
}
