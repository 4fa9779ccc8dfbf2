//! Plain old data: types whose bytes may cross the boundary between kernel and user space.

/// A type without padding, pointers or invalid bit patterns, so that its bytes can be hashed by a
/// map, copied from a packet or written to one.
///
/// # Safety
/// Every byte of the type belongs to a field and every bit pattern is a valid value.
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: repr(C) or repr(transparent) with integer fields only; the layout tests
            // beside each type show that the fields' sizes add up to the type's.
            unsafe impl $crate::Plain for $type {}
            // SAFETY: as above.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )+
    };
}
pub(crate) use plain;

plain!(crate::Be16, crate::Be32, crate::Ip6, crate::Mac);

// SAFETY: integers have no padding and no invalid values.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above; elements without padding have none between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
