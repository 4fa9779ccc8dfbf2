//! The reference model of the datapath in plain Rust: the fate of a packet by docs/architecture.md
//! and the documentation of the maps. It shares types with the programs and no code.
//!
//! A packet is parsed to a value (`packet`), the decision is made over [`IpAddr`] in one text for
//! both families, and the outgoing frame is built anew. Flows are kept by addresses; only `maps`
//! knows the layouts of the programs' tables and the address ids of IPv6 addresses.
//!
//! Both families differ in these places: ARP and neighbour discovery (`neighbour`), ICMP errors
//! (`icmp`), headers in bytes (`packet`, `rewrite`, `tunnel`), and the names of IPv6 addresses
//! outside (`agent`). Only IPv4 has egress (`snat`), head-end replication and the host's own
//! endpoint.
//!
//! `run` takes the content of the tables, the time and a packet, and predicts the program's action.
//! Where the kernel decides (routes, neighbours, MTU), `Host` holds the rig's setup.
//!
//! [`IpAddr`]: std::net::IpAddr

mod agent;
mod balance;
mod bytes;
mod conntrack;
mod container;
mod dsr;
mod host;
mod icmp;
pub mod maps;
mod neighbour;
mod observe;
mod packet;
mod published;
mod reject;
mod replication;
mod rewrite;
mod snat;
mod state;
mod tunnel;
mod underlay;
mod walk;
mod xdp;

use std::collections::BTreeMap;

use overlay_common::{Reason, maps::Counter};

pub use bytes::ones_complement;
pub use host::Host;
pub use state::{
    Action, Affinity, AffinityKey, Entry, FlowKey, Fragment, FragmentKey, Marks, Name, Stats,
    StatsKey, Tables, Usage,
};

use crate::rig::Told;

/// The program that receives a packet.
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

/// The verdict on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the host, untouched.
    Pass,
    /// It is dropped.
    Drop,
    /// The program sends it on.
    Sent,
}

/// The action that a program must take on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicted {
    /// The verdict.
    pub verdict: Verdict,
    /// The packet afterwards; meaningless if it is dropped.
    pub packet: Vec<u8>,
    /// The counters that move, and how far.
    pub moved: BTreeMap<Reason, Counter>,
    /// The counters of endpoints and networks.
    pub told: Told,
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

/// Runs a packet. `now` is the time in ns on the clock of `last_seen`. The tables change as the
/// program must change the maps.
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
        Program::Outside => underlay::receive_egress(&mut walk),
        Program::Xdp => xdp::receive(&mut walk),
    };
    // XDP counts a packet's length on arrival, TC its length on departure.
    let length = if program == Program::Xdp { packet.frame.len() } else { walk.frame.len() };
    let verdict = walk.conclude(end, length);
    Predicted { verdict, packet: walk.frame, moved: walk.moved, told: walk.told }
}
