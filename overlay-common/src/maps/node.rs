//! The node itself, and the routes to other nodes.

use super::NEXT_HOPS_ENTRIES;
use crate::{Be16, Be32, Ip6, Mac, wire::Ethernet};

/// Map `config`, array of one: settings of the node itself. Written by the agent at load; read by
/// every program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// This node's data-path address on the underlay (its VTEP), or its number if that address is
    /// IPv6 ([`crate::hash::of_node`]); zero while the node has none.
    pub vtep: Be32,
    /// Address of the `ingress` network's gateway. Sockets of the host reach published ports
    /// through it, from [`Config::host_ip`].
    pub ingress_gateway: Be32,
    /// This node's own address on the `ingress` network (the `ingress-sbox` endpoint).
    pub host_ip: Be32,
    /// Interface index of the underlay NIC.
    pub underlay_ifindex: u32,
    /// Index of the program side of the host link. Next hops are looked up as if packets came in
    /// there, because the device belongs to overlay and has forwarding on.
    pub host_link_ifindex: u32,
    /// Index of the kernel's vxlan device on the VXLAN port.
    pub vxlan_ifindex: u32,
    /// Cookie of the host's network namespace (`bpf_get_netns_cookie`). It tells sockets of the
    /// host from those of containers.
    pub netns_cookie: u64,
    /// MTU of the underlay in bytes, without the Ethernet header.
    pub underlay_mtu: u32,
    /// UDP port of VXLAN.
    pub vxlan_port: Be16,
    /// MAC address of the underlay NIC.
    pub underlay_mac: Mac,
    /// Flags for this kernel's `bpf_skb_adjust_room` when it removes the tunnel's headers, in
    /// addition to those that every kernel knows: [`DECAP_L4_UDP`] or 0.
    pub decap_flags: u32,
    /// First and last source port of flows to the outside, in host byte order.
    pub outside_ports: [u16; 2],
    /// Most flows to the outside of one endpoint at a time.
    pub outside_flows: u32,
    /// Bits of `CONFIG_*`.
    pub flags: u32,
    /// Spare, zero.
    pub reserved: u32,
    /// This node's VTEP on an IPv6 underlay; otherwise zero.
    pub vtep6: Ip6,
}

impl Config {
    /// Whether flows to the outside may use `port` as source port or ICMP echo identifier.
    #[inline(always)]
    pub const fn is_outside_port(&self, port: Be16) -> bool {
        let [first, last] = self.outside_ports;
        first <= port.get() && port.get() <= last
    }
}

/// Map `tail_calls`, program array: programs that other programs tail-call, by the kind of packet.
/// Written by the loader; read by `from_container`, `from_underlay`, `from_vxlan` and
/// `from_outside`. They handle IPv6 packets that may belong to translated flows. The verifier
/// checks each of them by itself, and each has its own stack. The array has room for further ones.
pub const TAIL_CALLS_ENTRIES: usize = 16;

/// In `tail_calls`: `container_flow6`, for packets that a container sends to a VIP, as a backend or
/// to a backend.
pub const TAIL_CALL_CONTAINER: u32 = 0;
/// In `tail_calls`: `host_flow6`, for packets to an IPv6 address of the host.
pub const TAIL_CALL_HOST: u32 = 1;
/// In `tail_calls`: `tunnel_flow6`, for tunnel packets that may belong to a translated flow.
pub const TAIL_CALL_TUNNEL: u32 = 2;

/// `xdp_underlay` may decapsulate. Either all packets arrive with complete checksums, or XDP is
/// generic and the kernel keeps track of those without. Native XDP on a veth loses that mark
/// (`veth_xdp_rcv_skb`).
pub const CONFIG_XDP_DECAP: u32 = 1 << 0;

/// Map `next_hops`, per-CPU array indexed by [`CachedNextHop::index`]: cached answers of the host's
/// routing table for the way to other nodes. Written and read by the programs only, each CPU for
/// itself. An answer is used for [`CachedNextHop::LIFETIME`]; after that a change of routes,
/// neighbours, links or MTU takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachedNextHop {
    /// Time of the look-up in ticks of the kernel's clock (`bpf_jiffies64`); 0 for an empty entry.
    pub asked: u64,
    /// The VTEP that was looked up; on an IPv6 underlay the node's number.
    pub node: Be32,
    /// This node's VTEP, as source for the look-up.
    pub vtep: Be32,
    /// Index of the interface that the look-up named as input.
    pub via: u32,
    /// Index of the output interface.
    pub ifindex: u32,
    /// MTU of the route in bytes.
    pub mtu: u32,
    /// Ethernet header of a tunnel packet to the node. Its MACs are zero while the kernel resolves
    /// them.
    pub ethernet: Ethernet,
    /// 1 if the MACs are known, otherwise 0.
    pub resolved: u16,
    /// Padding, zero.
    pub pad: u32,
    /// The node's VTEP on an IPv6 underlay; otherwise zero.
    pub vtep6: Ip6,
}

impl CachedNextHop {
    /// For how many ticks an answer is used: 32 ms if the kernel's clock ticks 1000 times a second
    /// (CONFIG_HZ), 128 ms at 250, 320 ms at 100.
    pub const LIFETIME: u64 = 32;

    /// Index of the cache entry for a node. Fibonacci hashing spreads consecutive addresses.
    #[inline(always)]
    pub const fn index(node: Be32) -> u32 {
        node.get().wrapping_mul(0x9e37_79b9) >> (32 - NEXT_HOPS_ENTRIES.ilog2())
    }
}

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP` of linux/bpf.h, newer than Linux 6.18: removing the headers also
/// clears the GSO mark of an aggregate inside a UDP tunnel. Without the flag the mark stays. Then a
/// TCP aggregate that a container forwards is segmented earlier than necessary, and packets that
/// suffer more from the mark go to the kernel's vxlan device.
pub const DECAP_L4_UDP: u32 = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_with_consecutive_addresses_have_entries_of_their_own() {
        let node = |n: u32| Be32::new(0xac10_0000 + n);
        assert!((0..100_000).all(|n| (CachedNextHop::index(node(n)) as usize) < NEXT_HOPS_ENTRIES));
        let indexes: std::collections::HashSet<u32> =
            (0..500).map(|n| CachedNextHop::index(node(n))).collect();
        assert!(indexes.len() > 450, "{} entries for 500 nodes", indexes.len());
    }

    #[test]
    fn ports_to_the_outside_are_those_from_the_first_to_the_last() {
        let config = Config { outside_ports: [61_000, 61_010], ..Config::default() };
        let is = |port| config.is_outside_port(Be16::new(port));
        assert!(is(61_000) && is(61_010));
        assert!(!is(60_999) && !is(61_011));
    }
}
