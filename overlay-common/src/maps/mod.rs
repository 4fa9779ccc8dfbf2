//! Keys and values of the BPF maps: one struct for each key and value, with its writer and its
//! readers.
//!
//! Unless a field says otherwise, integers are in host byte order, and addresses and ports are in
//! network byte order ([`crate::Be32`], [`crate::Be16`]). All types are `repr(C)` without hidden
//! padding; the layout tests at the end of this file check that.
//!
//! "Written by the agent" means that reconciliation of the compiled state writes it. People do not
//! edit it.

mod cache;
mod conntrack;
mod lru;
mod network;
mod node;
mod outside;
mod service;
mod socket;

pub use self::{
    cache::*, conntrack::*, lru::*, network::*, node::*, outside::*, service::*, socket::*,
};
use crate::pod::plain;

/// Most entries of `endpoints`, `endpoints6`, `addresses6`, `backends`, `active`, `slots` and
/// `peers`: room for 100,000 endpoints of 1,000 nodes. The kernel allocates entries when they are
/// made. It allocates the map's buckets at once, 16 bytes for each possible entry.
pub const LARGE_TABLE: usize = 1 << 18;

/// Most entries of `networks`, `services`, `rr_cursor`, `lb_tables`, `stale_backends` and
/// `published`: room for 10,000 services with several networks and for every port.
pub const MEDIUM_TABLE: usize = 1 << 16;

/// Most entries of `links`, `links6`, `netns`, `local_addrs` and `local_addrs6`, which describe one
/// node.
pub const SMALL_TABLE: usize = 1 << 14;

/// Entries of `next_hops`, a power of two: as many as the nodes of the largest cluster.
pub const NEXT_HOPS_ENTRIES: usize = 1 << 10;

/// Entries of `endpoint_cache`, a power of two: room for the endpoints that a node's own endpoints
/// talk to at a time, 80 KiB for each CPU. With more endpoints than entries the programs look up
/// more often.
pub const ENDPOINT_CACHE_ENTRIES: usize = 1 << 11;

/// Entries of `link_cache`, a power of two.
pub const LINK_CACHE_ENTRIES: usize = 1 << 8;

/// Entries of `backend_stats`, for the ports and protocols of all backends together. Traffic beyond
/// them is not counted.
pub const BACKEND_STATS_ENTRIES: usize = 1 << 17;

/// Entries of `ct_new`: new flows. A full map evicts the least recently used ones.
pub const CT_NEW_ENTRIES: usize = 1 << 16;

/// Default size of the conntrack table; the loader overrides it with `--conntrack-size`.
pub const CONNTRACK_ENTRIES: usize = 1 << 18;

/// Value of map `counters`, per-CPU array indexed by [`crate::Reason`]: packets and bytes for each
/// reason. Written by the programs; read by the agent.
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
    CachedNextHop,
    CachedEndpoint,
    CachedLink,
    Network,
    Flood,
    EndpointKey,
    Endpoint,
    Endpoint6Key,
    Link,
    Link6,
    PeerKey,
    Peer,
    Service,
    SlotKey,
    TableKey,
    AffinityKey,
    Affinity,
    Backend,
    BackendStatsKey,
    BackendStats,
    PublishedKey,
    Published,
    Frontend6Key,
    SubnetKey,
    Subnet6Key,
    SnatUsage,
    ConntrackKey,
    Conntrack,
    FragmentKey,
    Fragment,
    Addr6Secret,
    SockOriginKey,
    SockOrigin,
    NetnsNetwork,
    Netns,
    SockFlow,
    Counter,
    LruStats,
);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    /// The sizes of the fields must add up to the size of the struct: then there is no hidden
    /// padding.
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
            vtep6,
        });
        packed!(CachedNextHop {
            asked,
            node,
            vtep,
            via,
            ifindex,
            mtu,
            ethernet,
            resolved,
            pad,
            vtep6
        });
        packed!(CachedEndpoint { generation, key, endpoint });
        packed!(CachedLink { generation, ifindex, link });
        packed!(Network { subnet, mask, gateway, mtu, flags, policy });
        packed!(Flood { endpoints, nodes, links, vteps });
        packed!(EndpointKey { vni, ip });
        packed!(Endpoint { kind, flags, mac, ifindex, node, service, counter });
        packed!(Link { vni, ip, mac, flags, counter });
        packed!(Endpoint6Key { vni, ip });
        packed!(Link6 { ip, mask, gateway });
        packed!(PeerKey { vni, node });
        packed!(Peer { flags, key });
        packed!(Service {
            vni,
            vip,
            slots,
            table,
            affinity,
            scheduler,
            hash,
            flags,
            tcp_idle,
            udp_idle,
        });
        packed!(SlotKey { service, index });
        packed!(TableKey { service, table });
        packed!(AffinityKey { service, vni, client });
        packed!(Affinity { backend, pad, last_used });
        packed!(Backend { vni, ip, node, ifindex, mac, state, counter, weight, flags });
        packed!(BackendStatsKey { service, backend, port, proto, ipv6 });
        packed!(BackendStats { flows, in_packets, in_bytes, out_packets, out_bytes });
        packed!(PublishedKey { port, proto, pad });
        packed!(Published { service, target, flags });
        packed!(Frontend6Key { node, number });
        packed!(SubnetKey { prefix, ip });
        packed!(Subnet6Key { prefix, ip });
        packed!(SnatUsage { flows, pad, counted });
        packed!(FragmentKey { saddr, daddr, vni, id, proto, pad });
        packed!(Fragment { head, seen });
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
            pad,
            idle,
            flags,
            generation,
            last_seen,
        });
        packed!(SockOriginKey { cookie, addr, port, pad });
        packed!(SockOrigin { addr, port, pad });
        packed!(NetnsNetwork { vni, subnet, mask, ip });
        packed!(Netns { networks });
        packed!(SockFlow {
            asked,
            ip,
            port,
            pad,
            vni,
            service,
            backend,
            proto,
            reserved,
            netns,
            since,
        });
        packed!(Counter { packets, bytes });
        packed!(LruStats { made, removed });
    }

    #[test]
    fn layouts_are_those_of_version_2() {
        assert_eq!(crate::LAYOUT_VERSION, 2, "a new version needs its own layout test");
        assert_eq!(size_of::<Config>(), 80);
        assert_eq!(offset_of!(Config, netns_cookie), 24);
        assert_eq!(size_of::<CachedNextHop>(), 64);
        assert_eq!(size_of::<CachedEndpoint>(), 40);
        assert_eq!(size_of::<CachedLink>(), 32);
        assert_eq!((size_of::<Network>(), size_of::<Peer>()), (24, 8));
        assert_eq!(size_of::<Flood>(), 8 + 8 * MAX_FLOOD);
        assert_eq!(size_of::<EndpointKey>(), 8);
        assert_eq!(size_of::<Endpoint>(), 24);
        assert_eq!(offset_of!(Endpoint, mac), 2);
        assert_eq!(size_of::<Link>(), 20);
        assert_eq!(size_of::<Endpoint6Key>(), 20);
        assert_eq!(size_of::<Link6>(), 48);
        assert_eq!(
            (size_of::<Service>(), size_of::<BackendStatsKey>(), size_of::<BackendStats>()),
            (28, 12, 40)
        );
        assert_eq!(size_of::<Affinity>(), 16);
        assert_eq!(size_of::<Backend>(), 32);
        assert_eq!((size_of::<Frontend6Key>(), size_of::<Frontend6>()), (8, 16));
        assert_eq!((size_of::<SubnetKey>(), size_of::<Subnet6Key>()), (8, 20));
        assert_eq!(size_of::<SnatUsage>(), 16);
        assert_eq!((size_of::<FragmentKey>(), size_of::<Fragment>()), (20, 16));
        assert_eq!(size_of::<ConntrackKey>(), 20);
        assert_eq!(size_of::<Conntrack>(), 48);
        assert_eq!((offset_of!(Conntrack, flags), offset_of!(Conntrack, last_seen)), (32, 40));
        assert_eq!((size_of::<LruStats>(), size_of::<SockOriginKey>()), (16, 16));
        assert_eq!(size_of::<Netns>(), 16 * NETNS_NETWORKS);
        assert_eq!((size_of::<SockFlow>(), offset_of!(SockFlow, netns)), (56, 40));
    }
}
