//! A transaction under construction. Its own allocations count as taken for the rest of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use jiff::Timestamp;
use overlay_common::INGRESS_VNI;

use super::{ipam, ipam6};
use crate::{
    api::ApiError,
    manager::error::{conflict, exhausted, internal, invalid},
    model::{Change, Cluster, ClusterState, Id, Kind, Network, Object},
};

/// Highest VNI: 24 bits (RFC 7348, section 5).
pub(in crate::manager) const MAX_VNI: u32 = (1 << 24) - 1;

/// Highest number in the maps. The agent uses the top bit for host-mode ports.
const MAX_NUMBER: u32 = (1 << 31) - 1;

/// A transaction under construction.
pub(in crate::manager) struct Draft<'a> {
    /// The state it starts from.
    pub state: &'a ClusterState,
    /// Time of the transaction.
    pub now: Timestamp,
    cluster: Cluster,
    /// Networks that the transaction makes or changes.
    networks: BTreeMap<Id, Network>,
    /// Addresses in use by network and, on node-local networks, node.
    used: HashMap<(Id, Option<Id>), HashSet<u32>>,
    /// IPv6 addresses in use by network.
    used6: HashMap<Id, HashSet<u128>>,
    changes: Vec<Change>,
}

impl<'a> Draft<'a> {
    /// Starts from a state that has a cluster.
    pub fn new(state: &'a ClusterState, now: Timestamp) -> Result<Self, ApiError> {
        let cluster = state.cluster.clone().ok_or_else(|| {
            internal("the store holds no cluster").hint("make one with `overlay init`")
        })?;
        Ok(Self {
            state,
            now,
            cluster,
            networks: BTreeMap::new(),
            used: HashMap::new(),
            used6: HashMap::new(),
            changes: Vec::new(),
        })
    }

    /// Returns the cluster with the current counters.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Allocates a new number for the maps.
    pub fn number(&mut self) -> Result<u32, ApiError> {
        let number = self.cluster.next_number;
        if number > MAX_NUMBER {
            return Err(exhausted(format!(
                "all {MAX_NUMBER} numbers for services and backends were used up"
            ))
            .hint("move to a new cluster with `overlay init`"));
        }
        self.cluster.next_number += 1;
        Ok(number)
    }

    /// Allocates a VNI that no network has. VNIs are allocated in sequence, so that a freed one is
    /// not reused at once.
    pub fn vni(&mut self) -> Result<u32, ApiError> {
        let taken: HashSet<u32> = self.state.networks.values().map(|n| n.vni).collect();
        let first = INGRESS_VNI + 1;
        let start = self.cluster.next_vni.clamp(first, MAX_VNI);
        let vni = (start..=MAX_VNI).chain(first..start).find(|vni| !taken.contains(vni));
        let vni = vni.ok_or_else(|| {
            exhausted(format!("every VNI from {first} to {MAX_VNI} is in use"))
                .hint("remove networks that are not needed with `overlay network rm`")
        })?;
        self.cluster.next_vni = if vni == MAX_VNI { first } else { vni + 1 };
        Ok(vni)
    }

    /// Adds a new or changed network to the transaction.
    pub fn put_network(&mut self, network: Network) {
        self.networks.insert(network.id.clone(), network);
    }

    /// Returns a network with the changes of this transaction.
    pub fn network(&self, id: &Id) -> Result<&Network, ApiError> {
        self.networks.get(id).or_else(|| self.state.networks.get(id)).ok_or_else(|| {
            internal(format!("the state refers to network {id}, which does not exist"))
        })
    }

    /// Allocates the next free address of a network. `node` matters on node-local networks only.
    pub fn allocate(&mut self, network: &Id, node: &Id) -> Result<Ipv4Addr, ApiError> {
        let mut network = self.network(network)?.clone();
        let used = self.used(&network, node);
        let Some(address) = ipam::next_free(&network, used) else {
            return Err(ipam::exhausted_error(self.state, &network, node));
        };
        used.insert(address.to_bits());
        network.next_address = ipam::after(&network, address);
        self.networks.insert(network.id.clone(), network);
        Ok(address)
    }

    /// Reserves a given address of a network.
    pub fn reserve(&mut self, network: &Id, node: &Id, ip: Ipv4Addr) -> Result<(), ApiError> {
        let network = self.network(network)?.clone();
        if !ipam::usable(network.subnet).contains(&ip.to_bits()) {
            return Err(invalid(format!(
                "address {ip} is not one for hosts in network {} ({})",
                network.name, network.subnet
            )));
        }
        if !self.used(&network, node).insert(ip.to_bits()) {
            let by = ipam::user_of(self.state, &network, node, ip)
                .unwrap_or_else(|| "this request".to_owned());
            return Err(conflict(format!(
                "address {ip} of network {} is in use by {by}",
                network.name
            ))
            .hint("choose another one, or leave out --ip for the next free one"));
        }
        Ok(())
    }

    /// Allocates the next free IPv6 address of a network. Returns `None` if the network has no
    /// IPv6.
    pub fn allocate6(&mut self, network: &Id) -> Result<Option<Ipv6Addr>, ApiError> {
        let network = self.network(network)?.clone();
        let Some(mut ipv6) = network.ipv6.clone() else { return Ok(None) };
        let used = self.used6.entry(network.id.clone());
        let used = used.or_insert_with(|| ipam6::used(self.state, &network));
        let address = ipam6::next_free(&ipv6, used).ok_or_else(|| {
            exhausted(format!(
                "network {} has no free IPv6 address: all of {} are in use",
                network.name, ipv6.subnet
            ))
            .hint("remove containers or services from it, or make a network with a larger --subnet")
        })?;
        used.insert(address.to_bits());
        ipv6.next_address = ipam6::after(ipv6.subnet, address);
        self.networks.insert(network.id.clone(), Network { ipv6: Some(ipv6), ..network });
        Ok(Some(address))
    }

    /// Reserves a given IPv6 address of a network.
    pub fn reserve6(&mut self, network: &Id, ip: Ipv6Addr) -> Result<(), ApiError> {
        let network = self.network(network)?.clone();
        let Some(ipv6) = &network.ipv6 else {
            return Err(invalid(format!("network {} has no IPv6", network.name))
                .hint("leave out the IPv6 --ip, or make a network with --ipv6"));
        };
        if !ipam6::usable(ipv6.subnet).contains(&ip.to_bits()) {
            return Err(invalid(format!(
                "address {ip} is not one for hosts in network {} ({})",
                network.name, ipv6.subnet
            )));
        }
        let used = self.used6.entry(network.id.clone());
        if !used.or_insert_with(|| ipam6::used(self.state, &network)).insert(ip.to_bits()) {
            let by = ipam6::user_of(self.state, &network.id, ipv6, ip)
                .unwrap_or_else(|| "this request".to_owned());
            return Err(conflict(format!(
                "address {ip} of network {} is in use by {by}",
                network.name
            ))
            .hint("choose another one, or leave out --ip for the next free one"));
        }
        Ok(())
    }

    fn used(&mut self, network: &Network, node: &Id) -> &mut HashSet<u32> {
        let node = network.is_local().then(|| node.clone());
        let state = self.state;
        self.used
            .entry((network.id.clone(), node.clone()))
            .or_insert_with(|| ipam::used(state, network, node.as_ref()))
    }

    /// Adds a write.
    pub fn put(&mut self, object: Object) {
        self.changes.push(Change::Put(object));
    }

    /// Adds a removal.
    pub fn delete(&mut self, kind: Kind, id: &Id) {
        self.changes.push(Change::Delete { kind, id: id.clone() });
    }

    /// Returns the transaction: cluster and networks first, then the other changes in their order.
    pub fn finish(self) -> super::Plan {
        let cluster = (self.state.cluster.as_ref() != Some(&self.cluster))
            .then_some(Change::Put(Object::Cluster(self.cluster)));
        let networks = self.networks.into_values().map(|n| Change::Put(Object::Network(n)));
        cluster.into_iter().chain(networks).chain(self.changes).collect::<Vec<_>>().into()
    }
}
