//! The addresses of flows. Those of IPv6 flows are ids in the maps.

use std::net::{IpAddr, SocketAddr};

use overlay_common::{
    Be16, Be32, Ip6,
    maps::{Conntrack, ConntrackKey, VNI_FLAG_IPV6},
};

use crate::{agent::show::names::Names, datapath::Datapath};

/// The IPv6 addresses that the address ids of flows stand for.
pub trait Numbers {
    /// The IPv6 address of the endpoint or VIP that has an IPv4 address of a network.
    fn inside(&self, vni: u32, number: Be32) -> Option<Ip6>;

    /// The address outside that has a number.
    fn outside(&self, number: Be32) -> Option<Ip6>;
}

/// As the cluster's state and the maps have them at the moment.
pub struct Live<'a, D>(pub &'a Names, pub &'a D);

impl<D: Datapath> Numbers for Live<'_, D> {
    fn inside(&self, vni: u32, number: Be32) -> Option<Ip6> {
        self.0.address6(vni, number)
    }

    fn outside(&self, number: Be32) -> Option<Ip6> {
        // An unreadable map counts as unknown.
        self.1.addr6(number).ok().flatten()
    }
}

/// Where a packet comes from and goes to, as it arrives and as it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sockets {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub new_source: SocketAddr,
    pub new_destination: SocketAddr,
}

impl Sockets {
    /// Those of a flow's direction. A number that stands for nothing any more is shown as it is.
    pub fn of(key: &ConntrackKey, entry: &Conntrack, numbers: &impl Numbers) -> Self {
        let socket = |side: u32, number: Be32, port: Be16| {
            SocketAddr::new(address(side, number, numbers), port.get())
        };
        Self {
            source: socket(key.vni, key.saddr, key.sport),
            destination: socket(key.vni, key.daddr, key.dport),
            new_source: socket(entry.vni, entry.saddr, entry.sport),
            new_destination: socket(entry.vni, entry.daddr, entry.dport),
        }
    }
}

/// Whether a VNI of the tables of flows is of an IPv6 flow.
pub const fn is_ipv6(side: u32) -> bool {
    side & VNI_FLAG_IPV6 != 0
}

/// The network that a VNI of the tables of flows stands for.
pub const fn network(side: u32) -> u32 {
    side & !VNI_FLAG_IPV6
}

/// The address with the id `number` in a flow on this side.
fn address(side: u32, number: Be32, numbers: &impl Numbers) -> IpAddr {
    let found = match (is_ipv6(side), number.octets()[0]) {
        (false, _) => None,
        // No host has an address of 240.0.0.0/4.
        (true, 240..) => numbers.outside(number),
        (true, _) => numbers.inside(network(side), number),
    };
    found.map_or(IpAddr::V4(number.into()), |ip6| IpAddr::V6(ip6.into()))
}

#[cfg(test)]
pub mod tests {
    use std::{collections::HashMap, net::Ipv6Addr};

    use super::*;

    /// Numbers by network; those outside have network 0.
    #[derive(Default)]
    pub struct Known(HashMap<(u32, Be32), Ip6>);

    impl Known {
        pub fn with(mut self, vni: u32, number: [u8; 4], address: &str) -> Self {
            let address: Ipv6Addr = address.parse().expect("an address");
            self.0.insert((vni, Be32::from_octets(number)), address.into());
            self
        }
    }

    impl Numbers for Known {
        fn inside(&self, vni: u32, number: Be32) -> Option<Ip6> {
            self.0.get(&(vni, number)).copied()
        }

        fn outside(&self, number: Be32) -> Option<Ip6> {
            self.0.get(&(0, number)).copied()
        }
    }

    /// From a client outside to a port of this host, and on to a backend.
    fn flow(side: u32) -> (ConntrackKey, Conntrack) {
        let [client, asked, backend] =
            [[240, 1, 2, 3], [250, 0, 0, 1], [10, 0, 1, 7]].map(Be32::from_octets);
        let ports = |[source, destination]: [u16; 2]| (Be16::new(source), Be16::new(destination));
        let (sport, dport) = ports([40_000, 8080]);
        let key = ConntrackKey {
            saddr: client,
            daddr: asked,
            sport,
            dport,
            vni: side,
            ..Default::default()
        };
        let (sport, dport) = ports([40_000, 80]);
        let vni = side | 4097;
        (key, Conntrack { saddr: client, daddr: backend, sport, dport, vni, ..Default::default() })
    }

    fn shown(side: u32, numbers: &Known) -> [String; 4] {
        let (key, entry) = flow(side);
        let Sockets { source, destination, new_source, new_destination } =
            Sockets::of(&key, &entry, numbers);
        [source, destination, new_source, new_destination].map(|socket| socket.to_string())
    }

    #[test]
    fn numbers_of_ipv6_flows_are_shown_as_the_addresses_that_they_stand_for() {
        let known = Known::default()
            .with(0, [240, 1, 2, 3], "2001:db8::9")
            .with(0, [250, 0, 0, 1], "2001:db8::1")
            .with(4097, [10, 0, 1, 7], "fd00:1::7")
            .with(4098, [10, 0, 1, 7], "fd00:2::7");
        assert_eq!(
            shown(VNI_FLAG_IPV6, &known),
            ["[2001:db8::9]:40000", "[2001:db8::1]:8080", "[2001:db8::9]:40000", "[fd00:1::7]:80"]
        );
        let ipv4 = ["240.1.2.3:40000", "250.0.0.1:8080", "240.1.2.3:40000", "10.0.1.7:80"];
        assert_eq!(shown(0, &known), ipv4, "the same in IPv4 are addresses");
    }

    #[test]
    fn numbers_that_stand_for_nothing_any_more_are_shown_as_they_are() {
        let known = Known::default().with(0, [240, 1, 2, 3], "2001:db8::9");
        assert_eq!(
            shown(VNI_FLAG_IPV6, &known),
            ["[2001:db8::9]:40000", "250.0.0.1:8080", "[2001:db8::9]:40000", "10.0.1.7:80"]
        );
    }
}
