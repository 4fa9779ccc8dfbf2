//! The stale backends: removed ones to which sockets are still connected.

use std::collections::BTreeMap;

use overlay_common::maps::{EndpointKey, SERVICE_RESETS, STALE_RESETS, SockFlow, StaleBackend};

use crate::datapath::DatapathState;

/// The addresses at which sockets are connected to a backend that `state` does not have, if no
/// endpoint has the address now.
pub fn backends(
    sockets: &BTreeMap<u64, SockFlow>,
    state: &DatapathState,
) -> BTreeMap<EndpointKey, StaleBackend> {
    let mut stale = BTreeMap::new();
    for flow in sockets.values() {
        let key = EndpointKey { vni: flow.vni, ip: flow.ip };
        let is_stale = flow.backend != 0
            && !state.backends.contains_key(&flow.backend)
            && !state.endpoints.contains_key(&key);
        if is_stale {
            let service = state.services.get(&flow.service);
            let resets = service.is_some_and(|service| service.flags & SERVICE_RESETS != 0);
            *stale.entry(key).or_default() |= if resets { STALE_RESETS } else { 0 };
        }
    }
    stale
}

#[cfg(test)]
mod tests {
    use overlay_common::{
        Be32,
        maps::{Backend, Endpoint, Service},
    };

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

    fn state(flags: u16) -> DatapathState {
        let mut state = DatapathState::default();
        state.services.insert(SERVICE, Service { flags, ..Service::default() });
        state
    }

    #[test]
    fn the_address_of_a_stale_backend_is_answered_as_its_service_says() {
        assert_eq!(backends(&sockets(), &state(SERVICE_RESETS)), [(key(), STALE_RESETS)].into());
        assert_eq!(backends(&sockets(), &state(0)), [(key(), 0)].into());
        assert_eq!(backends(&sockets(), &DatapathState::default()), [(key(), 0)].into());
    }

    #[test]
    fn an_address_is_not_stale_while_an_endpoint_has_it() {
        let mut held = state(SERVICE_RESETS);
        held.backends.insert(BACKEND, Backend::default());
        assert!(backends(&sockets(), &held).is_empty(), "the backend itself, though it drains");
        let mut taken = state(SERVICE_RESETS);
        taken.endpoints.insert(key(), Endpoint::default());
        assert!(backends(&sockets(), &taken).is_empty(), "another container");
    }
}
