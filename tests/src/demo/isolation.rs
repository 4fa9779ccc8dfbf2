//! Step 5: a container on another network reaches no endpoint of mynet.

use std::net::IpAddr;

use super::{
    report::{Report, expect},
    services::{SERVICES, Services},
};
use crate::{cluster::Cluster, container::Container, place::Place as _};

/// Sends from a container on the same host as the backends of hello, but on another network.
pub fn other_network(
    cluster: &Cluster,
    services: &Services,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.step("Isolation: a container on another network");
    let stranger = report.need("network create other, and a container on it", || {
        cluster.host(1).network_create("other", &["-d", "overlay"])?;
        let host = services.of("hello").first().map_or("h1", Container::host);
        let host = cluster.hosts().iter().find(|h| h.name() == host).unwrap_or(cluster.host(1));
        let stranger = host.container("stranger").network("other").idle()?;
        let detail = format!("address {} on {}", stranger.ip()?, stranger.host());
        Ok((stranger, detail))
    })?;
    for (service, port) in SERVICES {
        report.check(&format!("{service} does not resolve there"), || {
            let resolved = stranger.resolve(service)?;
            expect("addresses", Vec::<IpAddr>::new(), resolved.addresses)?;
            Ok(resolved.code)
        })?;
        if let Some(vip) = services.vips.get(service) {
            report.check(&format!("{service}'s VIP {vip}:{port} is out of reach"), || {
                stranger.cannot_connect(&format!("{vip}:{port}"))?;
                Ok(String::new())
            })?;
        }
        for replica in services.of(service) {
            let (name, target) = (replica.name(), replica.port(port)?);
            report.check(&format!("{name}'s own {target} is out of reach"), || {
                stranger.cannot_connect(&target)?;
                stranger.cannot_ping(&replica.ip()?.to_string())?;
                Ok(String::new())
            })?;
        }
    }
    report.check("its own network works", || {
        stranger.ping(&stranger.ip()?.to_string(), 1)?;
        Ok(String::new())
    })?;
    stranger.stop()?;
    Ok(())
}
