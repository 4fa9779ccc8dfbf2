//! An index of the names that this host's containers can resolve.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::model::{
    ClusterState, Endpoint, EndpointMode, EndpointState, Id, Network, NodeState, Service, Standing,
};

/// The networks of some containers, with every name and address on them.
///
/// It is built in one pass over the cluster's state, so that a query costs a few lookups for any
/// number of services and endpoints.
#[derive(Debug, Default)]
pub struct Directory {
    networks: BTreeMap<Id, NetworkNames>,
    containers: BTreeMap<Id, Vec<Attachment>>,
}

/// A container on a network.
#[derive(Debug)]
struct Attachment {
    network: Id,
    node: Id,
    number: u32,
}

/// The names of one network, in lower case.
#[derive(Debug)]
pub(super) struct NetworkNames {
    /// Name of the network, in lower case.
    pub name: String,
    subnet: Ipv4Net,
    subnet6: Option<Ipv6Net>,
    internal: bool,
    local: bool,
    services: HashMap<String, ServiceNames>,
    hosts: HashMap<String, Vec<Host>>,
    addresses: HashMap<IpAddr, Vec<Owner>>,
}

/// A service on a network.
#[derive(Debug)]
struct ServiceNames {
    vip: Option<Ipv4Addr>,
    vip6: Option<Ipv6Addr>,
    mode: EndpointMode,
    backends: Vec<Host>,
}

/// An endpoint.
#[derive(Clone, Debug)]
struct Host {
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    node: Id,
    container: Id,
    draining: bool,
    node_ready: bool,
    /// Takes new flows. The slots of the maps use the same condition.
    active: bool,
}

/// The addresses of a name. Only dual-stack networks have IPv6 ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
}

impl Addresses {
    fn of<'a>(hosts: impl Iterator<Item = &'a Host>) -> Self {
        let mut addresses = Self::default();
        for host in hosts {
            addresses.v4.push(host.ip);
            addresses.v6.extend(host.ip6);
        }
        addresses
    }
}

/// The owner of an address. `node` is `None` for VIPs.
#[derive(Debug)]
struct Owner {
    name: String,
    node: Option<Id>,
}

/// A container's view of one of its networks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    /// The network.
    pub network: &'a NetworkNames,
    container: &'a Id,
    node: &'a Id,
}

impl Directory {
    /// Builds the directory of the names on all networks of `containers`.
    pub fn build(state: &ClusterState, containers: &BTreeSet<Id>) -> Self {
        let mut directory = Self::default();
        for endpoint in state.endpoints.values() {
            if containers.contains(&endpoint.container) {
                directory.attach(state, endpoint);
            }
        }
        for attachments in directory.containers.values_mut() {
            // Endpoint numbers are allocated in the order in which the container requested its
            // networks.
            attachments.sort_by_key(|a| a.number);
        }
        for service in state.services.values() {
            directory.add_service(service);
        }
        for endpoint in state.endpoints.values() {
            if let Some(network) = directory.networks.get_mut(&endpoint.network) {
                network.add_endpoint(state, endpoint);
            }
        }
        directory
    }

    fn attach(&mut self, state: &ClusterState, endpoint: &Endpoint) {
        let Some(network) = state.networks.get(&endpoint.network) else { return };
        self.networks.entry(network.id.clone()).or_insert_with(|| NetworkNames::of(network));
        self.containers.entry(endpoint.container.clone()).or_default().push(Attachment {
            network: network.id.clone(),
            node: endpoint.node.clone(),
            number: endpoint.number,
        });
    }

    fn add_service(&mut self, service: &Service) {
        if service.owner.is_some() {
            // The service only carries the ports of a container and has the container's name.
            return;
        }
        for on in &service.networks {
            let Some(network) = self.networks.get_mut(&on.network) else { continue };
            let names = ServiceNames {
                vip: on.vip,
                vip6: on.vip6,
                mode: service.mode,
                backends: Vec::new(),
            };
            network.services.insert(service.name.to_ascii_lowercase(), names);
            for vip in [on.vip.map(IpAddr::V4), on.vip6.map(IpAddr::V6)].into_iter().flatten() {
                let owner = Owner { name: service.name.clone(), node: None };
                network.addresses.entry(vip).or_default().push(owner);
            }
        }
    }

    /// Returns a container's networks, the first one first; `None` if the state has no endpoint of
    /// it.
    pub(super) fn scopes<'a>(&'a self, container: &'a Id) -> Option<Vec<Scope<'a>>> {
        let attachments = self.containers.get(container)?;
        let scope = |a: &'a Attachment| {
            Some(Scope { network: self.networks.get(&a.network)?, container, node: &a.node })
        };
        Some(attachments.iter().filter_map(scope).collect())
    }
}

impl NetworkNames {
    /// Returns true if an address belongs to the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.subnet.contains(&ip),
            IpAddr::V6(ip) => self.subnet6.is_some_and(|subnet| subnet.contains(&ip)),
        }
    }

    fn of(network: &Network) -> Self {
        Self {
            name: network.name.to_ascii_lowercase(),
            subnet: network.subnet,
            subnet6: network.ipv6.as_ref().map(|ipv6| ipv6.subnet),
            internal: network.internal,
            local: network.is_local(),
            services: HashMap::new(),
            hosts: HashMap::new(),
            addresses: HashMap::new(),
        }
    }

    fn add_endpoint(&mut self, state: &ClusterState, endpoint: &Endpoint) {
        let host = Host::of(state, endpoint);
        let service = endpoint.service.as_ref().and_then(|id| state.services.get(id));
        if let Some(names) =
            service.and_then(|s| self.services.get_mut(&s.name.to_ascii_lowercase()))
        {
            names.backends.push(host.clone());
        }
        for ip in [Some(endpoint.ip.into()), endpoint.ip6.map(IpAddr::V6)].into_iter().flatten() {
            let owner = Owner { name: endpoint.name.clone(), node: Some(endpoint.node.clone()) };
            self.addresses.entry(ip).or_default().push(owner);
        }
        // As in Docker, the beginning of a container's id is also a name.
        let names: BTreeSet<String> = std::iter::once(endpoint.name.as_str())
            .chain(endpoint.aliases.iter().map(String::as_str))
            .chain(std::iter::once(endpoint.container.short()))
            .map(str::to_ascii_lowercase)
            .collect();
        for name in names {
            self.hosts.entry(name).or_default().push(host.clone());
        }
    }
}

impl Host {
    fn of(state: &ClusterState, endpoint: &Endpoint) -> Self {
        let node = state.nodes.get(&endpoint.node);
        let node_ready = node.is_some_and(|n| n.state == NodeState::Ready);
        Self {
            ip: endpoint.ip,
            ip6: endpoint.ip6,
            node: endpoint.node.clone(),
            container: endpoint.container.clone(),
            draining: endpoint.state == EndpointState::Draining,
            node_ready,
            active: state.standing(endpoint) == Standing::Running,
        }
    }
}

impl Scope<'_> {
    /// Returns true if endpoints of this node are visible. A node-local network has the same
    /// addresses on every node, so only those of the container's own node are.
    fn is_here(&self, node: &Id) -> bool {
        !self.network.local || node == self.node
    }

    /// Returns true if the network has egress.
    pub fn leads_out(&self) -> bool {
        !self.network.internal
    }

    /// Returns the addresses of a service's name; `None` if there is no such service.
    pub fn service(&self, name: &str) -> Option<Addresses> {
        let service = self.network.services.get(name)?;
        match (service.mode, service.vip) {
            (EndpointMode::Vip, Some(vip)) => {
                Some(Addresses { v4: vec![vip], v6: service.vip6.into_iter().collect() })
            }
            _ => self.tasks(name),
        }
    }

    /// Returns the backends of a service that take new flows; `None` if there is no such service.
    pub fn tasks(&self, service: &str) -> Option<Addresses> {
        let backends = self.network.services.get(service)?.backends.iter();
        Some(Addresses::of(backends.filter(|b| b.active && self.is_here(&b.node))))
    }

    /// Returns the containers with this name or alias; `None` if there is none.
    ///
    /// Draining containers are left out, because the first step of a drain is to remove them from
    /// name resolution. Containers on down nodes are returned only if there are no others.
    pub fn hosts(&self, name: &str) -> Option<Addresses> {
        let hosts = self.network.hosts.get(name)?.iter();
        let here: Vec<&Host> = hosts.filter(|h| self.is_here(&h.node)).collect();
        if here.is_empty() {
            return None;
        }
        let usable = |h: &&&Host| !h.draining || h.container == *self.container;
        let ready = |h: &&&Host| h.node_ready || h.container == *self.container;
        let best = Addresses::of(here.iter().filter(usable).filter(ready).copied());
        if best.v4.is_empty() {
            return Some(Addresses::of(here.iter().filter(usable).copied()));
        }
        Some(best)
    }

    /// Returns the full name (`NAME.NETWORK`) of the owner of an address of this network.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let owners = self.network.addresses.get(&address)?;
        let owner = owners.iter().find(|o| o.node.as_ref().is_none_or(|n| self.is_here(n)))?;
        Some(format!("{}.{}", owner.name, self.network.name))
    }
}
