//! What differs between IPv4 and IPv6 in XDP, where packets are whole, have no options or extension headers, and
//! carry complete checksums.

mod v4;
mod v6;

use aya_ebpf::programs::XdpContext;
use overlay_common::{
    Be16, Mac, Reason, checksum,
    maps::{CachedNextHop, Config, Published},
    wire::PROTO_TCP,
};
pub use v6::may_be_reply as may_be_reply6;

use crate::{
    family::Family,
    forward::route::NextHop,
    maps::work::{Area, Work},
    nat::{TCP_CHECKSUM, UDP_CHECKSUM},
    packet::xdp_frame::{read, write},
};

/// An address family, as XDP sees it.
pub trait XdpFamily: Family {
    /// Whether the ways of packets are functions of their own, for the stack's sake: what they call has used
    /// its part of the stack only while they run.
    const OWN_FUNCTIONS: bool;
    /// What has been read of a packet to the host.
    type Head;

    /// What is published under the port of this host that the packet asks; its header, and its flow in the work
    /// area then. `None` for what TC or the host deals with.
    ///
    /// # Errors
    /// The reasons why the packet is dropped.
    fn frontend_port(
        ctx: &XdpContext,
        config: &Config,
        head: Self::Head,
    ) -> Result<Option<(Self::Header, Published, Area)>, Reason>;

    /// Ethernet source of a client's packet inside the tunnel.
    ///
    /// # Errors
    /// [`Reason::SpoofedInnerSource`] when a packet from outside says that it is from inside.
    fn inner_source(ip: &Self::Header, work: Area) -> Result<Mac, Reason>;

    /// Leaves the addresses after translation in the work area, where the family needs them there.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] when one is no longer known.
    fn resolve() -> Result<(), Reason>;

    /// Rewrites the packet with its IP header at `offset` from the tuple of the work area's flow to that of its
    /// entry. A NIC has verified or will verify whole checksums here, so they are updated in place.
    ///
    /// # Errors
    /// [`Reason::Truncated`].
    fn rewrite(
        ctx: &XdpContext,
        ip: &Self::Header,
        offset: usize,
        work: Area,
    ) -> Result<(), Reason>;

    /// Length in bytes of the IP packet.
    fn total_length(ip: &Self::Header, work: Area) -> u32;

    /// The next hop of a translated reply of `total` bytes.
    ///
    /// # Errors
    /// [`Reason::TooBig`] and [`Reason::NoRoute`].
    fn next_hop(
        ctx: &XdpContext,
        config: &Config,
        total: u32,
        work: Area,
    ) -> Result<NextHop, Reason>;

    /// Writes the outer headers, and the inner Ethernet header with a source, of an inner frame of some length.
    ///
    /// # Errors
    /// [`Reason::RewriteRefused`].
    fn write_headers(
        ctx: &XdpContext,
        config: &Config,
        hop: &CachedNextHop,
        ip: &Self::Header,
        inner: (Mac, u32),
        work: Area,
    ) -> Result<(), Reason>;
}

/// Rewrites the ports of the transport header at `offset`, from those of `work.flow` to those of `work.entry`, and
/// brings its checksum up to date, in which the addresses and ports change by `difference`.
#[inline(always)]
fn rewrite_transport(
    ctx: &XdpContext,
    offset: usize,
    work: &Work,
    difference: u64,
) -> Result<(), Reason> {
    let Work { flow, entry, .. } = work;
    let truncated = Reason::Truncated;
    if flow.key.proto == PROTO_TCP {
        let old: Be16 = read(ctx, offset + TCP_CHECKSUM).ok_or(truncated)?;
        let new = Be16::from_raw(checksum::apply(old.raw(), difference));
        write(ctx, offset + TCP_CHECKSUM, new)?;
    } else {
        let old: Be16 = read(ctx, offset + UDP_CHECKSUM).ok_or(truncated)?;
        let new = Be16::from_raw(checksum::apply_udp(old.raw(), difference));
        write(ctx, offset + UDP_CHECKSUM, new)?;
    }
    write(ctx, offset, entry.sport)?;
    write(ctx, offset + 2, entry.dport)
}

/// What changing the ports adds to a sum.
#[inline(always)]
fn port_difference(work: &Work) -> u64 {
    let Work { flow, entry, .. } = work;
    checksum::diff16(flow.key.sport.raw(), entry.sport.raw())
        + checksum::diff16(flow.key.dport.raw(), entry.dport.raw())
}
