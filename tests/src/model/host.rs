//! The kernel's answers on the rig's host: one NIC, one subnet, two known neighbours.

use std::net::{IpAddr, Ipv4Addr};

use overlay_common::{Mac, Reason, maps::Config};

use crate::rig::{CLIENT, CLIENT_MAC, NODE, NODE_MAC, NODE6, PEER, PEER_MAC, PEER6, Rig};

/// The host's interfaces, routes and neighbours.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The NIC, which forwards.
    pub nic: u32,
    /// Interfaces that are up and do not forward: loopback and the other end of the NIC.
    pub no_forwarding: [u32; 2],
    /// The kernel's vxlan device.
    pub vxlan: u32,
}

/// The next hop of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The NIC's MAC and the neighbour's; both are zero if the neighbour is not resolved.
    pub macs: (Mac, Mac),
    /// Whether the neighbour is resolved.
    pub resolved: bool,
    /// The interface.
    pub ifindex: u32,
}

/// MTU of the NIC.
pub const MTU: usize = 1500;

impl Host {
    /// The rig's.
    pub fn of(rig: &Rig) -> Self {
        Self { nic: rig.underlay, no_forwarding: [1, rig.no_forwarding], vxlan: rig.vxlan }
    }

    /// Whether the kernel accepts a copy, a frame of `length` bytes, for an interface. It must
    /// exist and be up. A veth also requires that the frame fits the MTU and an Ethernet header
    /// with a VLAN tag (`is_skb_forwardable`).
    pub fn takes(&self, ifindex: u32, length: usize) -> bool {
        let [loopback, other_end] = self.no_forwarding;
        let is_veth = ifindex == self.nic || ifindex == other_end;
        ifindex == self.vxlan || ifindex == loopback || (is_veth && length <= MTU + 18)
    }

    /// The path of an IP packet of `total` bytes to `dst`, as if it came in by the interface in the
    /// configuration. The IPv6 routes are like those of IPv4.
    pub fn next_hop(&self, config: &Config, dst: IpAddr, total: usize) -> Result<NextHop, Reason> {
        let dst = match dst {
            IpAddr::V4(dst) => dst,
            IpAddr::V6(PEER6) => PEER,
            IpAddr::V6(dst) if dst.segments()[..4] == NODE6.segments()[..4] && dst != NODE6 => {
                Ipv4Addr::new(172, 16, 1, 200)
            }
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let unresolved = |ifindex| NextHop { macs: Default::default(), resolved: false, ifindex };
        let from = [config.host_link_ifindex, config.underlay_ifindex];
        let from = from.into_iter().find(|ifindex| *ifindex != 0).unwrap_or(0);
        if self.no_forwarding.contains(&from) {
            return Ok(unresolved(config.underlay_ifindex));
        }
        if from != self.nic || dst.octets()[..3] != [172, 16, 1] || dst == NODE {
            return Err(Reason::NoRoute);
        }
        if dst.octets()[3] == 255 {
            return Err(Reason::NoRoute);
        }
        if total > MTU {
            return Err(Reason::TooBig);
        }
        let neighbour = [(PEER, PEER_MAC), (CLIENT, CLIENT_MAC)];
        let found = neighbour.into_iter().find(|(ip, _)| *ip == dst);
        Ok(found.map_or(unresolved(self.nic), |(_, mac)| NextHop {
            macs: (Mac::new(NODE_MAC), Mac::new(mac)),
            resolved: true,
            ifindex: self.nic,
        }))
    }
}
