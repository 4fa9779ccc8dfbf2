//! The differences between IPv4 and IPv6 in XDP. Packets here are whole, have no options or
//! extension headers, and have complete checksums.

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

/// An address family in XDP.
pub trait XdpFamily: Family {
    /// Whether the paths of packets are separate functions, to save stack: called functions use
    /// their part of the stack only while they run.
    const OWN_FUNCTIONS: bool;
    /// The headers of a packet to the host, as read so far.
    type Head;

    /// The published port of this host that the packet is for, its header, and the work area with
    /// its flow. `None` for packets that TC or the host handles.
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
    /// [`Reason::SpoofedInnerSource`] if a packet from outside has an address from inside.
    fn inner_source(ip: &Self::Header, work: Area) -> Result<Mac, Reason>;

    /// Leaves the addresses after translation in the work area, if the family needs them there.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] if an address is no longer known.
    fn resolve() -> Result<(), Reason>;

    /// Rewrites the packet with its IP header at `offset` from the tuple of the work area's flow to
    /// that of its entry. Checksums are complete in XDP, so they are updated in place.
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

    /// Writes the outer headers and the inner Ethernet header. `inner` is the source of the latter
    /// and the length in bytes of the inner frame.
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

/// Rewrites the ports of the transport header at `offset` from those of `work.flow` to those of
/// `work.entry`, and updates its checksum. `difference` is the change of its sum by addresses and
/// ports.
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

/// The change of a sum by the new ports.
#[inline(always)]
fn port_difference(work: &Work) -> u64 {
    let Work { flow, entry, .. } = work;
    checksum::diff16(flow.key.sport.raw(), entry.sport.raw())
        + checksum::diff16(flow.key.dport.raw(), entry.dport.raw())
}
