//! Egress: flows from the cluster's networks to addresses outside.

use crate::{Be32, Ip6};

/// Map `egress`, hash by interface index (`u32`) of addresses ([`Be32`]): interfaces that lead
/// outside, each with the source address of flows that leave by it. Written by the agent; read by
/// `from_container` for new flows to the outside.
pub type Egress = Be32;

/// Key of map `subnets`, in the form of the kernel's LPM tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SubnetKey {
    /// Length of the prefix in bits.
    pub prefix: u32,
    /// The subnet's address.
    pub ip: Be32,
}

/// Map `subnets`, LPM trie of VNIs (`u32`): the subnets of all networks of the cluster. Addresses
/// in them are never outside. Written by the agent; read by `from_container` for new flows to the
/// outside.
pub type Subnet = u32;

/// Key of map `subnets6`, as [`SubnetKey`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Subnet6Key {
    /// Length of the prefix in bits.
    pub prefix: u32,
    /// The subnet's address.
    pub ip: Ip6,
}

/// Map `subnets6`, LPM trie of VNIs (`u32`): the IPv6 subnets of all networks of the cluster.
/// Written by the agent; read by `tunnel_flow6` for new flows of clients outside with DSR.
pub type Subnet6 = u32;

/// Map `snat_usage`, hash by interface index (`u32`): number of flows to the outside of an
/// endpoint. `from_container` adds new flows; the agent counts the live ones and corrects the
/// number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SnatUsage {
    /// Number of flows.
    pub flows: u32,
    /// Spare, zero.
    pub pad: u32,
    /// Time of the last correction in ns of CLOCK_MONOTONIC.
    pub counted: u64,
}

/// Time in ns after which an uncorrected [`SnatUsage::flows`] is halved when it reaches the limit.
/// Flows end while the agent is away, and its absence must not lock an endpoint out.
pub const SNAT_USAGE_UNCOUNTED: u64 = 60_000_000_000;
