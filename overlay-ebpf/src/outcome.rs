//! What becomes of a packet, and results across function calls.
//!
//! BPF functions return one register, so a `Result` that is not inlined away travels as one number.
//! Functions that are `no_mangle` besides are *global* to the verifier: it checks each of them once,
//! for whatever arguments there may be, instead of once for every way that leads to a call. They take
//! the context and integers: other types have to be taken apart.

use overlay_common::Reason;

/// What to do with a packet that is not dropped: the program type's action, the reason that is counted, and the slot of
/// the endpoint of this node that the packet went to, 0 for none.
///
/// One number, as a [`Reason`] is: so an [`Outcome`] has no field that only some outcomes have. The compiler would keep
/// such a field on the stack across calls, and the verifier refuses to store what was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(u32);

impl Verdict {
    /// The packet is not ours: the host's stack goes on with it.
    pub const PASS: Self = Self(u32::MAX);

    /// The program dealt with the packet.
    #[inline(always)]
    pub const fn done(action: i32, reason: Reason) -> Self {
        Self::delivered(action, reason, 0)
    }

    /// The packet went to the endpoint of this node with a slot. Actions are smaller than 255.
    #[inline(always)]
    pub const fn delivered(action: i32, reason: Reason, slot: u32) -> Self {
        Self(action as u32 & 0xff | (reason as u32) << 8 | slot << 16)
    }

    /// The program type's action; meaningless of [`Verdict::PASS`].
    #[inline(always)]
    pub const fn action(self) -> i32 {
        (self.0 & 0xff) as i32
    }

    /// The reason, likewise.
    #[inline(always)]
    pub fn reason(self) -> Reason {
        Reason::from_index(self.0 >> 8 & 0xff).unwrap_or(Reason::Malformed)
    }

    /// The endpoint's slot, likewise.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 >> 16
    }

    /// The same, counted for another reason.
    #[inline(always)]
    pub fn because(self, reason: Reason) -> Self {
        Self::delivered(self.action(), reason, self.slot())
    }
}

/// The way of a packet: on, or dropped for a reason.
pub type Outcome = Result<Verdict, Reason>;

/// Why a packet in the tunnel gets no further here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is dropped.
    Drop(Reason),
    /// It is one that the kernel's vxlan device has to take out of the tunnel. Nothing of it has changed.
    ToKernel,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Drop(reason)
    }
}

/// A result as a number: what is not negative is a value, the rest a reason.
#[inline(always)]
pub fn pack(result: Result<u32, Reason>) -> i64 {
    match result {
        Ok(value) => i64::from(value),
        Err(reason) => -1 - i64::from(reason as u32),
    }
}

/// The result again.
#[inline(always)]
pub fn unpack(packed: i64) -> Result<u32, Reason> {
    if packed >= 0 {
        return Ok(packed as u32);
    }
    Err(Reason::from_index((-1 - packed) as u32).unwrap_or(Reason::Malformed))
}

/// In place of a reason: [`Stop::ToKernel`].
const TO_KERNEL: i64 = i64::MIN;

/// As [`pack`], of a packet in the tunnel.
#[inline(always)]
pub fn pack_stop(result: Result<u32, Stop>) -> i64 {
    match result {
        Ok(value) => pack(Ok(value)),
        Err(Stop::Drop(reason)) => pack(Err(reason)),
        Err(Stop::ToKernel) => TO_KERNEL,
    }
}

/// The result again.
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
            let parts = (verdict.action(), verdict.reason(), verdict.slot());
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
