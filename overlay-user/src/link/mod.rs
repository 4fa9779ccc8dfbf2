//! Interfaces and network namespaces, behind one trait: the real one speaks netlink, the other one
//! is a table in memory.

mod device;
mod endpoint;
mod host;
mod listen;
mod memory;
mod netlink;
pub mod netns;
mod rtnl;
mod sock_diag;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{Ipv4Net, Ipv6Net};
use overlay_common::Mac;

pub(crate) use device::is_physical;
pub use memory::{LinkCall, MemoryLinks};
pub use netlink::NetlinkLinks;
pub use sock_diag::tcp_cookies;

/// Why a link could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The interface does not exist.
    #[error("there is no interface {0:?} on this host; `ip link` lists them")]
    NoInterface(String),
    /// The namespace does not exist.
    #[error("there is no network namespace at {0}")]
    NoNamespace(String),
    /// The container has an interface of that name.
    #[error("the namespace {netns} already has an interface {name:?}; choose another name")]
    InterfaceExists {
        /// The namespace.
        netns: String,
        /// The interface.
        name: String,
    },
    /// The VXLAN port is in use by another program.
    #[error(
        "UDP port {port} is taken by another vxlan device or socket on this host; stop what uses \
         it (`ss -ulpn`, `ip -d link show type vxlan`) or make the cluster with another \
         --data-path-port"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The kernel refused.
    #[error("{action}: {reason}")]
    Kernel {
        /// The operation that failed.
        action: String,
        /// The kernel's error.
        reason: String,
    },
}

/// The properties of the underlay interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayFacts {
    /// Interface index.
    pub ifindex: u32,
    /// MAC.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether received packets have complete checksums, as on the wire of a NIC.
    pub checksums: bool,
}

/// An interface by which packets come from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// The source address of the host's own packets on this interface. Without one, the overlay
    /// sends no packets through it.
    pub address: Option<Ipv4Addr>,
}

/// The host link: a veth pair with both ends in the host's namespace. Packets that the host routes
/// to the first end come out of the second, where `from_container` is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Name of the host's end, which has the ingress address.
    pub name: String,
    /// Name of the program's end.
    pub program_side: String,
    /// Address of the node on the ingress network, with the subnet's prefix length.
    pub address: Ipv4Net,
    /// MAC of the host's end.
    pub mac: Mac,
    /// MTU of both.
    pub mtu: u32,
}

/// An endpoint's veth pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointLink {
    /// Name of the host-side end.
    pub host_name: String,
    /// Path of the container's namespace.
    pub netns: String,
    /// Name of the end inside.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its address and prefix length.
    pub address: Ipv4Net,
    /// Default route; `None` for internal networks and for all but a container's first network.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 side, on dual-stack networks; otherwise IPv6 inside is left as it is.
    pub ipv6: Option<LinkIpv6>,
    /// MTU of both ends.
    pub mtu: u32,
}

/// The IPv6 side of an endpoint's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkIpv6 {
    /// Address and prefix length.
    pub address: Ipv6Net,
    /// Default route, as [`EndpointLink::gateway`].
    pub gateway: Option<Ipv6Addr>,
}

/// Links of one host. Every `ensure_*` may be called again and repairs missing parts.
pub trait Links: Send + Sync + 'static {
    /// Facts about an interface of the host.
    fn underlay(
        &self,
        iface: &str,
    ) -> impl Future<Output = Result<UnderlayFacts, LinkError>> + Send;

    /// The interface that has `address`.
    fn interface_with(
        &self,
        address: IpAddr,
    ) -> impl Future<Output = Result<Option<String>, LinkError>> + Send;

    /// All IPv4 addresses of the host except those of `not_on` interfaces.
    fn addresses(
        &self,
        not_on: &[&str],
    ) -> impl Future<Output = Result<Vec<Ipv4Addr>, LinkError>> + Send;

    /// All IPv6 addresses of the host but loopback and link-local ones, except those of `not_on`
    /// interfaces.
    fn addresses6(
        &self,
        not_on: &[&str],
    ) -> impl Future<Output = Result<Vec<Ipv6Addr>, LinkError>> + Send;

    /// The interfaces, by name, on which packets arrive from outside, except those of `not_on`.
    /// They are Ethernet and up, with or without an IPv4 address. An interface without an address
    /// that is part of a bridge, a bond or the like is left out: its packets are not for the host,
    /// or they arrive on the bridge or bond as well.
    fn ways_out(
        &self,
        not_on: &[&str],
    ) -> impl Future<Output = Result<Vec<WayOut>, LinkError>> + Send;

    /// The kernel's vxlan device in collect-metadata mode, up, on `port`. Returns its index.
    fn ensure_vxlan(
        &self,
        name: &str,
        port: u16,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;

    /// The host link, up, with its address, forwarding on at the program's end (next hops are
    /// looked up there). Returns the index of the program's end.
    fn ensure_host_link(
        &self,
        link: &HostLink,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;

    /// An endpoint's veth pair with the end inside named, addressed in either family, up, `lo` up,
    /// and the host-side end up. Returns the index of the host-side end.
    ///
    /// When it fails nothing is left behind.
    fn ensure_endpoint_link(
        &self,
        link: &EndpointLink,
    ) -> impl Future<Output = Result<u32, LinkError>> + Send;

    /// Removes an interface of the host; a missing one is no error.
    fn remove(&self, name: &str) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Names and indexes of the host's interfaces with a name that starts with `prefix`.
    fn list(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<Vec<(String, u32)>, LinkError>> + Send;

    /// Whether a TCP or UDP socket inside the namespace is bound to (UDP) or listens on (TCP) any
    /// of `ports` (protocol number, port).
    fn listens(&self, netns: &Path, ports: &[(u8, u16)]) -> Result<bool, LinkError>;
}
