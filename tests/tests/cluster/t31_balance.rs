//! Schedulers, weights, affinity, and services without backends.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use overlay_tests::{
    Cluster, Container, Options, Place, Shared, eventually,
    testkit::{Answer, Asked, FailureKind},
};

/// Each test has its own services on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(2, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
});

fn vip(cluster: &Cluster, service: &str) -> anyhow::Result<IpAddr> {
    let state = cluster.host(1).state()?;
    let service = state.service(service).context("the service")?;
    Ok(service.networks.first().and_then(|n| n.vip).context("a VIP")?.into())
}

fn create(cluster: &Cluster, service: &str, args: &[&str]) -> anyhow::Result<()> {
    let all = [&["--network", "mynet", "--drain", "500ms"], args].concat();
    cluster.host(1).service_create(service, &all)
}

fn asker(cluster: &Cluster) -> anyhow::Result<Container> {
    cluster.host(1).container("asker").network("mynet").idle()
}

fn shares(answers: &[Answer]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(answer.name.clone()).or_default() += 1;
    }
    shares
}

/// A replica on each host, of these weights.
fn replicas(
    cluster: &Cluster,
    service: &str,
    weights: [&str; 2],
) -> anyhow::Result<[Container; 2]> {
    let replica = |host: usize, weight: &str| {
        let container = cluster.host(host).container(&format!("{service}.{host}"));
        container.service(service).option("--weight", weight).http(80)
    };
    Ok([replica(1, weights[0])?, replica(2, weights[1])?])
}

#[test]
fn weights_share_connections_and_can_be_changed_while_backends_run() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "heavy", &["--lb", "wrr"])?;
    let _replicas = replicas(&cluster, "heavy", ["3", "1"])?;
    let asker = asker(&cluster)?;
    let expected = |one, two| {
        let shares = [("heavy.1", one), ("heavy.2", two)];
        shares.map(|(name, n)| (name.to_owned(), n)).into_iter().filter(|(_, n)| *n > 0).collect()
    };
    assert_eq!(shares(&asker.http_get_many("heavy:80", 16)?), expected(12, 4));
    cluster.host(1).overlay(&["endpoint", "update", "--weight", "0", "heavy.1"])?;
    assert_eq!(shares(&asker.http_get_many("heavy:80", 8)?), expected(0, 8));
    cluster.host(1).overlay(&["endpoint", "update", "--weight", "1", "heavy.1"])?;
    assert_eq!(shares(&asker.http_get_many("heavy:80", 8)?), expected(4, 4));
    let shown = cluster.host(1).overlay(&["service", "ps", "heavy"])?;
    ensure!(shown.stdout.contains("WEIGHT"), "{}", shown.stdout);
    Ok(())
}

#[test]
fn every_scheduler_serves_and_can_be_changed_for_another() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "changing", &["--lb", "maglev"])?;
    let _replicas = replicas(&cluster, "changing", ["1", "1"])?;
    let asker = asker(&cluster)?;
    for (scheduler, backends) in [("maglev", 2), ("sh", 1), ("lc", 2), ("wrr", 2), ("rr", 2)] {
        cluster.host(1).overlay(&["service", "update", "--lb", scheduler, "changing"])?;
        let answers = asker.http_get_many("changing:80", 30)?;
        let shares = shares(&answers);
        ensure!(shares.len() == backends, "{scheduler}: {shares:?}");
    }
    Ok(())
}

#[test]
fn a_client_keeps_its_backend_when_affinity_is_asked_for() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "sticky", &["-p", "8011:80", "--affinity", "10m"])?;
    let _replicas = replicas(&cluster, "sticky", ["1", "1"])?;
    let asker = asker(&cluster)?;
    assert_eq!(shares(&asker.http_get_many("sticky:80", 10)?).len(), 1);
    let target = cluster.host(1).port(8011);
    assert_eq!(shares(&cluster.client().http_get_many(&target, 10)?).len(), 1);
    cluster.host(1).overlay(&["service", "update", "--affinity", "0s", "sticky"])?;
    assert_eq!(shares(&asker.http_get_many("sticky:80", 10)?).len(), 2);
    Ok(())
}

/// The failure of a connection to a target that must not answer.
fn failure(place: &impl Place, target: &str) -> anyhow::Result<FailureKind> {
    // Longer than the time limit: a silent drop is a failure of another kind.
    let asked: Asked = place.ask(&["tcp-get", target, "--timeout-ms", "5000"])?;
    ensure!(asked.answers.is_empty(), "{target} answered: {asked:?}");
    Ok(asked.failures.first().context("a failure")?.kind)
}

#[test]
fn a_service_that_nobody_serves_refuses_containers_clients_and_the_hosts_sockets()
-> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "deserted", &["-p", "8012:80"])?;
    let asker = asker(&cluster)?;
    let target = format!("{}:80", vip(&cluster, "deserted")?);
    ensure!(failure(&asker, &target)? == FailureKind::Connect, "a container");
    ensure!(failure(cluster.client(), &cluster.host(2).port(8012))? == FailureKind::Connect);
    ensure!(failure(cluster.host(1), "127.0.0.1:8012")? == FailureKind::Connect, "localhost");
    let status = cluster.host(1).status()?;
    let counted = |reason: &str| status.counters.iter().any(|c| c.reason == reason);
    ensure!(counted("no_backend_answered") && !counted("no_backend"), "{:?}", status.counters);
    // The first backend makes it work.
    let replica = cluster.host(2).container("deserted.1").service("deserted").http(80)?;
    assert_eq!(asker.http_get(&target)?.name, "deserted.1");
    replica.stop()?;
    eventually("it refuses again", Duration::from_secs(10), || {
        let kind = failure(&asker, &target)?;
        ensure!(kind == FailureKind::Connect, "{kind:?}");
        Ok(())
    })
}

#[test]
fn what_balances_nothing_is_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    host.refuses(&["service", "create", "x", "--lb", "best"], &["best"])?;
    host.refuses(&["service", "create", "x", "--lb", "rr", "--lb-hash", "flow"], &["rr", "hash"])?;
    host.refuses(&["service", "create", "x", "--affinity", "25h"], &["day"])?;
    host.refuses(&["endpoint", "update", "--weight", "65536", "x"], &["65536"])?;
    host.refuses(&["endpoint", "update", "--weight", "1", "nobody-here"], &["nobody-here"])?;
    let plain = host.container("plain").network("mynet").idle()?;
    host.refuses(&["endpoint", "update", "--weight", "1", "plain"], &["plain", "service"])?;
    drop(plain);
    Ok(())
}
