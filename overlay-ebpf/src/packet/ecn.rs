//! Explicit congestion notification through the tunnel (RFC 6040). The outer header gets the inner
//! mark, and marks that routers of the underlay set reach the receiver.

use aya_ebpf::programs::TcContext;
use overlay_common::{Be16, Reason, checksum, wire::Ipv4};

use crate::packet::frame::{load_at, store};

/// The ECN field in the TOS byte (RFC 3168, section 5).
const MASK: u8 = 0b11;
/// The sender does not use ECN.
const NOT_ECT: u8 = 0b00;
/// The sender uses ECN, second codepoint.
const ECT_1: u8 = 0b01;
/// The sender uses ECN.
const ECT_0: u8 = 0b10;
/// A router has marked congestion.
const CE: u8 = 0b11;

/// TOS byte of the outer header for an inner one: its ECN field, the "normal mode" of RFC 6040,
/// section 4.1. The DSCP is zero, as with the kernel's vxlan device: containers must not choose the
/// underlay's classes of service.
#[inline(always)]
pub const fn outer(inner: u8) -> u8 {
    inner & MASK
}

/// Whether an outer TOS byte can change the inner one: ECT(1) or CE. Nearly all packets have
/// neither.
#[inline(always)]
pub const fn is_marked(outer: u8) -> bool {
    outer & ECT_1 != 0
}

/// The inner TOS byte after decapsulation under an outer one (RFC 6040, section 4.2, figure 4).
/// `None` if the packet must be dropped, because its sender would not learn of the congestion.
const fn decapsulated(outer: u8, inner: u8) -> Option<u8> {
    let class = inner & !MASK;
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(class | CE),
        (ECT_0, ECT_1) => Some(class | ECT_1),
        _ => Some(inner),
    }
}

/// Combines the mark of the outer TOS byte into the inner header `ip` at `offset`.
///
/// # Errors
/// [`Reason::EcnUnexpected`] and [`Reason::RewriteRefused`].
#[inline(always)]
pub fn combine(ctx: &TcContext, outer: u8, ip: &mut Ipv4, offset: usize) -> Result<(), Reason> {
    if !is_marked(outer) {
        return Ok(());
    }
    let tos = decapsulated(outer, ip.tos).ok_or(Reason::EcnUnexpected)?;
    if tos != ip.tos {
        mark(ip, tos);
        store(ctx, offset, ip)?;
    }
    Ok(())
}

/// The traffic class in the first half word of an IPv6 header (RFC 8200, section 3). It corresponds
/// to the TOS byte.
#[inline(always)]
pub const fn class(word: Be16) -> u8 {
    (word.get() >> 4) as u8
}

/// As [`combine`], for an inner IPv6 header, which has no checksum. Its first half word is read
/// from the packet at `offset`.
///
/// # Errors
/// Those of [`combine`], and [`Reason::Truncated`].
#[inline(always)]
pub fn combine_ipv6(ctx: &TcContext, outer: u8, offset: usize) -> Result<(), Reason> {
    if !is_marked(outer) {
        return Ok(());
    }
    let word: Be16 = load_at(ctx, offset)?;
    let old = class(word);
    let new = decapsulated(outer, old).ok_or(Reason::EcnUnexpected)?;
    if new != old {
        store(ctx, offset, &with_class(word, new))?;
    }
    Ok(())
}

const fn with_class(word: Be16, class: u8) -> Be16 {
    Be16::new(word.get() & 0xf00f | (class as u16) << 4)
}

/// Changes the TOS byte and updates the header's checksum.
#[inline(always)]
fn mark(ip: &mut Ipv4, tos: u8) {
    let word = |tos| u16::from_ne_bytes([ip.version_ihl, tos]);
    let diff = checksum::diff16(word(ip.tos), word(tos));
    ip.checksum = Be16::from_raw(checksum::apply(ip.checksum.raw(), diff));
    ip.tos = tos;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traffic_class_is_in_the_middle_of_the_first_half_word() {
        let word = Be16::new(0x6abc);
        assert_eq!(class(word), 0xab);
        assert_eq!(with_class(word, 0xa8 | CE), Be16::new(0x6abc));
        assert_eq!(with_class(word, 0), Be16::new(0x600c));
    }

    #[test]
    fn marks_are_combined_as_in_figure_4_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let codes = [NOT_ECT, ECT_0, ECT_1, CE];
        let figure = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in codes.into_iter().zip(figure) {
            for (outer, expected) in codes.into_iter().zip(row) {
                let class = 0xb8;
                let expected = expected.map(|ecn| class | ecn);
                let found = decapsulated(outer, class | inner);
                assert_eq!(found, expected, "inner {inner:02b}, outer {outer:02b}");
                if !is_marked(outer) {
                    assert_eq!(found, Some(class | inner), "the quick test is right");
                }
            }
        }
    }

    #[test]
    fn the_outer_header_has_the_inner_mark_and_no_class() {
        assert_eq!(outer(0xb8 | ECT_0), ECT_0);
        assert_eq!(outer(0xb8 | CE), CE, "normal mode copies CE as well");
        assert_eq!(outer(0x10), 0);
    }

    #[test]
    fn a_marked_header_verifies() {
        let mut ip = Ipv4 { version_ihl: 0x45, tos: ECT_0, ttl: 64, ..Ipv4::default() };
        ip.checksum = ip.sum();
        mark(&mut ip, CE);
        assert_eq!(ip.tos, CE);
        assert_eq!(Ipv4 { checksum: Be16::ZERO, ..ip }.sum(), ip.checksum);
    }
}
