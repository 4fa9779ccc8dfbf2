//! The agent's own counts, besides those of the programs: live flows, and sockets.

pub mod backends;
pub mod draining;
pub mod egress;
pub mod sockets;

use std::collections::BTreeMap;

use overlay_common::maps::SockFlow;

/// How many connections of sockets each backend has.
pub fn by_backend(sockets: &BTreeMap<u64, SockFlow>) -> BTreeMap<u32, u32> {
    let mut flows = BTreeMap::new();
    for flow in sockets.values().filter(|flow| flow.backend != 0) {
        *flows.entry(flow.backend).or_default() += 1;
    }
    flows
}

#[cfg(test)]
mod tests {
    use overlay_common::{Be32, maps::EndpointKey};

    use super::*;

    const BACKEND: u32 = 7;
    const SERVICE: u32 = 3;

    fn key() -> EndpointKey {
        EndpointKey { vni: 4098, ip: Be32::from_octets([10, 0, 1, 21]) }
    }

    fn sockets() -> BTreeMap<u64, SockFlow> {
        let EndpointKey { vni, ip } = key();
        let flow = SockFlow { vni, ip, service: SERVICE, backend: BACKEND, ..SockFlow::default() };
        let of_host = SockFlow { ip, ..SockFlow::default() };
        [(1, flow), (2, flow), (3, of_host)].into()
    }

    #[test]
    fn connections_count_for_their_backends_and_those_of_the_host_for_none() {
        assert_eq!(by_backend(&sockets()), [(BACKEND, 2)].into());
    }
}
