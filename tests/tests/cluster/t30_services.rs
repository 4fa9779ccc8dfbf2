//! Services: VIPs, their backends, draining.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use overlay_tests::{
    Cluster, Container, Options, Place as _, Shared, eventually,
    testkit::{Answer, Asked},
};

/// Each test has its own service on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(3, Options::default())?;
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

fn asker(cluster: &Cluster, number: usize) -> anyhow::Result<Container> {
    cluster.host(number).container(&format!("asker-{number}")).network("mynet").idle()
}

fn shares(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(answer.name.as_str()).or_default() += 1;
    }
    shares
}

fn names(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.name.as_str()).collect()
}

#[test]
fn connections_to_a_vip_are_shared_evenly_from_every_host() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "even", &["-p", "8001:80"])?;
    let _replicas = [
        cluster.host(1).container("even.1").service("even").http(80)?,
        cluster.host(2).container("even.2").service("even").http(80)?,
        cluster.host(2).container("even.3").service("even").http(80)?,
    ];
    let target = format!("{}:80", vip(&cluster, "even")?);
    for number in [1, 2, 3] {
        let asker = asker(&cluster, number)?;
        let answers = asker.http_get_many(&target, 30)?;
        assert!(
            answers.iter().all(|a| a.client == asker.ip().map(IpAddr::V4).expect("an address"))
        );
        let shares = shares(&answers);
        assert!(shares.len() == 3 && shares.values().all(|share| *share >= 8), "{shares:?}");
    }
    Ok(())
}

#[test]
fn a_service_without_published_ports_answers_on_its_vip_too() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "quiet", &[])?;
    let _replica = cluster.host(3).container("quiet.1").service("quiet").tcp_id(5432)?;
    let asker = asker(&cluster, 1)?;
    assert_eq!(asker.tcp_get("quiet:5432")?.name, "quiet.1");
    Ok(())
}

#[test]
fn datagrams_to_a_vip_are_answered_by_it() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "echo", &["-p", "5007:7/udp"])?;
    let _replicas = [
        cluster.host(1).container("echo.1").service("echo").udp_echo(7)?,
        cluster.host(2).container("echo.2").service("echo").udp_echo(7)?,
    ];
    let asker = asker(&cluster, 1)?;
    // Unconnected sockets: an answer from any other address than the VIP is a failure.
    let answers = asker.udp_ask_many("echo:7", 12)?;
    assert_eq!(names(&answers), BTreeSet::from(["echo.1", "echo.2"]));
    // One socket has one flow, which stays with its backend.
    let same: Asked = asker.ask(&["udp-ask", "echo:7", "--count", "6", "--same-socket"])?;
    assert_eq!((same.answers.len(), names(&same.answers).len()), (6, 1), "{same:?}");
    Ok(())
}

#[test]
fn a_vip_answers_pings() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "pinged", &[])?;
    let _replica = cluster.host(2).container("pinged.1").service("pinged").tcp_id(80)?;
    let asker = asker(&cluster, 3)?;
    asker.ping(&vip(&cluster, "pinged")?.to_string(), 2)
}

#[test]
fn a_backend_reaches_itself_through_the_vip() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "selfish", &["-p", "8002:80"])?;
    let only = cluster.host(2).container("selfish.1").service("selfish").http(80)?;
    let answer = only.http_get("selfish:80")?;
    // Its socket is connected to itself, or its packets are translated.
    let sockets = cluster.host(2).status()?.socket_programs.is_ok();
    let client = if sockets { only.ip()?.into() } else { vip(&cluster, "selfish")? };
    assert_eq!((answer.name.as_str(), answer.client), ("selfish.1", client));
    Ok(())
}

#[test]
fn a_stopped_replica_gets_nothing_more_and_the_others_everything() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "shrinking", &["-p", "8003:80"])?;
    let first = cluster.host(1).container("shrinking.1").service("shrinking").http(80)?;
    let _second = cluster.host(2).container("shrinking.2").service("shrinking").http(80)?;
    let asker = asker(&cluster, 3)?;
    assert_eq!(names(&asker.http_get_many("shrinking:80", 10)?).len(), 2);
    first.stop()?;
    let answers = asker.http_get_many("shrinking:80", 10)?;
    assert_eq!(names(&answers), BTreeSet::from(["shrinking.2"]));
    Ok(())
}

#[test]
fn a_service_without_backends_refuses_and_is_counted() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "nobody", &["-p", "8004:80"])?;
    let asker = asker(&cluster, 1)?;
    let target = format!("{}:80", vip(&cluster, "nobody")?);
    asker.cannot_connect(&target)?;
    let counted =
        |reason| cluster.host(1).status().map(|s| s.counters.iter().any(|c| c.reason == reason));
    assert!(counted("no_backend_answered")?);
    // The first backend makes it work.
    let _replica = cluster.host(2).container("nobody.1").service("nobody").http(80)?;
    assert_eq!(asker.http_get(&target)?.name, "nobody.1");
    Ok(())
}

#[test]
fn a_replica_takes_flows_only_when_it_listens() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "late", &["-p", "8005:80"])?;
    let _ready = cluster.host(1).container("late.1").service("late").http(80)?;
    // Its interface is attached but it never listens, so it must never be picked.
    let silent = cluster.host(2).start_run(&["--service", "late", "--name", "late.2"])?;
    let asker = asker(&cluster, 3)?;
    eventually("the second replica is attached", Duration::from_secs(10), || {
        let state = cluster.host(1).state()?;
        ensure!(state.endpoints.values().any(|e| e.name == "late.2"), "no late.2");
        Ok(())
    })?;
    cluster.settle()?;
    let answers = asker.http_get_many("late:80", 12)?;
    assert_eq!(names(&answers), BTreeSet::from(["late.1"]));
    drop(silent);
    Ok(())
}

#[test]
fn a_drained_node_keeps_its_flows_and_gets_no_new_ones() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "drained", &["-p", "8006:3306"])?;
    let first = cluster.host(2).container("drained.1").service("drained").tcp_id(3306)?;
    let asker = asker(&cluster, 1)?;
    let chat = asker.chat("drained:3306")?;
    let _second = cluster.host(3).container("drained.2").service("drained").tcp_id(3306)?;
    cluster.host(1).overlay(&["node", "drain", "h2"])?;
    cluster.settle()?;
    let during = asker.tcp_get_many("drained:3306", 10)?;
    let report = chat.chat_report()?;
    cluster.host(1).overlay(&["node", "activate", "h2"])?;
    cluster.settle()?;
    assert_eq!(names(&during), BTreeSet::from(["drained.2"]));
    assert_eq!(report.peer.as_ref().map(|p| p.name.as_str()), Some("drained.1"));
    assert!(report.failure.is_none() && report.lines > 0, "{report:?}");
    let after = asker.tcp_get_many("drained:3306", 10)?;
    assert_eq!(names(&after), BTreeSet::from(["drained.1", "drained.2"]));
    first.stop()?;
    Ok(())
}

#[test]
fn a_dnsrr_service_resolves_to_its_backends_and_has_no_vip() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "robin", &["--endpoint-mode", "dnsrr"])?;
    let replicas = [
        cluster.host(1).container("robin.1").service("robin").http(80)?,
        cluster.host(2).container("robin.2").service("robin").http(80)?,
    ];
    assert!(vip(&cluster, "robin").is_err());
    let asker = asker(&cluster, 3)?;
    let seen: BTreeSet<_> = asker.resolve("robin")?.addresses.into_iter().collect();
    let expected: BTreeSet<IpAddr> =
        replicas.iter().map(|r| r.ip().map(IpAddr::V4)).collect::<anyhow::Result<_>>()?;
    assert_eq!(seen, expected);
    asker.http_get("robin:80")?;
    Ok(())
}

#[test]
fn ports_are_published_given_up_and_reused_while_the_service_runs() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, client) = (cluster.host(1), cluster.client());
    create(&cluster, "first", &["-p", "8080:80"])?;
    let first = cluster.host(2).container("first.1").service("first").http(80)?;
    assert_eq!(client.http_get(&h1.port(8080))?.name, "first.1");
    h1.overlay(&["service", "update", "--publish-add", "9090:80", "first"])?;
    cluster.settle()?;
    assert_eq!(client.http_get(&h1.port(9090))?.name, "first.1");
    h1.overlay(&["service", "update", "--publish-rm", "8080", "first"])?;
    cluster.settle()?;
    client.cannot_connect(&h1.port(8080))?;
    assert_eq!(client.http_get(&h1.port(9090))?.name, "first.1");
    // A successor takes the port over.
    create(&cluster, "second", &["-p", "8080:80"])?;
    let _second = cluster.host(3).container("second.1").service("second").http(80)?;
    assert_eq!(client.http_get(&h1.port(8080))?.name, "second.1");
    first.stop()?;
    Ok(())
}

#[test]
fn a_removed_service_is_gone_and_its_backends_stay_as_containers() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "stale_backends", &["-p", "8007:80"])?;
    let backend = cluster.host(2).container("gone.1").service("stale_backends").http(80)?;
    let target = format!("{}:80", vip(&cluster, "stale_backends")?);
    let asker = asker(&cluster, 1)?;
    asker.http_get(&target)?;
    cluster.host(1).overlay(&["service", "rm", "stale_backends"])?;
    cluster.settle()?;
    asker.cannot_connect(&target)?;
    cluster.client().cannot_connect(&cluster.host(1).port(8007))?;
    assert_eq!(asker.http_get(&backend.port(80)?)?.name, "gone.1");
    assert_eq!(asker.resolve("stale_backends")?.addresses, Vec::<IpAddr>::new());
    Ok(())
}

#[test]
fn listings_show_services_and_their_backends() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "listed", &["-p", "8008:80"])?;
    let _replica = cluster.host(2).container("listed.1").service("listed").http(80)?;
    for host in cluster.hosts() {
        let listed = host.overlay(&["service", "ls"])?.stdout;
        assert!(listed.contains("listed") && listed.contains("8008->80/tcp"), "{listed}");
        let backends = host.overlay(&["service", "ps", "listed"])?.stdout;
        assert!(backends.contains("listed.1") && backends.contains("h2"), "{backends}");
    }
    Ok(())
}
