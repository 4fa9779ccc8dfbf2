//! Byte-order newtypes: a value in network order cannot be mixed up with one in host order.

/// A 16-bit value in network byte order, as it stands in the packet: a port mostly. It is kept as
/// bytes, so that a dump of a map shows them in the order of the wire.
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

    /// From the bits as they were loaded from the packet.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self { bytes: raw.to_ne_bytes() }
    }

    /// The bits as they are to be stored in the packet.
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

/// A 32-bit value in network byte order, as it stands in the packet: an IPv4 address mostly. It is
/// kept as bytes, so that a dump of a map shows an address as it is written.
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

    /// From the bits as they were loaded from the packet.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self { bytes: raw.to_ne_bytes() }
    }

    /// The bits as they are to be stored in the packet.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        u32::from_ne_bytes(self.bytes)
    }

    /// The value in host byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be_bytes(self.bytes)
    }

    /// The four bytes in the order they have on the wire.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.bytes
    }

    /// From four bytes in the order they have on the wire.
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

/// An Ethernet address, bytes in wire order. It is aligned as it is in every header.
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

    /// The address Docker gives an interface that has `ip`: 02:42 and the four address bytes.
    #[inline(always)]
    pub const fn of_ip(ip: Be32) -> Self {
        let [a, b, c, d] = ip.octets();
        Self { bytes: [0x02, 0x42, a, b, c, d] }
    }

    /// The same six bytes as three words.
    #[inline(always)]
    const fn words(self) -> [u16; 3] {
        // SAFETY: of one size, and any bytes are valid words.
        unsafe { core::mem::transmute::<Self, [u16; 3]>(self) }
    }

    /// True for broadcast and multicast: the group bit of the first byte (IEEE 802, I/G).
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

/// Equality by words: what is derived for arrays of bytes forgets how they are aligned, and BPF then
/// compares byte by byte.
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
equal_by!(Mac, words);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_order_is_the_order_of_the_bytes_on_the_wire() {
        assert_eq!(Be16::new(0x1234).raw().to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Be32::new(0x0a00_0102).octets(), [10, 0, 1, 2]);
        assert_eq!(Be32::from_octets([10, 0, 1, 2]).get(), 0x0a00_0102);
        assert_eq!(Be16::from_raw(Be16::new(80).raw()).get(), 80);
    }

    #[test]
    fn the_mac_of_an_address_is_dockers() {
        let mac = Mac::of_ip(core::net::Ipv4Addr::new(10, 255, 0, 5).into());
        assert_eq!(mac.to_string(), "02:42:0a:ff:00:05");
        assert!(!mac.is_group());
        assert!(Mac::new([0xff; 6]).is_group());
    }
}
