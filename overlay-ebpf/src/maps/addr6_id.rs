//! Numbers of IPv6 addresses, which name them in the tables of flows ([`overlay_common::maps::VNI_FLAG_IPV6`]).

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_get_prandom_u32};
use overlay_common::{
    Be32, Ip6, Mac, UNDERLAY_VNI, hash,
    maps::{
        ADDR6_ID_TRIES, ANSWERED, CONNTRACK_FORWARD, ENDPOINT_FLAG_HOST, Endpoint6Key, EndpointKey,
        VNI_FLAG_IPV6,
    },
};

use crate::maps::{ADDR6_IDS, ADDR6_IDS_NEW, ADDR6_SECRET, ADDRESSES6, ENDPOINTS6, work::Work};

/// In place of a number: the address has none.
pub const NOBODY: Be32 = Be32::ZERO;

/// The number of an address on network `vni`. One that is outside gets one if `may_be_new`. `key` is room
/// for a look-up.
#[inline(always)]
pub fn of(vni: u32, address: &Ip6, may_be_new: bool, key: &mut Endpoint6Key) -> Be32 {
    let number = inside(vni, address, key);
    if number == NOBODY { outside(address, may_be_new) } else { number }
}

/// The number of an endpoint or VIP of a network: its IPv4 address.
#[inline(always)]
pub fn inside(vni: u32, address: &Ip6, key: &mut Endpoint6Key) -> Be32 {
    if vni == UNDERLAY_VNI {
        return NOBODY;
    }
    *key = Endpoint6Key { vni, ip: *address };
    let Some(endpoint) = ENDPOINTS6.get_ptr(&*key) else { return NOBODY };
    // SAFETY: the pointer comes from a successful look-up and is read before anything else runs.
    let (flags, mac) = unsafe { ((*endpoint).flags, (*endpoint).mac) };
    if flags & ENDPOINT_FLAG_HOST != 0 { NOBODY } else { ipv4_of(mac) }
}

/// The IPv4 address of the endpoint, VIP or gateway with a MAC ([`Mac::of_ip`]).
#[inline(always)]
pub fn ipv4_of(mac: Mac) -> Be32 {
    let [_, _, a, b, c, d] = mac.bytes();
    Be32::from_octets([a, b, c, d])
}

/// The number of an address outside, a new one if `may_be_new`.
#[inline(always)]
pub fn outside(address: &Ip6, may_be_new: bool) -> Be32 {
    let Some(key) = secret() else { return NOBODY };
    let mut free = NOBODY;
    for attempt in 0..ADDR6_ID_TRIES {
        let number = hash::addr6_id(address, key, attempt);
        match outsider(number) {
            Some(found) if *found == *address => return number,
            Some(_) => {}
            None if free == NOBODY => free = number,
            None => {}
        }
    }
    if free == NOBODY || !may_be_new {
        return NOBODY;
    }
    match ADDR6_IDS_NEW.insert(&free, address, u64::from(BPF_ANY)) {
        Ok(()) => free,
        Err(_) => NOBODY,
    }
}

/// The address outside that has a number.
#[inline(always)]
fn outsider(number: Be32) -> Option<&'static Ip6> {
    let found = match ADDR6_IDS.get_ptr(&number) {
        None => ADDR6_IDS_NEW.get_ptr(&number),
        found => found,
    };
    // SAFETY: the pointer comes from a successful look-up; LRU slots are never unmapped. One that is reused
    // in this moment has the address of somebody else, to whom nothing was promised.
    found.map(|address| unsafe { &*address })
}

/// The address that has a number on a side of a network (or of the host), as flows have it.
#[inline(always)]
pub fn address(side: u32, number: Be32) -> Option<&'static Ip6> {
    if is_outside(number) {
        return outsider(number);
    }
    let key = EndpointKey { vni: side & !VNI_FLAG_IPV6, ip: number };
    // SAFETY: the pointer comes from a successful look-up. A slot that is reused in this moment has the
    // address of another endpoint, and the packet goes astray as if it had been sent a moment later.
    ADDRESSES6.get_ptr(&key).map(|address| unsafe { &*address })
}

/// Whether it is the number of an address outside.
#[inline(always)]
pub fn is_outside(number: Be32) -> bool {
    number.octets()[0] >= 240
}

/// The flow of an address outside is in use: it is kept with what is.
#[inline(always)]
pub fn keep(number: Be32) {
    if !is_outside(number) || ADDR6_IDS.get_ptr(&number).is_some() {
        return;
    }
    if let Some(address) = ADDR6_IDS_NEW.get_ptr(&number) {
        // SAFETY: as in `outsider`.
        let kept = ADDR6_IDS.insert(&number, unsafe { &*address }, u64::from(BPF_ANY));
        if kept.is_ok() {
            let _ = ADDR6_IDS_NEW.remove(&number);
        }
    }
}

/// Keeps the client's address and the one that it asks, if the flow of `work`, in the client's direction, is in
/// use: both sides have spoken, and the client again.
#[inline(always)]
pub fn keep_both(work: &Work) {
    if work.entry.action == CONNTRACK_FORWARD && work.entry.flags & ANSWERED != 0 {
        keep(work.flow.key.saddr);
        keep(work.flow.key.daddr);
    }
}

/// What schedulers hash of a client: of one outside not its number, which every node makes by itself.
#[inline(always)]
pub fn hashed(number: Be32) -> Be32 {
    match outsider(number) {
        Some(address) => hash::of_node(address),
        None => number,
    }
}

/// The key of the hash, made when it is first asked for. Two CPUs that do so in one moment may make two: a
/// number by the one that is lost is nobody's, and its client gets another with its next flow.
#[inline(always)]
fn secret() -> Option<[u64; 2]> {
    let seed = ADDR6_SECRET.get_ptr_mut(0)?;
    // SAFETY: an array's slot, which exists as long as the program.
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
