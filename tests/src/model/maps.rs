//! The edge between the model and the maps of the programs. It is the only file of the model that
//! knows the maps' layouts and the address ids of IPv6 addresses.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use overlay_common::{
    Be16, Be32, Ip6, hash,
    maps::{self, Conntrack, ConntrackKey, VNI_FLAG_IPV6},
    wire::Udp,
};

use super::state::{
    Action, AffinityKey, Entry, FlowKey, FragmentKey, Marks, Name, Stats, StatsKey, Tables, Usage,
};
use crate::rig::{FLOWS, IFINDEX, Rig};

/// The maps of IPv6 addresses outside: of flows in use, and of new ones.
const CLIENTS: [&str; 2] = ["addr6_ids", "addr6_ids_new"];

/// Each mark's bit in an entry.
const BITS: [(Marks, u32); 8] = [
    (Marks::SYN, maps::TCP_SEEN_SYN),
    (Marks::ACK, maps::TCP_SEEN_ACK),
    (Marks::FIN, maps::TCP_SEEN_FIN),
    (Marks::RST, maps::TCP_SEEN_RST),
    (Marks::ANSWERED, maps::ANSWERED),
    (Marks::VIP, maps::VIA_VIP),
    (Marks::DSR, maps::DSR),
    (Marks::OTHER_FIN, maps::TCP_SEEN_OTHER_FIN),
];

/// The address id of an address (`addr6_id`): for an endpoint or a VIP it is its IPv4 address, for
/// an address outside it is a hash with a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressIds {
    secret: [u64; 2],
    inside: BTreeMap<(u32, Ipv4Addr), Ipv6Addr>,
    numbers: BTreeMap<Ipv6Addr, Ipv4Addr>,
}

impl AddressIds {
    /// Makes ids with this secret and with these IPv6 addresses for the IPv4 addresses of networks.
    pub fn new(secret: [u64; 2], of: impl Iterator<Item = (u32, Ipv4Addr, Ipv6Addr)>) -> Self {
        let mut ids = Self { secret, ..Self::default() };
        for (vni, ip, ip6) in of {
            ids.inside.insert((vni, ip), ip6);
            ids.numbers.insert(ip6, ip);
        }
        ids
    }

    /// The IPv6 address that belongs to an IPv4 address of a network. Other addresses are mapped
    /// (RFC 4291, section 2.5.5.2), which no packet has.
    pub fn address(&self, vni: u32, ip: Ipv4Addr) -> Ipv6Addr {
        self.inside.get(&(vni, ip)).copied().unwrap_or(ip.to_ipv6_mapped())
    }

    /// The address id. The second to fourth candidate of an address are for collisions, which the
    /// fuzzer's addresses do not have.
    pub fn id(&self, name: Name) -> Be32 {
        match name.ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) if name.outside => hash::addr6_id(&ip.into(), self.secret, 0),
            IpAddr::V6(ip) => {
                let number = self.numbers.get(&ip).copied().or_else(|| ip.to_ipv4_mapped());
                number.unwrap_or(Ipv4Addr::UNSPECIFIED).into()
            }
        }
    }

    fn side(name: Name, vni: u32) -> u32 {
        if name.ip.is_ipv6() { vni | VNI_FLAG_IPV6 } else { vni }
    }

    fn flow(&self, key: &FlowKey) -> ConntrackKey {
        let plain = ConntrackKey {
            saddr: self.id(key.src),
            daddr: self.id(key.dst),
            sport: Be16::new(key.sport),
            dport: Be16::new(key.dport),
            vni: Self::side(key.src, key.vni),
            proto: key.proto,
            scope: [0; 3],
        };
        key.through.map_or(plain, |node| plain.through(node.into()))
    }

    fn entry(&self, entry: &Entry) -> Conntrack {
        Conntrack {
            saddr: self.id(entry.src),
            daddr: self.id(entry.dst),
            sport: Be16::new(entry.sport),
            dport: Be16::new(entry.dport),
            vni: Self::side(entry.src, entry.vni),
            service: entry.service,
            backend: entry.backend,
            node: entry.node.map_or(Be32::ZERO, Be32::from),
            action: match entry.action {
                Action::Forward => maps::CONNTRACK_FORWARD,
                Action::Reply => maps::CONNTRACK_REPLY,
                Action::Reverse => maps::CONNTRACK_REVERSE,
                Action::Snat => maps::CONNTRACK_MASQUERADE,
                Action::Unsnat => maps::CONNTRACK_UNMASQUERADE,
                Action::Unknown(number) => number,
            },
            idle: entry.idle,
            flags: BITS.iter().filter(|(m, _)| entry.marks.any(*m)).map(|(_, bit)| bit).sum(),
            last_seen: entry.last_seen,
            ..Conntrack::default()
        }
    }

    fn fragment(&self, key: &FragmentKey) -> maps::FragmentKey {
        maps::FragmentKey {
            saddr: self.id(key.src),
            daddr: self.id(key.dst),
            vni: Self::side(key.src, key.vni),
            id: Be32::new(key.id),
            proto: key.proto,
            pad: [0; 3],
        }
    }

    fn affinity(&self, key: &AffinityKey) -> maps::AffinityKey {
        let AffinityKey { service, vni, client } = *key;
        maps::AffinityKey { service, vni: Self::side(client, vni), client: self.id(client) }
    }
}

fn udp(head: [u8; 8]) -> Udp {
    let half = |at| Be16::new(u16::from_be_bytes([head[at], head[at + 1]]));
    Udp { source: half(0), dest: half(2), length: half(4), checksum: half(6) }
}

fn stats_key(key: &StatsKey) -> maps::BackendStatsKey {
    let StatsKey { service, backend, port, proto, ipv6 } = *key;
    maps::BackendStatsKey { service, backend, port: Be16::new(port), proto, ipv6: ipv6.into() }
}

fn stats(stats: &Stats) -> maps::BackendStats {
    let Stats { flows, received: [in_packets, in_bytes], sent: [out_packets, out_bytes] } = *stats;
    maps::BackendStats { flows, in_packets, in_bytes, out_packets, out_bytes }
}

fn usage(usage: &Usage) -> maps::SnatUsage {
    maps::SnatUsage { flows: usage.flows, pad: 0, counted: usage.counted }
}

/// The content of the maps that the programs write.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    flows: [HashMap<ConntrackKey, Conntrack>; 2],
    clients: [HashMap<Be32, Ip6>; 2],
    affinity: HashMap<maps::AffinityKey, maps::Affinity>,
    fragments: HashMap<maps::FragmentKey, maps::Fragment>,
    stats: BTreeMap<maps::BackendStatsKey, maps::BackendStats>,
    cursors: BTreeMap<u32, maps::Cursor>,
    active: BTreeMap<u32, maps::Active>,
    usage: Option<maps::SnatUsage>,
}

impl Maps {
    /// The content that the maps have for these tables.
    pub fn of(tables: &Tables) -> Self {
        let ids = &tables.ids;
        let flows = |flows: &HashMap<FlowKey, Entry>| {
            flows.iter().map(|(key, entry)| (ids.flow(key), ids.entry(entry))).collect()
        };
        let clients = [&tables.clients, &tables.clients_new];
        let affinity = tables.affinity.iter().map(|(key, a)| {
            (
                ids.affinity(key),
                maps::Affinity { backend: a.backend, pad: 0, last_used: a.last_used },
            )
        });
        let fragments = tables.fragments.iter().map(|(key, fragment)| {
            let head = udp(fragment.head);
            (ids.fragment(key), maps::Fragment { head, seen: fragment.seen })
        });
        Self {
            flows: [flows(&tables.conntrack), flows(&tables.ct_new)],
            clients: clients
                .map(|of| of.iter().map(|ip| (ids.id(Name::outside(*ip)), (*ip).into())).collect()),
            affinity: affinity.collect(),
            fragments: fragments.collect(),
            stats: tables.stats.iter().map(|(key, of)| (stats_key(key), stats(of))).collect(),
            cursors: tables.cursors.clone(),
            active: tables.active.clone(),
            usage: tables.usage.get(&IFINDEX).map(usage),
        }
    }

    /// Reads the rig's maps, for the services and backends with these numbers.
    pub fn read(rig: &Rig, numbers: RangeInclusive<u32>) -> Self {
        Self {
            flows: FLOWS.map(|map| rig.flows(map).into_iter().collect()),
            clients: CLIENTS.map(|map| rig.outsiders(map).into_iter().collect()),
            affinity: rig.affinity().into_iter().collect(),
            fragments: rig.fragments().into_iter().collect(),
            stats: rig.backend_stats(),
            cursors: numbers.clone().filter_map(|n| Some((n, rig.cursor(n)?))).collect(),
            active: numbers.filter_map(|n| Some((n, rig.active(n)?))).collect(),
            usage: rig.snat_usage(),
        }
    }

    /// Brings the rig's maps, which hold `before`, to this content. Entries that are absent here
    /// stay: only [`Maps::clear`] removes flows. Only the programs write statistics.
    pub fn write(&self, rig: &mut Rig, before: &Self, numbers: RangeInclusive<u32>) {
        for (map, (new, old)) in FLOWS.iter().zip(self.flows.iter().zip(&before.flows)) {
            changed(new, old, |key, entry| rig.set_flow(map, key, Some(entry)));
        }
        for (map, (new, old)) in CLIENTS.iter().zip(self.clients.iter().zip(&before.clients)) {
            changed(new, old, |number, ip| rig.set_outsider(map, number, Some(ip)));
        }
        changed(&self.affinity, &before.affinity, |key, of| rig.set_affinity(key, Some(of)));
        changed(&self.fragments, &before.fragments, |key, of| rig.set_fragment(key, Some(of)));
        for number in numbers {
            rig.set_cursor(number, self.cursors.get(&number).copied());
            rig.set_active(number, self.active.get(&number).copied());
        }
        rig.set_snat_usage(self.usage);
    }

    /// Removes all that the programs remember of packets from the rig's maps, and sets the secret.
    pub fn clear(rig: &mut Rig, ids: &AddressIds) {
        for map in FLOWS {
            rig.flows(map).into_iter().for_each(|(key, _)| rig.set_flow(map, key, None));
        }
        for map in CLIENTS {
            rig.outsiders(map).into_iter().for_each(|(id, _)| rig.set_outsider(map, id, None));
        }
        rig.affinity().into_iter().for_each(|(key, _)| rig.set_affinity(key, None));
        rig.fragments().into_iter().for_each(|(key, _)| rig.set_fragment(key, None));
        rig.clear_backend_stats();
        rig.set_addr6_secret(ids.secret);
    }

    /// Checks that the model's maps are those of the rig. Times that the model set to `now` may lie
    /// anywhere in `span` in the kernel.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, real: &Self, now: u64, span: (u64, u64)) -> Result<(), String> {
        let time = |model: u64, real: u64| {
            model == real || (model == now && (span.0..=span.1).contains(&real))
        };
        for (map, (model, real)) in FLOWS.iter().zip(self.flows.iter().zip(&real.flows)) {
            same(map, model, real, |a, b| {
                time(a.last_seen, b.last_seen) && *a == Conntrack { last_seen: a.last_seen, ..*b }
            })?;
        }
        for (map, (model, real)) in CLIENTS.iter().zip(self.clients.iter().zip(&real.clients)) {
            same(map, model, real, |a, b| a == b)?;
        }
        same("affinity", &self.affinity, &real.affinity, |a, b| {
            time(a.last_used, b.last_used) && a.backend == b.backend
        })?;
        same("fragments", &self.fragments, &real.fragments, |a, b| {
            time(a.seen, b.seen) && a.head == b.head
        })?;
        let usage = match (self.usage, real.usage) {
            (Some(a), Some(b)) => time(a.counted, b.counted) && a.flows == b.flows,
            (a, b) => a == b,
        };
        let counts = (&self.stats, &self.cursors, &self.active);
        let real_counts = (&real.stats, &real.cursors, &real.active);
        if !usage || counts != real_counts {
            return Err(format!(
                "usage {:?}, counts {real_counts:?}\nmodel: {:?}, {counts:?}",
                real.usage, self.usage
            ));
        }
        Ok(())
    }

    /// Copies the times of the rig's maps, which [`Maps::check`] has found right.
    pub fn tell_times(&self, tables: &mut Tables) {
        let Tables { ids, conntrack, ct_new, affinity, fragments, usage, .. } = tables;
        for (flows, real) in [conntrack, ct_new].into_iter().zip(&self.flows) {
            for (key, entry) in flows {
                entry.last_seen = real[&ids.flow(key)].last_seen;
            }
        }
        for (key, kept) in affinity {
            kept.last_used = self.affinity[&ids.affinity(key)].last_used;
        }
        for (key, fragment) in fragments {
            fragment.seen = self.fragments[&ids.fragment(key)].seen;
        }
        if let (Some(usage), Some(real)) = (usage.get_mut(&IFINDEX), self.usage) {
            usage.counted = real.counted;
        }
    }
}

fn changed<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    new: &HashMap<K, V>,
    old: &HashMap<K, V>,
    mut write: impl FnMut(K, V),
) {
    let is_new = |(key, value): &(&K, &V)| old.get(*key) != Some(*value);
    new.iter().filter(is_new).for_each(|(key, value)| write(*key, *value));
}

fn same<K: Eq + Hash + Debug, V: Debug>(
    map: &str,
    model: &HashMap<K, V>,
    real: &HashMap<K, V>,
    is_same: impl Fn(&V, &V) -> bool,
) -> Result<(), String> {
    for key in model.keys().chain(real.keys()) {
        let both = (model.get(key), real.get(key));
        if !matches!(both, (Some(a), Some(b)) if is_same(a, b)) {
            return Err(format!("{map} {key:?}: {:?}\nmodel: {:?}", both.1, both.0));
        }
    }
    Ok(())
}
