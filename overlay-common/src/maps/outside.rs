//! The way out of the cluster's networks.

use crate::{Be32, Ip6};

/// Map `egress`, hash by interface index (`u32`) of addresses ([`Be32`]): the interfaces that lead
/// outside and the address that flows leave by each with. Written by the agent; read by
/// `from_container` where a flow to the outside is new.
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

/// Map `subnets`, LPM trie of VNIs (`u32`): the subnets of all networks of the cluster, which are
/// never outside. Written by the agent; read by `from_container` where a flow to the outside is
/// new.
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

/// Map `subnets6`, LPM trie of VNIs (`u32`): the IPv6 subnets of all networks of the cluster. Written by the agent;
/// read by `tunnel_flow6`, where a client outside is to be answered straight.
pub type Subnet6 = u32;

/// Map `snat_usage`, hash by interface index (`u32`): how many flows to the outside an endpoint has.
/// `from_container` counts new ones; the agent counts what is live and corrects the number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SnatUsage {
    /// Flows.
    pub flows: u32,
    /// Spare, zero.
    pub pad: u32,
    /// CLOCK_MONOTONIC in ns when the number was last corrected.
    pub counted: u64,
}

/// While nobody corrects [`SnatUsage::flows`] for so long, in ns, it is halved when it is in the way:
/// flows end, and an endpoint must not be shut out for as long as the agent is away.
pub const SNAT_USAGE_UNCOUNTED: u64 = 60_000_000_000;
