//! Steps 6 to 8: a large transfer, and changes under load.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{
    report::{Report, expect},
    services::Services,
};
use crate::{
    cluster::Cluster,
    place::{Place as _, Running},
    testkit::LoadReport,
    wait::check_interrupted,
};

/// The time that a load runs before and after a change.
const SETTLED: Duration = Duration::from_secs(1);

/// 1 GiB over one TCP connection between containers of two hosts.
pub fn transfer(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    report.step("1 GiB between containers of two hosts");
    report.check("the SHA-256 of what arrives is that of what was sent", || {
        let receiver = cluster.host(1).container("receiver").network("mynet").bulk_recv(9000)?;
        let sender = cluster.host(2).container("sender").network("mynet").idle()?;
        let sent = sender.bulk_send("receiver:9000", 1 << 30)?;
        sender.stop()?;
        receiver.stop()?;
        let gigabits = sent.bytes as f64 * 8.0 / sent.seconds / 1e9;
        Ok(format!(
            "{} in {:.1} s ({gigabits:.1} Gbit/s, with hashing at both ends)",
            sent.sent_sha256, sent.seconds
        ))
    })?;
    Ok(())
}

/// hello to three replicas and back to one.
pub fn scale(
    cluster: &Cluster,
    services: &mut Services,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.step("hello scaled to three and back to one under load");
    let load = Load::start(cluster, services)?;
    pause()?;
    let third = report.need("hello.3 runs on h1", || {
        let third = cluster.host(1).container("hello.3").service("hello").http(8080)?;
        let detail = format!("address {}", third.ip()?);
        Ok((third, detail))
    })?;
    pause()?;
    let replicas = services.replicas.entry("hello").or_default();
    for replica in std::mem::take(replicas) {
        let what = format!("{} is drained and stopped", replica.name());
        report.check(&what, || replica.stop().map(|_| String::new()))?;
    }
    replicas.push(third);
    pause()?;
    load.check(report, &["hello.1", "hello.2", "hello.3"])?;
    report.check("tasks.hello lists the one that is left", || {
        let one = services.of("hello").first().context("hello.3")?;
        let seen = services.asker.resolve("tasks.hello")?.addresses;
        expect("addresses", vec![std::net::IpAddr::V4(one.ip()?)], seen)?;
        Ok(String::new())
    })?;
    // Two again, for what follows.
    let replicas = services.replicas.entry("hello").or_default();
    replicas.push(report.need("hello.4 runs on h3", || {
        let fourth = cluster.host(3).container("hello.4").service("hello").http(8080)?;
        Ok((fourth, String::new()))
    })?);
    Ok(())
}

/// The daemons of a host with a backend, of one without and of the manager.
pub fn agents_killed(
    cluster: &Cluster,
    services: &Services,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.step("Agents killed with -9 and restarted under load");
    let load = Load::start(cluster, services)?;
    pause()?;
    for host in [cluster.host(3), cluster.host(2), cluster.host(1)] {
        report.check(&format!("kill -9 of the daemon of {}", host.name()), || {
            host.kill_agent()?;
            Ok(String::new())
        })?;
        pause()?;
        report.check(
            &format!("the daemon of {} is back and has caught up", host.name()),
            || {
                host.start_agent()?;
                Ok(String::new())
            },
        )?;
        pause()?;
    }
    load.check(report, &["hello.3", "hello.4"])
}

fn pause() -> anyhow::Result<()> {
    std::thread::sleep(SETTLED);
    check_interrupted()
}

/// Requests from outside through every host, and from a container through the VIP.
struct Load {
    outside: Running,
    inside: Running,
}

impl Load {
    fn start(cluster: &Cluster, services: &Services) -> anyhow::Result<Self> {
        let targets: Vec<_> = cluster.hosts().iter().map(|host| host.port(8080)).collect();
        Ok(Self {
            outside: cluster.client().load(&targets)?,
            inside: services.asker.load(&["hello:8080".to_owned()])?,
        })
    }

    fn check(self, report: &mut Report, replicas: &[&str]) -> anyhow::Result<()> {
        let loads = [
            ("the client, through every host, lost no request", self.outside),
            ("the container, through the VIP, lost no request", self.inside),
        ];
        for (what, load) in loads {
            report.check(what, || no_request_lost(&load.load_report()?, replicas))?;
        }
        Ok(())
    }
}

fn no_request_lost(load: &LoadReport, replicas: &[&str]) -> anyhow::Result<String> {
    let seen = format!(
        "{} requests over {} connections, answered by {:?}",
        load.requests, load.connections, load.answered_by
    );
    ensure!(
        load.failures() == 0,
        "expected: no failed request\nseen: {seen}, failed: {:?}, the first: {:?}",
        load.failed,
        load.examples
    );
    for replica in replicas {
        ensure!(
            load.answered_by.contains_key(*replica),
            "expected: a share for {replica}\nseen: {seen}"
        );
    }
    Ok(seen)
}
