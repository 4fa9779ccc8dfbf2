//! What becomes of a packet, and results across function calls.
//!
//! BPF functions return one register, so a `Result` that is not inlined away travels as one number.
//! Functions that are `no_mangle` besides are *global* to the verifier: it checks each of them once,
//! for whatever arguments there may be, instead of once for every way that leads to a call. They take
//! the context and integers: other types have to be taken apart.

use overlay_common::Reason;

/// What to do with a packet that is not dropped.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// The packet is not ours: the host's stack goes on with it.
    Pass,
    /// The program dealt with the packet, for a reason that is counted. The number is the program
    /// type's action.
    Done(i32, Reason),
    /// As `Done`: the packet went to the endpoint of this node with the slot that is last.
    Delivered(i32, Reason, u32),
}

/// The way of a packet: on, or dropped for a reason.
pub type Outcome = Result<Verdict, Reason>;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_survives_the_way_through_a_register() {
        for value in [0, 1, 7, u32::MAX] {
            assert_eq!(unpack(pack(Ok(value))), Ok(value));
        }
        for reason in Reason::ALL {
            assert_eq!(unpack(pack(Err(*reason))), Err(*reason));
        }
    }
}
