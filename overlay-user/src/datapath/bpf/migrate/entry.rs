//! Entries of layout 1 as entries of layout 2, and back: bytes in, bytes out.

use overlay_common::maps::{Affinity, Conntrack};

use super::layout1;

/// How the key of a map changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Not at all.
    Same,
    /// It is the index of a reason.
    Reason,
    /// It is a `DropKey`, which has a reason as its seventh byte.
    Drop,
}

/// How a value changes; of a map that has one for each CPU, each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The new fields are at its end, and zero.
    Longer,
    /// It is an entry of conntrack.
    Flow,
}

/// Between which layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From layout 1 to layout 2.
    Up,
    /// Back.
    Down,
}

impl Key {
    /// The key in the other layout; `None` if that layout has no such entry.
    pub fn convert(self, way: Way, key: &[u8]) -> Option<Vec<u8>> {
        let reason = match way {
            Way::Up => layout1::reason_up,
            Way::Down => layout1::reason_down,
        };
        let mut key = key.to_vec();
        match self {
            Self::Same => {}
            Self::Reason => {
                let index = u32::from_ne_bytes(key.as_slice().try_into().ok()?);
                let index = reason(u8::try_from(index).ok()?)?;
                key = u32::from(index).to_ne_bytes().to_vec();
            }
            Self::Drop => {
                let byte = key.get_mut(6)?;
                *byte = reason(*byte)?;
            }
        }
        Some(key)
    }
}

impl Value {
    /// The value in the other layout, of `size` bytes.
    pub fn convert(self, way: Way, value: &[u8], size: usize) -> Vec<u8> {
        let converted = match (self, way) {
            (Self::Longer, _) => None,
            (Self::Flow, Way::Up) => flow_up(value).map(|flow| flow_bytes(&flow).to_vec()),
            (Self::Flow, Way::Down) => {
                flow_of(value).map(|flow| flow_down(&flow).to_bytes().to_vec())
            }
        };
        let mut value = converted.unwrap_or_else(|| value.to_vec());
        value.resize(size, 0);
        value
    }
}

/// An entry of layout 1 in layout 2.
fn flow_up(bytes: &[u8]) -> Option<Conntrack> {
    let old = layout1::Conntrack::from_bytes(bytes.try_into().ok()?);
    let mut bytes = [0; size_of::<Conntrack>()];
    bytes[..28].copy_from_slice(&old.before);
    Some(Conntrack {
        action: old.action,
        flags: old.state.into(),
        idle: old.idle,
        last_seen: old.last_seen,
        ..flow_of(&bytes)?
    })
}

/// An entry of layout 2 in layout 1, which has eight of its flags.
fn flow_down(flow: &Conntrack) -> layout1::Conntrack {
    let mut old = layout1::Conntrack {
        action: flow.action,
        state: (flow.flags & layout1::FLAGS) as u8,
        idle: flow.idle,
        last_seen: flow.last_seen,
        ..layout1::Conntrack::default()
    };
    old.before.copy_from_slice(&flow_bytes(flow)[..28]);
    old
}

/// The bytes of an entry of layout 2.
pub fn flow_bytes(flow: &Conntrack) -> [u8; size_of::<Conntrack>()] {
    // SAFETY: the type has no padding (`overlay_common::Plain`) and is as large.
    unsafe { std::mem::transmute_copy(flow) }
}

/// An entry of layout 2 out of its bytes.
pub fn flow_of(bytes: &[u8]) -> Option<Conntrack> {
    let bytes: &[u8; size_of::<Conntrack>()] = bytes.try_into().ok()?;
    // SAFETY: all bytes are valid values of the type (`overlay_common::Plain`), which is as large.
    Some(unsafe { std::mem::transmute_copy(bytes) })
}

/// Merges the entries that two layouts' programs have of one flow, in layout 2: takes the newer
/// entry, and adds the states that either has seen if both lead to the same place.
pub fn merged(a: Conntrack, b: Conntrack) -> Conntrack {
    let (old, new) = if a.last_seen <= b.last_seen { (a, b) } else { (b, a) };
    let place = |flow: Conntrack| Conntrack { flags: 0, last_seen: 0, ..flow };
    let seen = if place(old) == place(new) { old.flags } else { 0 };
    Conntrack { flags: new.flags | seen, ..new }
}

/// When the entry of a map was last used, as far as that says so: its LRU order follows from it.
pub fn last_used(map: &str, value: &[u8]) -> u64 {
    const AFFINITY: usize = std::mem::offset_of!(Affinity, last_used);
    let at = match map {
        "conntrack" | "opening" => 32,
        "affinity" | "fragments" => AFFINITY,
        _ => return 0,
    };
    value.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use overlay_common::{
        Be16, Be32, Reason,
        maps::{ANSWERED, CONNTRACK_FORWARD, DSR, TCP_SEEN_ACK, TCP_SEEN_OTHER_FIN, VIA_VIP},
        observe::{DropKey, Tally},
    };
    use proptest::prelude::*;

    use super::*;

    fn flow() -> Conntrack {
        Conntrack {
            saddr: Be32::new(1),
            daddr: Be32::new(2),
            sport: Be16::new(3),
            dport: Be16::new(4),
            vni: 5,
            service: 6,
            backend: 7,
            node: Be32::new(8),
            action: CONNTRACK_FORWARD,
            pad: 0,
            idle: 9,
            flags: ANSWERED | DSR | TCP_SEEN_OTHER_FIN,
            generation: 0,
            last_seen: 10,
        }
    }

    /// The entry of layout 1 with the same fields, as its programs wrote it.
    fn old() -> [u8; 40] {
        let mut bytes = [0; 40];
        for (at, number) in [(0, 1_u32), (4, 2), (24, 8)] {
            bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        for (at, port) in [(8, 3_u16), (10, 4)] {
            bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        }
        for (at, number) in [(12, 5_u32), (16, 6), (20, 7)] {
            bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes[28..30].copy_from_slice(&[1, 0b1101_0000]);
        bytes[30..32].copy_from_slice(&9_u16.to_ne_bytes());
        bytes[32..].copy_from_slice(&10_u64.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_flow_of_layout_1_is_the_same_flow_in_layout_2_and_back() {
        let new = Value::Flow.convert(Way::Up, &old(), 48);
        assert_eq!(flow_of(&new), Some(flow()));
        assert_eq!(Value::Flow.convert(Way::Down, &new, 40), old());
    }

    #[test]
    fn flags_that_layout_1_has_no_room_for_are_left_out_on_the_way_back() {
        let newer = flow_bytes(&Conntrack { flags: flow().flags | 1 << 8, ..flow() });
        assert_eq!(Value::Flow.convert(Way::Down, &newer, 40), old());
    }

    proptest! {
        #[test]
        fn every_flow_of_layout_1_survives_the_way_up_and_back(bytes: [u8; 20], more: [u8; 20]) {
            let old = [bytes, more].concat();
            let new = Value::Flow.convert(Way::Up, &old, 48);
            prop_assert_eq!(Value::Flow.convert(Way::Down, &new, 40), old);
        }
    }

    #[test]
    fn reasons_keep_their_names_not_their_numbers() {
        let key = |index: u32| index.to_ne_bytes().to_vec();
        let up = |index| Key::Reason.convert(Way::Up, &key(index));
        let last = Reason::NoBackendAnswered as u32;
        assert_eq!(up(59), Some(key(last)));
        assert_eq!(up(57), Some(key(Reason::UnknownVni as u32)));
        assert_eq!((up(58), up(60), up(63)), (None, None, None), "no reason had these");
        assert_eq!(Key::Reason.convert(Way::Down, &key(last)), Some(key(59)));
        assert_eq!(Key::Reason.convert(Way::Down, &key(255)), None);
        for index in (0..64).filter(|index| up(*index).is_some()) {
            let new = up(index).expect("a reason");
            assert_eq!(Key::Reason.convert(Way::Down, &new), Some(key(index)));
        }
    }

    #[test]
    fn drops_keep_their_endpoint_and_network() {
        let key = DropKey { vni: 4097, counter: 7, reason: Reason::NoRoute as u8, traffic: 1 };
        // SAFETY: the type has no padding and is eight bytes long.
        let bytes: [u8; 8] = unsafe { std::mem::transmute(key) };
        assert_eq!(bytes[6], Reason::NoRoute as u8);
        assert_eq!(Key::Drop.convert(Way::Up, &bytes), Some(bytes.to_vec()));
        assert_eq!(Key::Drop.convert(Way::Up, &[0, 0, 0, 0, 0, 0, 58, 0]), None);
    }

    #[test]
    fn what_a_value_has_more_is_zero() {
        let size = size_of::<Tally>();
        let new = Value::Longer.convert(Way::Up, &[7; 384], size);
        assert_eq!((&new[..384], &new[384..]), (&[7; 384][..], &[0; 128][..]));
        assert_eq!(Value::Longer.convert(Way::Down, &new, 384), [7; 384]);
    }

    #[test]
    fn what_either_has_seen_of_a_flow_is_kept() {
        let copied = Conntrack { flags: VIA_VIP, ..flow() };
        let later = Conntrack { flags: VIA_VIP | TCP_SEEN_ACK, last_seen: 20, ..copied };
        let beside = Conntrack { flags: VIA_VIP | ANSWERED, last_seen: 15, ..copied };
        let both = Conntrack { flags: VIA_VIP | TCP_SEEN_ACK | ANSWERED, ..later };
        assert_eq!(merged(later, beside), both);
        assert_eq!(merged(beside, later), both);
        let elsewhere = Conntrack { backend: 99, last_seen: 30, ..beside };
        assert_eq!(merged(later, elsewhere), elsewhere, "the tuple is another flow's by now");
    }

    #[test]
    fn what_was_used_last_is_found_where_the_layouts_have_it() {
        assert_eq!(last_used("conntrack", &old()), 10);
        let affinity = Affinity { backend: 1, pad: 0, last_used: 77 };
        // SAFETY: the type has no padding and is sixteen bytes long.
        let bytes: [u8; 16] = unsafe { std::mem::transmute(affinity) };
        assert_eq!(last_used("affinity", &bytes), 77);
        assert_eq!(last_used("endpoints", &bytes), 0);
    }
}
