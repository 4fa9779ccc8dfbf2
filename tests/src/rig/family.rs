//! Tests with the same expectations for IPv4 and IPv6.
//!
//! They name machines by IPv4 addresses, and each machine has an IPv6 address too. MACs follow from
//! the IPv4 addresses. A test of both families is a function of [`Family`], and
//! [`of_both_families!`](crate::of_both_families) makes two tests of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use overlay_common::{Be32, hash};

use super::{
    CLIENT, CLIENT_MAC, CLIENT6, NODE_MAC, PEER, Rig, ip6, mac,
    packets::{self, Seen, Tcp},
    underlay6, vtep6,
};

/// Makes tests `ipv4::NAME` and `ipv6::NAME` of functions of a [`Family`].
#[macro_export]
macro_rules! of_both_families {
    ($($name:ident),+ $(,)?) => {
        mod ipv4 {
            $(#[test]
            fn $name() -> impl std::process::Termination {
                super::$name($crate::rig::Family::Ipv4)
            })+
        }
        mod ipv6 {
            $(#[test]
            fn $name() -> impl std::process::Termination {
                super::$name($crate::rig::Family::Ipv6)
            })+
        }
    };
}

/// A family of addresses, and the packets that tests send over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The address of a machine with this IPv4 address: for a container 10.0.N.X it is fd00:N::X,
    /// for a node it is [`vtep6`], for [`CLIENT`] it is [`CLIENT6`], and for any other 2001:db8::X.
    pub fn ip(self, machine: Ipv4Addr) -> IpAddr {
        match (self, machine.octets()) {
            (Self::Ipv4, _) => machine.into(),
            (Self::Ipv6, _) if machine == CLIENT => CLIENT6.into(),
            (Self::Ipv6, [10, 0, n, last]) => ip6(n, last).into(),
            (Self::Ipv6, [172, 16, 1, _]) => vtep6(machine).into(),
            (Self::Ipv6, [.., last]) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()).into()
            }
        }
    }

    /// A port of a machine's address.
    pub fn at(self, (machine, port): (Ipv4Addr, u16)) -> (IpAddr, u16) {
        (self.ip(machine), port)
    }

    /// The id of a machine's address in the maps and in the marks of tunnel packets.
    pub fn number(self, machine: Ipv4Addr) -> Be32 {
        match self.ip(machine) {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => hash::of_node(&address.into()),
        }
    }

    /// Length of the IP header in bytes.
    pub fn header(self) -> usize {
        match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        }
    }

    /// A TCP segment between endpoints.
    pub fn tcp(self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: Tcp) -> Vec<u8> {
        packets::tcp_on(self.between(from.0, to.0), (from.1, to.1), flags)
    }

    /// A UDP datagram between endpoints.
    pub fn udp(self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
        packets::udp_on(self.between(from.0, to.0), (from.1, to.1), payload)
    }

    /// An echo request between endpoints.
    pub fn ping(self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let step = self.between(from, to);
        let mut out = Vec::new();
        let written = match self {
            Self::Ipv4 => step.icmpv4_echo_request(7, 1).write(&mut out, packets::ECHO),
            Self::Ipv6 => step.icmpv6_echo_request(7, 1).write(&mut out, packets::ECHO),
        };
        written.expect("a packet");
        out
    }

    /// A TCP segment on the underlay, to the node under test.
    pub fn tcp_from_client(
        self,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: Tcp,
    ) -> Vec<u8> {
        packets::tcp_on(self.to_node(from.0, to.0), (from.1, to.1), flags)
    }

    /// A UDP datagram on the underlay, to the node under test.
    pub fn udp_from_client(
        self,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        packets::udp_on(self.to_node(from.0, to.0), (from.1, to.1), payload)
    }

    /// The content of a frame of this family. Verifies every checksum in it from scratch.
    pub fn see(self, frame: &[u8]) -> Seen<IpAddr> {
        let seen = packets::see_any(frame);
        assert_eq!(seen.from.0.is_ipv6(), self == Self::Ipv6, "{self:?}: {seen:?}");
        seen
    }

    fn between(self, from: Ipv4Addr, to: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
        frame((mac(from).bytes(), mac(to).bytes()), self.ip(from), self.ip(to))
    }

    fn to_node(self, from: Ipv4Addr, to: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
        frame((CLIENT_MAC, NODE_MAC), self.ip(from), self.ip(to))
    }
}

/// Tunnels over an underlay of the family. The inner packets may be of the other family.
impl Family {
    /// Loads the programs in a fresh namespace, like [`Rig::new`] or [`Rig::on_ipv6`].
    pub fn rig_on(self) -> Rig {
        match self {
            Self::Ipv4 => Rig::new(),
            Self::Ipv6 => Rig::on_ipv6(),
        }
    }

    /// Declares a node of the cluster that has endpoints of `networks`, at its address on the
    /// underlay.
    pub fn node(self, rig: &mut Rig, node: Ipv4Addr, networks: &[u32]) {
        rig.node(node, networks);
        if let IpAddr::V6(vtep) = self.ip(node) {
            let number = rig.number(node);
            rig.set(|state| {
                state.vteps6.insert(number, vtep.into());
            });
        }
    }

    /// The program that receives packets on the underlay.
    pub fn underlay_program(self) -> &'static str {
        match self {
            Self::Ipv4 => "from_underlay",
            Self::Ipv6 => "from_underlay6",
        }
    }

    /// Length of the outer headers in bytes.
    pub fn tunnel(self) -> usize {
        14 + self.header() + 8 + 8
    }

    /// A frame in VXLAN from the peer to the node under test.
    pub fn vxlan(self, vni: u32, frame: &[u8]) -> Vec<u8> {
        self.vxlan_from(PEER, vni, frame)
    }

    /// A frame in VXLAN from any node to the one under test.
    pub fn vxlan_from(self, sender: Ipv4Addr, vni: u32, frame: &[u8]) -> Vec<u8> {
        match self.ip(sender) {
            IpAddr::V4(sender) => packets::vxlan_from(sender, vni, frame),
            IpAddr::V6(sender) => underlay6::vxlan6_from(sender, vni, frame),
        }
    }

    /// The content of a tunnel packet from the node under test: VNI, node and inner frame. Checks
    /// the outer headers.
    pub fn untunnel(self, packet: &[u8]) -> (u32, IpAddr, Vec<u8>) {
        match self {
            Self::Ipv4 => {
                let (vni, node, inner) = packets::untunnel(packet);
                (vni, node.into(), inner)
            }
            Self::Ipv6 => {
                let (vni, node, _, inner) = underlay6::untunnel6(packet);
                (vni, node.into(), inner)
            }
        }
    }
}

/// A frame between two MACs and two addresses of one family.
pub(super) fn frame(
    (from_mac, to_mac): ([u8; 6], [u8; 6]),
    from: IpAddr,
    to: IpAddr,
) -> PacketBuilderStep<IpHeaders> {
    let step = PacketBuilder::ethernet2(from_mac, to_mac);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => step.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => step.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("{from} and {to} are of two families"),
    }
}

impl Rig {
    /// Gives all endpoints of network 10.0.N.0/24 so far an address of this family.
    pub fn stack(&mut self, family: Family, vni: u32, n: u8) {
        if family == Family::Ipv6 {
            self.dual_stack(vni, n);
        }
    }

    /// Publishes a port of this node on its addresses of up to this family.
    pub fn publish_on(&mut self, family: Family, proto: u8, port: u16, to: (u32, u16)) {
        match family {
            Family::Ipv4 => self.publish(proto, port, to.0, to.1),
            Family::Ipv6 => self.publish6(proto, port, to.0, to.1),
        }
    }
}
