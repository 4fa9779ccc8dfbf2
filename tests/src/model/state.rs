//! The datapath's memory, by addresses: flows, clients, fragments and their counters.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::{BitOr, BitOrAssign},
};

use overlay::datapath::DatapathState;
use overlay_common::maps::Config;

use super::maps::AddressIds;

/// An address as flows have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The address.
    pub ip: IpAddr,
    /// Whether an IPv6 address is treated as one outside, even if its network has it too. IPv4
    /// addresses have one name only, and this is false.
    pub outside: bool,
}

impl Name {
    /// An IPv4 address, or an IPv6 address of a network.
    pub fn inside(ip: impl Into<IpAddr>) -> Self {
        Self { ip: ip.into(), outside: false }
    }

    /// An IPv6 address outside.
    pub fn outside(ip: Ipv6Addr) -> Self {
        Self { ip: ip.into(), outside: true }
    }
}

/// A tuple on arrival, before any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The network it is seen on; 0 is the underlay.
    pub vni: u32,
    /// Source.
    pub src: Name,
    /// Destination.
    pub dst: Name,
    /// Source port, or the identifier of an echo request.
    pub sport: u16,
    /// Destination port, or the identifier of an echo reply.
    pub dport: u16,
    /// IP protocol number of the flow.
    pub proto: u8,
    /// The ingress node of a flow, if a flow of another node has the same tuple on the backend's
    /// node.
    pub through: Option<Ipv4Addr>,
}

impl FlowKey {
    /// The family.
    pub fn is_ipv6(&self) -> bool {
        self.src.ip.is_ipv6()
    }

    /// The other direction.
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..self }
    }
}

/// The action of an entry on the packets of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Translates packets from a client to its backend.
    Forward,
    /// Translates packets from a backend to its client, on the ingress node.
    Reply,
    /// Sends packets from a backend to its client along the reverse path, on the backend's node.
    Reverse,
    /// Translates packets from a container to the outside.
    Snat,
    /// Translates packets from the outside to a container.
    Unsnat,
    /// None of these.
    Unknown(u8),
}

/// The observed state of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub u32);

impl Marks {
    /// A SYN.
    pub const SYN: Self = Self(1);
    /// A segment with ACK.
    pub const ACK: Self = Self(2);
    /// A FIN in the entry's direction.
    pub const FIN: Self = Self(4);
    /// A reset.
    pub const RST: Self = Self(8);
    /// Both sides have sent packets.
    pub const ANSWERED: Self = Self(16);
    /// The client asked a VIP.
    pub const VIP: Self = Self(32);
    /// Replies leave from the backend's node: direct server return.
    pub const DSR: Self = Self(64);
    /// A FIN in the other direction.
    pub const OTHER_FIN: Self = Self(128);

    /// Whether at least one of these marks is set.
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    /// Those that are in both.
    pub const fn and(self, of: Self) -> Self {
        Self(self.0 & of.0)
    }

    /// All but these.
    pub const fn without(self, of: Self) -> Self {
        Self(self.0 & !of.0)
    }
}

impl BitOr for Marks {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Marks {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One direction of a tracked flow: the translation of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Source afterwards.
    pub src: Name,
    /// Destination afterwards.
    pub dst: Name,
    /// Source port afterwards.
    pub sport: u16,
    /// Destination port afterwards.
    pub dport: u16,
    /// Network afterwards; 0 is the underlay.
    pub vni: u32,
    /// The service's number.
    pub service: u32,
    /// The backend's number; 0 if another node translates.
    pub backend: u32,
    /// The ingress node, on the backend's node.
    pub node: Option<Ipv4Addr>,
    /// The action on the flow's packets.
    pub action: Action,
    /// The observed state of the flow.
    pub marks: Marks,
    /// Seconds that the flow may be idle; 0 by default.
    pub idle: u16,
    /// Time of the last packet, ns.
    pub last_seen: u64,
}

impl Entry {
    /// An entry that leaves a tuple unchanged.
    pub fn unchanged(key: &FlowKey, action: Action, now: u64) -> Self {
        let FlowKey { src, dst, sport, dport, vni, .. } = *key;
        Self {
            src,
            dst,
            sport,
            dport,
            vni,
            service: 0,
            backend: 0,
            node: None,
            action,
            marks: Marks::default(),
            idle: 0,
            last_seen: now,
        }
    }

    /// The tuple of packets after translation.
    pub fn tuple(&self, proto: u8) -> FlowKey {
        let Self { src, dst, sport, dport, vni, .. } = *self;
        FlowKey { vni, src, dst, sport, dport, proto, through: None }
    }
}

/// The fields that all fragments of one packet share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The network.
    pub vni: u32,
    /// Source.
    pub src: Name,
    /// Destination.
    pub dst: Name,
    /// Identification.
    pub id: u32,
    /// IP protocol number.
    pub proto: u8,
}

/// The first bytes of the transport header of a packet in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Its first eight bytes.
    pub head: [u8; 8],
    /// Time of the first fragment, ns.
    pub seen: u64,
}

/// A client of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The service's number.
    pub service: u32,
    /// The client's network; 0 outside.
    pub vni: u32,
    /// The client.
    pub client: Name,
}

/// The backend that a client keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The backend's number.
    pub backend: u32,
    /// Time of the client's last new flow, ns.
    pub last_used: u64,
}

/// A backend, and one of the frontends of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatsKey {
    /// The service's number.
    pub service: u32,
    /// The backend's number.
    pub backend: u32,
    /// The published port; 0 for the VIP.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// The family.
    pub ipv6: bool,
}

/// Traffic between clients and a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Flows that began.
    pub flows: u64,
    /// Packets and bytes of clients.
    pub received: [u64; 2],
    /// Packets and bytes of the backend.
    pub sent: [u64; 2],
}

/// How many flows to the outside an endpoint has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Flows.
    pub flows: u32,
    /// When the number was last corrected, ns.
    pub counted: u64,
}

/// All that a packet meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The configuration.
    pub config: Config,
    /// The state that the agent writes.
    pub agent: DatapathState,
    /// How many picks each service has made.
    pub cursors: BTreeMap<u32, u32>,
    /// About how many flows counted backends have.
    pub active: BTreeMap<u32, u32>,
    /// The backends that clients keep.
    pub affinity: HashMap<AffinityKey, Affinity>,
    /// Flows in use.
    pub conntrack: HashMap<FlowKey, Entry>,
    /// New flows: the client has not sent again after an answer.
    pub ct_new: HashMap<FlowKey, Entry>,
    /// IPv6 addresses outside, of flows in use.
    pub clients: BTreeSet<Ipv6Addr>,
    /// IPv6 addresses outside, of new flows.
    pub clients_new: BTreeSet<Ipv6Addr>,
    /// Backend statistics, summed over the CPUs.
    pub stats: BTreeMap<StatsKey, Stats>,
    /// The first fragments seen, by packet.
    pub fragments: HashMap<FragmentKey, Fragment>,
    /// Flows to the outside, by interface.
    pub usage: BTreeMap<u32, Usage>,
    /// Whether the underlay is IPv6: a constant of the programs.
    pub ipv6: bool,
    /// The address ids of IPv6 addresses.
    pub ids: AddressIds,
}

impl Tables {
    /// All flows, those in use and new ones.
    pub fn flows(&self) -> impl Iterator<Item = (&FlowKey, &Entry)> {
        self.conntrack.iter().chain(&self.ct_new)
    }

    /// An entry, wherever it is.
    pub fn held(&mut self, key: &FlowKey) -> Option<&mut Entry> {
        match self.conntrack.get_mut(key) {
            None => self.ct_new.get_mut(key),
            entry => entry,
        }
    }
}
