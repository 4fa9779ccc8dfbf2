//! LRU maps, which evict the least recently used entry when they are full.

/// Map `lru_stats`, per-CPU array indexed by [`Lru`]: how many entries the programs made in an LRU
/// map and removed from it. The kernel does not report evictions, but an entry that was made, was
/// not removed and is not there was evicted. Written by the programs with each entry; read by the
/// agent. The agent writes it once, when it finds maps that are older than this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LruStats {
    /// Entries made. Replacing the value of a key does not count.
    pub made: u64,
    /// Entries removed by the programs.
    pub removed: u64,
}

/// Entries of `lru_stats`, with room for further maps: a pinned array keeps its size.
pub const LRU_STATS_ENTRIES: usize = 16;

impl LruStats {
    /// The sum of two CPUs' numbers.
    #[must_use]
    pub const fn with(self, other: &Self) -> Self {
        Self {
            made: self.made.wrapping_add(other.made),
            removed: self.removed.wrapping_add(other.removed),
        }
    }

    /// How many entries were evicted from a map that holds `held`. `self` was read before the count
    /// and `later` after it. The result is a lower bound: entries that come or go during the count
    /// are left out.
    pub const fn evicted(&self, held: u64, later: &Self) -> u64 {
        self.made.saturating_sub(held).saturating_sub(later.removed)
    }
}

/// The LRU maps, with their indexes in `lru_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Lru {
    /// Flows in use.
    Conntrack = 0,
    /// New flows.
    CtNew = 1,
    /// Clients and their backends.
    Affinity = 2,
    /// Fragmented packets.
    Fragments = 3,
    /// IPv6 addresses outside, of flows in use.
    Addr6Ids = 4,
    /// IPv6 addresses outside, of new flows.
    Addr6IdsNew = 5,
    /// Frontends that unconnected sockets of the host sent to.
    SockOrigin = 6,
}

impl Lru {
    /// All of them, in the order of their indexes.
    pub const ALL: [Self; 7] = [
        Self::Conntrack,
        Self::CtNew,
        Self::Affinity,
        Self::Fragments,
        Self::Addr6Ids,
        Self::Addr6IdsNew,
        Self::SockOrigin,
    ];

    /// The map's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conntrack => "conntrack",
            Self::CtNew => "ct_new",
            Self::Affinity => "affinity",
            Self::Fragments => "fragments",
            Self::Addr6Ids => "addr6_ids",
            Self::Addr6IdsNew => "addr6_ids_new",
            Self::SockOrigin => "sock_origin",
        }
    }

    /// What the entries are, for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Conntrack => "flows in use, and flows to the outside",
            Self::CtNew => "new flows, without a packet of the client after an answer",
            Self::Affinity => "clients that keep a backend",
            Self::Fragments => "packets whose first fragment was seen",
            Self::Addr6Ids => "IPv6 addresses outside, of flows in use",
            Self::Addr6IdsNew => "IPv6 addresses outside, of new flows",
            Self::SockOrigin => "datagrams of the host's sockets to published ports",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_has_a_counter_and_a_name_of_its_own() {
        for (index, lru) in Lru::ALL.into_iter().enumerate() {
            assert_eq!(lru as usize, index, "{lru:?}");
        }
        assert!(Lru::ALL.len() <= LRU_STATS_ENTRIES);
        let names: std::collections::HashSet<_> = Lru::ALL.map(Lru::name).into();
        assert_eq!(names.len(), Lru::ALL.len());
    }

    #[test]
    fn what_was_made_and_is_not_there_was_evicted() {
        let evicted = |made, removed, held| {
            let lru_stats = LruStats { made, removed };
            lru_stats.evicted(held, &lru_stats)
        };
        assert_eq!(evicted(0, 0, 0), 0);
        assert_eq!(evicted(100, 40, 60), 0);
        assert_eq!(evicted(70_000, 1_000, 65_536), 3_464);
    }

    #[test]
    fn what_comes_and_goes_meanwhile_is_not_taken_for_evicted() {
        let before = LruStats { made: 100, removed: 40 };
        let after = LruStats { made: 103, removed: 42 };
        // Of the 60 entries two were removed and three were added.
        for held in 58..=63 {
            assert_eq!(before.evicted(held, &after), 0, "{held}");
        }
    }
}
