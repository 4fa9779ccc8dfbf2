//! Tracked flows.

use crate::{Be16, Be32, Ip6, wire::Udp};

/// Flag in the VNI of an IPv6 flow, in keys and entries of `conntrack` and `ct_new` and in
/// `affinity`. The addresses of such a flow are numbers: an endpoint or a VIP has its IPv4 address,
/// and an address outside has a number in `addr6_ids`. So both families share the tables, and the
/// flag keeps their flows apart.
pub const VNI_FLAG_IPV6: u32 = 1 << 24;

/// Maps `addr6_ids` and `addr6_ids_new`, LRU hashes by number ([`Be32`], in 240.0.0.0/4, which no
/// host uses): IPv6 addresses of clients outside that sent to published ports, and the frontend
/// addresses that they sent to. With [`DSR`] a frontend address may be one of another node. When a
/// flow moves from `ct_new` to `conntrack`, its addresses move from `addr6_ids_new` to `addr6_ids`.
/// The number of an address is one of [`ADDR6_ID_TRIES`] hashes under the secret of map
/// `addr6_secret`, so that an attacker cannot search for addresses with equal numbers. Written and
/// read by the programs, on every packet of such a flow; read by the agent to show them.
pub type Addr6 = Ip6;

/// Most entries of `addr6_ids`. A full map evicts the least recently used ones.
pub const ADDR6_IDS: usize = 1 << 17;

/// Most entries of `addr6_ids_new`: as many clients as `ct_new` has flows, and the frontend
/// addresses. A full map evicts the least recently used ones.
pub const ADDR6_IDS_NEW: usize = 1 << 17;

/// How many numbers the programs try for an IPv6 address outside.
pub const ADDR6_ID_TRIES: u32 = 4;

/// Map `addr6_secret`, array of one: the secret of `addr6_ids`, random numbers that the programs
/// make at the first use. It is zero before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Addr6Secret {
    /// A key of SipHash.
    pub key: [u64; 2],
}

/// Key of map `conntrack`: a tuple on arrival, before any translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ConntrackKey {
    /// Source address.
    pub saddr: Be32,
    /// Destination address.
    pub daddr: Be32,
    /// Source port; the identifier of an ICMP echo request, zero of a reply.
    pub sport: Be16,
    /// Destination port; the identifier of an ICMP echo reply, zero of a request.
    pub dport: Be16,
    /// The network that the packet arrives on, [`crate::UNDERLAY_VNI`] for the host's own
    /// addresses; with [`VNI_FLAG_IPV6`] for IPv6.
    pub vni: u32,
    /// IP protocol number.
    pub proto: u8,
    /// A digest of the ingress node, on the backend's node, if a flow through another node has the
    /// same tuple ([`ConntrackKey::through`]); otherwise zero.
    pub scope: [u8; 3],
}

impl ConntrackKey {
    /// The same tuple for a flow that comes through `node`.
    #[inline(always)]
    pub const fn through(self, node: Be32) -> Self {
        let [a, b, c, d] = crate::hash::mix(node.raw(), 0).to_ne_bytes();
        // The digest is never zero: zero is the scope of all other flows.
        Self { scope: [a ^ d, b, c | 1], ..self }
    }
}

/// Maps `conntrack` and `ct_new`, LRU hashes: translated flows, one entry for each direction. A
/// flow to a backend starts in `ct_new` and moves to `conntrack` when its client sends again after
/// an answer. So a flood of SYNs fills `ct_new` only and evicts no flow in use. Written and read by
/// the programs; listed by the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Conntrack {
    /// Source address after translation.
    pub saddr: Be32,
    /// Destination address after translation.
    pub daddr: Be32,
    /// Source port after translation.
    pub sport: Be16,
    /// Destination port after translation.
    pub dport: Be16,
    /// The network of the packet after translation, [`crate::UNDERLAY_VNI`] for the underlay; with
    /// [`VNI_FLAG_IPV6`] for IPv6.
    pub vni: u32,
    /// Number of the service.
    pub service: u32,
    /// Number of the backend; on the backend's node 0 for flows that another node translates.
    pub backend: u32,
    /// `REVERSE`, and `FORWARD` with a scope: VTEP of the ingress node. Otherwise zero.
    pub node: Be32,
    /// One of `CONNTRACK_*`.
    pub action: u8,
    /// Padding, zero.
    pub pad: u8,
    /// Idle timeout in seconds of an established TCP or SCTP flow, or of a UDP flow; 0 for the
    /// default ([`crate::flow`]).
    pub idle: u16,
    /// Bits of `TCP_SEEN_*` of this direction; [`ANSWERED`], [`VIA_VIP`] and [`DSR`]. Bits without
    /// a name in any version are zero.
    pub flags: u32,
    /// Reserved for the generation of the backend's look-up. The programs of this version write
    /// zero and do not read it.
    pub generation: u32,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the last packet in this direction.
    pub last_seen: u64,
}

/// Key of map `fragments`: the fields that all fragments of one packet share (RFC 791, section 3.2;
/// RFC 8200, section 4.5). IPv6 addresses are numbers, as in [`ConntrackKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub saddr: Be32,
    /// Destination address.
    pub daddr: Be32,
    /// The network that the packet arrives on, [`crate::UNDERLAY_VNI`] for the host's own
    /// addresses; with [`VNI_FLAG_IPV6`] for IPv6.
    pub vni: u32,
    /// Identification; IPv4 uses 16 bits of it.
    pub id: Be32,
    /// IP protocol number.
    pub proto: u8,
    /// Padding, zero.
    pub pad: [u8; 3],
}

/// Map `fragments`, LRU hash: the first bytes of the transport header of fragmented packets, which
/// only the first fragment carries. Written and read by the programs, for packets that may belong
/// to translated flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// The first eight bytes of the transport header, as a UDP header.
    pub head: Udp,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the first fragment.
    pub seen: u64,
}

/// Entries of `fragments`: fragmented packets in transit at a time.
pub const FRAGMENT_ENTRIES: usize = 1 << 13;

/// Time in ns during which later fragments are matched with the first one. Linux waits as long for
/// the rest of a packet (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIME: u64 = 30_000_000_000;

/// Client to backend: rewrite to the backend.
pub const CONNTRACK_FORWARD: u8 = 1;
/// Backend to client, on the node that translates: rewrite to the frontend.
pub const CONNTRACK_REPLY: u8 = 2;
/// Backend to client, on the backend's node: send through the tunnel to the ingress node, which
/// translates. If this node changed the source port, it restores it here.
pub const CONNTRACK_REVERSE: u8 = 3;
/// Container to the outside: rewrite the source to this host's address.
pub const CONNTRACK_MASQUERADE: u8 = 4;
/// Outside to a container of this node: undo [`CONNTRACK_MASQUERADE`].
pub const CONNTRACK_UNMASQUERADE: u8 = 5;

/// A SYN was seen.
pub const TCP_SEEN_SYN: u32 = 1 << 0;
/// A segment with ACK was seen. In the reply direction this means that the connection is
/// established.
pub const TCP_SEEN_ACK: u32 = 1 << 1;
/// A FIN was seen in the direction of the entry; for `REVERSE` it is the backend's FIN.
pub const TCP_SEEN_FIN: u32 = 1 << 2;
/// A RST was seen.
pub const TCP_SEEN_RST: u32 = 1 << 3;
/// Both sides have sent. A flow to a backend has it in the entry of the reply direction; a flow to
/// the outside has it for UDP only.
pub const ANSWERED: u32 = 1 << 4;

/// The client sent to a VIP. Every entry of such a flow has the bit, on the node that translates
/// it.
pub const VIA_VIP: u32 = 1 << 5;

/// Direct server return: replies go directly to the client. `FORWARD`, on the ingress node: its
/// packets carry the frontend to the backend's node ([`crate::Frontend`]). `REVERSE`, on the
/// backend's node: the entry's source is the frontend.
pub const DSR: u32 = 1 << 6;

/// A FIN of the other direction was seen.
pub const TCP_SEEN_OTHER_FIN: u32 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_through_a_node_is_told_from_the_plain_one_and_from_other_nodes() {
        let key = ConntrackKey { proto: 6, ..ConntrackKey::default() };
        let mut seen = vec![key];
        for last in 1..=254 {
            seen.push(key.through(Be32::from_octets([172, 16, 1, last])));
        }
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len());
    }
}
