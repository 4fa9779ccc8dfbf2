//! Byte-order types: the compiler tells a value in network order from one in host order.

/// A 16-bit value in network byte order, as in the packet; mostly a port. It is stored as bytes, so
/// that a dump of a map shows them in wire order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
#[repr(C, align(2))]
pub struct Be16 {
    bytes: [u8; 2],
}

impl Be16 {
    /// Zero, the same in either order.
    pub const ZERO: Self = Self { bytes: [0; 2] };

    /// From a value in host byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self { bytes: host.to_be_bytes() }
    }

    /// From the bits as loaded from the packet.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self { bytes: raw.to_ne_bytes() }
    }

    /// The bits as stored in the packet.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        u16::from_ne_bytes(self.bytes)
    }

    /// The value in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }
}

/// A 32-bit value in network byte order, as in the packet; mostly an IPv4 address. It is stored as
/// bytes, so that a dump of a map shows an address in its usual notation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Be32 {
    bytes: [u8; 4],
}

impl Be32 {
    /// Zero, the same in either order.
    pub const ZERO: Self = Self { bytes: [0; 4] };

    /// From a value in host byte order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self { bytes: host.to_be_bytes() }
    }

    /// From the bits as loaded from the packet.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self { bytes: raw.to_ne_bytes() }
    }

    /// The bits as stored in the packet.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        u32::from_ne_bytes(self.bytes)
    }

    /// The value in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be_bytes(self.bytes)
    }

    /// The four bytes in wire order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.bytes
    }

    /// From four bytes in wire order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self { bytes: octets }
    }
}

impl From<core::net::Ipv4Addr> for Be32 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self::from_octets(addr.octets())
    }
}

impl From<Be32> for core::net::Ipv4Addr {
    fn from(addr: Be32) -> Self {
        Self::from(addr.octets())
    }
}

/// An IPv6 address, bytes in wire order. It is aligned to 4 bytes, as in the header. Code reads it
/// word by word and through references: from an array of sixteen bytes the compiler would make
/// copies and comparisons byte by byte, on the small stack of a BPF program.
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Ip6 {
    bytes: [u8; 16],
}

impl Ip6 {
    /// `::`, the unspecified address.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };
    /// `::1`, the host itself.
    pub const LOOPBACK: Self = Self::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    /// `ff02::1`, all nodes of the link.
    pub const ALL_NODES: Self =
        Self::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// From the sixteen bytes in wire order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self { bytes: octets }
    }

    /// The sixteen bytes in wire order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.bytes
    }

    /// Four words, each with its bytes in the order of the wire.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: both are sixteen bytes without padding, and any bit pattern is a valid integer.
        unsafe { core::mem::transmute::<Self, [u32; 4]>(*self) }
    }

    /// Eight half words, each with its bytes in the order of the wire.
    #[inline(always)]
    pub const fn halves(&self) -> [u16; 8] {
        // SAFETY: both are sixteen bytes without padding, and any bit pattern is a valid integer.
        unsafe { core::mem::transmute::<Self, [u16; 8]>(*self) }
    }

    /// From four words as [`Ip6::words`] gives them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: as above.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }

    /// The form in which IPv6 sockets see an IPv4 address: `::ffff:0:0/96` (RFC 4291, section
    /// 2.5.5.2).
    #[inline(always)]
    pub const fn mapped(ip: Be32) -> Self {
        Self::from_words([0, 0, Be32::from_octets([0, 0, 0xff, 0xff]).raw(), ip.raw()])
    }

    /// The IPv4 address inside a mapped address, or none for other addresses.
    #[inline(always)]
    pub const fn unmapped(&self) -> Option<Be32> {
        match self.words() {
            [0, 0, kind, ip] if kind == Be32::from_octets([0, 0, 0xff, 0xff]).raw() => {
                Some(Be32::from_raw(ip))
            }
            _ => None,
        }
    }

    /// The address's part of an Internet checksum, for [`crate::checksum::fold`]: 32-bit words fold
    /// to the same sum as half words.
    #[inline(always)]
    pub const fn sum(&self) -> u64 {
        let [a, b, c, d] = self.words();
        a as u64 + b as u64 + c as u64 + d as u64
    }

    /// The mask of a prefix of `length` bits (0 to 128).
    pub const fn mask(length: u8) -> Self {
        let mask = match length {
            0 => 0,
            length => u128::MAX << (128 - length as u32),
        };
        Self { bytes: mask.to_be_bytes() }
    }

    /// Whether both addresses have the same bits under `mask`.
    #[inline(always)]
    pub const fn is_equal_under(&self, other: &Self, mask: &Self) -> bool {
        let (a, b, mask) = (self.words(), other.words(), mask.words());
        (a[0] ^ b[0]) & mask[0]
            | (a[1] ^ b[1]) & mask[1]
            | (a[2] ^ b[2]) & mask[2]
            | (a[3] ^ b[3]) & mask[3]
            == 0
    }

    /// Whether it is multicast: `ff00::/8` (RFC 4291, section 2.7).
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        self.bytes[0] == 0xff
    }

    /// Whether it is a link-local unicast address: `fe80::/10` (RFC 4291, section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }

    /// The link-local address of an interface with this MAC: `fe80::/64` and the modified EUI-64
    /// (RFC 4291, appendix A), as Linux makes it in `addr_gen_mode` 0.
    #[inline(always)]
    pub const fn link_local(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.bytes;
        Self::from_words([
            u32::from_ne_bytes([0xfe, 0x80, 0, 0]),
            0,
            u32::from_ne_bytes([a ^ 2, b, c, 0xff]),
            u32::from_ne_bytes([0xfe, d, e, f]),
        ])
    }

    /// The IPv4 address of the endpoint that has this link-local address, or none. An endpoint's
    /// MAC follows from its IPv4 address ([`Mac::of_ip`]), and so does its link-local address.
    #[inline(always)]
    pub fn ipv4_of_link_local(&self) -> Option<Be32> {
        let b = &self.bytes;
        let ip = Be32::from_octets([b[10], b[13], b[14], b[15]]);
        if *self == Self::link_local(Mac::of_ip(ip)) { Some(ip) } else { None }
    }

    /// Whether it is a solicited-node multicast address (RFC 4291, section 2.7.1).
    #[inline(always)]
    pub const fn is_solicited_node(&self) -> bool {
        const ANY: Ip6 = Ip6::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0]);
        self.is_equal_under(&ANY, &Self::mask(104))
    }
}

impl From<core::net::Ipv6Addr> for Ip6 {
    fn from(addr: core::net::Ipv6Addr) -> Self {
        Self::from_octets(addr.octets())
    }
}

impl From<Ip6> for core::net::Ipv6Addr {
    fn from(addr: Ip6) -> Self {
        Self::from(addr.octets())
    }
}

/// An Ethernet address, bytes in wire order. It is aligned to 2 bytes, as in every header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
#[repr(C, align(2))]
pub struct Mac {
    bytes: [u8; 6],
}

impl Mac {
    /// From the six bytes in wire order.
    #[inline(always)]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self { bytes }
    }

    /// The six bytes in wire order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        self.bytes
    }

    /// The MAC that Docker gives an interface with address `ip`: 02:42 and the four address bytes.
    #[inline(always)]
    pub const fn of_ip(ip: Be32) -> Self {
        let [a, b, c, d] = ip.octets();
        Self { bytes: [0x02, 0x42, a, b, c, d] }
    }

    /// The same six bytes as three words.
    #[inline(always)]
    const fn words(self) -> [u16; 3] {
        // SAFETY: both are six bytes without padding, and any bit pattern is a valid integer.
        unsafe { core::mem::transmute::<Self, [u16; 3]>(self) }
    }

    /// Whether the address is broadcast or multicast: the group bit of the first byte (IEEE 802,
    /// I/G).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.bytes[0] & 1 != 0
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Equality by words. The derived equality of byte arrays ignores the alignment, and BPF would
/// compare byte by byte.
macro_rules! equal_by {
    ($type:ty, $words:ident) => {
        impl PartialEq for $type {
            #[inline(always)]
            fn eq(&self, other: &Self) -> bool {
                self.$words() == other.$words()
            }
        }

        impl core::hash::Hash for $type {
            fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
                self.bytes.hash(state);
            }
        }
    };
}

equal_by!(Be16, raw);
equal_by!(Be32, raw);
equal_by!(Ip6, words);
equal_by!(Mac, words);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_those_of_rfc_4291() {
        let ip = Be32::from_octets([10, 0, 1, 9]);
        let mapped = std::net::Ipv4Addr::new(10, 0, 1, 9).to_ipv6_mapped();
        assert_eq!(Ip6::mapped(ip).octets(), mapped.octets());
        assert_eq!(Ip6::mapped(ip).unmapped(), Some(ip));
        for other in [Ip6::UNSPECIFIED, Ip6::LOOPBACK, Ip6::ALL_NODES] {
            assert_eq!(other.unmapped(), None);
        }
        let compatible = Ip6::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 1, 9]);
        assert_eq!(compatible.unmapped(), None, "of an older kind (section 2.5.5.1)");
    }

    #[test]
    fn network_order_is_the_order_of_the_bytes_on_the_wire() {
        assert_eq!(Be16::new(0x1234).raw().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Be32::new(0x0a00_0102).octets(), [10, 0, 1, 2]);
        assert_eq!(Be32::from_octets([10, 0, 1, 2]).get(), 0x0a00_0102);
        assert_eq!(Be16::from_raw(Be16::new(80).raw()).get(), 80);
    }

    fn ip6(text: &str) -> Ip6 {
        text.parse::<core::net::Ipv6Addr>().expect("an address").into()
    }

    #[test]
    fn a_link_local_address_is_the_macs_eui_64_and_tells_the_ipv4_address() {
        let ip = Be32::from_octets([10, 255, 0, 5]);
        let address = Ip6::link_local(Mac::of_ip(ip));
        assert_eq!(address, ip6("fe80::42:aff:feff:5"));
        assert_eq!(address.ipv4_of_link_local(), Some(ip));
        // RFC 4291, appendix A: the universal bit is inverted.
        let mac = Mac::new([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(Ip6::link_local(mac), ip6("fe80::3656:78ff:fe9a:bcde"));
        for none in ["fe80::3656:78ff:fe9a:bcde", "fd00::42:aff:feff:5", "fe80:0:0:1:42:aff:feff:5"]
        {
            assert_eq!(ip6(none).ipv4_of_link_local(), None, "{none}");
        }
    }

    #[test]
    fn kinds_of_ipv6_addresses_are_told_apart() {
        assert!(ip6("ff02::1").is_group() && !ip6("fe80::1").is_group());
        assert!(ip6("fe80::1").is_link_local() && ip6("febf::1").is_link_local());
        assert!(!ip6("fec0::1").is_link_local());
        assert!(ip6("ff02::1:ff00:5").is_solicited_node());
        assert!(!ip6("ff02::1").is_solicited_node());
        assert_eq!(Ip6::ALL_NODES, ip6("ff02::1"));
        assert_eq!(Ip6::UNSPECIFIED, ip6("::"));
    }

    #[test]
    fn addresses_are_compared_under_the_mask_of_a_prefix() {
        let [a, b] = [ip6("fd00:0:0:1::1"), ip6("fd00:0:0:1:8000::2")];
        for (length, equal) in [(0, true), (64, true), (65, false), (128, false)] {
            assert_eq!(a.is_equal_under(&b, &Ip6::mask(length)), equal, "/{length}");
        }
        assert_eq!(Ip6::mask(128), Ip6::from_octets([0xff; 16]));
    }

    #[test]
    fn the_mac_of_an_address_is_dockers() {
        let mac = Mac::of_ip(core::net::Ipv4Addr::new(10, 255, 0, 5).into());
        assert_eq!(mac.to_string(), "02:42:0a:ff:00:05");
        assert!(!mac.is_group());
        assert!(Mac::new([0xff; 6]).is_group());
    }
}
