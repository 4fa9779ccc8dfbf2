//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A checksum is kept as in the packet: the ones' complement of the ones' complement sum. All words
//! are used as loaded, without swapping, because the sum does not depend on byte order (RFC 1071,
//! section 2.B).

/// Folds the carries of a 64-bit sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The change of a sum when the word `old` becomes `new`, for [`apply`].
#[inline(always)]
pub const fn diff32(old: u32, new: u32) -> u64 {
    (!old as u64) + (new as u64)
}

/// As [`diff32`] for a half word.
#[inline(always)]
pub const fn diff16(old: u16, new: u16) -> u64 {
    (!old as u64) + (new as u64)
}

/// The checksum after the changes in `diff`, a sum of [`diff32`] and [`diff16`] (RFC 1624, equation
/// 3).
#[inline(always)]
pub const fn apply(checksum: u16, diff: u64) -> u16 {
    !fold((!checksum as u64) + diff)
}

/// As [`apply`], for UDP over IPv4. A zero checksum means "none" and stays zero. A computed zero is
/// sent as all ones (RFC 768).
#[inline(always)]
pub const fn apply_udp(checksum: u16, diff: u64) -> u16 {
    if checksum == 0 {
        return 0;
    }
    let new = apply(checksum, diff);
    if new == 0 { 0xffff } else { new }
}

/// Checksum of an IPv4 header of 20 bytes, given as its ten half words with a checksum field of
/// zero.
#[inline(always)]
pub const fn ipv4_header(words: &[u16; 10]) -> u16 {
    let mut sum = 0u64;
    let mut i = 0;
    while i < words.len() {
        sum += words[i] as u64;
        i += 1;
    }
    !fold(sum)
}

/// Checksum of `data` from scratch, with `initial` added to the sum (a pseudo-header's sum). For
/// tests and for user space.
pub fn of_bytes(data: &[u8], initial: u64) -> u16 {
    let mut sum = initial;
    let mut words = data.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(of_bytes(&data, 0).to_ne_bytes(), (!0xddf2u16).to_be_bytes());
    }

    #[test]
    fn an_incremental_update_equals_a_computation_from_scratch() {
        let mut data = [0u8; 40];
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (i * 37 + 11) as u8;
        }
        let before = of_bytes(&data, 0);
        for value in [0u32, 1, 0xffff, 0xffff_ffff, 0x0a00_0102, 0x8000_0000] {
            let old = u32::from_ne_bytes([data[4], data[5], data[6], data[7]]);
            let mut changed = data;
            changed[4..8].copy_from_slice(&value.to_ne_bytes());
            assert_eq!(apply(before, diff32(old, value)), of_bytes(&changed, 0), "{value:#x}");

            let old = u16::from_ne_bytes([data[20], data[21]]);
            let mut changed = data;
            changed[20..22].copy_from_slice(&(value as u16).to_ne_bytes());
            assert_eq!(apply(before, diff16(old, value as u16)), of_bytes(&changed, 0));
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_none_and_never_becomes_none() {
        assert_eq!(apply_udp(0, diff32(1, 2)), 0);
        let checksum = 0x1234u16;
        // With this change the new sum is all ones, and the checksum would be zero.
        let diff = u64::from(!fold(u64::from(!checksum)));
        assert_eq!(apply(checksum, diff), 0);
        assert_eq!(apply_udp(checksum, diff), 0xffff);
    }

    #[test]
    fn carries_of_a_full_sum_fold_into_sixteen_bits() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff_ffff), 0xffff);
    }
}
