//! Why a packet was forwarded or dropped: the index of map `counters`.

use crate::observe::Traffic;

/// Whether a reason counts forwarded or dropped packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The packet was delivered, answered, tunnelled or passed to the host.
    Forward,
    /// The packet was dropped.
    Drop,
}

/// A direction as the table has it: only forwarding reasons have ways.
macro_rules! direction {
    (Drop) => {
        Direction::Drop
    };
    (Forward { $($ways:tt)* }) => {
        Direction::Forward
    };
}

/// One line for each reason: its number in map `counters`, its direction, its name. A forwarding
/// reason has its ways in braces: the numbers in [`crate::observe::Tally`] under which packets that
/// an endpoint sent or received are counted. They are part of the map layout too. The braces are
/// empty where the reason is not about a packet of an endpoint.
macro_rules! reasons {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident = $index:literal,
        $direction:ident $({ $($traffic:ident = $way:literal),* })?,
        $name:literal;
    )+) => {
        /// A named reason, counted in packets and bytes. The numbers are part of the map layout and
        /// have no gaps. A new reason gets the next number. An unused reason keeps its line here
        /// until the next layout.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $index,)+
        }

        impl Reason {
            /// Every reason, in the order of the indexes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason with this index.
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                // The numbers have no gaps, so one comparison is enough. A match would compile to a
                // tree of comparisons in every program that unpacks a result.
                const COUNT: u32 = {
                    let numbers = [$($index as u32),+];
                    let mut at = 0;
                    while at < numbers.len() {
                        assert!(numbers[at] as usize == at, "the numbers of reasons have a gap");
                        at += 1;
                    }
                    numbers.len() as u32
                };
                if index < COUNT {
                    // SAFETY: the enum is `repr(u32)` and its values are those below `COUNT`.
                    return Some(unsafe { core::mem::transmute::<u32, Self>(index) });
                }
                None
            }

            /// Stable name in snake case, as listings and metrics show it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// One sentence for people.
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }

            /// Whether the reason counts forwarded packets or drops.
            pub const fn direction(self) -> Direction {
                match self {
                    $(Self::$variant => direction!($direction $({ $($traffic = $way),* })?),)+
                }
            }

            /// All ways: index in [`crate::observe::Tally`], direction, reason.
            pub(crate) const WAYS: &'static [(usize, Traffic, Self)] =
                &[$($($(($way, Traffic::$traffic, Self::$variant),)*)?)+];

            /// Index in [`crate::observe::Tally`] of a packet that was forwarded for this reason,
            /// or `otherwise` for a reason without one.
            #[inline(always)]
            pub(crate) const fn way(self, traffic: Traffic, otherwise: u32) -> u32 {
                match (traffic, self) {
                    $($($((Traffic::$traffic, Self::$variant) => $way,)*)?)+
                    _ => otherwise,
                }
            }
        }
    };
}

reasons! {
    /// Delivered to an endpoint on this node.
    DeliveredLocal = 0, Forward { Sent = 0, Received = 8 }, "delivered_local";
    /// Encapsulated and sent to another node.
    Encapsulated = 1, Forward { Sent = 1 }, "encapsulated";
    /// Decapsulated from another node and delivered.
    Decapsulated = 2, Forward { Received = 9 }, "decapsulated";
    /// A reply of a published port sent out to a client.
    SentToClient = 3, Forward { Sent = 2 }, "sent_to_client";
    /// Delivered to a socket of the host.
    DeliveredHost = 4, Forward { Sent = 3, Received = 10 }, "delivered_host";
    /// An ARP request answered.
    ArpAnswered = 5, Forward { Sent = 4 }, "arp_answered";
    /// An ICMP echo request to a gateway or VIP answered.
    EchoAnswered = 6, Forward { Sent = 5 }, "echo_answered";
    /// Encapsulated and sent to another node by XDP.
    XdpEncapsulated = 7, Forward {}, "xdp_encapsulated";
    /// A reply of a published port sent out to a client by XDP.
    XdpSentToClient = 8, Forward {}, "xdp_sent_to_client";
    /// A new flow got a backend.
    FlowCreated = 9, Forward {}, "flow_created";
    /// A flow whose backend is gone got another one.
    FlowRepicked = 10, Forward {}, "flow_repicked";
    /// The packet is shorter than its headers say.
    Truncated = 11, Drop, "truncated";
    /// A header has an invalid value.
    Malformed = 12, Drop, "malformed";
    /// The datapath does not know the interface.
    UnknownLink = 13, Drop, "unknown_link";
    /// The source MAC address is not that of the endpoint.
    SpoofedMac = 14, Drop, "spoofed_mac";
    /// The source IP address is not that of the endpoint.
    SpoofedSource = 15, Drop, "spoofed_source";
    /// A protocol other than ARP and IPv4, or other than IPv6 on a dual-stack network.
    UnsupportedProtocol = 16, Drop, "unsupported_protocol";
    /// Multicast or broadcast on a network without head-end replication, IGMP, or a group address
    /// that does not match the frame's MAC address.
    Multicast = 17, Drop, "multicast";
    /// An ARP request for an address that no endpoint has.
    ArpUnknown = 18, Drop, "arp_unknown";
    /// No endpoint has the destination address.
    NoEndpoint = 19, Drop, "no_endpoint";
    /// No egress to the destination: the network is internal, or the address belongs to a host or
    /// to another network, or lies behind an interface without egress.
    NoWayOut = 20, Drop, "no_way_out";
    /// The service has no backend that takes new flows.
    NoBackend = 21, Drop, "no_backend";
    /// A fragment of a flow that needs translation.
    Fragment = 22, Drop, "fragment";
    /// VXLAN from an address that is no node of the cluster, or from a node without endpoints of
    /// the network.
    NotPeer = 23, Drop, "not_peer";
    /// VXLAN without a valid VNI.
    InvalidVni = 24, Drop, "invalid_vni";
    /// The inner source address is not on the node that the packet came from.
    SpoofedInnerSource = 25, Drop, "spoofed_inner_source";
    /// No route or next hop to the destination on the underlay.
    NoRoute = 26, Drop, "no_route";
    /// The packet does not fit the MTU.
    TooBig = 27, Drop, "too_big";
    /// The kernel refused to push or pop the tunnel headers.
    TunnelRefused = 28, Drop, "tunnel_refused";
    /// The kernel refused to change the packet.
    RewriteRefused = 29, Drop, "rewrite_refused";
    /// No free source port for a flow whose tuple is taken.
    TupleTaken = 30, Drop, "tuple_taken";
    /// The kernel refused an entry in the conntrack table.
    ConntrackFull = 31, Drop, "conntrack_full";
    /// The flow's backend is gone.
    BackendGone = 32, Drop, "backend_gone";
    /// A port of the gateway without a service.
    GatewayPort = 33, Drop, "gateway_port";
    /// A protocol that services do not support.
    ServiceProtocol = 34, Drop, "service_protocol";
    /// The datapath has no configuration yet.
    NotConfigured = 35, Drop, "not_configured";
    /// A packet from outside to an endpoint without published ports.
    NotPublished = 36, Drop, "not_published";
    /// The packet does not fit the path MTU and was answered with ICMP "fragmentation needed" or
    /// ICMPv6 "packet too big".
    TooBigAnswered = 37, Forward { Sent = 6 }, "too_big_answered";
    /// Encap fallback: passed to the kernel's vxlan device, which sends it.
    KernelEncap = 38, Forward { Sent = 13 }, "kernel_encap";
    /// Decap fallback: a tunnel packet passed to the kernel's vxlan device, which decapsulates it.
    KernelDecap = 39, Forward {}, "kernel_decap";
    /// The underlay marked congestion on a packet whose sender does not use ECN.
    EcnUnexpected = 40, Drop, "ecn_unexpected";
    /// Decapsulated from another node and delivered by XDP.
    XdpDecapsulated = 41, Forward { Received = 15 }, "xdp_decapsulated";
    /// A neighbour solicitation was answered.
    NdAnswered = 42, Forward { Sent = 14 }, "nd_answered";
    /// Neighbour discovery without an answer: a solicitation for an address that no endpoint has,
    /// or another message.
    NdUnknown = 43, Drop, "nd_unknown";
    /// A container's connection to a VIP got its backend at connect time. Its packets need no
    /// translation.
    SocketBalanced = 44, Forward {}, "socket_balanced";
    /// Sent outside under the address of this host.
    Masqueraded = 45, Forward { Sent = 7 }, "masqueraded";
    /// A reply from outside, or an ICMP error about a flow to the outside, was delivered.
    ReturnedFromOutside = 46, Forward { Received = 11 }, "returned_from_outside";
    /// This host has no free source port for a flow to the outside.
    MasqueradePortsExhausted = 47, Drop, "masquerade_ports_exhausted";
    /// The endpoint has reached its limit of flows to the outside.
    MasqueradeLimit = 48, Drop, "masquerade_limit";
    /// The time to live of a packet to the outside expired at the gateway.
    TtlExceeded = 49, Drop, "ttl_exceeded";
    /// The time to live expired at the gateway, which answered with ICMP "time exceeded".
    TtlExceededAnswered = 50, Forward { Sent = 12 }, "ttl_exceeded_answered";
    /// A packet to a group of the network, copied to its endpoints on this node and to its other
    /// nodes.
    Replicated = 51, Forward { Received = 16, Sent = 17 }, "replicated";
    /// A packet to a group, not copied to all members: the network has more endpoints on this node,
    /// or more nodes, than the limit of copies.
    ReplicateLimit = 52, Drop, "replicate_limit";
    /// The kernel refused a copy of a packet to a group.
    ReplicateRefused = 53, Drop, "replicate_refused";
    /// An ICMP error about an unknown flow.
    UnrelatedError = 54, Drop, "unrelated_error";
    /// A packet of a TCP connection whose backend is gone, rejected with a reset.
    BackendGoneAnswered = 55, Forward { Sent = 19 }, "backend_gone_answered";
    /// A reply of a published port sent directly to the client (DSR), not through the ingress node.
    SentDsr = 56, Forward { Sent = 20 }, "sent_dsr";
    /// VXLAN of a network without endpoints on this node.
    UnknownVni = 57, Drop, "unknown_vni";
    /// A new flow to a service without a backend for new flows, rejected with a reset or with ICMP
    /// "port unreachable".
    NoBackendAnswered = 58, Forward { Sent = 18 }, "no_backend_answered";
}

/// Size of map `counters`: room for further reasons without a change of layout. It is the number of
/// values of a byte, in which [`crate::observe::DropKey`] and [`crate::event::Event`] store a
/// reason.
pub const COUNTERS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_numbers_of_their_own_in_order_that_fit_the_map() {
        assert!(Reason::ALL.is_sorted());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_index(*reason as u32), Some(*reason));
            assert!((*reason as usize) < COUNTERS, "{}", reason.name());
        }
        let next = Reason::ALL.len() as u32;
        for index in [next, next + 1, 255, 256, u32::MAX] {
            assert_eq!(Reason::from_index(index), None, "{index}");
        }
        assert_eq!(COUNTERS, usize::from(u8::MAX) + 1);
    }

    #[test]
    fn names_are_unique_snake_case() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
