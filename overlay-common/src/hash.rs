//! Flow hashing.

use crate::{Be16, Be32, Ip6};

/// First UDP source port of tunnel packets (RFC 7348, section 5: the dynamic range).
pub const SOURCE_PORT_MIN: u16 = 49152;
/// Last UDP source port of tunnel packets.
pub const SOURCE_PORT_MAX: u16 = 65535;

/// Spreads a flow hash over the tunnel's source ports, evenly and without a division, as the
/// kernel's `udp_flow_src_port` does. The result is in host byte order.
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    let range = (SOURCE_PORT_MAX - SOURCE_PORT_MIN) as u64 + 1;
    (((hash as u64 * range) >> 32) as u16) + SOURCE_PORT_MIN
}

/// A hash of a flow's addresses and ports (source first). It is the same for all packets of a flow
/// in one direction.
#[inline(always)]
pub const fn of_flow(saddr: Be32, daddr: Be32, [sport, dport]: [Be16; 2]) -> u32 {
    let ports = (sport.raw() as u32) << 16 | dport.raw() as u32;
    mix(saddr.raw() ^ daddr.raw().rotate_left(16), ports)
}

/// The hash that picks a backend by the client's address alone.
#[inline(always)]
pub const fn of_client(saddr: Be32) -> u32 {
    mix(saddr.raw(), 0)
}

/// The hash that picks a backend by the client's address and port, the frontend's port and the
/// protocol.
#[inline(always)]
pub const fn of_client_flow(saddr: Be32, [sport, dport]: [Be16; 2], proto: u8) -> u32 {
    let ports = (sport.raw() as u32) << 16 | dport.raw() as u32;
    mix(mix(saddr.raw(), ports), proto as u32)
}

/// The number that stands for a node's IPv6 address in the maps, in the place of an IPv4 address.
/// It is a hash and never 0. The manager accepts no node with the number of another node.
#[inline(always)]
pub const fn of_node(vtep: &Ip6) -> Be32 {
    let [a, b, c, d] = vtep.words();
    let hash = mix(mix(mix(a, b), c), d);
    Be32::new(if hash == 0 { 1 } else { hash })
}

/// The number for try `attempt` of an IPv6 address outside, in 240.0.0.0/4
/// ([`crate::maps::Addr6`]).
#[inline(always)]
pub const fn addr6_id(ip: &Ip6, key: [u64; 2], attempt: u32) -> Be32 {
    let [a, b, c, d] = ip.words();
    let hash = sip(key, [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]);
    let hash = mix(hash as u32, (hash >> 32) as u32 ^ attempt);
    Be32::new(0xf000_0000 | hash >> 4)
}

/// SipHash-2-4 of 16 bytes, as little-endian words (J.-P. Aumasson and D. J. Bernstein, SipHash: a
/// fast short-input PRF). Without the key, an attacker cannot search for messages with equal
/// hashes.
#[inline(always)]
pub const fn sip(key: [u64; 2], message: [u64; 2]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The last block holds the length.
    let blocks = [message[0], message[1], 16 << 56];
    let mut i = 0;
    while i < blocks.len() {
        v[3] ^= blocks[i];
        v = sip_round(sip_round(v));
        v[0] ^= blocks[i];
        i += 1;
    }
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(sip_round(v))));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
const fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// A hash of two words, for programs that have no flow hash from the kernel (XDP): a
/// multiply-and-rotate mix with the finalizer of MurmurHash3.
#[inline(always)]
pub const fn mix(a: u32, b: u32) -> u32 {
    let mut h = a.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    h ^= b.wrapping_mul(0x85eb_ca6b).rotate_left(13);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_is_that_of_its_authors() {
        // The input is the bytes 0 to 15 and so is the key: the 17th vector of the authors' tests.
        let words = |from: u8| u64::from_le_bytes(core::array::from_fn(|i| from + i as u8));
        let (key, message) = ([words(0), words(8)], [words(0), words(8)]);
        assert_eq!(sip(key, message), 0x3f2a_cc7f_57c2_9bdb);
    }

    #[test]
    fn addresses_outside_have_numbers_that_no_host_has() {
        let ip = |last: u8| {
            let mut octets = [0x20; 16];
            octets[15] = last;
            Ip6::from_octets(octets)
        };
        let number = |last, key, attempt| addr6_id(&ip(last), [key, 7], attempt);
        let all: std::collections::HashSet<_> =
            (0..=255).flat_map(|last| (0..4).map(move |i| number(last, 1, i).octets())).collect();
        assert!(all.len() > 1000, "{}", all.len());
        assert!(all.iter().all(|number| number[0] >= 240));
        assert_ne!(number(1, 1, 0), number(1, 2, 0), "the numbers depend on the secret");
    }

    #[test]
    fn source_ports_cover_the_dynamic_range_and_nothing_else() {
        assert_eq!(source_port(0), SOURCE_PORT_MIN);
        assert_eq!(source_port(u32::MAX), SOURCE_PORT_MAX);
        for hash in (0..=u32::MAX).step_by(65_537) {
            assert!(source_port(hash) >= SOURCE_PORT_MIN);
        }
    }

    #[test]
    fn nodes_of_one_subnet_have_numbers_of_their_own_and_none_is_zero() {
        let node = |n: u16| core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into();
        let numbers: std::collections::HashSet<u32> =
            (0..4096).map(|n| of_node(&node(n)).get()).collect();
        assert!(!numbers.contains(&0));
        assert!(numbers.len() > 4090, "{} numbers for 4096 nodes", numbers.len());
    }

    #[test]
    fn one_bit_of_input_changes_about_half_of_the_output() {
        let mut flipped = 0;
        for bit in 0..32 {
            flipped += (mix(0x0a00_0001, 80) ^ mix(0x0a00_0001 ^ (1 << bit), 80)).count_ones();
            flipped += (mix(0x0a00_0001, 80) ^ mix(0x0a00_0001, 80 ^ (1 << bit))).count_ones();
        }
        let mean = flipped / 64;
        assert!((12..=20).contains(&mean), "mean of flipped bits is {mean}");
    }
}
