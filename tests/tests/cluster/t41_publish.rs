//! Published ports: on every host or on hosts with a backend, in ranges, or chosen by the cluster.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, ensure};
use overlay::model::Port;
use overlay_tests::{Cluster, Host, Options, Place as _, Shared, eventually};

/// Each test has its own services on the network `mynet`.
static CLUSTER: Shared = Shared::new(|| {
    let cluster = Cluster::formed(3, Options::default())?;
    cluster.host(1).network_create("mynet", &[])?;
    Ok(cluster)
});

fn create(cluster: &Cluster, service: &str, args: &[&str]) -> anyhow::Result<()> {
    let common = ["--network", "mynet", "--drain", "200ms"];
    cluster.host(1).service_create(service, &[&common, args].concat())
}

fn names(cluster: &Cluster, target: &str) -> anyhow::Result<BTreeSet<String>> {
    let answers = cluster.client().http_get_many(target, 8)?;
    Ok(answers.into_iter().map(|answer| answer.name).collect())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ports(host: &Host, service: &str) -> anyhow::Result<Vec<Port>> {
    Ok(host.state()?.service(service).context("the service")?.ports.clone())
}

#[test]
fn a_port_of_mode_host_answers_where_a_backend_runs_and_by_it_alone() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2, h3) = (cluster.host(1), cluster.host(2), cluster.host(3));
    create(&cluster, "local", &["--publish", "published=8301,target=80,protocol=tcp,mode=host"])?;
    let first = h1.container("local.1").service("local").http(80)?;
    let _second = [
        h2.container("local.2a").service("local").http(80)?,
        h2.container("local.2b").service("local").http(80)?,
    ];
    assert_eq!(names(&cluster, &h1.port(8301))?, set(&["local.1"]));
    assert_eq!(names(&cluster, &h2.port(8301))?, set(&["local.2a", "local.2b"]));
    cluster.client().cannot_connect(&h3.port(8301))?;
    // Inside, the VIP leads to all of them.
    let asker = h3.container("local-asker").network("mynet").idle()?;
    let inside: BTreeSet<_> =
        asker.http_get_many("local:80", 12)?.into_iter().map(|a| a.name).collect();
    assert_eq!(inside, set(&["local.1", "local.2a", "local.2b"]));
    first.stop()?;
    cluster.client().cannot_connect(&h1.port(8301))?;
    // Another service may have the port on a host without a backend of this one, and on no other
    // host.
    create(&cluster, "other", &["--publish", "published=8301,target=80,mode=host"])?;
    let _other = h3.container("other.3").service("other").http(80)?;
    assert_eq!(names(&cluster, &h3.port(8301))?, set(&["other.3"]));
    let refused = h2.start_run(&["--service", "other", "--name", "other.2"])?.wait(PATIENCE)?;
    ensure!(!refused.status.success(), "{}", refused.describe());
    ensure!(refused.describe().contains("8301/tcp"), "{}", refused.describe());
    Ok(())
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn dnsrr_goes_with_ports_of_mode_host_and_with_no_others() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    let dnsrr = ["--network", "mynet", "--endpoint-mode", "dnsrr"];
    let ingress = [&["service", "create"], &dnsrr[..], &["-p", "8302:80", "robin"]].concat();
    h1.refuses(&ingress, &["dnsrr", "mode=host"])?;
    let host = ["--endpoint-mode", "dnsrr", "-p", "published=8302,target=80,mode=host"];
    create(&cluster, "robin", &host)?;
    let add = ["service", "update", "--publish-add", "8303:80", "robin"];
    h1.refuses(&add, &["dnsrr", "mode=host"])?;
    let backend = cluster.host(2).container("robin.2").service("robin").http(80)?;
    assert_eq!(names(&cluster, &cluster.host(2).port(8302))?, set(&["robin.2"]));
    cluster.client().cannot_connect(&h1.port(8302))?;
    let asker = h1.container("robin-asker").network("mynet").idle()?;
    assert_eq!(asker.resolve("robin")?.addresses, [std::net::IpAddr::V4(backend.ip()?)]);
    Ok(())
}

#[test]
fn every_port_of_a_range_leads_to_its_own() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    create(&cluster, "range", &["-p", "8310-8312:80-82"])?;
    let backend = cluster.host(2).container("range.2").service("range").http(81)?;
    assert_eq!(names(&cluster, &h1.port(8311))?, set(&["range.2"]));
    for closed in [8310, 8312, 8313] {
        cluster.client().cannot_connect(&h1.port(closed))?;
    }
    drop(backend);
    Ok(())
}

#[test]
fn ports_that_are_left_open_are_chosen_and_those_given_up_are_free_again() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let h1 = cluster.host(1);
    create(&cluster, "chosen", &["-p", "80", "-p", "81", "-p", "80/udp"])?;
    let chosen = ports(h1, "chosen")?;
    let numbers: Vec<u16> = chosen.iter().filter_map(|port| port.published).collect();
    ensure!(numbers.iter().all(|n| (30_000..=32_767).contains(n)), "{chosen:?}");
    ensure!(numbers.len() == 3 && numbers[0] != numbers[1], "{chosen:?}");
    let _backend = cluster.host(3).container("chosen.3").service("chosen").http(80)?;
    assert_eq!(names(&cluster, &h1.port(numbers[0]))?, set(&["chosen.3"]));
    // A port taken for one protocol is free for another protocol, and not for another service.
    let taken = format!("{}:80", numbers[0]);
    let another = ["service", "create", "--network", "mynet", "-p", &taken, "another"];
    h1.refuses(&another, &["published by service chosen"])?;
    create(&cluster, "another", &["-p", &format!("{}:7/udp", numbers[1])])?;
    h1.overlay(&["service", "update", "--publish-rm", &numbers[0].to_string(), "chosen"])?;
    create(&cluster, "heir", &["-p", &taken])?;
    let _heir = h1.container("heir.1").service("heir").http(80)?;
    assert_eq!(names(&cluster, &cluster.host(2).port(numbers[0]))?, set(&["heir.1"]));
    Ok(())
}

#[test]
fn ports_that_are_none_are_refused() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let host = cluster.host(1);
    for (port, word) in [
        ("0:80", "port 0"),
        ("80:0", "port 0"),
        ("65536:80", "65536"),
        ("80:65536", "65536"),
        ("8300-8301:80", "differ in length"),
        ("8301-8300:80-81", "backwards"),
        ("published=8300,target=80,mode=both", "neither ingress nor host"),
        ("published=8300", "target= is missing"),
        ("published=8300,target=80,protocol=icmp", "icmp"),
        ("published=8300,target=80,color=red", "color"),
        ("2377:80", "the managers'"),
        ("4789:80/udp", "VXLAN"),
    ] {
        host.refuses(&["service", "create", "--network", "mynet", "-p", port, "x"], &[word])?;
    }
    let twice = ["service", "create", "--network", "mynet", "-p", "8300:80", "-p", "8300:81", "x"];
    host.refuses(&twice, &["twice"]).map(drop)
}

#[test]
fn a_port_that_a_program_of_the_host_listens_on_is_told_by_its_status() -> anyhow::Result<()> {
    let cluster = CLUSTER.turn()?;
    let (h1, h2) = (cluster.host(1), cluster.host(2));
    let mut program = h2.serve(&["http", "--name", "program", "--port", "8320"])?;
    create(&cluster, "shadow", &["-p", "8320:80"])?;
    let _backend = h1.container("shadow.1").service("shadow").http(80)?;
    eventually("h2 says so", PATIENCE, || {
        let error = h2.status()?.last_error.unwrap_or_default();
        ensure!(error.contains("8320/tcp"), "{error:?}");
        Ok(())
    })?;
    // The published port goes first, as on every other host.
    assert_eq!(names(&cluster, &h2.port(8320))?, set(&["shadow.1"]));
    ensure!(h1.status()?.last_error.is_none(), "{:?}", h1.status()?);
    program.stop()?;
    eventually("h2 says so no more", PATIENCE, || {
        let error = h2.status()?.last_error;
        ensure!(error.is_none(), "{error:?}");
        Ok(())
    })
}
