//! The differences between IPv4 and IPv6. The decisions in [`crate::walk`] are written once, over a
//! [`Family`]. A family defines how a flow is read, how addresses are rewritten, where a packet is
//! routed, and how its sender gets an answer.

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
    /// The interface that it arrived on.
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

/// Destination of a container's packet to no address of its network.
pub enum Outward {
    /// To a port that this host publishes.
    OwnPort(Published),
    /// Anywhere else. The value is the action of the flow's entry, which is in the work area then;
    /// 0 without one.
    Elsewhere(u8),
}

/// An address family in the programs of TC. Offsets are in bytes from the start of the frame. A
/// `transport` is the offset of the transport header. The IP header is directly behind the first
/// Ethernet header unless an offset is given.
pub trait Family: Sized {
    /// The family's EtherType.
    const ETHERTYPE: u16;
    /// The part of the packet's IP header that a program holds outside of the work area.
    type Header: Copy;
    /// An address in the packet.
    type Address: Copy;

    /// Fills the flow of the work area for a packet of network `vni` with its IP header at
    /// `offset`.
    ///
    /// # Errors
    /// [`Reason::ServiceProtocol`] for packets without a flow, and the reasons why the packet
    /// cannot be read.
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
    /// Those of [`Family::flow`]; [`Reason::ConntrackFull`] without room for the address.
    fn flow_from_outside(
        ctx: &TcContext,
        ip: &Self::Header,
        offset: usize,
        vni: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// The destination of a container's packet to no address of its network.
    ///
    /// # Errors
    /// Those of [`Family::flow`]; [`Reason::NoWayOut`] for packets that may not leave.
    fn outward(packet: &Sent<'_, Self>, network: &Network, work: Area) -> Result<Outward, Reason>;

    /// Whether a container's packet to no endpoint is for an address of its network. `false` if the
    /// program that looked it up has checked that already.
    fn is_in_own_subnet(packet: &Sent<'_, Self>, network: &Network) -> bool;

    /// The IPv4 address of the stale backend that a TCP packet to no endpoint may be for.
    fn stale_backend(packet: &Sent<'_, Self>) -> Option<Be32>;

    /// As [`Family::reset`], for a packet to a stale backend, whose flow was not read.
    ///
    /// # Errors
    /// Those of [`Family::flow`] and [`Family::reset`].
    fn reset_stale(ctx: &TcContext) -> Result<bool, Reason>;

    /// Sends a container's packet without a service to the outside.
    fn leave(packet: &Sent<'_, Self>, network: &Network, work: Area, action: u8) -> Outcome;

    /// Answers an echo request to an address of the programs; `None` if the packet cannot be one.
    fn echo(packet: &Sent<'_, Self>) -> Option<Outcome>;

    /// Rewrites the packet from the tuple of the work area's flow to that of its entry; for an ICMP
    /// error also the packet that it quotes.
    ///
    /// # Errors
    /// [`Reason::RewriteRefused`]; [`Reason::NoEndpoint`] if an address of the entry is no longer
    /// known.
    fn translate(
        ctx: &TcContext,
        ip: &Self::Header,
        transport: usize,
        work: Area,
    ) -> Result<(), Reason>;

    /// Reverts a translation: an ICMP error must quote the packet as its sender sent it.
    ///
    /// # Errors
    /// Those of [`Family::translate`].
    fn undo(ctx: &TcContext, transport: usize, work: Area) -> Result<(), Reason>;

    /// The endpoint of network `vni` that a translated packet goes to.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] if it is not on this node.
    fn local_client(work: Area, vni: u32) -> Result<Endpoint, Reason>;

    /// Whether the packet's source is an address of network `vni`, as far as this node knows.
    fn is_inside(ip: &Self::Header, vni: u32, work: Area) -> bool;

    /// Whether the source is in the subnet of the network that `endpoint`, of this node, is on.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] if the endpoint has no address of the family.
    fn is_in_subnet(
        ip: &Self::Header,
        network: &Network,
        endpoint: &Endpoint,
    ) -> Result<bool, Reason>;

    /// Source MAC of packets of a client outside on the network of the work area's backend: the
    /// gateway's if this node knows the network. Otherwise the backend's node makes the check below
    /// and sets the MAC.
    ///
    /// # Errors
    /// [`Reason::SpoofedInnerSource`] if a packet from outside has an address from inside.
    fn gateway_mac(ip: &Self::Header, work: Area) -> Result<Mac, Reason>;

    /// Keeps the addresses of the flow in the work area with the flow, if both sides have sent.
    fn keep(work: Area);

    /// As [`Family::keep`], on the backend's node, for a flow that another node has translated.
    fn keep_reverse(work: Area);

    /// The frontend's address: the packet's destination.
    fn frontend(work: Area) -> Self::Address;

    /// The Ethernet header of a client's packet inside the tunnel: `otherwise`, or with DSR one
    /// that carries the frontend.
    fn dsr_header(work: Area, frontend: &Self::Address, otherwise: Ethernet) -> Ethernet;

    /// The frontend in the Ethernet header at `outer`: [`overlay_common::Frontend::bits`].
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    fn dsr_frontend(ctx: &TcContext, outer: usize) -> Result<u64, Reason>;

    /// Sends a backend's reply to its client in the name of the ingress node.
    ///
    /// # Errors
    /// [`Reason::NoRoute`] and [`Reason::TooBig`], which leave the packet as sent; those of
    /// [`Family::translate`].
    fn send_dsr(ctx: &TcContext, ip: &Self::Header, work: Area) -> Outcome;

    /// Routes a translated reply out of the host to its client.
    ///
    /// # Errors
    /// [`Reason::NoRoute`] and [`Reason::TooBig`].
    fn route_egress(ctx: &TcContext, work: Area) -> Outcome;

    /// MTU in bytes of the path for which [`Family::route_egress`] or [`Family::send_dsr`] returned
    /// [`Reason::TooBig`].
    ///
    /// # Errors
    /// [`Reason::NoRoute`].
    fn egress_mtu(ctx: &TcContext, work: Area) -> Result<u32, Reason>;

    /// Turns an unchanged TCP packet into the reset that answers it. Returns `false` for other
    /// protocols.
    ///
    /// # Errors
    /// [`Reason::NoBackend`] for packets that must not be answered.
    fn reset(ctx: &TcContext) -> Result<bool, Reason>;

    /// Turns an unchanged packet into the answer of a host without a program on the port: a reset,
    /// or ICMP "port unreachable".
    ///
    /// # Errors
    /// [`Reason::NoBackend`] for packets that must not be answered; [`Reason::RewriteRefused`].
    fn answer_closed_port(ctx: &TcContext) -> Result<(), Reason>;

    /// Turns a container's packet of network `vni` into the answer "too big" from its gateway, for
    /// a path of `mtu` bytes. `translated` says that the packet was rewritten as in the work area.
    ///
    /// # Errors
    /// [`Reason::TooBig`] for packets that must not be answered.
    fn too_big_from_gateway(
        ctx: &TcContext,
        vni: u32,
        mtu: u32,
        translated: bool,
    ) -> Result<(), Reason>;

    /// Turns a client's packet, translated as in the work area, into the answer "too big" from the
    /// frontend's address.
    ///
    /// # Errors
    /// As [`Family::too_big_from_gateway`].
    fn too_big_from_frontend(
        ctx: &TcContext,
        frontend: &Self::Address,
        mtu: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// Turns a backend's reply, translated as in the work area, into the answer "too big" from the
    /// frontend's address.
    ///
    /// # Errors
    /// As [`Family::too_big_from_gateway`].
    fn too_big_to_backend(
        ctx: &TcContext,
        transport: usize,
        mtu: u32,
        work: Area,
    ) -> Result<(), Reason>;

    /// Removes `outer` bytes of outer headers. `leaves` says that the packet then leaves the host.
    ///
    /// # Errors
    /// [`Stop::ToKernel`] if the kernel's device must remove them.
    fn pop(ctx: &TcContext, ip: &Self::Header, outer: usize, leaves: bool) -> Result<(), Stop>;
}
