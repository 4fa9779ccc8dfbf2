//! Networks, their endpoints and the nodes that share them.

use crate::{Be32, Ip6, Mac};

/// Map `networks`, hash by VNI (`u32`): networks with endpoints or backends that this node needs.
/// Written by the agent; read by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Network {
    /// The subnet's address.
    pub subnet: Be32,
    /// The subnet's mask.
    pub mask: Be32,
    /// The gateway's address.
    pub gateway: Be32,
    /// MTU of the containers' interfaces in bytes.
    pub mtu: u32,
    /// Bits of `NETWORK_*`.
    pub flags: u32,
    /// Reserved for the number of a policy; zero stands for none. The programs of this version do
    /// not read it.
    pub policy: u32,
}

/// No packet leaves the network or enters it from outside (`--internal`).
pub const NETWORK_INTERNAL: u32 = 1 << 0;
/// The network exists on one node only. Its packets are never encapsulated.
pub const NETWORK_LOCAL: u32 = 1 << 1;
/// Head-end replication: packets to groups are copied to all endpoints (`--opt
/// multicast=replicate`), as map `flood` says.
pub const NETWORK_REPLICATE: u32 = 1 << 2;
/// Reserved: packets of the network are encrypted between nodes. The agent of this version sets it
/// on no network, and the programs do not read it.
pub const NETWORK_ENCRYPTED: u32 = 1 << 3;

impl Network {
    /// Whether `ip` is an address of the subnet.
    #[inline(always)]
    pub const fn contains(&self, ip: Be32) -> bool {
        ip.raw() & self.mask.raw() == self.subnet.raw()
    }

    /// The MAC for packets to `ip` if it is a group address: the MAC of RFC 1112, section 6.4, for
    /// multicast, and the broadcast MAC for 255.255.255.255 and the subnet's broadcast address.
    #[inline(always)]
    pub fn group_mac(&self, ip: Be32) -> Option<Mac> {
        let [a, b, c, d] = ip.octets();
        if ip.raw() == u32::MAX || ip.raw() == self.subnet.raw() | !self.mask.raw() {
            return Some(Mac::new([0xff; 6]));
        }
        if a & 0xf0 == 0xe0 {
            return Some(Mac::new([0x01, 0x00, 0x5e, b & 0x7f, c, d]));
        }
        None
    }
}

/// Most endpoints of this node, and most other nodes, that get a copy of a packet to a group.
pub const MAX_FLOOD: usize = 64;

/// Map `flood`, hash by VNI (`u32`): destinations of copies of packets to groups of a network.
/// Written by the agent for networks with [`NETWORK_REPLICATE`] and endpoints on this node, without
/// the host link; read by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flood {
    /// Number of the network's endpoints on this node. Those over [`MAX_FLOOD`] get no copies.
    pub endpoints: u32,
    /// Number of other nodes with endpoints of the network. Those over [`MAX_FLOOD`] get no copies.
    pub nodes: u32,
    /// Indexes of the endpoints' host-side interfaces, followed by zeroes.
    pub links: [u32; MAX_FLOOD],
    /// VTEPs of the nodes, followed by zeroes.
    pub vteps: [Be32; MAX_FLOOD],
}

impl Default for Flood {
    fn default() -> Self {
        Self { endpoints: 0, nodes: 0, links: [0; MAX_FLOOD], vteps: [Be32::ZERO; MAX_FLOOD] }
    }
}

/// Key of map `endpoints`: an address of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct EndpointKey {
    /// The network.
    pub vni: u32,
    /// The address.
    pub ip: Be32,
}

/// Map `endpoints`, hash: the kind of an address of a network, and the way to it. Written by the
/// agent; read for every packet by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// One of `ENDPOINT_*` kinds.
    pub kind: u8,
    /// Bits of `ENDPOINT_FLAG_*`.
    pub flags: u8,
    /// The MAC for packets to the address.
    pub mac: Mac,
    /// `LOCAL`: index of the host-side interface. Otherwise 0.
    pub ifindex: u32,
    /// `REMOTE`: VTEP of the endpoint's node. Otherwise zero.
    pub node: Be32,
    /// `SERVICE`: number of the service with this VIP. Otherwise 0, and reserved for the number by
    /// which a policy names the endpoint.
    pub service: u32,
    /// `LOCAL`: the endpoint's index in `endpoint_counters`. Otherwise 0.
    pub counter: u32,
}

/// Key of map `endpoints6`: an IPv6 address of a dual-stack network. Its values are [`Endpoint`]s,
/// equal to those in `endpoints` under the IPv4 addresses. If this node reaches a network through a
/// published port only, `endpoints6` has the backends on it, and `endpoints` has no entries.
/// Written by the agent; read for every IPv6 packet by `from_container` and `from_underlay`.
///
/// Link-local addresses have no entries. They follow from the MAC and so from the IPv4 address
/// ([`Ip6::ipv4_of_link_local`]), under which the same endpoint is in `endpoints`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Endpoint6Key {
    /// The network.
    pub vni: u32,
    /// The address.
    pub ip: Ip6,
}

/// Map `addresses6`, hash by [`EndpointKey`]: IPv6 addresses of the endpoints and VIPs of
/// dual-stack networks, by their IPv4 addresses. It has every address of `endpoints6`. Written by
/// the agent before `endpoints6` and `backends`; read when an IPv6 packet is translated, because
/// the flow names addresses by IPv4 addresses ([`crate::maps::VNI_FLAG_IPV6`]).
pub type Address6 = Ip6;

/// An endpoint on this node.
pub const ENDPOINT_LOCAL: u8 = 1;
/// An endpoint on another node.
pub const ENDPOINT_REMOTE: u8 = 2;
/// The network's gateway. Every node has the same address for it.
pub const ENDPOINT_GATEWAY: u8 = 3;
/// The VIP of a service.
pub const ENDPOINT_SERVICE: u8 = 4;

/// The endpoint is a backend of a service: its packets may be replies of translated flows.
pub const ENDPOINT_FLAG_BACKEND: u8 = 1 << 0;
/// The endpoint is the node itself (the host link): the host's stack receives its packets.
pub const ENDPOINT_FLAG_HOST: u8 = 1 << 1;
/// The endpoint is a backend of a published port: packets from outside its network may reach it.
pub const ENDPOINT_FLAG_PUBLISHED: u8 = 1 << 2;

/// Map `links`, hash by interface index (`u32`): the addresses that an interface may send from.
/// Written by the agent before it attaches the program to the interface; read by `from_container`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// The network of the interface.
    pub vni: u32,
    /// The only source address that the interface may use.
    pub ip: Be32,
    /// The only source MAC that the interface may use.
    pub mac: Mac,
    /// Bits of `ENDPOINT_FLAG_*`.
    pub flags: u16,
    /// The endpoint's index in `endpoint_counters`.
    pub counter: u32,
}

/// Map `links6`, hash by interface index (`u32`): the IPv6 addresses that an interface of a
/// dual-stack network may send from, in addition to its [`Link`]. Without an entry the interface
/// has no IPv6. Written by the agent after `links`; read by `from_container` for IPv6 packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link6 {
    /// The only source address that the interface may use, beside the link-local address of its
    /// MAC.
    pub ip: Ip6,
    /// Mask of the network's IPv6 subnet.
    pub mask: Ip6,
    /// The network's IPv6 gateway.
    pub gateway: Ip6,
}

/// Map `vteps6`, hash by a node's number ([`crate::hash::of_node`], a [`Be32`]): VTEPs of the other
/// nodes, on an IPv6 underlay. All other maps then name a node by its number. The sender of a
/// tunnel packet is a node if its address is the one under its number. Written by the agent; read
/// by the programs that push and pop tunnel headers.
pub type Vtep6 = Ip6;

/// Key of map `peers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey {
    /// The network shared with the node, or [`crate::UNDERLAY_VNI`] for membership of the cluster.
    pub vni: u32,
    /// The node's VTEP; on an IPv6 underlay the node's number.
    pub node: Be32,
}

/// Map `peers`, hash: nodes that may send VXLAN to this node, by network. An entry under
/// [`crate::UNDERLAY_VNI`] says that the node is in this cluster. Written by the agent; read by
/// `from_underlay`, `from_vxlan` and `xdp_underlay`. Most packets need no look-up here: an entry in
/// `endpoints` that puts the inner source on the sending node proves both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Bits of `PEER_*`.
    pub flags: u32,
    /// Reserved for the key that encrypts packets to and from the node; zero. The programs of this
    /// version do not read it.
    pub key: u32,
}

/// Reserved: packets between this node and that one are encrypted. The agent of this version sets
/// it on no node, and the programs do not read it.
pub const PEER_ENCRYPTED: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_the_addresses_of_its_subnet_only() {
        let network = Network {
            subnet: Be32::from_octets([10, 0, 1, 0]),
            mask: Be32::from_octets([255, 255, 255, 0]),
            ..Network::default()
        };
        assert!(network.contains(Be32::from_octets([10, 0, 1, 0])));
        assert!(network.contains(Be32::from_octets([10, 0, 1, 255])));
        assert!(!network.contains(Be32::from_octets([10, 0, 2, 1])));
    }

    #[test]
    fn groups_of_a_network_have_the_macs_of_rfc_1112_and_others_have_none() {
        let network = Network {
            subnet: Be32::from_octets([10, 0, 0, 0]),
            mask: Be32::from_octets([255, 255, 254, 0]),
            ..Network::default()
        };
        let mac = |ip| network.group_mac(Be32::from_octets(ip)).map(|mac| mac.bytes());
        assert_eq!(mac([239, 129, 2, 3]), Some([1, 0, 0x5e, 1, 2, 3]));
        assert_eq!(mac([224, 0, 0, 251]), Some([1, 0, 0x5e, 0, 0, 251]));
        assert_eq!(mac([255, 255, 255, 255]), Some([0xff; 6]));
        assert_eq!(mac([10, 0, 1, 255]), Some([0xff; 6]));
        assert_eq!(mac([10, 0, 0, 255]), None, "an address like any other in a /23");
        assert_eq!(mac([10, 0, 3, 255]), None, "another subnet's broadcast address");
        assert_eq!(mac([240, 0, 0, 1]), None, "class E has no hosts");
    }
}
