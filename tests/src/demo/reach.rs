//! Step 4: reachability of all services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, ensure};

use super::{
    report::{Report, expect},
    services::{SERVICES, Services},
};
use crate::{cluster::Cluster, place::Place, testkit::Answer};

/// Requests from outside, to every host, with or without a backend.
pub fn from_client(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    report.step("Published ports, from a client outside the cluster");
    let client = cluster.client();
    let address = IpAddr::V4(client.address());
    for host in cluster.hosts() {
        for (service, port) in SERVICES {
            let target = host.port(port);
            let what = format!("{service} answers on {} {target}", host.name());
            match service {
                "etcd" => report.check(&what, || etcd_is_healthy(client, &target))?,
                "hello" => report.check(&format!("{what} and saw {address}"), || {
                    saw(address, &client.http_get(&target)?)
                })?,
                _ => report.check(&format!("{what} and saw {address}"), || {
                    saw(address, &client.tcp_get(&target)?)
                })?,
            };
        }
    }
    // hello has no backend on the first host, so this is the longest path.
    let target = cluster.host(1).port(8080);
    report.check("both replicas of hello get a share of 40 connections", || {
        shares(&client.http_get_many(&target, 40)?, 2)
    })?;
    let target = cluster.host(2).port(3306);
    report.check("the three replicas of mysql-galera get a share of 60 connections", || {
        shares(&client.tcp_get_many(&target, 60)?, 3)
    })?;
    Ok(())
}

fn saw(address: IpAddr, answer: &Answer) -> anyhow::Result<String> {
    expect("the client address that the responder saw", address, answer.client)?;
    Ok(format!("answered by {} on {}", answer.name, answer.host))
}

/// Every replica must get at least half of an equal share.
fn shares(answers: &[Answer], replicas: usize) -> anyhow::Result<String> {
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in answers {
        *shares.entry(&answer.name).or_default() += 1;
    }
    let least = answers.len() / replicas / 2;
    let good = shares.len() == replicas && shares.values().all(|share| *share >= least);
    ensure!(good, "expected: {replicas} replicas with at least {least} each\nseen: {shares:?}");
    Ok(format!("{shares:?}"))
}

/// etcdctl's own health check, which reads through consensus.
fn etcd_is_healthy<P: Place>(place: &P, target: &str) -> anyhow::Result<String> {
    etcdctl(place, target, &["endpoint", "health"])?;
    Ok(String::new())
}

fn etcdctl<P: Place>(place: &P, target: &str, args: &[&str]) -> anyhow::Result<String> {
    let endpoints = format!("--endpoints=http://{target}");
    let limits = ["--dial-timeout=5s", "--command-timeout=8s"];
    let command = [&["ETCDCTL_API=3", "etcdctl", &endpoints], &limits[..], args].concat();
    Ok(place.exec("env", &command)?.success()?.stdout)
}

/// Programs of the hosts themselves.
pub fn from_hosts(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    report.step("Published ports, from the hosts themselves");
    for host in cluster.hosts() {
        let name = host.name();
        report.check(&format!("{name} reaches hello at localhost:8080"), || {
            let answer = host.http_get("localhost:8080")?;
            Ok(format!("answered by {} on {}", answer.name, answer.host))
        })?;
        let own = host.port(8080);
        report.check(&format!("{name} reaches hello at its own {own}"), || {
            let answer = host.http_get(&own)?;
            Ok(format!("answered by {} on {}", answer.name, answer.host))
        })?;
    }
    let (first, last) = (cluster.host(1), cluster.hosts().last().context("no hosts")?);
    let target = last.port(3306);
    report.check(
        &format!("{} reaches mysql-galera at another host's {target}", first.name()),
        || saw(IpAddr::V4(first.address()), &first.tcp_get(&target)?),
    )?;
    Ok(())
}

/// By name, inside the network.
pub fn from_container(services: &Services, report: &mut Report) -> anyhow::Result<()> {
    report.step("Names and VIPs, from a container on mynet");
    let asker = &services.asker;
    for (service, _) in SERVICES {
        let vip = services.vips.get(service).copied().map(IpAddr::V4);
        report.check(&format!("{service} resolves to its VIP"), || {
            let resolved = asker.resolve(service)?;
            expect("addresses", vip.into_iter().collect::<Vec<_>>(), resolved.addresses)?;
            Ok(format!("{vip:?}"))
        })?;
    }
    report.check("hello:8080 answers and saw the container's address", || {
        saw(IpAddr::V4(asker.ip()?), &asker.http_get("hello:8080")?)
    })?;
    report.check("mysql-galera:3306 shares connections among its replicas", || {
        shares(&asker.tcp_get_many("mysql-galera:3306", 30)?, 3)
    })?;
    report.check("etcd: put and get with etcdctl at etcd:2379", || {
        etcdctl(asker, "etcd:2379", &["put", "overlay/greeting", "hello from mynet"])?;
        let got = etcdctl(asker, "etcd:2379", &["get", "--print-value-only", "overlay/greeting"])?;
        expect("the value", "hello from mynet", got.trim_end())?;
        Ok(String::new())
    })?;
    report.check("tasks.hello lists both replicas", || {
        let seen: BTreeSet<_> = asker.resolve("tasks.hello")?.addresses.into_iter().collect();
        let replicas = services.of("hello").iter();
        let expected: BTreeSet<_> =
            replicas.map(|r| r.ip().map(IpAddr::V4)).collect::<anyhow::Result<_>>()?;
        expect("addresses", &expected, &seen)?;
        Ok(format!("{seen:?}"))
    })?;
    Ok(())
}
