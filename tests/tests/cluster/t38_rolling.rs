//! Backends come and go under load, and every request is accounted for.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use overlay_tests::{Cluster, Container, Options, Place as _, Running, Shared, eventually};

/// Each test has its own service on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(3, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
});

/// A service with replicas on all hosts, requests from a container through its VIP and from outside
/// through every host.
struct Rolling<'a> {
    cluster: &'a Cluster,
    service: &'static str,
    replicas: Vec<Container>,
    _asker: Container,
    loads: Vec<Running>,
}

impl<'a> Rolling<'a> {
    /// The hosts of the replicas: one host has two of them.
    const HOSTS: [usize; 4] = [1, 2, 2, 3];

    fn start(cluster: &'a Cluster, service: &'static str, port: u16) -> anyhow::Result<Self> {
        let publish = format!("{port}:80");
        let args = ["--network", "mynet", "-p", &publish, "--drain", "500ms"];
        cluster.host(1).service_create(service, &args)?;
        let replicas = Self::HOSTS.iter().enumerate();
        let replicas = replicas.map(|(i, host)| replica(cluster, service, *host, i, 1));
        let replicas = replicas.collect::<anyhow::Result<Vec<_>>>()?;
        let asker =
            cluster.host(1).container(&format!("{service}-asker")).network("mynet").idle()?;
        let targets: Vec<_> = cluster.hosts().iter().map(|host| host.port(port)).collect();
        let loads = vec![asker.load(&[format!("{service}:80")])?, cluster.client().load(&targets)?];
        let rolling = Self { cluster, service, replicas, _asker: asker, loads };
        rolling.goes_on()?;
        Ok(rolling)
    }

    /// A successor of replica `i` on the same host.
    fn successor(&self, i: usize) -> anyhow::Result<Container> {
        replica(self.cluster, self.service, Self::HOSTS[i], i, 2)
    }

    /// Waits until some hundred requests were made.
    fn goes_on(&self) -> anyhow::Result<()> {
        self.loads.iter().try_for_each(|load| load.goes_on(200))
    }

    /// Checks that every request was answered, and returns the servers.
    fn end(self) -> anyhow::Result<BTreeSet<String>> {
        self.goes_on()?;
        let mut names = BTreeSet::new();
        for load in self.loads {
            let report = load.load_report()?;
            let answered = report.all_answered()?;
            println!("{}: {answered} requests, all answered", self.service);
            names.extend(report.answered_by.into_keys());
        }
        Ok(names)
    }
}

fn replica(
    cluster: &Cluster,
    service: &str,
    host: usize,
    number: usize,
    generation: u32,
) -> anyhow::Result<Container> {
    let name = format!("{service}.{number}.{generation}");
    cluster.host(host).container(&name).service(service).http(80)
}

/// Who answers a service now.
fn answering(cluster: &Cluster, port: u16) -> anyhow::Result<BTreeSet<String>> {
    let answers = cluster.client().http_get_many(&cluster.host(1).port(port), 12)?;
    Ok(answers.into_iter().map(|answer| answer.name).collect())
}

fn names(service: &str, replicas: &[(usize, u32)]) -> BTreeSet<String> {
    replicas.iter().map(|(number, generation)| format!("{service}.{number}.{generation}")).collect()
}

#[test]
fn replacing_every_replica_start_first_loses_no_request() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let mut rolling = Rolling::start(&cluster, "startfirst", 8101)?;
    let mut successors = Vec::new();
    for (i, old) in std::mem::take(&mut rolling.replicas).into_iter().enumerate() {
        successors.push(rolling.successor(i)?);
        old.stop()?;
    }
    rolling.goes_on()?;
    let expected = names("startfirst", &[(0, 2), (1, 2), (2, 2), (3, 2)]);
    assert_eq!(answering(&cluster, 8101)?, expected);
    assert_eq!(rolling.end()?.len(), 8, "each of both generations answered");
    Ok(())
}

#[test]
fn replacing_every_replica_stop_first_loses_no_request() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let mut rolling = Rolling::start(&cluster, "stopfirst", 8102)?;
    let mut successors = Vec::new();
    for (i, old) in std::mem::take(&mut rolling.replicas).into_iter().enumerate() {
        old.stop()?;
        successors.push(rolling.successor(i)?);
    }
    rolling.goes_on()?;
    let expected = names("stopfirst", &[(0, 2), (1, 2), (2, 2), (3, 2)]);
    assert_eq!(answering(&cluster, 8102)?, expected);
    assert_eq!(rolling.end()?.len(), 8);
    Ok(())
}

#[test]
fn scaling_down_to_one_replica_loses_no_request() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let mut rolling = Rolling::start(&cluster, "shrinking", 8103)?;
    let mut replicas = std::mem::take(&mut rolling.replicas);
    let last = replicas.pop();
    // All at once, as an orchestrator would.
    let stopped: Vec<_> = std::thread::scope(|scope| {
        let stops: Vec<_> = replicas.into_iter().map(|r| scope.spawn(|| r.stop())).collect();
        stops.into_iter().map(|stop| stop.join().expect("no panic")).collect()
    });
    stopped.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    assert_eq!(answering(&cluster, 8103)?, names("shrinking", &[(3, 1)]));
    rolling.end()?;
    drop(last);
    Ok(())
}

#[test]
fn draining_a_host_loses_no_request_and_new_replicas_there_wait() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let mut rolling = Rolling::start(&cluster, "leaving", 8104)?;
    h1.overlay(&["node", "drain", "h2"])?;
    let elsewhere = names("leaving", &[(0, 1), (3, 1)]);
    assert_eq!(answering(&cluster, 8104)?, elsewhere);
    // It runs, and accepts no flows before the host is active again.
    let late = replica(&cluster, "leaving", 2, 9, 1)?;
    let before = answering(&cluster, 8104)?;
    let shown = h1.overlay(&["service", "ps", "leaving"])?.stdout;
    // The existing replicas are stopped, as before maintenance.
    let (mut stay, mut go) = (Vec::new(), Vec::new());
    for replica in std::mem::take(&mut rolling.replicas) {
        if replica.host() == "h2" { go.push(replica) } else { stay.push(replica) }
    }
    ensure!(go.len() == 2, "two replicas on h2");
    for replica in go {
        replica.stop()?;
    }
    h1.overlay(&["node", "activate", "h2"])?;
    assert_eq!(before, elsewhere);
    ensure!(shown.contains("node drained"), "{shown}");
    assert_eq!(answering(&cluster, 8104)?, names("leaving", &[(0, 1), (3, 1), (9, 1)]));
    rolling.end()?;
    drop((late, stay));
    Ok(())
}

#[test]
fn changing_the_scheduler_and_the_ports_loses_no_request() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let rolling = Rolling::start(&cluster, "changing", 8105)?;
    for args in [
        &["--lb", "maglev"][..],
        &["--lb", "lc"],
        &["--publish-add", "8106:80"],
        &["--lb", "wrr", "--affinity", "1m"],
        &["--publish-rm", "8106"],
        &["--lb", "rr", "--affinity", "0s"],
    ] {
        cluster.host(1).overlay(&[&["service", "update"], args, &["changing"]].concat())?;
        rolling.goes_on()?;
    }
    assert_eq!(rolling.end()?.len(), 4);
    Ok(())
}

/// Waits until every node has counted the flows of draining backends. A node counts those of all of
/// them at once. A backend without flows is stopped when every node has counted none for it.
fn every_node_counts(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let h1 = cluster.host(1);
    h1.service_create(name, &["--network", "mynet", "--drain", "600s"])?;
    cluster.host(2).container(&format!("{name}.1")).service(name).tcp_id(80)?.stop()?;
    h1.overlay(&["service", "rm", name]).map(drop)
}

#[test]
fn a_drain_ends_with_the_last_flow_wherever_that_is_translated() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let args = ["--network", "mynet", "-p", "8107:3306", "--drain", "600s"];
    cluster.host(1).service_create("patient", &args)?;
    let mut replica = cluster.host(2).container("patient.1").service("patient").tcp_id(3306)?;
    let asker = cluster.host(1).container("patient-asker").network("mynet").idle()?;
    // One flow is in h1's table alone, the other in h3's.
    let inside = asker.chat("patient:3306")?;
    let direct = replica.port(3306)?;
    let outside = cluster.client().chat(&cluster.host(3).port(8107))?;
    replica.signal(Signal::SIGTERM);
    eventually("it drains", Duration::from_secs(20), || {
        let shown = cluster.host(1).overlay(&["service", "ps", "patient"])?.stdout;
        ensure!(shown.contains("draining"), "{shown}");
        Ok(())
    })?;
    for chat in [inside, outside] {
        chat.goes_on(10)?;
        every_node_counts(&cluster, "patient-marker")?;
        // Sent past the service: a stopped server would accept no connection any more.
        asker.tcp_get(&direct).context("it was told to stop too early")?;
        let report = chat.chat_report()?;
        ensure!(report.failure.is_none() && report.lines > 10, "{report:?}");
    }
    let output = replica.wait()?;
    ensure!(output.describe().contains("draining"), "{}", output.describe());
    // One without flows does not wait at all.
    cluster.host(3).container("patient.2").service("patient").tcp_id(3306)?.stop()?;
    Ok(())
}
