//! IPv4 to an address of the host: replies for source NAT, published ports, and errors about their
//! flows. Anything else goes to the host.

use aya_ebpf::programs::TcContext;
use overlay_common::{
    UNDERLAY_VNI,
    maps::{CONNTRACK_FORWARD, Config, Published, TAIL_CALL_HOST},
    wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Udp},
};

use crate::{
    family::{Family, V4},
    maps::{tail_call, work::area},
    outcome::{Outcome, Verdict},
    packet::{
        fragment,
        frame::{ETH_LEN, has_vlan_tag, is_gso, load},
        ipv4::{IPV4_LEN, check_ipv4, is_icmp},
        related,
    },
    service::{conntrack, published, snat},
    walk::host,
};

/// Bytes of headers that are read directly: Ethernet, IPv4 and TCP.
pub const HEADERS: u32 = 54;

/// The IPv4 header without options, and the eight bytes behind it; for a later fragment those of
/// its first one. `None` for packets that go to the host.
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
        // Found if the packet was to a published port.
        return Some((ip, fragment::head(ctx, ETH_LEN, UNDERLAY_VNI).ok()?));
    }
    Some((ip, load(ctx, ETH_LEN + IPV4_LEN).ok()?))
}

/// Passes a packet that is not IPv4, or has options, to the host. IPv6 may be for published ports.
#[inline(always)]
pub fn not_ipv4(ctx: &TcContext) -> Outcome {
    if load::<Ethernet>(ctx, 0).is_ok_and(|e| e.ethertype.get() == ETHERTYPE_IPV6) {
        // If that program is missing, the host still gets the packet.
        tail_call(ctx, TAIL_CALL_HOST);
    }
    Ok(Verdict::PASS)
}

/// Handles a packet to an address of the host.
#[inline(always)]
pub fn receive(ctx: &TcContext, config: &Config, ip: &Ipv4, udp: &Udp) -> Outcome {
    // The VLAN's own interface receives a tagged packet again, without the tag.
    if has_vlan_tag(ctx) {
        return Ok(Verdict::PASS);
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
        None => Ok(Verdict::PASS),
    }
}

/// Handles ICMP to an address of the host: an error about a backend's packet to a client outside
/// goes to the backend.
#[inline(always)]
fn error_to_host(ctx: &TcContext, ip: &Ipv4) -> Outcome {
    let mut work = area()?;
    let work = &mut *work;
    if related::flow(ctx, ETH_LEN, UNDERLAY_VNI, &mut work.flow).is_err()
        || conntrack::find(&work.flow, &mut work.entry) != CONNTRACK_FORWARD
    {
        return Ok(Verdict::PASS);
    }
    // The flow has a backend, or had one: the published port does not matter.
    to_published(ctx, ip, &Published::default())
}

/// Handles a packet of a client outside to a published port.
#[inline(always)]
fn to_published(ctx: &TcContext, ip: &Ipv4, published: &Published) -> Outcome {
    check_ipv4(ip, ctx.len() - ETH_LEN as u32, is_gso(ctx))?;
    let work = area()?;
    V4::flow(ctx, ip, ETH_LEN, UNDERLAY_VNI, work)?;
    host::to_published::<V4>(ctx, ip, published, work)
}
