//! Layout 1, frozen: its maps, and the types of entries that layout 2 changed. Only the migration
//! uses it. Tests compare it with `tests/fixtures/layout-1.o`.

use overlay_common::maps;

use super::super::sys::MapShape;

/// The version.
pub const VERSION: u32 = 1;

/// `BPF_MAP_TYPE_HASH` and the following ones of linux/bpf.h.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROGRAM_ARRAY: u32 = 3;
const PER_CPU_HASH: u32 = 5;
const PER_CPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const HASH_OF_MAPS: u32 = 13;
const RING: u32 = 27;

/// `BPF_F_NO_PREALLOC` of linux/bpf.h.
const NO_PREALLOC: u32 = 1;

const LARGE: u32 = 1 << 18;
const MEDIUM: u32 = 1 << 16;
const SMALL: u32 = 1 << 14;
const SLOTS: u32 = 1 << 11;

const fn map(
    name: &'static str,
    kind: u32,
    (key, value): (u32, u32),
    entries: u32,
) -> (&'static str, MapShape) {
    let flags = match kind {
        HASH | PER_CPU_HASH | LPM_TRIE | HASH_OF_MAPS => NO_PREALLOC,
        _ => 0,
    };
    (name, MapShape { kind, key, value, entries, flags })
}

/// The pinned maps. `conntrack` and `opening` may have other sizes.
pub const MAPS: [(&str, MapShape); 46] = [
    map("config", ARRAY, (4, 80), 1),
    map("epoch", ARRAY, (4, 8), 1),
    map("networks", HASH, (4, 20), MEDIUM),
    map("replicas", HASH, (4, 520), SMALL),
    map("endpoints", HASH, (8, 24), LARGE),
    map("endpoints6", HASH, (20, 24), LARGE),
    map("addresses6", HASH, (8, 16), LARGE),
    map("links", HASH, (4, 20), SMALL),
    map("links6", HASH, (4, 48), SMALL),
    map("peers", HASH, (8, 4), LARGE),
    map("vteps6", HASH, (4, 16), SMALL),
    map("services", HASH, (4, 28), MEDIUM),
    map("rr_cursor", HASH, (4, 4), MEDIUM),
    map("slots", HASH, (8, 4), LARGE),
    map("lb_tables", HASH_OF_MAPS, (8, 4), MEDIUM),
    map("active", HASH, (4, 4), LARGE),
    map("affinity", LRU_HASH, (12, 16), MEDIUM),
    map("backends", HASH, (4, 32), LARGE),
    map("served", PER_CPU_HASH, (12, 40), 1 << 17),
    map("published", HASH, (4, 8), MEDIUM),
    map("local_addrs", HASH, (4, 4), SMALL),
    map("local_addrs6", HASH, (16, 4), SMALL),
    map("asked6", HASH, (8, 16), SMALL),
    map("egress", HASH, (4, 4), SMALL),
    map("subnets", LPM_TRIE, (8, 4), MEDIUM),
    map("subnets6", LPM_TRIE, (20, 4), MEDIUM),
    map("usage", HASH, (4, 16), SMALL),
    map("conntrack", LRU_HASH, (20, 40), LARGE),
    map("opening", LRU_HASH, (20, 40), MEDIUM),
    map("clients6", LRU_HASH, (4, 16), 1 << 17),
    map("opening6", LRU_HASH, (4, 16), 1 << 17),
    map("seed6", ARRAY, (4, 16), 1),
    map("fragments", LRU_HASH, (20, 16), 1 << 13),
    map("turnover", PER_CPU_ARRAY, (4, 16), 16),
    map("sock_origin", LRU_HASH, (16, 8), MEDIUM),
    map("spaces", HASH, (8, 128), SMALL),
    map("sock_flows", HASH, (8, 56), LARGE),
    map("gone", HASH, (8, 4), MEDIUM),
    map("counters", PER_CPU_ARRAY, (4, 16), 64),
    map("endpoint_counters", PER_CPU_ARRAY, (4, 24 * 16), SLOTS),
    map("drop_counters", PER_CPU_HASH, (8, 16), SMALL),
    map("watch", ARRAY, (4, 40), 1),
    map("watched", ARRAY, (4, 4), SLOTS),
    map("events", RING, (0, 0), 1 << 20),
    map("lost_events", PER_CPU_ARRAY, (4, 8), 3),
    map("calls", PROGRAM_ARRAY, (4, 4), 3),
];

/// The inner maps of `lb_tables`: `BPF_F_INNER_MAP` of linux/bpf.h lets their sizes differ.
pub const TABLE: MapShape = MapShape { kind: ARRAY, key: 4, value: 4, entries: 1, flags: 1 << 12 };

/// An entry of `conntrack` and `opening`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// The fields before `action` are as in layout 2.
    pub before: [u8; 28],
    /// One of `CONNTRACK_*`, which are those of layout 2.
    pub action: u8,
    /// The lowest eight of layout 2's flags.
    pub state: u8,
    /// As in layout 2.
    pub idle: u16,
    /// As in layout 2.
    pub last_seen: u64,
}

impl Conntrack {
    /// Bytes of an entry.
    pub const SIZE: usize = 40;

    /// The contents of a map of layout 1.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut entry = Self {
            action: bytes[28],
            state: bytes[29],
            idle: u16::from_ne_bytes([bytes[30], bytes[31]]),
            ..Self::default()
        };
        entry.before.copy_from_slice(&bytes[..28]);
        let mut last_seen = [0; 8];
        last_seen.copy_from_slice(&bytes[32..]);
        entry.last_seen = u64::from_ne_bytes(last_seen);
        entry
    }

    /// The same bytes again.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..28].copy_from_slice(&self.before);
        bytes[28..30].copy_from_slice(&[self.action, self.state]);
        bytes[30..32].copy_from_slice(&self.idle.to_ne_bytes());
        bytes[32..].copy_from_slice(&self.last_seen.to_ne_bytes());
        bytes
    }
}

/// The flags of layout 2 that layout 1 has.
pub const FLAGS: u32 = u8::MAX as u32;

/// The number in layout 2 of a reason of layout 1, which never gave 58.
pub const fn reason_up(reason: u8) -> Option<u8> {
    if reason < 58 {
        Some(reason)
    } else if reason == 59 {
        Some(58)
    } else {
        None
    }
}

/// The number in layout 1 of a reason of layout 2; `None` for one that is newer.
pub const fn reason_down(reason: u8) -> Option<u8> {
    if reason < 58 {
        Some(reason)
    } else if reason == 58 {
        Some(59)
    } else {
        None
    }
}

const _: () = assert!(
    maps::CONNTRACK_UNMASQUERADE == 5 && maps::TCP_SEEN_OTHER_FIN == 1 << 7,
    "actions and flags of layout 1 are those of layout 2"
);

#[cfg(test)]
mod tests {
    use aya_obj::Object;

    use super::*;

    /// The programs of the last commit of layout 1.
    const OBJECT: &[u8] =
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/layout-1.o"));

    #[test]
    fn the_maps_are_those_of_the_object() {
        let object = Object::parse(OBJECT).expect("an object");
        for (name, shape) in MAPS {
            let map = object.maps.get(name).unwrap_or_else(|| panic!("no map {name}"));
            let found = MapShape {
                kind: map.map_type(),
                key: map.key_size(),
                value: map.value_size(),
                entries: map.max_entries(),
                flags: map.map_flags(),
            };
            assert_eq!(found, shape, "{name}");
        }
        // The others are areas of the programs, which are never pinned.
        let areas = ["hops", "known_ends", "known_links", "work", "scratch", "event"];
        for name in object.maps.keys().filter(|name| !name.starts_with('.')) {
            let is_known = MAPS.iter().any(|(known, _)| known == name);
            assert!(is_known || areas.contains(&name.as_str()), "{name} is left out");
        }
    }

    #[test]
    fn an_entry_survives_its_bytes() {
        let mut bytes = [0; Conntrack::SIZE];
        for (number, byte) in (1..).zip(&mut bytes) {
            *byte = number;
        }
        let entry = Conntrack::from_bytes(&bytes);
        assert_eq!((entry.action, entry.state), (29, 30));
        assert_eq!(entry.last_seen.to_ne_bytes(), [33, 34, 35, 36, 37, 38, 39, 40]);
        assert_eq!(entry.to_bytes(), bytes);
    }
}
