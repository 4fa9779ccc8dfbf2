//! The wanted or actual contents of the maps, and the operations that lead from one to the other.

use std::collections::BTreeMap;

use overlay_common::{
    Be32, Ip6,
    maps::{
        Address6, Backend, Egress, Endpoint, Endpoint6Key, EndpointKey, Flood, Frontend6,
        Frontend6Key, Link, Link6, LocalAddr, Netns, Network, Peer, PeerKey, Published,
        PublishedKey, Service, Slot, SlotKey, StaleBackend, Subnet, Subnet6, Subnet6Key, SubnetKey,
        TableKey, Vtep6,
    },
};

use super::LbTable;

/// The contents of the agent's maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatapathState {
    /// Map `networks`, by VNI.
    pub networks: BTreeMap<u32, Network>,
    /// Map `flood`, by VNI.
    pub flood: BTreeMap<u32, Box<Flood>>,
    /// Map `endpoints`.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// Map `endpoints6`.
    pub endpoints6: BTreeMap<Endpoint6Key, Endpoint>,
    /// Map `addresses6`, by IPv4 address.
    pub addresses6: BTreeMap<EndpointKey, Address6>,
    /// Map `links`, by interface index.
    pub links: BTreeMap<u32, Link>,
    /// Map `links6`, by interface index.
    pub links6: BTreeMap<u32, Link6>,
    /// Map `peers`.
    pub peers: BTreeMap<PeerKey, Peer>,
    /// Map `vteps6`, by the nodes' numbers.
    pub vteps6: BTreeMap<Be32, Vtep6>,
    /// Map `services`, by number. Map `rr_cursor` has the same keys.
    pub services: BTreeMap<u32, Service>,
    /// Map `slots`.
    pub slots: BTreeMap<SlotKey, Slot>,
    /// Map `lb_tables`.
    pub tables: BTreeMap<TableKey, LbTable>,
    /// Map `backends`, by number. Map `active` has those of them that are
    /// [`overlay_common::maps::BACKEND_COUNTED`].
    pub backends: BTreeMap<u32, Backend>,
    /// Map `published`.
    pub published: BTreeMap<PublishedKey, Published>,
    /// Map `local_addrs`.
    pub local_addrs: BTreeMap<Be32, LocalAddr>,
    /// Map `local_addrs6`.
    pub local_addrs6: BTreeMap<Ip6, LocalAddr>,
    /// Map `frontends6`.
    pub frontends6: BTreeMap<Frontend6Key, Frontend6>,
    /// Map `egress`, by interface index.
    pub egress: BTreeMap<u32, Egress>,
    /// Map `subnets`.
    pub subnets: BTreeMap<SubnetKey, Subnet>,
    /// Map `subnets6`.
    pub subnets6: BTreeMap<Subnet6Key, Subnet6>,
    /// Map `netns`, by network namespace cookie.
    pub netns: BTreeMap<u64, Netns>,
    /// Map `stale_backends`.
    pub stale_backends: BTreeMap<EndpointKey, StaleBackend>,
}

/// One write to one map. `None` as a value removes the key; a missing key is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// `networks`
    Network(u32, Option<Network>),
    /// `flood`
    Flood(u32, Option<Box<Flood>>),
    /// `endpoints`
    Endpoint(EndpointKey, Option<Endpoint>),
    /// `endpoints6`
    Endpoint6(Endpoint6Key, Option<Endpoint>),
    /// `addresses6`
    Address6(EndpointKey, Option<Address6>),
    /// `links`
    Link(u32, Option<Link>),
    /// `links6`
    Link6(u32, Option<Link6>),
    /// `peers`
    Peer(PeerKey, Option<Peer>),
    /// `vteps6`
    Vtep6(Be32, Option<Vtep6>),
    /// `services`, and `rr_cursor` with it: a new service's cursor starts at 0, an existing one's
    /// is left alone.
    Service(u32, Option<Service>),
    /// `slots`
    Slot(SlotKey, Option<Slot>),
    /// `lb_tables`
    Table(TableKey, Option<LbTable>),
    /// `backends`, and `active` with it: the number of a backend's flows starts at 0 and is left
    /// alone for as long as it is counted.
    Backend(u32, Option<Backend>),
    /// `published`
    Published(PublishedKey, Option<Published>),
    /// `local_addrs`
    LocalAddr(Be32, Option<LocalAddr>),
    /// `local_addrs6`
    LocalAddr6(Ip6, Option<LocalAddr>),
    /// `frontends6`
    Frontend6(Frontend6Key, Option<Frontend6>),
    /// `egress`
    Egress(u32, Option<Egress>),
    /// `subnets`
    Subnet(SubnetKey, Option<Subnet>),
    /// `subnets6`
    Subnet6(Subnet6Key, Option<Subnet6>),
    /// `netns`
    Netns(u64, Option<Netns>),
    /// `stale_backends`
    StaleBackend(EndpointKey, Option<StaleBackend>),
}

fn puts<K: Ord + Copy, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    ops: &mut Vec<MapOp>,
    op: impl Fn(K, Option<V>) -> MapOp,
) {
    for (key, value) in new {
        if old.get(key) != Some(value) {
            ops.push(op(*key, Some(value.clone())));
        }
    }
}

fn removes<K: Ord + Copy, V>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    ops: &mut Vec<MapOp>,
    op: impl Fn(K, Option<V>) -> MapOp,
) {
    for key in old.keys() {
        if !new.contains_key(key) {
            ops.push(op(*key, None));
        }
    }
}

/// The operations that turn `old` into `new`. Their order ensures that no packet in between meets
/// a reference to a missing entry: the target of a reference is written before the reference, and
/// removed after it.
pub fn diff(old: &DatapathState, new: &DatapathState) -> Vec<MapOp> {
    let mut ops = Vec::new();
    puts(&old.flood, &new.flood, &mut ops, MapOp::Flood);
    // The addresses inside are written before any packet may go outside.
    puts(&old.subnets, &new.subnets, &mut ops, MapOp::Subnet);
    puts(&old.subnets6, &new.subnets6, &mut ops, MapOp::Subnet6);
    puts(&old.networks, &new.networks, &mut ops, MapOp::Network);
    puts(&old.vteps6, &new.vteps6, &mut ops, MapOp::Vtep6);
    puts(&old.peers, &new.peers, &mut ops, MapOp::Peer);
    // Before whatever leads to an IPv6 flow.
    puts(&old.addresses6, &new.addresses6, &mut ops, MapOp::Address6);
    // Before the endpoints themselves go.
    puts(&old.stale_backends, &new.stale_backends, &mut ops, MapOp::StaleBackend);
    puts(&old.backends, &new.backends, &mut ops, MapOp::Backend);
    puts(&old.slots, &new.slots, &mut ops, MapOp::Slot);
    puts(&old.tables, &new.tables, &mut ops, MapOp::Table);
    puts(&old.services, &new.services, &mut ops, MapOp::Service);
    puts(&old.endpoints, &new.endpoints, &mut ops, MapOp::Endpoint);
    puts(&old.endpoints6, &new.endpoints6, &mut ops, MapOp::Endpoint6);
    puts(&old.links, &new.links, &mut ops, MapOp::Link);
    puts(&old.links6, &new.links6, &mut ops, MapOp::Link6);
    puts(&old.local_addrs, &new.local_addrs, &mut ops, MapOp::LocalAddr);
    puts(&old.local_addrs6, &new.local_addrs6, &mut ops, MapOp::LocalAddr6);
    puts(&old.frontends6, &new.frontends6, &mut ops, MapOp::Frontend6);
    puts(&old.published, &new.published, &mut ops, MapOp::Published);
    puts(&old.egress, &new.egress, &mut ops, MapOp::Egress);
    puts(&old.netns, &new.netns, &mut ops, MapOp::Netns);

    removes(&old.netns, &new.netns, &mut ops, MapOp::Netns);
    removes(&old.egress, &new.egress, &mut ops, MapOp::Egress);
    removes(&old.published, &new.published, &mut ops, MapOp::Published);
    removes(&old.frontends6, &new.frontends6, &mut ops, MapOp::Frontend6);
    removes(&old.local_addrs, &new.local_addrs, &mut ops, MapOp::LocalAddr);
    removes(&old.local_addrs6, &new.local_addrs6, &mut ops, MapOp::LocalAddr6);
    removes(&old.links6, &new.links6, &mut ops, MapOp::Link6);
    removes(&old.links, &new.links, &mut ops, MapOp::Link);
    removes(&old.endpoints6, &new.endpoints6, &mut ops, MapOp::Endpoint6);
    removes(&old.endpoints, &new.endpoints, &mut ops, MapOp::Endpoint);
    removes(&old.services, &new.services, &mut ops, MapOp::Service);
    removes(&old.slots, &new.slots, &mut ops, MapOp::Slot);
    removes(&old.tables, &new.tables, &mut ops, MapOp::Table);
    removes(&old.backends, &new.backends, &mut ops, MapOp::Backend);
    removes(&old.addresses6, &new.addresses6, &mut ops, MapOp::Address6);
    removes(&old.stale_backends, &new.stale_backends, &mut ops, MapOp::StaleBackend);
    removes(&old.peers, &new.peers, &mut ops, MapOp::Peer);
    removes(&old.vteps6, &new.vteps6, &mut ops, MapOp::Vtep6);
    removes(&old.networks, &new.networks, &mut ops, MapOp::Network);
    removes(&old.subnets, &new.subnets, &mut ops, MapOp::Subnet);
    removes(&old.subnets6, &new.subnets6, &mut ops, MapOp::Subnet6);
    removes(&old.flood, &new.flood, &mut ops, MapOp::Flood);
    ops
}
