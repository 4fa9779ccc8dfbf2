//! The reference model of the datapath: what docs/architecture.md and the documentation of the maps
//! say becomes of a packet, in plain Rust. It shares types with the programs and no code.
//!
//! [`run`] takes what the maps hold, the time and a packet, and says what the program must do with
//! it. Where the answer is the kernel's (routes, neighbours, MTU), [`Host`] holds what the rig set
//! up.

mod balance;
mod conntrack;
mod container;
mod direct_return;
mod flow6;
mod fragment;
mod frame;
mod host;
mod icmp;
mod ipv6;
mod membership;
mod observe;
mod outside;
mod related;
mod replicate;
mod service6;
mod underlay;
mod underlay6;
mod walk;
mod xdp;
mod xdp6;

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
};

use overlay::datapath::DatapathState;
use overlay_common::{
    Be32, Ip6, Reason,
    maps::{
        Active, Affinity, AffinityKey, BackendStats, BackendStatsKey, Config, Conntrack,
        ConntrackKey, Counter, Cursor, Fragment, FragmentKey, SnatUsage,
    },
};

pub use frame::ones_complement;
pub use host::Host;

use crate::rig::Told;

/// Which program a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `from_container`
    Container,
    /// `from_underlay`
    Underlay,
    /// `from_outside`
    Outside,
    /// `xdp_underlay`
    Xdp,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Container, Self::Underlay, Self::Outside, Self::Xdp];

    /// The program's name in the object; `ipv6` is the underlay's family.
    pub const fn name(self, ipv6: bool) -> &'static str {
        match self {
            Self::Container => "from_container",
            Self::Underlay if ipv6 => "from_underlay6",
            Self::Underlay => "from_underlay",
            Self::Outside => "from_outside",
            Self::Xdp => "xdp_underlay",
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's, untouched.
    Pass,
    /// It is dropped.
    Drop,
    /// The program sends it on.
    Sent,
}

/// What a program must do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// The verdict.
    pub verdict: Verdict,
    /// The packet afterwards; of no meaning when it is dropped.
    pub packet: Vec<u8>,
    /// The counters that move, and how far.
    pub moved: BTreeMap<Reason, Counter>,
    /// What is counted for endpoints and networks.
    pub told: Told,
}

/// What the maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Map `config`.
    pub config: Config,
    /// The maps that the agent fills.
    pub agent: DatapathState,
    /// Map `rr_cursor`.
    pub cursors: BTreeMap<u32, Cursor>,
    /// Map `active`.
    pub active: BTreeMap<u32, Active>,
    /// Map `affinity`.
    pub affinity: HashMap<AffinityKey, Affinity>,
    /// Map `conntrack`.
    pub conntrack: HashMap<ConntrackKey, Conntrack>,
    /// Map `ct_new`.
    pub opening: HashMap<ConntrackKey, Conntrack>,
    /// Map `addr6_ids`.
    pub addr6_ids: HashMap<Be32, Ip6>,
    /// Map `addr6_ids_new`.
    pub addr6_ids_new: HashMap<Be32, Ip6>,
    /// Map `addr6_secret`.
    pub addr6_secret: [u64; 2],
    /// Map `backend_stats`, summed over the CPUs.
    pub served: BTreeMap<BackendStatsKey, BackendStats>,
    /// Map `fragments`.
    pub fragments: HashMap<FragmentKey, Fragment>,
    /// Map `snat_usage`.
    pub usage: BTreeMap<u32, SnatUsage>,
    /// Whether the underlay is IPv6: the programs' constant.
    pub ipv6: bool,
}

impl Tables {
    /// Whether an address is of a network of the cluster.
    fn is_inside(&self, address: Be32) -> bool {
        self.agent.subnets.keys().any(|subnet| {
            let mask = u32::MAX.checked_shl(32 - subnet.prefix).unwrap_or(0);
            address.get() & mask == subnet.ip.get()
        })
    }

    /// The same of an IPv6 address.
    fn is_inside6(&self, address: Ipv6Addr) -> bool {
        self.agent.subnets6.keys().any(|subnet| {
            let mask = u128::MAX.checked_shl(128 - subnet.prefix).unwrap_or(0);
            address.to_bits() & mask == Ipv6Addr::from(subnet.ip).to_bits()
        })
    }

    /// All flows, those in use and those that begin.
    pub fn flows(&self) -> impl Iterator<Item = (&ConntrackKey, &Conntrack)> {
        self.conntrack.iter().chain(&self.opening)
    }
}

/// A packet as a program gets it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The interface that it came in by.
    pub ifindex: u32,
    /// Its bytes.
    pub frame: &'a [u8],
    /// Bytes of payload in each segment of an aggregate; 0 for a single packet.
    pub segment: u16,
}

/// Runs a packet. `now` is the time in ns on the clock of `last_seen`. The tables change as the program
/// must change the maps.
pub fn run(
    tables: &mut Tables,
    (host, now): (&Host, u64),
    program: Program,
    packet: Packet<'_>,
) -> Predicted {
    let mut walk = walk::Walk::new(tables, host, now, packet);
    let end = match program {
        Program::Container => container::receive(&mut walk),
        Program::Underlay => underlay::receive(&mut walk),
        Program::Outside => underlay::receive_outside(&mut walk),
        Program::Xdp => xdp::receive(&mut walk),
    };
    // XDP counts a packet as it came in, TC as it leaves.
    let length = if program == Program::Xdp { packet.frame.len() } else { walk.frame.len() };
    let verdict = match end {
        Ok(walk::End::Pass) => Verdict::Pass,
        Ok(walk::End::Sent(reason)) => {
            walk.count(reason, length);
            walk.tell_forwarded(reason, length);
            Verdict::Sent
        }
        Ok(walk::End::Left(reason)) => {
            walk.count(reason, length);
            Verdict::Pass
        }
        Ok(walk::End::Copied(reason)) => {
            walk.count(reason, length);
            walk.tell_forwarded(reason, length);
            Verdict::Drop
        }
        Err(reason) => {
            walk.count(reason, length);
            walk.tell_dropped(reason, length);
            Verdict::Drop
        }
    };
    Predicted { verdict, packet: walk.frame, moved: walk.moved, told: walk.told }
}
