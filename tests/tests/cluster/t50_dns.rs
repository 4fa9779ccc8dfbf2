//! Names inside containers: 127.0.0.11.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Context as _;
use overlay_tests::{
    Cluster, Container, Options, Place as _, Shared, process::Process, testkit::Resolved,
};

/// A cluster with nodes that forward queries to a server outside.
struct Named {
    cluster: Cluster,
    asker: Container,
    _server: Process,
}

const NXDOMAIN: &str = "Non-Existent Domain";
const NOERROR: &str = "No Error";

static NAMED: Shared<Named> = Shared::new(|| {
    let cluster = Cluster::new(2, Options::default().every(&["--dns", "172.16.1.53"]))?;
    let server = cluster.outsider("dns", 53)?.serve(&[
        "dns-serve",
        "--listen=172.16.1.53:53",
        "--record=www.example.org=192.0.2.7",
        "--record=www.example.org=192.0.2.8",
        "--record=web=192.0.2.9",
    ])?;
    cluster.form()?;
    cluster.host(1).network_create("mynet", &[])?;
    cluster
        .host(1)
        .service_create("web", &["--network", "mynet", "-p", "8080:80", "--drain", "0s"])?;
    let asker = cluster.host(1).container("asker").network("mynet").idle()?;
    Ok(Named { cluster, asker, _server: server })
});

fn v4(container: &Container) -> anyhow::Result<IpAddr> {
    container.ip().map(IpAddr::V4)
}

fn vip(cluster: &Cluster, service: &str) -> anyhow::Result<IpAddr> {
    let state = cluster.host(1).state()?;
    let service = state.service(service).context("the service")?;
    Ok(service.networks[0].vip.context("a VIP")?.into())
}

#[test]
fn a_service_resolves_to_its_vip_in_any_case_over_udp_and_tcp() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let vip = vip(&named.cluster, "web")?;
    for args in [
        &["resolve", "web"][..],
        &["resolve", "WeB"],
        &["resolve", "web."],
        &["resolve", "web.mynet"],
        &["resolve", "web", "--tcp"],
    ] {
        let resolved: Resolved = named.asker.ask(args)?;
        assert_eq!(resolved.addresses, [vip], "{args:?}");
        assert!(resolved.ttl.is_some_and(|ttl| ttl < 600), "{resolved:?}");
    }
    Ok(())
}

#[test]
fn tasks_lists_the_backends_while_they_run() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let (h1, h2) = (named.cluster.host(1), named.cluster.host(2));
    let first = h1.container("web.1").service("web").http(80)?;
    let second = h2.container("web.2").service("web").http(80)?;
    let seen: BTreeSet<_> = named.asker.resolve("tasks.web")?.addresses.into_iter().collect();
    assert_eq!(seen, BTreeSet::from([v4(&first)?, v4(&second)?]));
    first.stop()?;
    assert_eq!(named.asker.resolve("tasks.web")?.addresses, [v4(&second)?]);
    // The VIP remains the service's address.
    assert_eq!(named.asker.resolve("web")?.addresses, [vip(&named.cluster, "web")?]);
    Ok(())
}

#[test]
fn containers_resolve_by_name_alias_and_network_on_every_host() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let host = named.cluster.host(2);
    let db = host.container("db").network("mynet").option("--alias", "database").idle()?;
    for name in ["db", "database", "db.mynet", "DATABASE"] {
        assert_eq!(named.asker.resolve(name)?.addresses, [v4(&db)?], "{name}");
    }
    assert_eq!(db.resolve("asker")?.addresses, [v4(&named.asker)?]);
    db.stop()?;
    assert_eq!(named.asker.resolve("database")?.code, NXDOMAIN);
    Ok(())
}

#[test]
fn an_address_resolves_to_its_name() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let db = named.cluster.host(2).container("reverse").network("mynet").idle()?;
    let resolved: Resolved =
        named.asker.ask(&["resolve", &db.ip()?.to_string(), "--kind", "PTR"])?;
    let first = resolved.names.first().context("a name")?;
    assert!(first.starts_with("reverse"), "{resolved:?}");
    Ok(())
}

#[test]
fn a_known_name_without_an_ipv6_address_is_empty_and_not_forwarded() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let resolved: Resolved = named.asker.ask(&["resolve", "web", "--kind", "AAAA"])?;
    assert_eq!((resolved.code.as_str(), resolved.addresses.len()), (NOERROR, 0));
    // The server outside has another `web`: ours comes first.
    assert_eq!(named.asker.resolve("web")?.addresses, [vip(&named.cluster, "web")?]);
    Ok(())
}

#[test]
fn other_names_are_forwarded_and_a_nonexistent_one_stays_nonexistent() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let expected: BTreeSet<IpAddr> =
        [7, 8].map(|last| Ipv4Addr::new(192, 0, 2, last).into()).into();
    for args in [&["resolve", "www.example.org"][..], &["resolve", "www.example.org", "--tcp"]] {
        let resolved: Resolved = named.asker.ask(args)?;
        assert_eq!(resolved.addresses.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    assert_eq!(named.asker.resolve("nowhere.example.org")?.code, NXDOMAIN);
    Ok(())
}

#[test]
fn names_of_one_network_mean_nothing_on_another() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    named.cluster.host(1).network_create("elsewhere", &[])?;
    let stranger = named.cluster.host(1).container("stranger").network("elsewhere").idle()?;
    for name in ["asker", "tasks.web", "asker.mynet"] {
        assert_eq!(stranger.resolve(name)?.code, NXDOMAIN, "{name}");
    }
    // `web` is no name of this network, so it is the one outside.
    assert_eq!(stranger.resolve("web")?.addresses, [IpAddr::from([192, 0, 2, 9])]);
    assert_eq!(named.asker.resolve("stranger")?.code, NXDOMAIN);
    Ok(())
}

#[test]
fn programs_resolve_through_the_files_of_the_container() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let web = named.cluster.host(2).container("page").network("mynet").http(80)?;
    assert_eq!(named.asker.http_get("page:80")?.name, "page");
    let shown = web.exec("cat", &["/etc/resolv.conf", "/etc/hosts"])?.success()?.stdout;
    assert!(shown.contains("nameserver 127.0.0.11") && shown.contains("page"), "{shown}");
    // The host's own file is another.
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert!(!host.contains("127.0.0.11"), "{host}");
    Ok(())
}

#[test]
fn a_container_on_two_networks_resolves_the_names_of_both() -> anyhow::Result<()> {
    let named = NAMED.turn()?;
    let h1 = named.cluster.host(1);
    h1.network_create("second", &[])?;
    let there = named.cluster.host(2).container("there").network("second").idle()?;
    let both = h1.container("both").network("mynet").network("second").idle()?;
    assert_eq!(both.resolve("there")?.addresses, [v4(&there)?]);
    assert_eq!(both.resolve("asker")?.addresses, [v4(&named.asker)?]);
    Ok(())
}
