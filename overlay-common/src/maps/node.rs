//! The node itself, and the way to other nodes.

use super::NEXT_HOPS_ENTRIES;
use crate::{Be16, Be32, Ip6, Mac, wire::Ethernet};

/// Map `config`, array of one: what the programs must know about the node itself. Written by the
/// agent at load; read by every program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// This node's data-path address on the underlay (its VTEP), or, of an IPv6 one, its number
    /// ([`crate::hash::of_node`]); zero while the node has none.
    pub vtep: Be32,
    /// Address of the `ingress` network's gateway, where sockets of the host reach published
    /// ports ([`Config::host_ip`] is where they come from).
    pub ingress_gateway: Be32,
    /// This node's own address on the `ingress` network (the `ingress-sbox` endpoint).
    pub host_ip: Be32,
    /// Interface index of the underlay NIC.
    pub underlay_ifindex: u32,
    /// Index of the program side of the host link; next hops are looked up as if packets came
    /// in there, because that device is ours and has forwarding on.
    pub host_link_ifindex: u32,
    /// Index of the kernel's vxlan device on the VXLAN port.
    pub vxlan_ifindex: u32,
    /// Cookie of the host's network namespace (`bpf_get_netns_cookie`): the socket programs act
    /// for sockets of this namespace only.
    pub netns_cookie: u64,
    /// MTU of the underlay in bytes, without the Ethernet header.
    pub underlay_mtu: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: Be16,
    /// MAC address of the underlay NIC.
    pub underlay_mac: Mac,
    /// What this kernel's `bpf_skb_adjust_room` is told when the tunnel's headers are removed, beside
    /// what all of them know: [`DECAP_L4_UDP`] or nothing.
    pub decap_flags: u32,
    /// First and last port, in host byte order, that flows to the outside leave from.
    pub outside_ports: [u16; 2],
    /// Most flows to the outside that an endpoint may have at a time.
    pub outside_flows: u32,
    /// Bits of `CONFIG_*`.
    pub flags: u32,
    /// Spare, zero.
    pub reserved: u32,
    /// This node's VTEP on an IPv6 underlay; otherwise zero.
    pub vtep6: Ip6,
}

impl Config {
    /// Whether flows to the outside may leave from `port`, or with it as ICMP echo identifier.
    #[inline(always)]
    pub const fn is_outside_port(&self, port: Be16) -> bool {
        let [first, last] = self.outside_ports;
        first <= port.get() && port.get() <= last
    }
}

/// Entries of map `tail_calls`, a program array: programs that others tail-call, by what the packet
/// is, with room for further ones. Written by the loader. They are for IPv6 packets that need a
/// look at flows: the verifier follows each of them by itself, and each has a stack of its own.
pub const TAIL_CALLS_ENTRIES: usize = 16;

/// In `tail_calls`: what a container sends to a VIP, as a backend or to one (`container_flow6`).
pub const TAIL_CALL_CONTAINER: u32 = 0;
/// In `tail_calls`: what comes to an IPv6 address of the host (`host_flow6`).
pub const TAIL_CALL_HOST: u32 = 1;
/// In `tail_calls`: what comes through the tunnel and is no endpoint's of its network alone (`tunnel_flow6`).
pub const TAIL_CALL_TUNNEL: u32 = 2;

/// `xdp_underlay` may decapsulate: what it sees has its checksums filled in, or XDP is generic and the
/// kernel still knows which are not. Native XDP on a veth forgets that (`veth_xdp_rcv_skb`).
pub const CONFIG_XDP_DECAP: u32 = 1 << 0;

/// Map `next_hops`, per-CPU array indexed by [`CachedNextHop::slot`]: what the host's routing table last said of the
/// way to another node. Written and read by the programs only, each CPU by itself; an answer is used
/// for [`CachedNextHop::LIFETIME`], so a change of routes, neighbours, links or MTU is followed after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedNextHop {
    /// When it was asked, in ticks of the kernel's clock (`bpf_jiffies64`); 0 for never.
    pub asked: u64,
    /// The node's VTEP or its number, which was asked for.
    pub node: Be32,
    /// This node's VTEP, for routing by source.
    pub vtep: Be32,
    /// Index of the interface that the packet was said to come in by.
    pub via: u32,
    /// Index of the interface it leaves by.
    pub ifindex: u32,
    /// MTU of the route in bytes.
    pub mtu: u32,
    /// Ethernet header of a tunnel packet to there; its MACs are zero when the kernel has yet to
    /// resolve them.
    pub ethernet: Ethernet,
    /// 1 if the MACs are known, otherwise 0.
    pub resolved: u16,
    /// Padding, zero.
    pub pad: u32,
    /// The node's VTEP on an IPv6 underlay; otherwise zero.
    pub vtep6: Ip6,
}

impl CachedNextHop {
    /// For how many ticks an answer is used: 32 ms where the kernel's clock ticks 1000 times a
    /// second (CONFIG_HZ), 128 ms at 250, 320 ms at 100.
    pub const LIFETIME: u64 = 32;

    /// Where the answer for a node is kept. Nodes whose addresses follow each other do not meet
    /// (Fibonacci hashing).
    #[inline(always)]
    pub const fn slot(node: Be32) -> u32 {
        node.get().wrapping_mul(0x9e37_79b9) >> (32 - NEXT_HOPS_ENTRIES.ilog2())
    }
}

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP` of linux/bpf.h, newer than Linux 6.18: removing the headers also
/// removes the mark of an aggregate inside a UDP tunnel. Without it the mark stays, so that a TCP
/// aggregate that a container forwards is cut into segments earlier than it must be, and the kernel's
/// vxlan device has to take apart what minds more.
pub const DECAP_L4_UDP: u32 = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_consecutive_addresses_have_slots_of_their_own() {
        let node = |n: u32| Be32::new(0xac10_0000 + n);
        assert!((0..100_000).all(|n| (CachedNextHop::slot(node(n)) as usize) < NEXT_HOPS_ENTRIES));
        let slots: std::collections::HashSet<u32> =
            (0..500).map(|n| CachedNextHop::slot(node(n))).collect();
        assert!(slots.len() > 450, "{} slots for 500 nodes", slots.len());
    }

    #[test]
    fn ports_to_the_outside_are_those_from_the_first_to_the_last() {
        let config = Config { outside_ports: [61_000, 61_010], ..Config::default() };
        let is = |port| config.is_outside_port(Be16::new(port));
        assert!(is(61_000) && is(61_010));
        assert!(!is(60_999) && !is(61_011));
    }
}
