//! What a host tells of its traffic: counters of endpoints and networks.

use overlay::api::TrafficRow;
use overlay_tests::{Cluster, Container, Host, Options, Place as _, Shared};

/// Networks are not removed between tests, so each test has its own.
static CLUSTER: Shared = Shared::new(|| Cluster::formed(2, Options::default()));

fn rows(host: &Host, by: &str) -> anyhow::Result<Vec<TrafficRow>> {
    host.overlay(&["bpf", "counters", "--by", by, "--format", "json"])?.json()
}

/// Packets of an endpoint in one direction for one reason.
fn packets(host: &Host, endpoint: &str, traffic: &str, reason: &str) -> anyhow::Result<u64> {
    let rows = rows(host, "endpoint")?;
    let of = rows.iter().filter(|row| {
        row.endpoint.as_deref() == Some(endpoint) && row.traffic == traffic && row.reason == reason
    });
    Ok(of.map(|row| row.packets).sum())
}

/// Two containers on one network: on the first host and on host `second`.
fn pair(cluster: &Cluster, network: &str, second: usize) -> anyhow::Result<[Container; 2]> {
    cluster.host(1).network_create(network, &[])?;
    Ok([
        cluster.host(1).container(&format!("{network}-a")).network(network).idle()?,
        cluster.host(second).container(&format!("{network}-b")).network(network).idle()?,
    ])
}

#[test]
fn every_ping_is_counted_once_for_each_end() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "counted", 2)?;
    a.ping(&b.ip()?.to_string(), 7)?;
    for (host, name) in [(1, "counted-a"), (2, "counted-b")] {
        let host = cluster.host(host);
        assert_eq!(packets(host, name, "sent", "encapsulated")?, 7, "{name}");
        assert_eq!(packets(host, name, "received", "decapsulated")?, 7, "{name}");
    }
    Ok(())
}

#[test]
fn a_network_counts_what_its_endpoints_on_the_host_do() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "summed", 1)?;
    a.ping(&b.ip()?.to_string(), 3)?;
    b.ping(&a.ip()?.to_string(), 2)?;
    let rows = rows(cluster.host(1), "network")?;
    for traffic in ["sent", "received"] {
        let found = rows.iter().find(|row| {
            row.network.as_deref() == Some("summed")
                && row.traffic == traffic
                && row.reason == "delivered_local"
        });
        assert_eq!(found.map(|row| row.packets), Some(10), "requests and replies: {rows:?}");
    }
    Ok(())
}

#[test]
fn a_drop_is_counted_for_the_endpoint_that_sent_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, _b] = pair(&cluster, "refused", 2)?;
    let mut nobody = a.ip()?.octets();
    nobody[3] = 200;
    a.cannot_connect(&format!("{}:80", std::net::Ipv4Addr::from(nobody)))?;
    let host = cluster.host(1);
    assert!(packets(host, "refused-a", "sent", "arp_unknown")? > 0);
    assert_eq!(packets(host, "refused-a", "received", "arp_unknown")?, 0);
    Ok(())
}

#[test]
fn counters_outlive_the_daemon_and_go_with_their_endpoint() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let [a, b] = pair(&cluster, "kept", 1)?;
    let to_b = b.ip()?.to_string();
    a.ping(&to_b, 4)?;
    let host = cluster.host(1);
    host.kill_agent()?;
    a.ping(&to_b, 1)?;
    host.start_agent()?;
    assert_eq!(packets(host, "kept-a", "sent", "delivered_local")?, 5, "also without a daemon");
    a.stop()?;
    assert_eq!(packets(host, "kept-a", "sent", "delivered_local")?, 0);
    let c = host.container("kept-c").network("kept").idle()?;
    assert_eq!(packets(host, "kept-c", "sent", "delivered_local")?, 0, "a new one starts at zero");
    c.ping(&to_b, 2)?;
    assert_eq!(packets(host, "kept-c", "sent", "delivered_local")?, 2);
    Ok(())
}
