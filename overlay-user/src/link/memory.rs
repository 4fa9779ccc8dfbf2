//! [`Links`] as tables in memory, for tests of the controller: any call can be made to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{EndpointLink, HostLink, LinkError, Links, UnderlayFacts, WayOut};

/// The calls of [`Links`], to say which one shall fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkCall {
    /// [`Links::underlay`]
    Underlay,
    /// [`Links::interface_with`]
    InterfaceWith,
    /// [`Links::addresses`]
    Addresses,
    /// [`Links::addresses6`]
    Addresses6,
    /// [`Links::ways_out`]
    WaysOut,
    /// [`Links::ensure_vxlan`]
    EnsureVxlan,
    /// [`Links::ensure_host_link`]
    EnsureHostLink,
    /// [`Links::ensure_endpoint_link`]
    EnsureEndpointLink,
    /// [`Links::remove`]
    Remove,
    /// [`Links::list`]
    List,
    /// [`Links::listens`]
    Listens,
}

#[derive(Debug, Default)]
struct Host {
    next_index: u32,
    interfaces: BTreeMap<String, u32>,
    underlays: BTreeMap<String, (UnderlayFacts, Vec<Ipv4Addr>)>,
    addresses6: BTreeMap<String, Vec<Ipv6Addr>>,
    vxlan: BTreeMap<String, u16>,
    host_link: Option<HostLink>,
    endpoints: BTreeMap<String, EndpointLink>,
    listening: BTreeSet<(PathBuf, u8, u16)>,
    missing_namespaces: BTreeSet<PathBuf>,
    failures: BTreeMap<LinkCall, usize>,
    calls: Vec<LinkCall>,
}

impl Host {
    fn interface(&mut self, name: &str) -> u32 {
        if let Some(index) = self.interfaces.get(name) {
            return *index;
        }
        self.next_index += 1;
        self.interfaces.insert(name.to_owned(), self.next_index);
        self.next_index
    }

    fn forget(&mut self, name: &str) {
        self.interfaces.remove(name);
        self.vxlan.remove(name);
        self.endpoints.remove(name);
        let ends = |link: &HostLink| link.name == name || link.program_side == name;
        if let Some(link) = self.host_link.take_if(|link| ends(link)) {
            self.interfaces.remove(&link.name);
            self.interfaces.remove(&link.program_side);
        }
    }
}

/// A host's links in memory. Clones share their state, so a test keeps one and gives one away.
#[derive(Clone, Debug, Default)]
pub struct MemoryLinks {
    host: Arc<Mutex<Host>>,
}

impl MemoryLinks {
    /// A host with no interface.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an underlay interface with its addresses; `facts.ifindex` is replaced by a fresh index,
    /// which is returned.
    pub fn add_underlay(&self, name: &str, facts: UnderlayFacts, addresses: &[Ipv4Addr]) -> u32 {
        let mut host = self.host();
        let ifindex = host.interface(name);
        let facts = UnderlayFacts { ifindex, ..facts };
        host.underlays.insert(name.to_owned(), (facts, addresses.to_vec()));
        ifindex
    }

    /// Gives an interface IPv6 addresses, and no others.
    pub fn set_addresses6(&self, name: &str, addresses: &[Ipv6Addr]) {
        self.host().addresses6.insert(name.to_owned(), addresses.to_vec());
    }

    /// Takes an underlay interface away.
    pub fn remove_underlay(&self, name: &str) {
        let mut host = self.host();
        host.underlays.remove(name);
        host.interfaces.remove(name);
    }

    /// Makes the next `times` calls fail; `usize::MAX` until [`MemoryLinks::heal`].
    pub fn fail(&self, call: LinkCall, times: usize) {
        self.host().failures.insert(call, times);
    }

    /// Ends the failures of a call.
    pub fn heal(&self, call: LinkCall) {
        self.host().failures.remove(&call);
    }

    /// Sets whether a process serves a port in a namespace.
    pub fn set_listening(&self, netns: impl Into<PathBuf>, port: (u8, u16), on: bool) {
        let entry = (netns.into(), port.0, port.1);
        let mut host = self.host();
        if on {
            host.listening.insert(entry)
        } else {
            host.listening.remove(&entry)
        };
    }

    /// Takes a namespace away, and with it the links into it, as the kernel does when the last
    /// process of a container ends.
    pub fn remove_namespace(&self, netns: impl Into<PathBuf>) {
        let netns = netns.into();
        let mut host = self.host();
        let gone: Vec<String> = host
            .endpoints
            .iter()
            .filter(|(_, link)| Path::new(&link.netns) == netns)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            host.forget(&name);
        }
        host.missing_namespaces.insert(netns);
    }

    /// The endpoint links that exist, by the name of the host-side end.
    pub fn endpoints(&self) -> BTreeMap<String, EndpointLink> {
        self.host().endpoints.clone()
    }

    /// The host link, when it exists.
    pub fn host_link(&self) -> Option<HostLink> {
        self.host().host_link.clone()
    }

    /// The vxlan devices and their ports.
    pub fn vxlan(&self) -> BTreeMap<String, u16> {
        self.host().vxlan.clone()
    }

    /// Every call so far, failed ones included.
    pub fn calls(&self) -> Vec<LinkCall> {
        self.host().calls.clone()
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        // A panic elsewhere is reported there; the tables are whole after every call.
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, call: LinkCall) -> Result<MutexGuard<'_, Host>, LinkError> {
        let mut host = self.host();
        host.calls.push(call);
        let Some(left) = host.failures.get_mut(&call).filter(|left| **left > 0) else {
            return Ok(host);
        };
        *left = if *left == usize::MAX { *left } else { *left - 1 };
        let action = format!("{call:?}");
        Err(LinkError::Kernel { action, reason: "made to fail by the test".to_owned() })
    }
}

impl Links for MemoryLinks {
    async fn underlay(&self, iface: &str) -> Result<UnderlayFacts, LinkError> {
        let host = self.enter(LinkCall::Underlay)?;
        let found = host.underlays.get(iface).map(|(facts, _)| facts.clone());
        found.ok_or_else(|| LinkError::NoInterface(iface.to_owned()))
    }

    async fn interface_with(&self, address: IpAddr) -> Result<Option<String>, LinkError> {
        let host = self.enter(LinkCall::InterfaceWith)?;
        let mut underlays = host.underlays.iter();
        Ok(underlays
            .find(|(_, (_, all))| all.iter().any(|own| IpAddr::V4(*own) == address))
            .map(|(name, _)| name.clone()))
    }

    async fn addresses(&self, not_on: &[&str]) -> Result<Vec<Ipv4Addr>, LinkError> {
        let host = self.enter(LinkCall::Addresses)?;
        let wanted = host.underlays.iter().filter(|(name, _)| !not_on.contains(&name.as_str()));
        let mut addresses: Vec<Ipv4Addr> = wanted.flat_map(|(_, (_, all))| all.clone()).collect();
        if let Some(link) = host.host_link.as_ref().filter(|l| !not_on.contains(&l.name.as_str())) {
            addresses.push(link.address.addr());
        }
        addresses.sort();
        addresses.dedup();
        Ok(addresses)
    }

    async fn addresses6(&self, not_on: &[&str]) -> Result<Vec<Ipv6Addr>, LinkError> {
        let host = self.enter(LinkCall::Addresses6)?;
        let wanted = host.addresses6.iter().filter(|(name, _)| !not_on.contains(&name.as_str()));
        let addresses: BTreeSet<Ipv6Addr> = wanted.flat_map(|(_, all)| all.clone()).collect();
        Ok(addresses.into_iter().collect())
    }

    async fn ways_out(&self, not_on: &[&str]) -> Result<Vec<WayOut>, LinkError> {
        let host = self.enter(LinkCall::WaysOut)?;
        let wanted = host.underlays.iter().filter(|(name, _)| !not_on.contains(&name.as_str()));
        let ways = wanted.map(|(name, (facts, addresses))| {
            let address = addresses.first().copied();
            WayOut { name: name.clone(), ifindex: facts.ifindex, address }
        });
        Ok(ways.collect())
    }

    async fn ensure_vxlan(&self, name: &str, port: u16) -> Result<u32, LinkError> {
        let mut host = self.enter(LinkCall::EnsureVxlan)?;
        if host.vxlan.iter().any(|(other, taken)| other != name && *taken == port) {
            return Err(LinkError::PortTaken { port });
        }
        if host.vxlan.get(name).is_some_and(|old| *old != port) {
            host.forget(name);
        }
        host.vxlan.insert(name.to_owned(), port);
        Ok(host.interface(name))
    }

    async fn ensure_host_link(&self, link: &HostLink) -> Result<u32, LinkError> {
        let mut host = self.enter(LinkCall::EnsureHostLink)?;
        host.host_link = Some(link.clone());
        host.interface(&link.name);
        Ok(host.interface(&link.program_side))
    }

    async fn ensure_endpoint_link(&self, link: &EndpointLink) -> Result<u32, LinkError> {
        let mut host = self.enter(LinkCall::EnsureEndpointLink)?;
        if host.missing_namespaces.contains(Path::new(&link.netns)) {
            return Err(LinkError::NoNamespace(link.netns.clone()));
        }
        let inner = (&link.netns, &link.name);
        let clash = host
            .endpoints
            .values()
            .any(|o| o.host_name != link.host_name && (&o.netns, &o.name) == inner);
        if clash {
            let (netns, name) = (link.netns.clone(), link.name.clone());
            return Err(LinkError::InterfaceExists { netns, name });
        }
        if host.endpoints.get(&link.host_name).is_some_and(|o| o.netns != link.netns) {
            // As on the kernel: a pair into another namespace is made anew, with a new index.
            host.forget(&link.host_name);
        }
        host.endpoints.insert(link.host_name.clone(), link.clone());
        Ok(host.interface(&link.host_name))
    }

    async fn remove(&self, name: &str) -> Result<(), LinkError> {
        self.enter(LinkCall::Remove)?.forget(name);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, u32)>, LinkError> {
        let host = self.enter(LinkCall::List)?;
        let named = host.interfaces.iter().filter(|(name, _)| name.starts_with(prefix));
        Ok(named.map(|(name, index)| (name.clone(), *index)).collect())
    }

    fn listens(&self, netns: &Path, ports: &[(u8, u16)]) -> Result<bool, LinkError> {
        let host = self.enter(LinkCall::Listens)?;
        if host.missing_namespaces.contains(netns) {
            return Err(LinkError::NoNamespace(netns.display().to_string()));
        }
        let netns = netns.to_owned();
        Ok(ports
            .iter()
            .any(|(proto, port)| host.listening.contains(&(netns.clone(), *proto, *port))))
    }
}

#[cfg(test)]
mod tests {
    use overlay_common::Mac;

    use super::*;

    fn link(host_name: &str, netns: &str) -> EndpointLink {
        EndpointLink {
            host_name: host_name.to_owned(),
            netns: netns.to_owned(),
            name: "eth0".to_owned(),
            mac: Mac::default(),
            address: "10.0.1.2/24".parse().expect("an address"),
            gateway: None,
            ipv6: None,
            mtu: 1450,
        }
    }

    #[tokio::test]
    async fn an_injected_failure_hits_its_call_and_wears_off() {
        let links = MemoryLinks::new();
        links.fail(LinkCall::EnsureEndpointLink, 1);
        assert!(links.ensure_endpoint_link(&link("ov1", "/ns/1")).await.is_err());
        assert!(links.endpoints().is_empty(), "a failed call leaves nothing behind");
        let index = links.ensure_endpoint_link(&link("ov1", "/ns/1")).await.expect("made");
        assert_eq!(links.list("ov").await.expect("listed"), vec![("ov1".to_owned(), index)]);
        links.fail(LinkCall::Remove, usize::MAX);
        assert!(links.remove("ov1").await.is_err() && links.remove("ov1").await.is_err());
        links.heal(LinkCall::Remove);
        links.remove("ov1").await.expect("removed");
        assert!(links.endpoints().is_empty());
    }

    #[tokio::test]
    async fn names_and_namespaces_behave_as_on_the_kernel() {
        let links = MemoryLinks::new();
        let first = links.ensure_endpoint_link(&link("ov1", "/ns/1")).await.expect("made");
        assert_eq!(links.ensure_endpoint_link(&link("ov1", "/ns/1")).await.expect("same"), first);
        let clash = links.ensure_endpoint_link(&link("ov2", "/ns/1")).await;
        assert!(matches!(clash, Err(LinkError::InterfaceExists { .. })));
        links.remove_namespace("/ns/1");
        assert!(links.list("ov").await.expect("listed").is_empty(), "its links go with it");
        let gone = links.ensure_endpoint_link(&link("ov1", "/ns/1")).await;
        assert!(matches!(gone, Err(LinkError::NoNamespace(_))));
        let again = links.ensure_endpoint_link(&link("ov1", "/ns/2")).await.expect("made");
        assert_ne!(again, first, "an index is never given twice");
    }
}
