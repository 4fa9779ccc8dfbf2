//! Tracked flows.

use crate::{Be16, Be32, Ip6, wire::Udp};

/// Added to the VNI in keys and entries of `conntrack` and `ct_new` and in `affinity` for an IPv6 flow,
/// whose addresses are numbers there: that of an endpoint or a VIP on its network is its IPv4 address, and
/// one outside has a number in `addr6_ids`. So both families have the same tables, and an IPv6 flow is never
/// taken for one of IPv4.
pub const VNI_FLAG_IPV6: u32 = 1 << 24;

/// Maps `addr6_ids` and `addr6_ids_new`, LRU hashes by number ([`Be32`], in 240.0.0.0/4, which is nobody's): IPv6 addresses outside
/// that have spoken to published ports, and those of the host that they asked, of another one where replies go straight to
/// them ([`DSR`]). As flows go from `ct_new` to
/// `conntrack`, their addresses go from `addr6_ids_new` to `addr6_ids`. An address's number is one of [`ADDR6_ID_TRIES`] by a hash under the secret of map `addr6_secret`, so that nobody can look for addresses that
/// get in each other's way. Written and read by the programs, on every packet of such a flow; read by the
/// agent to show them.
pub type Addr6 = Ip6;

/// Most entries of `addr6_ids`, the least recent of which are forgotten.
pub const ADDR6_IDS: usize = 1 << 17;

/// Most entries of `addr6_ids_new`, likewise: as many as of `ct_new`, and those that they ask.
pub const ADDR6_IDS_NEW: usize = 1 << 17;

/// How many numbers an IPv6 address outside may get.
pub const ADDR6_ID_TRIES: u32 = 4;

/// Map `addr6_secret`, array of one: the secret of `addr6_ids`, random numbers that the programs make when they
/// first need them; zero before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Addr6Secret {
    /// A key of SipHash.
    pub key: [u64; 2],
}

/// Key of map `conntrack`: a tuple as it is seen on arrival, before any translation.
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
    /// The network it is seen on, [`crate::UNDERLAY_VNI`] for the host's own addresses; [`VNI_FLAG_IPV6`] is
    /// added for IPv6.
    pub vni: u32,
    /// IP protocol number.
    pub proto: u8,
    /// Zero, but for a flow from outside whose tuple another node's flow has on the backend's node:
    /// a digest of the node it came through ([`ConntrackKey::through`]).
    pub scope: [u8; 3],
}

impl ConntrackKey {
    /// The same tuple, as it comes through `node`.
    #[inline(always)]
    pub const fn through(self, node: Be32) -> Self {
        let [a, b, c, d] = crate::hash::mix(node.raw(), 0).to_ne_bytes();
        // Never zero, which is the scope of all other flows.
        Self { scope: [a ^ d, b, c | 1], ..self }
    }
}

/// Maps `conntrack` and `ct_new`, LRU hashes: translated flows, one entry per direction. A flow to a backend
/// begins in `ct_new` and goes over to `conntrack` when its client speaks again after an answer, so that
/// what strangers begin and nobody goes on with, as a flood of SYNs, evicts no flow that is in use. Written
/// and read by the programs; listed by the agent.
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
    /// Network the packet is on after translation, [`crate::UNDERLAY_VNI`] for the underlay; [`VNI_FLAG_IPV6`]
    /// is added for IPv6.
    pub vni: u32,
    /// Number of the service.
    pub service: u32,
    /// Number of the backend; 0 on the backend's node for flows that came through another node.
    pub backend: u32,
    /// `REVERSE`, and `FORWARD` with a scope: VTEP of the node the flow came through. Otherwise zero.
    pub node: Be32,
    /// One of `CONNTRACK_*`.
    pub action: u8,
    /// Padding, zero.
    pub pad: u8,
    /// For how many seconds an established TCP or SCTP flow, or one of UDP, may be idle; 0 for as long as
    /// flows may by default ([`crate::flow`]).
    pub idle: u16,
    /// Bits of `TCP_SEEN_*` of this direction; [`ANSWERED`], [`VIA_VIP`] and [`DSR`]. Bits that no
    /// version has a name for are zero.
    pub flags: u32,
    /// Reserved for the generation in which the backend was looked up; zero. The programs of this
    /// version write zero and do not read it.
    pub generation: u32,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the last packet in this direction.
    pub last_seen: u64,
}

/// Key of map `fragments`: what the fragments of one packet have in common (RFC 791, section 3.2; RFC 8200,
/// section 4.5). The addresses of IPv6 are numbers, as in [`ConntrackKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Source address.
    pub saddr: Be32,
    /// Destination address.
    pub daddr: Be32,
    /// The network it is seen on, [`crate::UNDERLAY_VNI`] for the host's own addresses; [`VNI_FLAG_IPV6`] is
    /// added for IPv6.
    pub vni: u32,
    /// Identification, of 16 bits in IPv4.
    pub id: Be32,
    /// IP protocol number.
    pub proto: u8,
    /// Padding, zero.
    pub pad: [u8; 3],
}

/// Map `fragments`, LRU hash: how the transport header of a packet in fragments begins, which only the
/// first of them has. Written and read by the programs, for packets that may be of translated flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment {
    /// The first eight bytes of the transport header, in the layout of UDP.
    pub head: Udp,
    /// `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, ns) of the first fragment.
    pub seen: u64,
}

/// Entries of `fragments`: packets of which fragments are on their way at a time.
pub const FRAGMENT_ENTRIES: usize = 1 << 13;

/// How long later fragments are known for after the first, in ns: as long as Linux waits for the rest
/// of a packet (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIME: u64 = 30_000_000_000;

/// Client to backend: rewrite to the backend.
pub const CONNTRACK_FORWARD: u8 = 1;
/// Backend to client, on the node that translated: rewrite to the address the client asked.
pub const CONNTRACK_REPLY: u8 = 2;
/// Backend to client, on the backend's node: send through the tunnel to the node the flow came
/// through, which translates. Only a source port that was changed here is changed back here.
pub const CONNTRACK_REVERSE: u8 = 3;
/// Container to the outside: rewrite the source to this host's address.
pub const CONNTRACK_MASQUERADE: u8 = 4;
/// The outside to a container of this node: undo [`CONNTRACK_MASQUERADE`].
pub const CONNTRACK_UNMASQUERADE: u8 = 5;

/// A SYN was seen.
pub const TCP_SEEN_SYN: u32 = 1 << 0;
/// A segment with ACK was seen: in the reply direction this means established.
pub const TCP_SEEN_ACK: u32 = 1 << 1;
/// A FIN was seen: in the direction of the entry, of `REVERSE` that of the backend.
pub const TCP_SEEN_FIN: u32 = 1 << 2;
/// A RST was seen.
pub const TCP_SEEN_RST: u32 = 1 << 3;
/// Both sides have spoken: of a flow to a backend, its own direction of a reply; of one to the outside, UDP only.
pub const ANSWERED: u32 = 1 << 4;

/// The client asked a VIP. In every entry of such a flow on the node that translates it.
pub const VIA_VIP: u32 = 1 << 5;

/// Replies go straight to the client. `FORWARD`, on the node that was asked: the backend's node is told what the
/// client asked ([`crate::Frontend`]). `REVERSE`, there: the source is what the client asked.
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
