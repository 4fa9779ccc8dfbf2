//! Traffic between containers with XDP on: the packets that it decapsulates, and those that it must
//! not touch.

use overlay_tests::{Cluster, Host, Options, Place as _};

fn counter(host: &Host, reason: &str) -> anyhow::Result<u64> {
    let counters = host.status()?.counters;
    Ok(counters.iter().filter(|row| row.reason == reason).map(|row| row.packets).sum())
}

/// Datagrams and a transfer between containers of two hosts, both ways. Returns the datagrams that
/// were exchanged.
fn traffic(cluster: &Cluster) -> anyhow::Result<u64> {
    const EXCHANGES: u32 = 50;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("xdp", &[])?;
    let echo = h1.container("echo").network("xdp").udp_echo(7)?;
    let bulk = h1.container("bulk").network("xdp").bulk_recv(9000)?;
    let client = h2.container("client").network("xdp").idle()?;
    let answers = client.udp_ask_many(&echo.port(7)?, EXCHANGES)?;
    assert_eq!(answers.len(), EXCHANGES as usize);
    client.bulk_send(&bulk.port(9000)?, 32 << 20)?;
    client.ping(&echo.ip()?.to_string(), 3)?;
    Ok(EXCHANGES.into())
}

#[test]
fn native_xdp_delivers_datagrams_and_leaves_tcp_to_tc() -> anyhow::Result<()> {
    delivers("native")
}

#[test]
fn generic_xdp_delivers_datagrams_and_leaves_tcp_to_tc() -> anyhow::Result<()> {
    delivers("generic")
}

fn delivers(mode: &str) -> anyhow::Result<()> {
    let cluster = Cluster::formed(2, Options::xdp(mode))?;
    let datagrams = traffic(&cluster)?;
    for number in [1, 2] {
        let host = cluster.host(number);
        assert_eq!(host.status()?.xdp, mode);
        let by_xdp = counter(host, "xdp_decapsulated")?;
        assert!(by_xdp >= datagrams, "{:?}", host.status()?.counters);
        assert!(counter(host, "decapsulated")? > 0, "{:?}", host.status()?.counters);
    }
    Ok(())
}

/// Native XDP on a veth does not know which checksums are still to be filled in.
#[test]
fn native_xdp_leaves_packets_with_checksums_undone_to_tc() -> anyhow::Result<()> {
    let every = vec!["--xdp".to_owned(), "native".to_owned()];
    let cluster = Cluster::formed(2, Options { every, ..Options::default() })?;
    traffic(&cluster)?;
    for number in [1, 2] {
        let host = cluster.host(number);
        assert_eq!(host.status()?.xdp, "native");
        assert_eq!(counter(host, "xdp_decapsulated")?, 0);
    }
    Ok(())
}
