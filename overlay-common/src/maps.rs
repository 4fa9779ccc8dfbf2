//! Keys and values of the BPF maps: one struct per map side, with its writer and its readers.
//!
//! Unless a field says otherwise, integers are in host byte order and addresses and ports are in
//! network byte order ([`Be32`], [`Be16`]). All types are `repr(C)` without hidden padding; the
//! layout tests at the end of the file hold them to that.
//!
//! "Written by the agent" means: by reconciliation of the compiled state, never by hand.

use crate::{Be16, Be32, Ip6, Mac, pod::plain, wire::Ethernet};

/// Most entries of `endpoints`, `endpoints6`, `backends`, `slots` and `peers`: room for 100,000 endpoints of
/// 1,000 nodes. Entries are allocated when they are made, but a map's buckets, 16 bytes for each
/// possible entry, are there from the start.
pub const LARGE_TABLE: usize = 1 << 18;

/// Most entries of `networks`, `services`, `rr_cursor` and `published`: room for 10,000 services with
/// several networks and every port there is.
pub const MEDIUM_TABLE: usize = 1 << 16;

/// Most entries of `links`, `links6` and `local_addrs`, which hold what is on one node.
pub const SMALL_TABLE: usize = 1 << 14;

/// Entries of `hops`, a power of two: as many nodes as a cluster is made for.
pub const HOPS: usize = 1 << 10;

/// Default size of the conntrack table; the loader overrides it with `--conntrack-size`.
pub const CONNTRACK_ENTRIES: usize = 1 << 18;

/// Map `config`, array of one: what the programs must know about the node itself. Written by the
/// agent at load; read by every program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// This node's data-path address on the underlay (its VTEP); zero while the node has none.
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
}

impl Config {
    /// Whether flows to the outside may leave from `port`, or with it as ICMP echo identifier.
    #[inline(always)]
    pub const fn is_outside_port(&self, port: Be16) -> bool {
        let [first, last] = self.outside_ports;
        first <= port.get() && port.get() <= last
    }
}

/// `xdp_underlay` may decapsulate: what it sees has its checksums filled in, or XDP is generic and the
/// kernel still knows which are not. Native XDP on a veth forgets that (`veth_xdp_rcv_skb`).
pub const CONFIG_XDP_DECAP: u32 = 1 << 0;

/// Map `hops`, per-CPU array indexed by [`Hop::slot`]: what the host's routing table last said of the
/// way to another node. Written and read by the programs only, each CPU by itself; an answer is used
/// for [`Hop::LIFETIME`], so a change of routes, neighbours, links or MTU is followed after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// When it was asked, in ticks of the kernel's clock (`bpf_jiffies64`); 0 for never.
    pub asked: u64,
    /// The node's VTEP, which was asked for.
    pub node: Be32,
    /// This node's VTEP, for routing by source.
    pub vtep: Be32,
    /// Index of the interface that the packet was said to come in by.
    pub via: u32,
    /// Index of the interface it leaves by.
    pub ifindex: u32,
    /// MTU of the route in bytes.
    pub mtu: u32,
    /// Ethernet header of an IPv4 packet to there; its MACs are zero when the kernel has yet to
    /// resolve them.
    pub ethernet: Ethernet,
    /// 1 if the MACs are known, otherwise 0.
    pub resolved: u16,
    /// Padding, zero.
    pub pad: u32,
}

impl Hop {
    /// For how many ticks an answer is used: 32 ms where the kernel's clock ticks 1000 times a
    /// second (CONFIG_HZ), 128 ms at 250, 320 ms at 100.
    pub const LIFETIME: u64 = 32;

    /// Where the answer for a node is kept. Nodes whose addresses follow each other do not meet
    /// (Fibonacci hashing).
    #[inline(always)]
    pub const fn slot(node: Be32) -> u32 {
        node.get().wrapping_mul(0x9e37_79b9) >> (32 - HOPS.ilog2())
    }
}

/// `BPF_F_ADJ_ROOM_DECAP_L4_UDP` of linux/bpf.h, newer than Linux 6.18: removing the headers also
/// removes the mark of an aggregate inside a UDP tunnel. Without it the mark stays, so that a TCP
/// aggregate that a container forwards is cut into segments earlier than it must be, and the kernel's
/// vxlan device has to take apart what minds more.
pub const DECAP_L4_UDP: u32 = 1 << 10;

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
}

/// The network has no way out and none in (`--internal`).
pub const NETWORK_INTERNAL: u32 = 1 << 0;
/// The network exists on one node only: nothing of it is ever encapsulated.
pub const NETWORK_LOCAL: u32 = 1 << 1;
/// Packets to groups are copied to all endpoints (`--opt multicast=replicate`), as map `replicas`
/// says.
pub const NETWORK_REPLICATE: u32 = 1 << 2;

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
pub const MAX_REPLICAS: usize = 64;

/// Map `replicas`, hash by VNI (`u32`): where packets to groups of a network are copied. Written by
/// the agent for networks with [`NETWORK_REPLICATE`] that have endpoints here, the host link never
/// among them; read by `from_container` and `from_underlay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Replicas {
    /// How many endpoints the network has here; those over [`MAX_REPLICAS`] get no copies.
    pub endpoints: u32,
    /// How many other nodes have endpoints of it; those over [`MAX_REPLICAS`] get no copies.
    pub nodes: u32,
    /// Indexes of the endpoints' host-side interfaces; zero behind the last.
    pub links: [u32; MAX_REPLICAS],
    /// VTEPs of the nodes; zero behind the last.
    pub vteps: [Be32; MAX_REPLICAS],
}

impl Default for Replicas {
    fn default() -> Self {
        Self { endpoints: 0, nodes: 0, links: [0; MAX_REPLICAS], vteps: [Be32::ZERO; MAX_REPLICAS] }
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
    /// `SERVICE`: number of the service whose VIP this is. Otherwise 0.
    pub service: u32,
    /// `LOCAL`: its slot in `endpoint_counters`. Otherwise 0.
    pub slot: u32,
}

/// Key of map `endpoints6`: an IPv6 address of a dual-stack network. Its values are [`Endpoint`]s,
/// never services: VIPs are IPv4 addresses. Written by the agent; read for every IPv6 packet by
/// `from_container` and `from_underlay`.
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
}

/// Key of map `peers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PeerKey {
    /// The network shared with the node, or [`crate::UNDERLAY_VNI`] for membership of the cluster.
    pub vni: u32,
    /// The node's VTEP.
    pub node: Be32,
}

/// Map `peers`, hash: nodes that may send us VXLAN, by network; an entry under
/// [`crate::UNDERLAY_VNI`] says that the node is of this cluster. Written by the agent; read, under
/// [`crate::UNDERLAY_VNI`] only, by `from_underlay` and `xdp_underlay`, unless `endpoints` has said
/// that the inner source is on the sending node: that decides what a node may send on a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// Spare, zero.
    pub flags: u32,
}

/// Map `services`, hash by service number (`u32`): written by the agent; read where a flow is new.
/// A number stands for one service on one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The network of the backends.
    pub vni: u32,
    /// The VIP on that network; zero when the service has none (dnsrr, or ports only).
    pub vip: Be32,
    /// How many entries of `slots` the service has: 0 means no backend takes new flows.
    pub slots: u32,
    /// Spare, zero.
    pub flags: u32,
}

/// Map `rr_cursor`, hash by service number (`u32`) of `u32`: how many picks were made. Created and
/// removed by the agent, advanced by the programs, and so kept apart from [`Service`].
pub type Cursor = u32;

/// Key of map `slots`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The service's number.
    pub service: u32,
    /// 0 to [`Service::slots`] - 1.
    pub index: u32,
}

/// Map `slots`, hash of backend numbers (`u32`): the backends that take new flows.
pub type Slot = u32;

/// Map `backends`, hash by backend number (`u32`): every backend that may have flows, draining
/// ones included. A number is never given twice in the life of a cluster. Written by the agent;
/// read on every packet of a translated flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Its network.
    pub vni: u32,
    /// Its address.
    pub ip: Be32,
    /// VTEP of its node; zero when it is on this one.
    pub node: Be32,
    /// Index of its host-side interface when it is on this node, otherwise 0.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: Mac,
    /// One of `BACKEND_*`.
    pub state: u16,
    /// Its slot in `endpoint_counters` when it is on this node, otherwise 0.
    pub slot: u32,
}

/// The backend takes new flows.
pub const BACKEND_ACTIVE: u16 = 1;
/// The backend keeps its flows and takes no new ones.
pub const BACKEND_DRAINING: u16 = 2;

/// Key of map `published`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PublishedKey {
    /// The published port.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Padding, zero.
    pub pad: u8,
}

/// Map `published`, hash: ports of the host that a service answers. Written by the agent; read by
/// `from_underlay`, `xdp_underlay`, `from_container` (host link) and the socket programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Published {
    /// The service's number.
    pub service: u32,
    /// The backends' port.
    pub target: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `local_addrs`, hash by address ([`Be32`]) of `u32`: addresses of the host on which
/// published ports answer. Written by the agent.
pub type LocalAddr = u32;

/// Map `egress`, hash by interface index (`u32`) of addresses ([`Be32`]): the interfaces that lead
/// outside and the address that flows leave by each with. Written by the agent; read by
/// `from_container` where a flow to the outside is new.
pub type Egress = Be32;

/// Key of map `subnets`, in the form of the kernel's LPM tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SubnetKey {
    /// Length of the prefix in bits.
    pub prefix: u32,
    /// The subnet's address.
    pub ip: Be32,
}

/// Map `subnets`, LPM trie of VNIs (`u32`): the subnets of all networks of the cluster, which are
/// never outside. Written by the agent; read by `from_container` where a flow to the outside is
/// new.
pub type Subnet = u32;

/// Map `usage`, hash by interface index (`u32`): how many flows to the outside an endpoint has.
/// `from_container` counts new ones; the agent counts what is live and corrects the number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Usage {
    /// Flows.
    pub flows: u32,
    /// Spare, zero.
    pub pad: u32,
    /// CLOCK_MONOTONIC in ns when the number was last corrected.
    pub counted: u64,
}

/// While nobody corrects [`Usage::flows`] for so long, in ns, it is halved when it is in the way:
/// flows end, and an endpoint must not be shut out for as long as the agent is away.
pub const USAGE_UNCOUNTED: u64 = 60_000_000_000;

/// Key of map `conntrack`: a tuple as it is seen on arrival, before any translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ConntrackKey {
    /// Source address.
    pub saddr: Be32,
    /// Destination address.
    pub daddr: Be32,
    /// Source port; the identifier of an ICMP echo request, zero of a reply.
    pub sport: Be16,
    /// Destination port; the identifier of an ICMP echo reply, zero of a request.
    pub dport: Be16,
    /// The network it is seen on, [`crate::UNDERLAY_VNI`] for the host's own addresses.
    pub vni: u32,
    /// IP protocol number.
    pub proto: u8,
    /// Zero, but for a flow from outside whose tuple another node's flow has on the backend's node:
    /// a digest of the node it came through ([`ConntrackKey::through`]).
    pub scope: [u8; 3],
}

impl ConntrackKey {
    /// The same tuple, as it comes through `node`.
    #[inline(always)]
    pub const fn through(self, node: Be32) -> Self {
        let [a, b, c, d] = crate::hash::mix(node.raw(), 0).to_ne_bytes();
        // Never zero, which is the scope of all other flows.
        Self { scope: [a ^ d, b, c | 1], ..self }
    }
}

/// Map `conntrack`, LRU hash: translated flows, one entry per direction. Written and read by the
/// programs; listed by the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Conntrack {
    /// Source address after translation.
    pub saddr: Be32,
    /// Destination address after translation.
    pub daddr: Be32,
    /// Source port after translation.
    pub sport: Be16,
    /// Destination port after translation.
    pub dport: Be16,
    /// Network the packet is on after translation, [`crate::UNDERLAY_VNI`] for the underlay.
    pub vni: u32,
    /// Number of the service.
    pub service: u32,
    /// Number of the backend; 0 on the backend's node for flows that came through another node.
    pub backend: u32,
    /// `RETURN`, and `FORWARD` with a scope: VTEP of the node the flow came through. Otherwise zero.
    pub node: Be32,
    /// One of `CONNTRACK_*`.
    pub action: u8,
    /// Bits of `TCP_SEEN_*` of this direction; [`UDP_ANSWERED`] of UDP.
    pub state: u8,
    /// Padding, zero.
    pub pad: u16,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the last packet in this direction.
    pub last_seen: u64,
}

/// Client to backend: rewrite to the backend.
pub const CONNTRACK_FORWARD: u8 = 1;
/// Backend to client, on the node that translated: rewrite to the address the client asked.
pub const CONNTRACK_REPLY: u8 = 2;
/// Backend to client, on the backend's node: send through the tunnel to the node the flow came
/// through, which translates. Only a source port that was changed here is changed back here.
pub const CONNTRACK_RETURN: u8 = 3;
/// Container to the outside: rewrite the source to this host's address.
pub const CONNTRACK_MASQUERADE: u8 = 4;
/// The outside to a container of this node: undo [`CONNTRACK_MASQUERADE`].
pub const CONNTRACK_UNMASQUERADE: u8 = 5;

/// A SYN was seen.
pub const TCP_SEEN_SYN: u8 = 1 << 0;
/// A segment with ACK was seen: in the reply direction this means established.
pub const TCP_SEEN_ACK: u8 = 1 << 1;
/// A FIN was seen.
pub const TCP_SEEN_FIN: u8 = 1 << 2;
/// A RST was seen.
pub const TCP_SEEN_RST: u8 = 1 << 3;
/// Of a UDP flow to the outside: both sides have spoken.
pub const UDP_ANSWERED: u8 = 1 << 4;

/// Key of map `sock_origin`: a socket of the host and where its datagrams really come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SockOriginKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// Address the socket was sent to instead.
    pub addr: Be32,
    /// Port the socket was sent to.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Map `sock_origin`, LRU hash: what the application asked for, so that getpeername and recvmsg
/// answer with it. Written by `connect4` and `sendmsg4`, read by `recvmsg4` and `getpeername4`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SockOrigin {
    /// Address the application asked for.
    pub addr: Be32,
    /// Port the application asked for.
    pub port: Be16,
    /// Padding, zero.
    pub pad: u16,
}

/// Value of map `counters`, per-CPU array indexed by [`crate::Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

plain!(
    Config,
    Hop,
    Network,
    Replicas,
    EndpointKey,
    Endpoint,
    Endpoint6Key,
    Link,
    Link6,
    PeerKey,
    Peer,
    Service,
    SlotKey,
    Backend,
    PublishedKey,
    Published,
    SubnetKey,
    Usage,
    ConntrackKey,
    Conntrack,
    SockOriginKey,
    SockOrigin,
    Counter,
);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    /// The fields' sizes must add up to the struct's: no hidden padding.
    macro_rules! packed {
        ($type:ident { $($field:ident),+ $(,)? }) => {{
            let value = <$type>::default();
            let sum = 0 $( + size_of_val(&value.$field) )+;
            assert_eq!(sum, size_of::<$type>(), concat!(stringify!($type), " has hidden padding"));
        }};
    }

    #[test]
    fn no_type_has_hidden_padding() {
        packed!(Config {
            vtep,
            ingress_gateway,
            host_ip,
            underlay_ifindex,
            host_link_ifindex,
            vxlan_ifindex,
            netns_cookie,
            underlay_mtu,
            vxlan_port,
            underlay_mac,
            decap_flags,
            outside_ports,
            outside_flows,
            flags,
            reserved,
        });
        packed!(Hop { asked, node, vtep, via, ifindex, mtu, ethernet, resolved, pad });
        packed!(Network { subnet, mask, gateway, mtu, flags });
        packed!(Replicas { endpoints, nodes, links, vteps });
        packed!(EndpointKey { vni, ip });
        packed!(Endpoint { kind, flags, mac, ifindex, node, service, slot });
        packed!(Link { vni, ip, mac, flags, slot });
        packed!(Endpoint6Key { vni, ip });
        packed!(Link6 { ip, mask });
        packed!(PeerKey { vni, node });
        packed!(Peer { flags });
        packed!(Service { vni, vip, slots, flags });
        packed!(SlotKey { service, index });
        packed!(Backend { vni, ip, node, ifindex, mac, state, slot });
        packed!(PublishedKey { port, proto, pad });
        packed!(Published { service, target, pad });
        packed!(SubnetKey { prefix, ip });
        packed!(Usage { flows, pad, counted });
        packed!(ConntrackKey { saddr, daddr, sport, dport, vni, proto, scope });
        packed!(Conntrack {
            saddr,
            daddr,
            sport,
            dport,
            vni,
            service,
            backend,
            node,
            action,
            state,
            pad,
            last_seen,
        });
        packed!(SockOriginKey { cookie, addr, port, pad });
        packed!(SockOrigin { addr, port, pad });
        packed!(Counter { packets, bytes });
    }

    #[test]
    fn layouts_are_those_of_version_1() {
        assert_eq!(crate::LAYOUT_VERSION, 1, "a new version needs its own layout test");
        assert_eq!(size_of::<Config>(), 64);
        assert_eq!(offset_of!(Config, netns_cookie), 24);
        assert_eq!(size_of::<Hop>(), 48);
        assert_eq!(size_of::<Network>(), 20);
        assert_eq!(size_of::<Replicas>(), 8 + 8 * MAX_REPLICAS);
        assert_eq!(size_of::<EndpointKey>(), 8);
        assert_eq!(size_of::<Endpoint>(), 24);
        assert_eq!(offset_of!(Endpoint, mac), 2);
        assert_eq!(size_of::<Link>(), 20);
        assert_eq!(size_of::<Endpoint6Key>(), 20);
        assert_eq!(size_of::<Link6>(), 32);
        assert_eq!(size_of::<Backend>(), 28);
        assert_eq!(size_of::<SubnetKey>(), 8);
        assert_eq!(size_of::<Usage>(), 16);
        assert_eq!(size_of::<ConntrackKey>(), 20);
        assert_eq!(size_of::<Conntrack>(), 40);
        assert_eq!(offset_of!(Conntrack, last_seen), 32);
        assert_eq!(size_of::<SockOriginKey>(), 16);
    }

    #[test]
    fn nodes_with_consecutive_addresses_have_slots_of_their_own() {
        let node = |n: u32| Be32::new(0xac10_0000 + n);
        assert!((0..100_000).all(|n| (Hop::slot(node(n)) as usize) < HOPS));
        let slots: std::collections::HashSet<u32> = (0..500).map(|n| Hop::slot(node(n))).collect();
        assert!(slots.len() > 450, "{} slots for 500 nodes", slots.len());
    }

    #[test]
    fn a_tuple_through_a_node_is_told_from_the_plain_one_and_from_other_nodes() {
        let key = ConntrackKey { proto: 6, ..ConntrackKey::default() };
        let mut seen = vec![key];
        for last in 1..=254 {
            seen.push(key.through(Be32::from_octets([172, 16, 1, last])));
        }
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
    }

    #[test]
    fn ports_to_the_outside_are_those_from_the_first_to_the_last() {
        let config = Config { outside_ports: [61_000, 61_010], ..Config::default() };
        let is = |port| config.is_outside_port(Be16::new(port));
        assert!(is(61_000) && is(61_010));
        assert!(!is(60_999) && !is(61_011));
    }

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
