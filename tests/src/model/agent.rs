//! The agent's state as the model reads it: addresses, ports and networks, and the names of
//! addresses of flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlay_common::{
    Be16, Be32, Ip6, Mac, UNDERLAY_VNI,
    maps::{
        Backend, ENDPOINT_FLAG_HOST, ENDPOINT_SERVICE, Endpoint, Endpoint6Key, EndpointKey, Link,
        Link6, Network, PUBLISHED_IPV6, PeerKey, Published, PublishedKey, Service,
    },
};

use super::state::{Name, Tables};

/// The address ids of IPv6 addresses in packets.
#[derive(Clone, Copy, Default)]
pub struct Naming {
    /// The source is treated as one outside, even if the network has it.
    pub source_outside: bool,
    /// An address outside may be new.
    pub may_be_new: bool,
}

/// `fe80::` and the modified EUI-64 of a MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let id = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from(0xfe80 << 112 | u128::from(u64::from_be_bytes(id)))
}

/// Whether an address is in the IPv6 subnet of an interface.
pub fn has_subnet(link: &Link6, ip: Ipv6Addr) -> bool {
    let bits = |ip: Ip6| Ipv6Addr::from(ip).to_bits();
    let mask = bits(link.mask);
    ip.to_bits() & mask == bits(link.ip) & mask
}

/// Whether an address is in the IPv4 subnet of a network.
pub fn is_of(network: &Network, ip: Ipv4Addr) -> bool {
    u32::from(ip) & network.mask.get() == network.subnet.get()
}

impl Tables {
    /// The endpoint with an address of a network. "Link-local addresses follow from the MAC." The
    /// node itself is reached by IPv4 only, and VIPs have no link.
    pub fn endpoint(&self, vni: u32, ip: IpAddr) -> Option<Endpoint> {
        let agent = &self.agent;
        let ip = match ip {
            IpAddr::V4(ip) => {
                return agent.endpoints.get(&EndpointKey { vni, ip: ip.into() }).copied();
            }
            IpAddr::V6(ip) => ip,
        };
        let found = if ip.is_unicast_link_local() {
            let mut of_network = agent.endpoints.iter().filter(|(key, _)| key.vni == vni);
            let owner = of_network.find(|(key, _)| link_local(Mac::of_ip(key.ip)) == ip);
            owner.map(|(_, e)| e).filter(|e| e.kind != ENDPOINT_SERVICE)
        } else {
            agent.endpoints6.get(&Endpoint6Key { vni, ip: ip.into() })
        };
        found.filter(|e| e.flags & ENDPOINT_FLAG_HOST == 0).copied()
    }

    /// A network.
    pub fn network(&self, vni: u32) -> Option<Network> {
        self.agent.networks.get(&vni).copied()
    }

    /// The MAC of a network's gateway.
    pub fn gateway_mac(&self, vni: u32) -> Option<Mac> {
        self.network(vni).map(|network| Mac::of_ip(network.gateway))
    }

    /// The published port with this protocol and number.
    pub fn published(&self, proto: u8, port: u16) -> Option<Published> {
        let key = PublishedKey { port: Be16::new(port), proto, pad: 0 };
        self.agent.published.get(&key).copied()
    }

    /// The published port at an address of this host. "A port answers on the host's IPv6 addresses
    /// too where its backends have IPv6."
    pub fn published_at(&self, ip: IpAddr, proto: u8, port: u16) -> Option<Published> {
        let published = self.published(proto, port).filter(|_| self.is_local(ip));
        published.filter(|published| ip.is_ipv4() || published.flags & PUBLISHED_IPV6 != 0)
    }

    /// Whether this host has an address.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.agent.local_addrs.contains_key(&ip.into()),
            IpAddr::V6(ip) => self.agent.local_addrs6.contains_key(&ip.into()),
        }
    }

    /// Whether an address belongs to a network of the cluster.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.agent.subnets.keys().any(|subnet| {
                let mask = u32::MAX.checked_shl(32 - subnet.prefix).unwrap_or(0);
                u32::from(ip) & mask == subnet.ip.get()
            }),
            IpAddr::V6(ip) => self.agent.subnets6.keys().any(|subnet| {
                let mask = u128::MAX.checked_shl(128 - subnet.prefix).unwrap_or(0);
                ip.to_bits() & mask == Ipv6Addr::from(subnet.ip).to_bits()
            }),
        }
    }

    /// A service.
    pub fn service(&self, number: u32) -> Option<Service> {
        self.agent.services.get(&number).copied()
    }

    /// A backend.
    pub fn backend(&self, number: u32) -> Option<Backend> {
        self.agent.backends.get(&number).copied()
    }

    /// The IPv6 settings of an interface.
    pub fn link6(&self, ifindex: u32) -> Option<Link6> {
        self.agent.links6.get(&ifindex).copied()
    }

    /// A backend's address in a family.
    pub fn backend_name(&self, backend: &Backend, ipv6: bool) -> Name {
        let ip = Ipv4Addr::from(backend.ip);
        if ipv6 { Name::inside(self.ids.address(backend.vni, ip)) } else { Name::inside(ip) }
    }

    /// An endpoint's address in a family.
    pub fn link_name(&self, link: &Link, ipv6: bool) -> Name {
        let ip = Ipv4Addr::from(link.ip);
        if ipv6 { Name::inside(self.ids.address(link.vni, ip)) } else { Name::inside(ip) }
    }

    /// Whether a node of the cluster takes part in a network, or in the cluster.
    pub fn is_peer(&self, vni: u32, node: Ipv4Addr) -> bool {
        self.agent.peers.contains_key(&PeerKey { vni, node: node.into() })
    }

    /// Whether an endpoint of a network has this IPv6 address, and flows name it by the address.
    pub fn has_inside6(&self, vni: u32, ip: Ipv6Addr) -> bool {
        let endpoint = self.agent.endpoints6.get(&Endpoint6Key { vni, ip: ip.into() });
        vni != UNDERLAY_VNI && endpoint.is_some_and(|e| e.flags & ENDPOINT_FLAG_HOST == 0)
    }

    /// Whether an IPv6 address outside has an address id.
    pub fn has_client(&self, ip: Ipv6Addr) -> bool {
        self.clients.contains(&ip) || self.clients_new.contains(&ip)
    }

    /// The name of an IPv6 address outside. It may get an address id here.
    pub fn client(&mut self, ip: Ipv6Addr, may_be_new: bool) -> Option<Name> {
        if !self.has_client(ip) {
            if !may_be_new {
                return None;
            }
            self.clients_new.insert(ip);
        }
        Some(Name::outside(ip))
    }

    /// The names of a packet's ends on a network. `None` if an IPv6 address outside has none.
    pub fn names(&mut self, vni: u32, ends: [IpAddr; 2], how: Naming) -> Option<[Name; 2]> {
        let mut name = |ip: IpAddr, outside: bool| match ip {
            IpAddr::V6(ip) if outside || !self.has_inside6(vni, ip) => {
                self.client(ip, how.may_be_new)
            }
            ip => Some(Name::inside(ip)),
        };
        let (src, dst) = (name(ends[0], how.source_outside), name(ends[1], false));
        Some([src?, dst?])
    }

    /// The address of a name. An IPv6 address may have been evicted.
    pub fn address(&self, vni: u32, name: Name) -> Option<IpAddr> {
        let IpAddr::V6(ip) = name.ip else { return Some(name.ip) };
        let known = if name.outside {
            self.has_client(ip)
        } else {
            let key = EndpointKey { vni, ip: self.ids.id(name) };
            self.agent.addresses6.get(&key) == Some(&Ip6::from(ip))
        };
        known.then_some(name.ip)
    }

    /// A flow in use keeps the address of its client: "as flows go from `ct_new` to `conntrack`,
    /// their addresses go along".
    pub fn keep(&mut self, name: Name) {
        if let IpAddr::V6(ip) = name.ip
            && name.outside
            && !self.clients.contains(&ip)
            && self.clients_new.remove(&ip)
        {
            self.clients.insert(ip);
        }
    }

    /// The MAC of an address, as nodes encode it for each other.
    pub fn mac_of(&self, name: Name) -> Mac {
        Mac::of_ip(self.ids.id(name))
    }

    /// Whether the address of a client outside is that of a container in the backend's network.
    pub fn poses_as_inside(&self, backend: &Backend, client: IpAddr) -> bool {
        match client {
            IpAddr::V4(ip) => self.network(backend.vni).is_some_and(|network| is_of(&network, ip)),
            IpAddr::V6(ip) => {
                self.link6(backend.ifindex).is_some_and(|link| has_subnet(&link, ip))
                    || self.has_inside6(backend.vni, ip)
            }
        }
    }

    /// An IPv4 address as the agent's maps have it.
    pub fn stale_backend(&self, vni: u32, ip: Be32) -> Option<u32> {
        self.agent.stale_backends.get(&EndpointKey { vni, ip }).copied()
    }
}
