//! Head-end replication of multicast and broadcast: a copy for every other endpoint of this node,
//! and one for every other node, which copies it to its endpoints. Packets from the tunnel never go
//! back into it, so there is no loop.
//!
//! The kernel's vxlan device tunnels the copies for other nodes. It resolves neighbours by itself,
//! which the programs cannot do for a copy. The cost of the copies outweighs that of the device.

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

/// Flags of `bpf_skb_set_tunnel_key` for the same tunnel headers as the programs' own.
const FLAGS: u64 = BPF_F_ZERO_CSUM_TX as u64 | BPF_F_DONT_FRAGMENT as u64;

/// All copies are sent; only the original is dropped.
const COPIED: Verdict = Verdict::done(TC_ACT_SHOT, Reason::Replicated);

/// Copies an endpoint's packet to a group to the other endpoints of its network.
///
/// # Errors
/// [`Reason::Multicast`] if the network does not replicate the packet.
#[inline(always)]
pub fn send(ctx: &TcContext, link: &Link, ethernet: &Ethernet, ip: &Ipv4) -> Outcome {
    match lookup(&NETWORKS, &link.vni) {
        Some(network) if is_replicated(&network, ethernet.dst, ip) => {}
        _ => return Err(Reason::Multicast),
    }
    let sender = Party::sender(link);
    to_endpoints(ctx.skb.skb, sender.vni, sender.counter, sender.traffic as u32);
    to_nodes(ctx.skb.skb, sender.vni, sender.counter);
    Ok(COPIED)
}

/// The MAC of the endpoint that sent a tunnel packet to a group. `from` is the network and the
/// sending node.
///
/// # Errors
/// [`Reason::NoEndpoint`] for an unknown network, [`Reason::Multicast`] as for [`send`], and
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

/// Copies a decapsulated frame, whose Ethernet header becomes `ethernet`, to the endpoints of
/// network `vni` on this node.
///
/// # Errors
/// [`Reason::RewriteRefused`].
#[inline(always)]
pub fn receive(ctx: &TcContext, vni: u32, ethernet: &Ethernet) -> Outcome {
    store(ctx, 0, ethernet)?;
    to_endpoints(ctx.skb.skb, vni, 0, Traffic::Received as u32);
    Ok(COPIED)
}

/// Whether the packet goes to all. IGMP does not: there is no membership to report if all endpoints
/// get all packets, and hosts that see other hosts' reports suppress their own.
#[inline(always)]
fn is_replicated(network: &Network, destination: Mac, ip: &Ipv4) -> bool {
    network.flags & NETWORK_REPLICATE != 0
        && ip.protocol != PROTO_IGMP
        && network.group_mac(ip.daddr()) == Some(destination)
}

/// The destinations of copies of packets to groups of a network. The value stays in the map; the
/// stack has no room for it.
#[inline(always)]
fn replicas(vni: u32) -> Option<&'static Flood> {
    // SAFETY: the value outlives the run of the program. If the agent replaces it meanwhile, every
    // index and address is still one that was right.
    FLOOD.get_ptr(&vni).map(|replicas| unsafe { &*replicas })
}

/// Copies a packet to the endpoints of network `vni` on this node, except the one that sent it. A
/// drop counts for the endpoint with index `counter`; `traffic` is a [`Traffic`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn to_endpoints(skb: *mut __sk_buff, vni: u32, counter: u32, traffic: u32) -> i64 {
    let traffic = Traffic::from_index(traffic as u8).unwrap_or(Traffic::Received);
    let party = &Party { traffic, vni, counter };
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
            observe::received(link.counter, Reason::Replicated, length);
        }
    }
    if count > MAX_FLOOD {
        observe::dropped(party, Reason::ReplicateLimit, length);
    }
    0
}

/// Copies the packet of the endpoint with index `counter` to the other nodes with endpoints of
/// network `vni`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn to_nodes(skb: *mut __sk_buff, vni: u32, counter: u32) -> i64 {
    let party = &Party { traffic: Traffic::Sent, vni, counter };
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

/// Sends a copy out of an interface. Returns whether the kernel took it.
#[inline(always)]
fn copy(skb: *mut __sk_buff, ifindex: u32) -> bool {
    // SAFETY: the context is the program's own, and no pointer into the packet is in use.
    unsafe { bpf_clone_redirect(skb, ifindex, 0) == 0 }
}
