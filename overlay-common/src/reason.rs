//! Why a packet went where it went: the index of map `counters`.

/// Whether packets counted under a reason went on or were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The packet was delivered, answered, tunnelled or handed to the host.
    Forward,
    /// The packet was dropped.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $index:literal, $direction:ident, $name:literal;)+) => {
        /// A named reason, counted in packets and bytes. The numbers are part of the map layout and
        /// have no gaps: a new reason gets the next one, and one that is no more keeps its line here
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
                // One comparison, because the numbers have no gaps: a match would become a tree of
                // them wherever a program unpacks a result.
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

            /// Whether it counts drops.
            pub const fn direction(self) -> Direction {
                match self {
                    $(Self::$variant => Direction::$direction,)+
                }
            }
        }
    };
}

reasons! {
    /// Delivered to an endpoint on this node.
    DeliveredLocal = 0, Forward, "delivered_local";
    /// Encapsulated and sent to another node.
    Encapsulated = 1, Forward, "encapsulated";
    /// Decapsulated from another node and delivered.
    Decapsulated = 2, Forward, "decapsulated";
    /// A reply of a published port sent out to a client.
    SentToClient = 3, Forward, "sent_to_client";
    /// Delivered to a socket of the host.
    DeliveredHost = 4, Forward, "delivered_host";
    /// An ARP request answered.
    ArpAnswered = 5, Forward, "arp_answered";
    /// An ICMP echo request to a gateway or VIP answered.
    EchoAnswered = 6, Forward, "echo_answered";
    /// Encapsulated and sent to another node by XDP.
    XdpEncapsulated = 7, Forward, "xdp_encapsulated";
    /// A reply of a published port sent out to a client by XDP.
    XdpSentToClient = 8, Forward, "xdp_sent_to_client";
    /// A new flow was given a backend.
    FlowCreated = 9, Forward, "flow_created";
    /// A flow whose backend is gone was given another.
    FlowRepicked = 10, Forward, "flow_repicked";
    /// The packet is shorter than its headers say.
    Truncated = 11, Drop, "truncated";
    /// A header has a value that no sender may use.
    Malformed = 12, Drop, "malformed";
    /// The interface is not known to the datapath.
    UnknownLink = 13, Drop, "unknown_link";
    /// The source MAC address is not the endpoint's.
    SpoofedMac = 14, Drop, "spoofed_mac";
    /// The source IP address is not the endpoint's.
    SpoofedSource = 15, Drop, "spoofed_source";
    /// A protocol other than IPv4 and ARP, and IPv6 on networks that have it.
    UnsupportedProtocol = 16, Drop, "unsupported_protocol";
    /// Multicast or broadcast on a network that does not replicate it, IGMP, or a group address that
    /// does not belong to the frame's MAC address.
    Multicast = 17, Drop, "multicast";
    /// An ARP request for an address nobody has.
    ArpUnknown = 18, Drop, "arp_unknown";
    /// No endpoint has the destination address.
    NoEndpoint = 19, Drop, "no_endpoint";
    /// No way out leads there: the network is internal, or the address is a host's own, of another
    /// network, or behind an interface without a way out.
    NoWayOut = 20, Drop, "no_way_out";
    /// The service has no backend that takes new flows.
    NoBackend = 21, Drop, "no_backend";
    /// A fragment of a flow that would have to be translated.
    Fragment = 22, Drop, "fragment";
    /// VXLAN from an address that is no node of the cluster, or from a node without endpoints of the
    /// network.
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
    /// The conntrack table refused an entry.
    ConntrackFull = 31, Drop, "conntrack_full";
    /// The flow's backend is gone.
    BackendGone = 32, Drop, "backend_gone";
    /// A port of the gateway that nothing answers.
    GatewayPort = 33, Drop, "gateway_port";
    /// A protocol that services do not carry.
    ServiceProtocol = 34, Drop, "service_protocol";
    /// The datapath has no configuration yet.
    NotConfigured = 35, Drop, "not_configured";
    /// From outside to an endpoint that publishes nothing.
    NotPublished = 36, Drop, "not_published";
    /// Did not fit the path and was answered with ICMP "fragmentation needed" or, IPv6,
    /// "packet too big".
    TooBigAnswered = 37, Forward, "too_big_answered";
    /// Given to the kernel's vxlan device to send.
    KernelEncap = 38, Forward, "kernel_encap";
    /// From the tunnel, left to the kernel's vxlan device to take apart.
    KernelDecap = 39, Forward, "kernel_decap";
    /// The underlay marked congestion on a packet whose sender does not use ECN.
    EcnUnexpected = 40, Drop, "ecn_unexpected";
    /// Decapsulated from another node and delivered by XDP.
    XdpDecapsulated = 41, Forward, "xdp_decapsulated";
    /// A neighbour solicitation was answered.
    NdAnswered = 42, Forward, "nd_answered";
    /// Neighbour discovery that is not answered: for an address nobody has, or anything but a
    /// solicitation.
    NdUnknown = 43, Drop, "nd_unknown";
    /// A connection of a container to a VIP was given its backend when it was made: no packet of it is
    /// translated.
    SocketBalanced = 44, Forward, "socket_balanced";
    /// Sent outside under this host's address.
    Masqueraded = 45, Forward, "masqueraded";
    /// Came back from outside, or an ICMP error about what was sent there, and was delivered.
    ReturnedFromOutside = 46, Forward, "returned_from_outside";
    /// No free source port of this host for a flow to the outside.
    MasqueradePortsExhausted = 47, Drop, "masquerade_ports_exhausted";
    /// The endpoint has as many flows to the outside as it may have.
    MasqueradeLimit = 48, Drop, "masquerade_limit";
    /// The time to live of a packet to the outside ended at the gateway.
    TtlExceeded = 49, Drop, "ttl_exceeded";
    /// The time to live ended at the gateway, which answered with ICMP "time exceeded".
    TtlExceededAnswered = 50, Forward, "ttl_exceeded_answered";
    /// A packet to a group of the network, copied to its endpoints here and to its other nodes.
    Replicated = 51, Forward, "replicated";
    /// A packet to a group that some got no copy of: the network has more endpoints here, or more
    /// nodes, than copies are made for.
    ReplicateLimit = 52, Drop, "replicate_limit";
    /// A copy of a packet to a group that the kernel refused.
    ReplicateRefused = 53, Drop, "replicate_refused";
    /// An ICMP error about no flow that is known.
    UnrelatedError = 54, Drop, "unrelated_error";
    /// A packet of a TCP connection whose backend has gone, answered with a reset.
    BackendGoneAnswered = 55, Forward, "backend_gone_answered";
    /// A reply of a published port that another node was asked, sent straight to the client.
    SentDsr = 56, Forward, "sent_dsr";
    /// VXLAN of a network that this node has no endpoints of.
    UnknownVni = 57, Drop, "unknown_vni";
    /// A new flow to a service that has no backend that takes it, answered with a reset or with ICMP
    /// "port unreachable".
    NoBackendAnswered = 58, Forward, "no_backend_answered";
}

/// Size of map `counters`: room for reasons to come without a change of layout. As many as a byte
/// tells apart, which [`crate::observe::DropKey`] and [`crate::event::Event`] have for a reason.
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
