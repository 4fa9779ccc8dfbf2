//! Hosts that die or are cut off without a word.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use overlay::model::NodeState;
use overlay_tests::{Cluster, Container, Host, Options, Place, Running, Shared, eventually};

/// `web` has a backend on each of the first three hosts; `asker` is on h2. h4 has no container.
struct Served {
    cluster: Cluster,
    asker: Container,
    _web: Vec<Container>,
}

static BOX: Shared<Served> = Shared::new(|| {
    let cluster = Cluster::formed(4, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    let args = ["--network", "mynet", "-p", "8080:80", "--drain", "500ms"];
    cluster.host(1).service_create("web", &args)?;
    let web = [1, 2, 3].map(|n| {
        let replica = cluster.host(n).container(&format!("web.{n}"));
        replica.service("web").http(80)
    });
    let web = web.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let asker = cluster.host(2).container("asker").network("mynet").idle()?;
    Ok(Served { cluster, asker, _web: web })
});

/// Waits until some hundred requests were made.
fn go_on(loads: &[Running]) -> anyhow::Result<()> {
    loads.iter().try_for_each(|load| load.goes_on(200))
}

/// Waits until the maps of `host` show that the node is in a state.
fn shown(host: &Host, node: &str, state: NodeState) -> anyhow::Result<()> {
    eventually(
        &format!("{} shows {node} as {state:?}", host.name()),
        Duration::from_secs(30),
        || {
            let known = host.state()?;
            let found = known.node(node).context("the node")?.state;
            ensure!(found == state, "it is {found:?}");
            let applied = host.status()?.applied;
            ensure!(applied >= known.revision, "its maps show {applied} of {}", known.revision);
            Ok(())
        },
    )
}

/// All hosts have the same state, are ready, and have it in the maps.
fn consistent(cluster: &Cluster) -> anyhow::Result<()> {
    eventually("all hosts show the same", Duration::from_secs(30), || {
        let first = cluster.host(1).state()?;
        let down = first.nodes.values().find(|n| n.state == NodeState::Down);
        ensure!(down.is_none(), "{down:?}");
        for host in cluster.hosts() {
            ensure!(host.state()? == first, "{} knows something else", host.name());
            let status = host.status()?;
            ensure!(status.connected && status.applied == first.revision, "{status:?}");
        }
        Ok(())
    })
}

fn answering(place: &impl Place, target: &str) -> anyhow::Result<BTreeSet<String>> {
    let answers = place.http_get_many(target, 12)?;
    Ok(answers.into_iter().map(|answer| answer.name).collect())
}

fn names(numbers: &[usize]) -> BTreeSet<String> {
    numbers.iter().map(|number| format!("web.{number}")).collect()
}

#[test]
fn a_host_that_dies_is_picked_by_nobody_soon_and_again_when_it_is_back() -> anyhow::Result<()> {
    let all = BOX.turn()?;
    let Served { cluster, asker, .. } = &*all;
    let (h1, h2, h3) = (cluster.host(1), cluster.host(2), cluster.host(3));
    let targets = [h1.port(8080), h2.port(8080)];
    for target in &targets {
        assert_eq!(answering(cluster.client(), target)?, names(&[1, 2, 3]));
    }
    // An agent may be away for longer than a host may be silent: h4's agent is away even before h3
    // dies.
    let h4 = cluster.host(4);
    h4.kill_agent()?;
    h3.kill_agent()?;
    cluster.unplug(h3)?;
    let known = eventually("h3 is down", Duration::from_secs(30), || {
        let known = h1.state()?;
        ensure!(known.node("h3").context("h3")?.state == NodeState::Down, "it is not");
        Ok(known)
    })?;
    assert_eq!(known.node("h4").context("h4")?.state, NodeState::Ready, "h3 was first");
    h4.start_agent()?;
    shown(h1, "h3", NodeState::Down)?;
    shown(h2, "h3", NodeState::Down)?;
    // Requests that begin from now on never fail.
    let loads = [cluster.client().load(&targets)?, asker.load(&["web:80".to_owned()])?];
    go_on(&loads)?;
    cluster.replug(h3)?;
    h3.start_agent()?;
    consistent(cluster)?;
    go_on(&loads)?;
    for load in loads {
        let report = load.load_report()?;
        println!("{} requests since then, all answered", report.all_answered()?);
        let answered: BTreeSet<_> = report.answered_by.into_keys().collect();
        assert_eq!(answered, names(&[1, 2, 3]), "h3 answers again");
    }
    Ok(())
}

#[test]
fn an_agent_that_restarts_is_no_dead_host() -> anyhow::Result<()> {
    let all = BOX.turn()?;
    let Served { cluster, asker, .. } = &*all;
    let (h1, h3, h4) = (cluster.host(1), cluster.host(3), cluster.host(4));
    let load = asker.load(&["web:80".to_owned()])?;
    let before = h1.state()?;
    // Away for longer than a host may be silent that does not answer, as one that is down
    // meanwhile.
    h3.kill_agent()?;
    cluster.unplug(h4)?;
    let during = eventually("h4 is down", Duration::from_secs(30), || {
        let known = h1.state()?;
        ensure!(known.node("h4").context("h4")?.state == NodeState::Down, "it is not");
        Ok(known)
    })?;
    h3.start_agent()?;
    cluster.replug(h4)?;
    consistent(cluster)?;
    let answered = load.load_report()?;
    answered.all_answered()?;
    assert_eq!(during.node("h3"), before.node("h3"), "nothing was written about it");
    assert_eq!(during.node("h3").context("h3")?.state, NodeState::Ready);
    Ok(())
}

#[test]
fn without_the_managers_host_the_others_go_on_also_when_it_comes_back() -> anyhow::Result<()> {
    let all = BOX.turn()?;
    let Served { cluster, asker, .. } = &*all;
    let (h1, h2, h3) = (cluster.host(1), cluster.host(2), cluster.host(3));
    // h1's backend would be lost with it. Without h2's own backend, h2 depends on the messages
    // about h3.
    for idle in ["web.1", "web.2"] {
        h1.overlay(&["endpoint", "update", "--weight", "0", idle])?;
    }
    let targets = [h2.port(8080), h3.port(8080)];
    let loads = [cluster.client().load(&targets)?, asker.load(&["web:80".to_owned()])?];
    go_on(&loads)?;
    cluster.unplug(h1)?;
    // Alone, the manager considers all other nodes dead.
    shown(h1, "h2", NodeState::Down)?;
    shown(h1, "h3", NodeState::Down)?;
    for host in [h2, h3] {
        let known = host.state()?;
        ensure!(known.nodes.values().all(|n| n.state == NodeState::Ready), "{known:?}");
    }
    go_on(&loads)?;
    cluster.replug(h1)?;
    consistent(cluster)?;
    go_on(&loads)?;
    for load in loads {
        let report = load.load_report()?;
        println!("{} requests, all answered", report.all_answered()?);
        let answered: BTreeSet<_> = report.answered_by.into_keys().collect();
        assert_eq!(answered, names(&[3]));
    }
    for idle in ["web.1", "web.2"] {
        h1.overlay(&["endpoint", "update", "--weight", "1", idle])?;
    }
    Ok(())
}

#[test]
fn what_changed_during_a_partition_is_the_same_everywhere_after_it() -> anyhow::Result<()> {
    let all = BOX.turn()?;
    let Served { cluster, .. } = &*all;
    let (h1, h2, h3) = (cluster.host(1), cluster.host(2), cluster.host(3));
    let old = ["--network", "mynet", "-p", "8081:80", "--drain", "0s"];
    h1.service_create("old", &old)?;
    let gone = h2.container("old.1").service("old").http(80)?;
    let watcher = h3.container("watcher").network("mynet").idle()?;
    assert_eq!(watcher.http_get("old:80")?.name, "old.1");
    let gone_ip = gone.ip()?;

    cluster.unplug(h3)?;
    shown(h1, "h3", NodeState::Down)?;
    gone.stop()?;
    h1.overlay(&["service", "rm", "old"])?;
    h1.service_create("fresh", &["--network", "mynet", "-p", "8081:81", "--drain", "0s"])?;
    let fresh = h2.container("fresh.1").service("fresh").http(81)?;
    cluster.replug(h3)?;
    consistent(cluster)?;

    assert_eq!(watcher.resolve("old")?.addresses, Vec::<IpAddr>::new(), "no stale VIP");
    assert_eq!(watcher.resolve("old.1")?.addresses, Vec::<IpAddr>::new(), "no stale name");
    assert_eq!(watcher.http_get("fresh:81")?.name, "fresh.1");
    // A published port of the earlier services leads to its new service, through every host.
    for host in cluster.hosts() {
        assert_eq!(cluster.client().http_get(&host.port(8081))?.name, "fresh.1");
    }
    let tables = h3.overlay(&["bpf", "endpoints", "--format", "json"])?.stdout;
    let has = |ip: std::net::Ipv4Addr| tables.contains(&format!("\"{ip}\""));
    ensure!(has(fresh.ip()?), "the new backend is missing: {tables}");
    ensure!(!has(gone_ip) || gone_ip == fresh.ip()?, "{gone_ip} is stale: {tables}");
    for target in cluster.hosts().iter().map(|host| host.port(8080)) {
        assert_eq!(answering(cluster.client(), &target)?, names(&[1, 2, 3]));
    }
    fresh.stop()?;
    drop(watcher);
    h1.overlay(&["service", "rm", "fresh"]).map(drop)
}

#[test]
fn a_host_that_was_set_up_anew_joins_under_its_old_name() -> anyhow::Result<()> {
    let cluster = Cluster::formed(3, Options::default())?;
    let (h1, h3) = (cluster.host(1), cluster.host(3));
    h1.network_create("mynet", &[])?;
    h1.service_create("web", &["--network", "mynet", "-p", "8080:80", "--drain", "0s"])?;
    let stays = cluster.host(2).container("web.2").service("web").http(80)?;
    let lost = h3.container("web.3").service("web").http(80)?;
    // The host is lost with its endpoints, without a message.
    cluster.unplug(h3)?;
    lost.kill();
    h3.leave(true)?;
    shown(h1, "h3", NodeState::Down)?;
    cluster.replug(h3)?;
    let command = h1.overlay(&["token", "create"])?.stdout;
    let token = command.split_whitespace().skip_while(|word| *word != "--token").nth(1);
    let token = token.context("a token")?;
    h3.join(token, h1, &[])?;
    consistent(&cluster)?;
    let state = h1.state()?;
    assert_eq!(state.nodes.len(), 3);
    ensure!(state.endpoints.values().all(|e| e.name != "web.3"), "its endpoints went with it");
    // The name is free again.
    let anew = h3.container("web.3").service("web").http(80)?;
    for host in cluster.hosts() {
        let answered = answering(cluster.client(), &host.port(8080))?;
        assert_eq!(answered, names(&[2, 3]), "through {}", host.name());
    }
    drop((anew, stays));
    Ok(())
}
