//! Networks, their endpoints and the nodes that share them.

use crate::{Be32, Ip6, Mac};

/// Map `networks`, hash by VNI (`u32`): written by the agent for each network with endpoints or
/// backends of interest here; read by `from_container` and `from_underlay`.
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
    /// Reserved for the number of a policy; zero, which stands for none. The programs of this
    /// version do not read it.
    pub policy: u32,
}

/// The network has no way out and none in (`--internal`).
pub const NETWORK_INTERNAL: u32 = 1 << 0;
/// The network exists on one node only: nothing of it is ever encapsulated.
pub const NETWORK_LOCAL: u32 = 1 << 1;
/// Packets to groups are copied to all endpoints (`--opt multicast=replicate`), as map `flood`
/// says.
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

    /// The MAC that packets to `ip` have if it is a group's: of multicast the one that RFC 1112,
    /// section 6.4, gives it, of the subnet's broadcast address and of 255.255.255.255 broadcast.
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

/// Most endpoints of a node, and most other nodes, that a packet to a group of a network is copied
/// to.
pub const MAX_FLOOD: usize = 64;

/// Map `flood`, hash by VNI (`u32`): where packets to groups of a network are copied. Written by
/// the agent for networks with [`NETWORK_REPLICATE`] that have endpoints here, the host link never
/// among them; read by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flood {
    /// How many endpoints the network has here; those over [`MAX_FLOOD`] get no copies.
    pub endpoints: u32,
    /// How many other nodes have endpoints of it; those over [`MAX_FLOOD`] get no copies.
    pub nodes: u32,
    /// Indexes of the endpoints' host-side interfaces; zero behind the last.
    pub links: [u32; MAX_FLOOD],
    /// VTEPs of the nodes; zero behind the last.
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

/// Map `endpoints`, hash: what an address of a network is. Written by the agent; read for every
/// packet by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// One of `ENDPOINT_*` kinds.
    pub kind: u8,
    /// Bits of `ENDPOINT_FLAG_*`.
    pub flags: u8,
    /// The address's MAC.
    pub mac: Mac,
    /// `LOCAL`: index of the host-side interface. Otherwise 0.
    pub ifindex: u32,
    /// `REMOTE`: VTEP of the node it is on. Otherwise zero.
    pub node: Be32,
    /// `SERVICE`: number of the service whose VIP this is. Otherwise 0, and reserved for what a
    /// policy knows the endpoint by.
    pub service: u32,
    /// `LOCAL`: its slot in `endpoint_counters`. Otherwise 0.
    pub slot: u32,
}

/// Key of map `endpoints6`: an IPv6 address of a dual-stack network. Its values are [`Endpoint`]s, with
/// what they have in `endpoints` under their IPv4 addresses; where only a published port leads into the
/// network from this node, its backends, which have no entry there. Written by the agent; read for every
/// IPv6 packet by `from_container` and `from_underlay`.
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

/// Map `addresses6`, hash by [`EndpointKey`]: the IPv6 address of the endpoint or VIP that has an IPv4
/// address of a dual-stack network, of all that are in `endpoints6`. Written by the agent before `endpoints6`
/// and `backends`; read where an IPv6 packet is translated, whose flow is named by IPv4 addresses
/// ([`crate::maps::VNI_FLAG_IPV6`]).
pub type Address6 = Ip6;

/// An endpoint on this node.
pub const ENDPOINT_LOCAL: u8 = 1;
/// An endpoint on another node.
pub const ENDPOINT_REMOTE: u8 = 2;
/// The network's gateway: the same address on every node.
pub const ENDPOINT_GATEWAY: u8 = 3;
/// A service's VIP.
pub const ENDPOINT_SERVICE: u8 = 4;

/// The endpoint serves a service: replies from it may belong to a translated flow.
pub const ENDPOINT_FLAG_BACKEND: u8 = 1 << 0;
/// The endpoint is the node itself (the host link): delivery goes up the host's stack.
pub const ENDPOINT_FLAG_HOST: u8 = 1 << 1;
/// The endpoint serves a published port: it may be spoken to from outside its network.
pub const ENDPOINT_FLAG_PUBLISHED: u8 = 1 << 2;

/// Map `links`, hash by interface index (`u32`): who may send what from an interface. Written by
/// the agent before the program is attached there; read by `from_container`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// The network the interface is on.
    pub vni: u32,
    /// The only source address it may use.
    pub ip: Be32,
    /// The only source MAC it may use.
    pub mac: Mac,
    /// Bits of `ENDPOINT_FLAG_*`.
    pub flags: u16,
    /// The endpoint's slot in `endpoint_counters`.
    pub slot: u32,
}

/// Map `links6`, hash by interface index (`u32`): what an interface of a dual-stack network may use
/// besides what [`Link`] says. An interface without an entry speaks no IPv6. Written by the agent
/// after `links`; read by `from_container` for IPv6 packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link6 {
    /// The only source address it may use, but for the link-local one of its MAC.
    pub ip: Ip6,
    /// Mask of the network's IPv6 subnet.
    pub mask: Ip6,
    /// The network's IPv6 gateway.
    pub gateway: Ip6,
}

/// Map `vteps6`, hash by a node's number ([`crate::hash::of_node`], a [`Be32`]): the VTEPs of the other
/// nodes, where the underlay is IPv6. All other maps name nodes by such numbers then, and who sends a
/// tunnel packet is a node if its address is the one under its number. Written by the agent; read by
/// the programs that push and pop tunnel headers.
pub type Vtep6 = Ip6;

/// Key of map `peers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey {
    /// The network shared with the node, or [`crate::UNDERLAY_VNI`] for membership of the cluster.
    pub vni: u32,
    /// The node's VTEP or, where that is an IPv6 address, its number.
    pub node: Be32,
}

/// Map `peers`, hash: nodes that may send us VXLAN, by network; an entry under
/// [`crate::UNDERLAY_VNI`] says that the node is of this cluster. Written by the agent; read by
/// `from_underlay`, `from_vxlan` and `xdp_underlay`, but not for the usual packet: where `endpoints`
/// says that the inner source is on the sending node, that proves both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Bits of `PEER_*`.
    pub flags: u32,
    /// Reserved for the key that packets to and from the node are encrypted with; zero. The
    /// programs of this version do not read it.
    pub key: u32,
}

/// Reserved: packets between this node and that one are encrypted. The agent of this version sets it
/// on no node, and the programs do not read it.
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
        assert_eq!(mac([240, 0, 0, 1]), None, "class E is nobody's");
    }
}
