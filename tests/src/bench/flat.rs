//! The cost of a packet beside few and many endpoints. Each run runs the programs once on their own
//! maps: for one flow repeatedly, and for packets to or from all endpoints by turns, so that hardly
//! any entry is still in the caches.

use std::{net::Ipv4Addr, process::ExitCode};

use anyhow::ensure;
use overlay_common::maps::{ENDPOINT_REMOTE, Endpoint, EndpointKey, Peer, PeerKey};

use super::{
    kernel::{self, ProgramType},
    pin,
    stats::middle_mean,
};
use crate::rig::{IFINDEX, PEER, REDIRECT, Rig, VNI, mac, packets};

/// How many endpoints there are.
const SIZES: [u32; 3] = [10, 1_000, 100_000];

/// The cases, in the order in which [`main`] prints their nanoseconds.
pub const NAMES: [&str; 12] = [
    "encap_1_flow_10_endpoints",
    "encap_all_of_10_endpoints",
    "decap_1_flow_10_endpoints",
    "decap_all_of_10_endpoints",
    "encap_1_flow_1000_endpoints",
    "encap_all_of_1000_endpoints",
    "decap_1_flow_1000_endpoints",
    "decap_all_of_1000_endpoints",
    "encap_1_flow_100000_endpoints",
    "encap_all_of_100000_endpoints",
    "decap_1_flow_100000_endpoints",
    "decap_all_of_100000_endpoints",
];

/// Runs of each case.
const RUNS: u32 = 20_000;
/// The endpoint that sends and receives.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Address of another endpoint, all of them on one other node.
fn far(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number)
}

/// Runs all cases and prints their nanoseconds.
///
/// # Errors
/// If a program does not send a packet on.
pub fn main() -> anyhow::Result<ExitCode> {
    pin::to_cpu(pin::CLIENT_CPU, pin::Side::Client)?;
    let mut took = Vec::new();
    for size in SIZES {
        let mut rig = Rig::new();
        rig.local(VNI, HERE, 0, true);
        rig.set(|state| {
            state.peers.insert(PeerKey { vni: 0, node: PEER.into() }, Peer::default());
            for number in 0..size {
                let ip = far(number);
                let endpoint = Endpoint {
                    kind: ENDPOINT_REMOTE,
                    mac: mac(ip),
                    node: PEER.into(),
                    ..Endpoint::default()
                };
                state.endpoints.insert(EndpointKey { vni: VNI, ip: ip.into() }, endpoint);
            }
        });
        for out in [true, false] {
            for of in [1, size] {
                took.push(time(&mut rig, out, of)?);
            }
        }
    }
    println!("{}", serde_json::to_string(&took)?);
    Ok(ExitCode::SUCCESS)
}

/// Nanoseconds of a packet to, or from, one of the first `of` endpoints.
fn time(rig: &mut Rig, out: bool, of: u32) -> anyhow::Result<f64> {
    let empty = kernel::empty(ProgramType::Tc)?;
    let (mut took, mut nothing) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        // A step that has no common factor with any size, and leads to no neighbour in memory.
        let other = (far(run.wrapping_mul(61_803) % of), 9);
        let (program, frame) = if out {
            ("from_container", packets::udp((HERE, 40_000), other, &[0; 18]))
        } else {
            let inner = packets::udp(other, (HERE, 40_000), &[0; 18]);
            ("from_underlay", packets::vxlan(VNI, &inner))
        };
        let (verdict, nanoseconds) = rig.time(program, &frame);
        ensure!(verdict == REDIRECT, "{program} gave verdict {verdict}");
        took.push(nanoseconds);
        nothing.push(u64::from(kernel::run_tc(&empty, &frame, IFINDEX)?.1));
    }
    Ok(middle_mean(&mut took) - middle_mean(&mut nothing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_names_in_the_order_of_the_runs() {
        let names = SIZES.iter().flat_map(|size| {
            ["encap_1_flow", "encap_all_of", "decap_1_flow", "decap_all_of"]
                .map(|case| (case, size))
                .map(|(case, size)| format!("{case}_{size}_endpoints"))
        });
        assert_eq!(names.collect::<Vec<_>>(), NAMES);
    }

    #[test]
    fn all_endpoints_have_their_turn() {
        for size in SIZES {
            let runs = RUNS.max(size);
            let met: std::collections::HashSet<_> =
                (0..runs).map(|run| run.wrapping_mul(61_803) % size).collect();
            assert!(met.len() as u32 > size / 2, "{} of {size}", met.len());
        }
    }
}
