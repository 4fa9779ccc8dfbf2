//! Health checks: unhealthy backends get no new flows until they are healthy again.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::ensure;
use overlay_tests::{Cluster, Container, Options, Place as _, Shared, eventually};

/// Each test has its own service on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(3, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
});

/// Often enough for a test, and slow enough for a busy machine.
const OFTEN: [&str; 6] =
    ["--health-interval", "200ms", "--health-timeout", "2s", "--health-retries", "2"];

fn create(cluster: &Cluster, service: &str, args: &[&str]) -> anyhow::Result<()> {
    let common = ["--network", "mynet", "--drain", "200ms"];
    cluster.host(1).service_create(service, &[&common, args, &OFTEN].concat())
}

/// A file that makes a backend unhealthy while it exists.
fn illness(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.instance().dir.join(format!("{name}.sick"))
}

/// A server that always answers requests, and reports that it is sick to health checks.
fn server(cluster: &Cluster, service: &str, host: usize) -> anyhow::Result<Container> {
    let name = format!("{service}.{host}");
    let sick = illness(cluster, &name).to_string_lossy().into_owned();
    let place = cluster.host(host);
    let args = ["http", "--name", &name, "--host", place.name(), "--port", "80", "--sick", &sick];
    place.container(&name).service(service).testkit(&args)
}

/// Waits until every host's maps show this state of the backend.
fn stands(cluster: &Cluster, service: &str, name: &str, standing: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} is {standing}"), Duration::from_secs(20), || {
        let shown = cluster.host(1).overlay(&["service", "ps", service])?.stdout;
        let line = shown.lines().find(|line| line.contains(name)).unwrap_or_default();
        ensure!(line.contains(standing), "{shown}");
        Ok(())
    })?;
    cluster.settle()
}

fn answering(cluster: &Cluster, port: u16) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for host in cluster.hosts() {
        let answers = cluster.client().http_get_many(&host.port(port), 6)?;
        names.extend(answers.into_iter().map(|answer| answer.name));
    }
    Ok(names)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_backend_whose_http_check_fails_is_picked_by_nobody_until_it_passes() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "web", &["-p", "8201:80", "--health-http", ":80/health"])?;
    let replicas = [server(&cluster, "web", 2)?, server(&cluster, "web", 3)?];
    let asker = cluster.host(1).container("web-asker").network("mynet").idle()?;
    for name in ["web.2", "web.3"] {
        stands(&cluster, "web", name, "running")?;
    }
    assert_eq!(answering(&cluster, 8201)?, names(&["web.2", "web.3"]));
    let targets: Vec<_> = cluster.hosts().iter().map(|host| host.port(8201)).collect();
    let loads = [cluster.client().load(&targets)?, asker.load(&["web:80".to_owned()])?];

    let sick = illness(&cluster, "web.2");
    std::fs::write(&sick, "")?;
    stands(&cluster, "web", "web.2", "unhealthy")?;
    assert_eq!(answering(&cluster, 8201)?, names(&["web.3"]));
    let listed = asker.resolve("tasks.web")?.addresses;
    assert_eq!(listed, [IpAddr::V4(replicas[1].ip()?)], "names are not given out either");
    let shown = cluster.host(2).overlay(&["endpoint", "ls"])?.stdout;
    ensure!(shown.contains("unhealthy"), "{shown}");

    std::fs::remove_file(&sick)?;
    stands(&cluster, "web", "web.2", "running")?;
    assert_eq!(answering(&cluster, 8201)?, names(&["web.2", "web.3"]));
    for load in loads {
        load.load_report()?.all_answered()?;
    }
    Ok(())
}

#[test]
fn a_replica_takes_flows_when_its_first_check_passes() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    create(&cluster, "slow", &["-p", "8202:80", "--health-tcp", "80"])?;
    // It runs and does not listen; only the check waits for that.
    let late = cluster.host(2).start_run(&[
        "--service",
        "slow",
        "--name",
        "slow.2",
        "--no-wait-listen",
    ])?;
    let _ready = server(&cluster, "slow", 3)?;
    stands(&cluster, "slow", "slow.3", "running")?;
    assert_eq!(answering(&cluster, 8202)?, names(&["slow.3"]));
    stands(&cluster, "slow", "slow.2", "healthy")?;
    assert_eq!(answering(&cluster, 8202)?, names(&["slow.3"]));
    drop(late);
    Ok(())
}

#[test]
fn a_command_decides_in_the_backends_namespaces_and_can_be_given_up() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let sick = illness(&cluster, "cmd").to_string_lossy().into_owned();
    // Its own interface, not the host's, and a file.
    let own =
        format!("grep -q eth0 /proc/net/dev && ! grep -q ovl- /proc/net/dev && ! test -e {sick}");
    create(&cluster, "cmd", &["-p", "8203:80", "--health-cmd", &own])?;
    let _replicas = [server(&cluster, "cmd", 1)?, server(&cluster, "cmd", 2)?];
    for name in ["cmd.1", "cmd.2"] {
        stands(&cluster, "cmd", name, "running")?;
    }
    std::fs::write(&sick, "")?;
    for name in ["cmd.1", "cmd.2"] {
        stands(&cluster, "cmd", name, "unhealthy")?;
    }
    // No backend is left: connections are refused at once.
    cluster.client().cannot_connect(&cluster.host(3).port(8203))?;
    let inspected = cluster.host(1).overlay(&["service", "inspect", "cmd"])?.stdout;
    ensure!(inspected.contains("HealthCheck") && inspected.contains("unhealthy"), "{inspected}");
    cluster.host(1).overlay(&["service", "update", "--no-healthcheck", "cmd"])?;
    assert_eq!(answering(&cluster, 8203)?, names(&["cmd.1", "cmd.2"]));
    // A check that is added again while they run removes them only after it has failed.
    let again = ["--health-cmd", "true", "--health-interval", "200ms"];
    cluster.host(1).overlay(&[&["service", "update"], &again[..], &["cmd"]].concat())?;
    assert_eq!(answering(&cluster, 8203)?, names(&["cmd.1", "cmd.2"]));
    let fails = ["service", "update", "--health-cmd", "false", "cmd"];
    cluster.host(1).overlay(&fails)?;
    for name in ["cmd.1", "cmd.2"] {
        stands(&cluster, "cmd", name, "unhealthy")?;
    }
    Ok(())
}

#[test]
fn a_check_that_hangs_delays_no_other() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let hang = ["-p", "8204:80", "--health-cmd", "sleep 600", "--health-timeout", "30s"];
    let common = ["--network", "mynet", "--drain", "200ms"];
    cluster.host(1).service_create("hang", &[&common[..], &hang].concat())?;
    let _hanging: Vec<_> = (0..4)
        .map(|i| {
            let name = format!("hang.{i}");
            cluster.host(2).container(&name).service("hang").http(80)
        })
        .collect::<anyhow::Result<_>>()?;
    create(&cluster, "brisk", &["-p", "8205:80", "--health-tcp", "80"])?;
    let _brisk = server(&cluster, "brisk", 2)?;
    stands(&cluster, "brisk", "brisk.2", "running")?;
    stands(&cluster, "hang", "hang.0", "not yet healthy")?;
    assert_eq!(answering(&cluster, 8205)?, names(&["brisk.2"]));
    Ok(())
}

#[test]
fn checks_that_mean_nothing_are_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    for (args, words) in [
        (&["--health-tcp", "0"][..], &["0"][..]),
        (&["--health-tcp", "65536"], &["65536"]),
        (&["--health-http", "80/x"], &["80/x", ":PORT/PATH"]),
        (&["--health-http", ":0/x"], &["port"]),
        (&["--health-tcp", "80", "--health-cmd", "true"], &["cannot be used with"]),
        (&["--health-interval", "1s"], &["no health check"]),
        (&["--health-tcp", "80", "--health-interval", "1ms"], &["interval", "100"]),
        (&["--health-tcp", "80", "--health-timeout", "0s"], &["timeout"]),
        (&["--health-tcp", "80", "--health-retries", "0"], &["0"]),
        (&["--health-cmd", " "], &["command"]),
    ] {
        host.refuses(
            &[&["service", "create", "--network", "mynet"], args, &["x"]].concat(),
            words,
        )?;
    }
    Ok(())
}
