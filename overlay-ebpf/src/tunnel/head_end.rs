//! Multicast and broadcast on networks that replicate them: a copy for every other endpoint of this
//! node and one for every other node, which copies it on to its endpoints. What came out of the
//! tunnel never goes back into it, so no packet goes round.
//!
//! Copies for other nodes are tunnelled by the kernel's vxlan device. Its neighbours need not be
//! resolved, which the programs cannot have done for a copy, and a packet that is copied pays for
//! the copies anyway.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_DONT_FRAGMENT, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT},
    helpers::bpf_clone_redirect,
    programs::TcContext,
};
use overlay_common::observe::Traffic;
use overlay_common::{
    Mac, Reason,
    maps::{
        ENDPOINT_REMOTE, EndpointKey, Flood, Link, MAX_FLOOD, NETWORK_REPLICATE, Network, PeerKey,
    },
    wire::{Ethernet, Ipv4, PROTO_IGMP},
};

use crate::{
    maps::{ENDPOINTS, FLOOD, LINKS, NETWORKS, config, lookup},
    observe::{self, Party},
    outcome::{Outcome, Verdict},
    packet::frame::store,
    tunnel::fallback,
};

/// Of `bpf_skb_set_tunnel_key`: as the programs' own tunnel headers are.
const FLAGS: u64 = BPF_F_ZERO_CSUM_TX as u64 | BPF_F_DONT_FRAGMENT as u64;

/// The packet itself has been copied to everybody: only the kernel's own buffer is dropped.
const COPIED: Verdict = Verdict::done(TC_ACT_SHOT, Reason::Replicated);

/// Copies what an endpoint sends to a group: to the other endpoints of its network.
///
/// # Errors
/// [`Reason::Multicast`] when the packet is none that the network replicates.
#[inline(always)]
pub fn send(ctx: &TcContext, link: &Link, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    match lookup(&NETWORKS, &link.vni) {
        Some(network) if is_replicated(&network, ethernet.dst, ip) => {}
        _ => return Err(Reason::Multicast),
    }
    let sender = Party::sender(link);
    to_endpoints(ctx.skb.skb, sender.vni, sender.slot, sender.traffic as u32);
    to_nodes(ctx.skb.skb, sender.vni, sender.slot);
    Ok(COPIED)
}

/// The MAC of who sent what another node has tunnelled here to a group. `from` is the network and the
/// node that the packet came from.
///
/// # Errors
/// [`Reason::NoEndpoint`] where the network is not known, [`Reason::Multicast`] as for [`send`], and
/// [`Reason::SpoofedInnerSource`].
#[inline(always)]
pub fn source(from: &PeerKey, ethernet: &Ethernet, ip: &Ipv4) -> Result<Mac, Reason> {
    let network = lookup(&NETWORKS, &from.vni).ok_or(Reason::NoEndpoint)?;
    if !is_replicated(&network, ethernet.dst, ip) {
        return Err(Reason::Multicast);
    }
    match lookup(&ENDPOINTS, &EndpointKey { vni: from.vni, ip: ip.saddr() }) {
        Some(source) if source.kind == ENDPOINT_REMOTE && source.node == from.node => {
            Ok(source.mac)
        }
        _ => Err(Reason::SpoofedInnerSource),
    }
}

/// Copies a frame that is out of the tunnel, and whose Ethernet header becomes `ethernet`, to the
/// endpoints of network `vni` on this node.
///
/// # Errors
/// [`Reason::RewriteRefused`].
#[inline(always)]
pub fn receive(ctx: &TcContext, vni: u32, ethernet: &Ethernet) -> Outcome {
    store(ctx, 0, ethernet)?;
    to_endpoints(ctx.skb.skb, vni, 0, Traffic::Received as u32);
    Ok(COPIED)
}

/// Whether the packet goes to all. IGMP does not: where everybody gets everything there is no
/// membership to report, and hosts that heard of each other's would keep silent about their own.
#[inline(always)]
fn is_replicated(network: &Network, destination: Mac, ip: &Ipv4) -> bool {
    network.flags & NETWORK_REPLICATE != 0
        && ip.protocol != PROTO_IGMP
        && network.group_mac(ip.daddr()) == Some(destination)
}

/// Where packets to groups of a network are copied. The value is not copied to the stack, which it
/// would fill.
#[inline(always)]
fn replicas(vni: u32) -> Option<&'static Flood> {
    // SAFETY: the value outlives the run of the program. The agent may put another one in its place,
    // whose fields are as good as the old one's: every index and address is one that was right.
    FLOOD.get_ptr(&vni).map(|replicas| unsafe { &*replicas })
}

/// Copies a packet to the endpoints of network `vni` on this node, but not to the interface that it
/// came in by. What is dropped counts for the endpoint with `slot`; `traffic` is a [`Traffic`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn to_endpoints(skb: *mut __sk_buff, vni: u32, slot: u32, traffic: u32) -> i64 {
    let traffic = Traffic::from_index(traffic as u8).unwrap_or(Traffic::Received);
    let party = &Party { traffic, vni, slot };
    let Some(replicas) = replicas(vni) else { return 0 };
    // SAFETY: the context is valid for the whole run of the program.
    let (from, length) = unsafe { ((*skb).ifindex, (*skb).len) };
    let count = replicas.endpoints as usize;
    for (i, link) in replicas.links.iter().enumerate() {
        if i >= count {
            break;
        }
        if *link == from {
            continue;
        }
        if !copy(skb, *link) {
            observe::dropped(party, Reason::ReplicateRefused, length);
        } else if let Some(link) = lookup(&LINKS, link) {
            observe::received(link.slot, Reason::Replicated, length);
        }
    }
    if count > MAX_FLOOD {
        observe::dropped(party, Reason::ReplicateLimit, length);
    }
    0
}

/// Copies the packet of the endpoint with `slot` to the other nodes with endpoints of network `vni`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn to_nodes(skb: *mut __sk_buff, vni: u32, slot: u32) -> i64 {
    let party = &Party { traffic: Traffic::Sent, vni, slot };
    let (Some(replicas), Some(config)) = (replicas(vni), config()) else { return 0 };
    // SAFETY: the context is valid for the whole run of the program.
    let length = unsafe { (*skb).len };
    let count = replicas.nodes as usize;
    for (i, node) in replicas.vteps.iter().enumerate() {
        if i >= count {
            break;
        }
        let ends = (config.vtep, *node);
        if !fallback::address(skb, vni, ends, FLAGS) || !copy(skb, config.vxlan_ifindex) {
            observe::dropped(party, Reason::ReplicateRefused, length);
        }
    }
    if count > MAX_FLOOD {
        observe::dropped(party, Reason::ReplicateLimit, length);
    }
    0
}

/// Sends a copy out of an interface. Says whether the kernel took it.
#[inline(always)]
fn copy(skb: *mut __sk_buff, ifindex: u32) -> bool {
    // SAFETY: the context is the program's own; nothing holds a pointer into the packet.
    unsafe { bpf_clone_redirect(skb, ifindex, 0) == 0 }
}
