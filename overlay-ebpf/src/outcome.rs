//! The outcome of a packet, and results across function calls.
//!
//! BPF functions return one register, so a `Result` that is not inlined is packed into one number.
//! To the verifier, functions that are also `no_mangle` are *global*: it checks each of them once
//! for any arguments, and not once for every path that leads to a call. Such functions take the
//! context and integers only.

use overlay_common::Reason;

/// The action for a packet that is not dropped: the program type's action, the reason to count, and
/// the counter index of the endpoint of this node that received the packet, 0 for none.
///
/// It is one number, as a [`Reason`] is. Otherwise an [`Outcome`] would have a field that only some
/// outcomes have. The compiler would keep such a field on the stack across calls, and the verifier
/// refuses to store memory that was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(u32);

impl Verdict {
    /// The host's stack handles the packet.
    pub const PASS: Self = Self(u32::MAX);

    /// The program has handled the packet.
    #[inline(always)]
    pub const fn done(action: i32, reason: Reason) -> Self {
        Self::delivered(action, reason, 0)
    }

    /// The packet went to the endpoint of this node with a counter index. Actions are smaller than
    /// 255.
    #[inline(always)]
    pub const fn delivered(action: i32, reason: Reason, counter: u32) -> Self {
        Self(action as u32 & 0xff | (reason as u32) << 8 | counter << 16)
    }

    /// The program type's action; meaningless for [`Verdict::PASS`].
    #[inline(always)]
    pub const fn action(self) -> i32 {
        (self.0 & 0xff) as i32
    }

    /// The reason; meaningless for [`Verdict::PASS`].
    #[inline(always)]
    pub fn reason(self) -> Reason {
        Reason::from_index(self.0 >> 8 & 0xff).unwrap_or(Reason::Malformed)
    }

    /// The endpoint's counter index; meaningless for [`Verdict::PASS`].
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        self.0 >> 16
    }

    /// The same verdict with another reason.
    #[inline(always)]
    pub fn because(self, reason: Reason) -> Self {
        Self::delivered(self.action(), reason, self.counter())
    }
}

/// The outcome of a packet: forwarded, or dropped for a reason.
pub type Outcome = Result<Verdict, Reason>;

/// Why a program stops with a tunnel packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The packet is dropped.
    Drop(Reason),
    /// The kernel's vxlan device must decapsulate the packet. The program has not changed it.
    ToKernel,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Drop(reason)
    }
}

/// Packs a result into a number: a value is not negative, a reason is.
#[inline(always)]
pub fn pack(result: Result<u32, Reason>) -> i64 {
    match result {
        Ok(value) => i64::from(value),
        Err(reason) => -1 - i64::from(reason as u32),
    }
}

/// Unpacks the result of [`pack`].
#[inline(always)]
pub fn unpack(packed: i64) -> Result<u32, Reason> {
    if packed >= 0 {
        return Ok(packed as u32);
    }
    Err(Reason::from_index((-1 - packed) as u32).unwrap_or(Reason::Malformed))
}

/// The packed form of [`Stop::ToKernel`].
const TO_KERNEL: i64 = i64::MIN;

/// As [`pack`], for a tunnel packet.
#[inline(always)]
pub fn pack_stop(result: Result<u32, Stop>) -> i64 {
    match result {
        Ok(value) => pack(Ok(value)),
        Err(Stop::Drop(reason)) => pack(Err(reason)),
        Err(Stop::ToKernel) => TO_KERNEL,
    }
}

/// Unpacks the result of [`pack_stop`].
#[inline(always)]
pub fn unpack_stop(packed: i64) -> Result<u32, Stop> {
    if packed == TO_KERNEL { Err(Stop::ToKernel) } else { Ok(unpack(packed)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_keeps_what_it_is_made_of() {
        for reason in Reason::ALL {
            let verdict = Verdict::delivered(7, *reason, 2047);
            let parts = (verdict.action(), verdict.reason(), verdict.counter());
            assert_eq!(parts, (7, *reason, 2047));
            assert_ne!(verdict, Verdict::PASS);
        }
        assert_eq!(size_of::<Outcome>(), 8, "no field that only some outcomes have");
    }

    #[test]
    fn every_result_survives_the_way_through_a_register() {
        for value in [0, 1, 7, u32::MAX] {
            assert_eq!(unpack(pack(Ok(value))), Ok(value));
        }
        for reason in Reason::ALL {
            assert_eq!(unpack(pack(Err(*reason))), Err(*reason));
            let stop = Err(Stop::Drop(*reason));
            assert_eq!(unpack_stop(pack_stop(stop)), stop);
        }
        assert_eq!(unpack_stop(pack_stop(Err(Stop::ToKernel))), Err(Stop::ToKernel));
        assert_eq!(unpack_stop(pack_stop(Ok(7))), Ok(7));
    }
}
