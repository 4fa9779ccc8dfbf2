//! How a service shares new flows, as it is asked for.

use crate::{
    api::{ApiError, BalanceChange},
    manager::error::invalid,
    model::{Balance, Scheduler},
};

/// Longest time for which flows may be idle: what the packet path's entries hold.
const MAX_IDLE_MS: u64 = u16::MAX as u64 * 1000;

/// Longest affinity: a day.
const MAX_AFFINITY_MS: u64 = 24 * 3600 * 1000;

/// `before`, with what is asked for changed.
///
/// # Errors
/// Combinations that mean nothing, and times out of range.
pub(super) fn changed(before: Balance, change: &BalanceChange) -> Result<Balance, ApiError> {
    let BalanceChange {
        lb,
        lb_hash,
        affinity_ms,
        tcp_timeout_ms,
        udp_timeout_ms,
        on_loss,
        return_path,
    } = *change;
    let scheduler = lb.unwrap_or(before.scheduler);
    // What one scheduler was told to hash means nothing to another.
    let kept = before.hash.filter(|_| scheduler == before.scheduler);
    if lb_hash.is_some() && scheduler.hash().is_none() {
        return Err(invalid(format!("scheduler {scheduler} hashes nothing")).hint(format!(
            "hashes are for {} and {}",
            Scheduler::Sh,
            Scheduler::Maglev
        )));
    }
    let affinity_secs = match affinity_ms {
        None => before.affinity_secs,
        Some(ms) if ms > MAX_AFFINITY_MS => {
            return Err(invalid(format!(
                "affinity of {ms} ms is longer than a day ({MAX_AFFINITY_MS} ms)"
            )));
        }
        // The programs count in seconds.
        Some(ms) => u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX),
    };
    Ok(Balance {
        scheduler,
        hash: lb_hash.or(kept),
        affinity_secs,
        tcp_idle_secs: idle("TCP", tcp_timeout_ms, before.tcp_idle_secs)?,
        udp_idle_secs: idle("UDP", udp_timeout_ms, before.udp_idle_secs)?,
        on_loss: on_loss.unwrap_or(before.on_loss),
        return_path: return_path.unwrap_or(before.return_path),
    })
}

/// For how many seconds flows may be idle.
fn idle(protocol: &str, asked: Option<u64>, before: u16) -> Result<u16, ApiError> {
    let Some(ms) = asked else { return Ok(before) };
    let too_long = || {
        invalid(format!("{ms} ms without a packet is more than a {protocol} flow can have"))
            .hint(format!("give up to {} s, or 0 for the default", MAX_IDLE_MS / 1000))
    };
    if ms > MAX_IDLE_MS {
        return Err(too_long());
    }
    // The programs count in seconds.
    u16::try_from(ms.div_ceil(1000)).map_err(|_| too_long())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HashBy, OnLoss, ReturnPath};

    fn lb(lb: Scheduler) -> BalanceChange {
        BalanceChange { lb: Some(lb), ..BalanceChange::default() }
    }

    #[test]
    fn what_is_not_asked_for_stays() {
        let by_address = BalanceChange { lb_hash: Some(HashBy::Address), ..lb(Scheduler::Maglev) };
        let before = changed(Balance::default(), &by_address).expect("a scheduler that hashes");
        let affinity = BalanceChange { affinity_ms: Some(1_500), ..BalanceChange::default() };
        let after = changed(before, &affinity).expect("an affinity");
        assert_eq!(after, Balance { affinity_secs: 2, ..before });
        assert_eq!(after.hashed(), Some(HashBy::Address));
        let off = BalanceChange { affinity_ms: Some(0), ..BalanceChange::default() };
        assert_eq!(changed(after, &off).expect("none"), before);
    }

    #[test]
    fn another_scheduler_hashes_what_it_does_by_itself() {
        let before = Balance {
            scheduler: Scheduler::Maglev,
            hash: Some(HashBy::Address),
            ..Balance::default()
        };
        let maglev = changed(before, &lb(Scheduler::Maglev)).expect("the same");
        assert_eq!(maglev.hashed(), Some(HashBy::Address));
        let rr = changed(before, &lb(Scheduler::Rr)).expect("another");
        assert_eq!(rr.hashed(), None);
        assert_eq!(changed(rr, &lb(Scheduler::Sh)).expect("sh").hashed(), Some(HashBy::Address));
        assert_eq!(changed(rr, &lb(Scheduler::Maglev)).expect("m").hashed(), Some(HashBy::Flow));
    }

    #[test]
    fn flows_are_idle_for_as_long_as_the_service_says() {
        let change = BalanceChange {
            tcp_timeout_ms: Some(65_535_000),
            udp_timeout_ms: Some(1),
            on_loss: Some(OnLoss::Drop),
            return_path: Some(ReturnPath::Direct),
            ..BalanceChange::default()
        };
        let after = changed(Balance::default(), &change).expect("times in range");
        assert_eq!((after.tcp_idle_secs, after.udp_idle_secs), (65_535, 1));
        assert_eq!((after.on_loss, after.return_path), (OnLoss::Drop, ReturnPath::Direct));
        assert_eq!(changed(after, &BalanceChange::default()).expect("nothing"), after);
        for (tcp, udp) in [(Some(65_535_001), None), (None, Some(u64::MAX))] {
            let change = BalanceChange {
                tcp_timeout_ms: tcp,
                udp_timeout_ms: udp,
                ..BalanceChange::default()
            };
            let error = changed(after, &change).expect_err("too long");
            assert!(error.to_string().contains("65535 s"), "{error}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Lc] {
            let change = BalanceChange { lb_hash: Some(HashBy::Flow), ..lb(scheduler) };
            let error = changed(Balance::default(), &change).expect_err("refused");
            assert!(error.message.contains(scheduler.name()), "{error}");
        }
        let long = BalanceChange { affinity_ms: Some(86_400_001), ..BalanceChange::default() };
        assert!(changed(Balance::default(), &long).is_err());
    }
}
