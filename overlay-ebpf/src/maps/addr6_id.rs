//! Address ids: numbers that stand for IPv6 addresses in the tables of flows
//! ([`overlay_common::maps::VNI_FLAG_IPV6`]).

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_prandom_u32};
use overlay_common::{
    Be32, Ip6, Mac, UNDERLAY_VNI, hash,
    maps::{
        ADDR6_ID_TRIES, ANSWERED, CONNTRACK_FORWARD, ENDPOINT_FLAG_HOST, Endpoint6Key, EndpointKey,
        VNI_FLAG_IPV6,
    },
};

use crate::maps::{ADDR6_IDS, ADDR6_IDS_NEW, ADDR6_SECRET, ADDRESSES6, ENDPOINTS6, work::Work};

/// The address has no id.
pub const NONE: Be32 = Be32::ZERO;

/// The id of an address on network `vni`, or [`NONE`]. With `may_be_new`, an address outside gets
/// one now. `key` is room for a look-up.
#[inline(always)]
pub fn of(vni: u32, address: &Ip6, may_be_new: bool, key: &mut Endpoint6Key) -> Be32 {
    let number = inside(vni, address, key);
    if number == NONE { outside(address, may_be_new) } else { number }
}

/// The id of an endpoint or VIP of a network: its IPv4 address. [`NONE`] for other addresses.
#[inline(always)]
pub fn inside(vni: u32, address: &Ip6, key: &mut Endpoint6Key) -> Be32 {
    if vni == UNDERLAY_VNI {
        return NONE;
    }
    *key = Endpoint6Key { vni, ip: *address };
    let Some(endpoint) = ENDPOINTS6.get_ptr(&*key) else { return NONE };
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    let (flags, mac) = unsafe { ((*endpoint).flags, (*endpoint).mac) };
    if flags & ENDPOINT_FLAG_HOST != 0 { NONE } else { ipv4_of(mac) }
}

/// The IPv4 address of the endpoint, VIP or gateway with a MAC ([`Mac::of_ip`]).
#[inline(always)]
pub fn ipv4_of(mac: Mac) -> Be32 {
    let [_, _, a, b, c, d] = mac.bytes();
    Be32::from_octets([a, b, c, d])
}

/// The id of an address outside, or [`NONE`]. With `may_be_new`, an address without one gets it
/// now.
#[inline(always)]
pub fn outside(address: &Ip6, may_be_new: bool) -> Be32 {
    let Some(key) = secret() else { return NONE };
    let mut free = NONE;
    for attempt in 0..ADDR6_ID_TRIES {
        let number = hash::addr6_id(address, key, attempt);
        match address_outside(number) {
            Some(found) if *found == *address => return number,
            Some(_) => {}
            None if free == NONE => free = number,
            None => {}
        }
    }
    if free == NONE || !may_be_new {
        return NONE;
    }
    match ADDR6_IDS_NEW.insert(&free, address, u64::from(BPF_ANY)) {
        Ok(()) => free,
        Err(_) => NONE,
    }
}

/// The address outside with this id.
#[inline(always)]
fn address_outside(number: Be32) -> Option<&'static Ip6> {
    let found = match ADDR6_IDS.get_ptr(&number) {
        None => ADDR6_IDS_NEW.get_ptr(&number),
        found => found,
    };
    // SAFETY: the pointer comes from a successful look-up, and the kernel never unmaps LRU entries.
    // If it reuses the entry at this moment, the result is another client's address. The lost
    // client had no promise.
    found.map(|address| unsafe { &*address })
}

/// The address with this id on a network or on the host. `side` is a VNI as in entries of flows.
#[inline(always)]
pub fn address(side: u32, number: Be32) -> Option<&'static Ip6> {
    if is_outside(number) {
        return address_outside(number);
    }
    let key = EndpointKey { vni: side & !VNI_FLAG_IPV6, ip: number };
    // SAFETY: the pointer comes from a successful look-up. If the kernel reuses the entry at this
    // moment, the result is another endpoint's address, and the packet is lost as if it had been
    // sent a moment later.
    ADDRESSES6.get_ptr(&key).map(|address| unsafe { &*address })
}

/// Whether the id is that of an address outside.
#[inline(always)]
pub fn is_outside(number: Be32) -> bool {
    number.octets()[0] >= 240
}

/// Moves the address outside with this id from `addr6_ids_new` to `addr6_ids`, because a flow in
/// use has it.
#[inline(always)]
pub fn keep(number: Be32) {
    if !is_outside(number) || ADDR6_IDS.get_ptr(&number).is_some() {
        return;
    }
    if let Some(address) = ADDR6_IDS_NEW.get_ptr(&number) {
        // SAFETY: as in `address_outside`.
        let kept = ADDR6_IDS.insert(&number, unsafe { &*address }, u64::from(BPF_ANY));
        if kept.is_ok() {
            let _ = ADDR6_IDS_NEW.remove(&number);
        }
    }
}

/// Moves the addresses of the client and the frontend ([`keep`]) if the flow of `work`, in the
/// client's direction, is in use: both sides have sent.
#[inline(always)]
pub fn keep_both(work: &Work) {
    if work.entry.action == CONNTRACK_FORWARD && work.entry.flags & ANSWERED != 0 {
        keep(work.flow.key.saddr);
        keep(work.flow.key.daddr);
    }
}

/// The client's address as schedulers hash it. Each node gives its own id to an address outside, so
/// the address itself is hashed.
#[inline(always)]
pub fn hashed(number: Be32) -> Be32 {
    match address_outside(number) {
        Some(address) => hash::of_node(address),
        None => number,
    }
}

/// The key of the hash. The first use makes it. Two CPUs that do so at the same time may make two
/// keys. Ids under the lost key are not found again, and their clients get new ones with their next
/// flows.
#[inline(always)]
fn secret() -> Option<[u64; 2]> {
    let seed = ADDR6_SECRET.get_ptr_mut(0)?;
    // SAFETY: an array entry, which exists as long as the program.
    let key = unsafe { (*seed).key };
    if key[1] != 0 {
        return Some(key);
    }
    let key = [random(), random() | 1];
    // SAFETY: as above.
    unsafe { (*seed).key = key };
    Some(key)
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: a helper without preconditions.
    let half = || u64::from(unsafe { bpf_get_prandom_u32() });
    half() << 32 | half()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_endpoint_is_the_ipv4_address_in_its_mac() {
        let ip = Be32::from_octets([10, 0, 3, 77]);
        assert_eq!(ipv4_of(Mac::of_ip(ip)), ip);
        assert!(!is_outside(ip));
        assert!(is_outside(hash::addr6_id(&Ip6::UNSPECIFIED, [1, 2], 3)));
    }
}
