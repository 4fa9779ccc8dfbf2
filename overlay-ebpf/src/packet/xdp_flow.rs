//! The flow of an IPv4 packet in XDP.

use aya_ebpf::programs::XdpContext;
use overlay_common::{
    Reason,
    wire::{ETHERTYPE_IPV4, Ethernet, Ipv4, PROTO_TCP, PROTO_UDP, Udp},
};

use crate::{
    maps::work::Flow,
    packet::{
        frame::ETH_LEN,
        ipv4::{IPV4_LEN, holds_transport},
        transport::{TCP_FLAGS, possible, tcp_flags},
        xdp_frame::{at, read},
    },
};

/// The IPv4 header without options, and the eight bytes behind it. TC or the host handles fragments
/// and headers with options.
#[inline(always)]
pub fn outer_headers(ctx: &XdpContext) -> Option<(Ipv4, Udp)> {
    // One bound for all three: with a bound for each, LLVM reads headers that are not there.
    let _: *mut [u8; ETH_LEN + IPV4_LEN + size_of::<Udp>()] = at(ctx, 0)?;
    let ethernet: Ethernet = read(ctx, 0)?;
    let ip: Ipv4 = read(ctx, ETH_LEN)?;
    if ethernet.ethertype.get() != ETHERTYPE_IPV4 || ip.version_ihl != 0x45 || ip.is_fragment() {
        return None;
    }
    Some((ip, read(ctx, ETH_LEN + IPV4_LEN)?))
}

/// Fills `out` with the flow of a packet with its IPv4 header, without options, at `offset`.
///
/// # Errors
/// [`Reason::Truncated`]; [`Reason::ServiceProtocol`] for protocols other than TCP and UDP;
/// [`Reason::Malformed`] for TCP flags that exclude each other.
#[inline(always)]
pub fn flow(
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
