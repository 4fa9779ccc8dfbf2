//! The IPv6 addresses on which a node reports that its published ports answer.

use std::net::Ipv6Addr;

/// Most addresses that a node reports.
pub const MAX_ADDRESSES6: usize = 64;

/// Returns true if other hosts can use the address to reach this host: it belongs to one host alone
/// and has the same meaning on every link.
pub fn is_reachable6(address: &Ipv6Addr) -> bool {
    let is_out_of_reach = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some();
    !is_out_of_reach
}

/// Returns the addresses that a host reports: those on which others can reach it, sorted, without
/// duplicates, and at most [`MAX_ADDRESSES6`].
pub fn reachable6(addresses: &[Ipv6Addr]) -> Vec<Ipv6Addr> {
    let mut reachable: Vec<_> = addresses.iter().copied().filter(is_reachable6).collect();
    reachable.sort_unstable();
    reachable.dedup();
    reachable.truncate(MAX_ADDRESSES6);
    reachable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_others_may_know_a_host_by_is_said_once_and_in_order() {
        let all = ["2001:db8::2", "::1", "fe80::1", "fd00::1", "::", "ff02::1", "2001:db8::2"];
        let said = reachable6(&all.map(ip));
        assert_eq!(said, ["2001:db8::2", "fd00::1"].map(ip));
        assert!(!is_reachable6(&ip("::ffff:192.0.2.1")));
    }

    #[test]
    fn a_host_with_very_many_addresses_says_the_first() {
        let many: Vec<_> = (0..100).rev().map(|n| ip(&format!("fd00::{n:x}"))).collect();
        let said = reachable6(&many);
        assert_eq!((said.len(), said[0], said[63]), (64, ip("fd00::"), ip("fd00::3f")));
    }
}
