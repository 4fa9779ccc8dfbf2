//! A host with full flow tables reports how many flows it has evicted.

use anyhow::{Context as _, ensure};
use overlay::api::FillRow;
use overlay_tests::{Cluster, Host, Options, Place as _, testkit::Asked};

fn fill(host: &Host, map: &str) -> anyhow::Result<FillRow> {
    let fills = host.status()?.fills;
    fills.into_iter().find(|row| row.map == map).with_context(|| format!("no {map}"))
}

#[test]
fn flows_that_were_evicted_are_told_by_status_also_after_a_restart() -> anyhow::Result<()> {
    let small = Options::default().every(&["--conntrack-size", "1024"]);
    let cluster = Cluster::formed(2, small)?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    h1.network_create("mynet", &[])?;
    h1.service_create("echo", &["--network", "mynet", "-p", "7001:7000/udp"])?;
    let _backend = h2.container("echo.1").service("echo").udp_echo(7000)?;
    let asker = h1.container("asker").network("mynet").idle()?;
    asker.udp_ask_many("echo:7000", 100)?;
    let opening = fill(h1, "ct_new")?;
    // A flow has two entries. Two questions may have come from one port.
    ensure!((180..=200).contains(&opening.entries), "{opening:?}");
    ensure!((opening.room, opening.evicted) == (1024, 0), "{opening:?}");

    asker.udp_ask_many("echo:7000", 1500)?;
    let opening = fill(h1, "ct_new")?;
    let flows = 2 * 1600;
    ensure!(opening.entries > 512 && opening.entries <= 1024, "{opening:?}");
    ensure!(opening.evicted > flows * 9 / 10 - opening.entries, "{opening:?}");
    ensure!(opening.evicted <= flows - opening.entries, "{opening:?}");
    ensure!(fill(h1, "conntrack")?.evicted == 0, "nobody has gone on with a flow");
    ensure!(h2.status()?.fills.iter().all(|row| row.evicted == 0), "it translates nothing");
    if h1.status()?.socket_programs.is_ok() {
        // Each datagram of a socket is noted in its flow.
        let port = h1.port(7001);
        let asked: Asked = h1.ask(&["udp-ask", &port, "--count", "5", "--same-socket"])?;
        ensure!(asked.answers.len() == 5, "{asked:?}");
        let noted = fill(h1, "sock_origin")?;
        ensure!((noted.entries, noted.evicted) == (1, 0), "{noted:?}");
    }
    let opening = fill(h1, "ct_new")?;
    let text = h1.overlay(&["status"])?.stdout;
    let line = text.lines().find(|line| line.starts_with("ct_new ")).context("a line")?;
    ensure!(line.split_whitespace().nth(3) == Some(&opening.evicted.to_string()), "{line}");

    h1.kill_agent()?;
    h1.start_agent()?;
    let restarted = fill(h1, "ct_new")?;
    ensure!(restarted.evicted >= opening.evicted, "{opening:?} {restarted:?}");
    Ok(())
}
