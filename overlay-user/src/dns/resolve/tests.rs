use std::net::Ipv6Addr;

use super::*;
use crate::{
    dns::testing::{Cluster, id, question},
    model::{Availability, Driver, EndpointState, NodeState},
};

/// `client` is on mynet first and on team.net second; `closed` is only on the internal network.
fn cluster() -> Cluster {
    Cluster::default()
        .node("n1", NodeState::Ready, Availability::Active)
        .node("n2", NodeState::Ready, Availability::Active)
        .node("down", NodeState::Down, Availability::Active)
        .node("drained", NodeState::Ready, Availability::Drain)
        .network("mynet", "10.0.1.0/24")
        .network("team.net", "10.0.2.0/24")
        .network("other", "10.0.3.0/24")
        .network("secret", "10.0.4.0/24")
        .edit_network("secret", |n| n.internal = true)
        .network("bridge", "172.17.0.0/16")
        .edit_network("bridge", |n| n.driver = Driver::Bridge)
        .service("Hello", "mynet", Some("10.0.1.2"))
        .service("rr", "mynet", None)
        .service("idle", "mynet", None)
        .service("hidden", "other", Some("10.0.3.2"))
        .service("db", "team.net", Some("10.0.2.2"))
        .service("client-ports", "mynet", None)
        .edit_service("client-ports", |s| {
            s.name = "client".to_owned();
            s.owner = Some(id("client@mynet"));
        })
        .endpoint("client", "mynet", "n1", "10.0.1.10")
        .endpoint("client", "team.net", "n1", "10.0.2.10")
        .endpoint("hello.1", "mynet", "n1", "10.0.1.11")
        .backend("hello.1@mynet", "Hello", EndpointState::Running)
        .endpoint("hello.2", "mynet", "n2", "10.0.1.12")
        .backend("hello.2@mynet", "Hello", EndpointState::Running)
        .endpoint("hello.3", "mynet", "n2", "10.0.1.13")
        .backend("hello.3@mynet", "Hello", EndpointState::Draining)
        .endpoint("hello.4", "mynet", "n2", "10.0.1.14")
        .backend("hello.4@mynet", "Hello", EndpointState::Starting)
        .endpoint("hello.5", "mynet", "down", "10.0.1.15")
        .backend("hello.5@mynet", "Hello", EndpointState::Running)
        .endpoint("hello.6", "mynet", "drained", "10.0.1.16")
        .backend("hello.6@mynet", "Hello", EndpointState::Running)
        .endpoint("rr.1", "mynet", "n1", "10.0.1.21")
        .backend("rr.1@mynet", "rr", EndpointState::Running)
        .endpoint("rr.2", "mynet", "n2", "10.0.1.22")
        .backend("rr.2@mynet", "rr", EndpointState::Running)
        .endpoint("idle.1", "mynet", "n1", "10.0.1.23")
        .backend("idle.1@mynet", "idle", EndpointState::Starting)
        .endpoint("db", "mynet", "n2", "10.0.1.30")
        .endpoint("my_app", "mynet", "n2", "10.0.1.31")
        .edit("my_app@mynet", |e| e.aliases = vec!["App".to_owned(), "shared".to_owned()])
        .endpoint("app2", "mynet", "n1", "10.0.1.32")
        .edit("app2@mynet", |e| e.aliases = vec!["shared".to_owned()])
        .endpoint("app3", "mynet", "down", "10.0.1.33")
        .edit("app3@mynet", |e| e.aliases = vec!["shared".to_owned()])
        .endpoint("mate", "team.net", "n2", "10.0.2.40")
        .edit("mate@team.net", |e| e.aliases = vec!["app".to_owned()])
        .endpoint("stranger", "other", "n1", "10.0.3.50")
        .endpoint("closed", "secret", "n1", "10.0.4.60")
        .endpoint("here", "bridge", "n1", "172.17.0.2")
        .endpoint("neighbour", "bridge", "n1", "172.17.0.3")
        .endpoint("there", "bridge", "n2", "172.17.0.2")
}

fn ask(container: &str, name: &str, kind: RecordType) -> Answer {
    resolve(&cluster().directory(), &id(container), &question(name, kind))
}

fn a(name: &str) -> Answer {
    ask("client", name, RecordType::A)
}

fn ips(texts: &[&str]) -> Answer {
    Answer::Addresses(texts.iter().map(|t| t.parse().expect("an address")).collect())
}

#[test]
fn names_resolve_on_the_containers_networks() {
    for (name, expected) in [
        ("hello.", ips(&["10.0.1.2"])),
        ("HELLO.", ips(&["10.0.1.2"])),
        ("hello", ips(&["10.0.1.2"])),
        ("hello.mynet.", ips(&["10.0.1.2"])),
        ("Hello.MyNet.", ips(&["10.0.1.2"])),
        ("rr.", ips(&["10.0.1.21", "10.0.1.22"])),
        ("rr.mynet.", ips(&["10.0.1.21", "10.0.1.22"])),
        ("tasks.hello.", ips(&["10.0.1.11", "10.0.1.12"])),
        ("Tasks.Hello.mynet.", ips(&["10.0.1.11", "10.0.1.12"])),
        ("tasks.rr.", ips(&["10.0.1.21", "10.0.1.22"])),
        ("hello.1.", ips(&["10.0.1.11"])),
        ("hello.1.mynet.", ips(&["10.0.1.11"])),
        ("my_app.", ips(&["10.0.1.31"])),
        ("app.", ips(&["10.0.1.31"])),
        ("app.team.net.", ips(&["10.0.2.40"])),
        ("mate.", ips(&["10.0.2.40"])),
        ("mate.team.net.", ips(&["10.0.2.40"])),
        ("db.team.net.", ips(&["10.0.2.2"])),
    ] {
        assert_eq!(a(name), expected, "{name}");
    }
}

#[test]
fn a_service_wins_over_a_container_of_the_same_name_on_whichever_network() {
    assert_eq!(a("db."), ips(&["10.0.2.2"]));
    assert_eq!(a("db.mynet."), ips(&["10.0.1.30"]), "on this network only the container is db");
}

#[test]
fn a_containers_own_name_resolves_even_while_it_drains() {
    assert_eq!(
        a("client."),
        ips(&["10.0.1.10"]),
        "its first network, not the service of its ports"
    );
    assert_eq!(a("client.team.net."), ips(&["10.0.2.10"]));
    assert_eq!(ask("hello.3", "hello.3.", RecordType::A), ips(&["10.0.1.13"]));
    assert_eq!(ask("hello.5", "hello.5.", RecordType::A), ips(&["10.0.1.15"]));
}

#[test]
fn a_draining_container_is_found_by_no_other() {
    assert_eq!(a("hello.3."), Answer::NoData);
}

#[test]
fn a_shared_alias_gives_those_on_nodes_that_are_up_and_the_others_only_when_alone() {
    assert_eq!(a("shared."), ips(&["10.0.1.32", "10.0.1.31"]));
    assert_eq!(a("app3."), ips(&["10.0.1.33"]));
}

#[test]
fn the_alias_stays_when_one_of_two_generations_goes() {
    let mut cluster = cluster();
    cluster.state.endpoints.remove(&id("app2@mynet"));
    let query = question("shared.", RecordType::A);
    assert_eq!(resolve(&cluster.directory(), &id("client"), &query), ips(&["10.0.1.31"]));
}

#[test]
fn a_container_answers_to_the_beginning_of_its_id() {
    let container = id("0abcdefghijk1mnopqrstuvwx");
    let cluster = cluster().edit("mate@team.net", |e| e.container = container);
    let query = question("0ABCDEFGHIJK.", RecordType::A);
    assert_eq!(resolve(&cluster.directory(), &id("client"), &query), ips(&["10.0.2.40"]));
}

#[test]
fn a_known_name_without_such_a_record_is_empty_and_never_forwarded() {
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::HTTPS] {
        for name in ["hello.", "tasks.hello.", "rr.mynet.", "mate.", "10.1.0.10.in-addr.arpa."] {
            assert_eq!(ask("client", name, kind), Answer::NoData, "{name} {kind}");
        }
    }
    assert_eq!(ask("client", "hello.", RecordType::ANY), ips(&["10.0.1.2"]));
}

/// The cluster with mynet dual-stack: fd00:1::X beside 10.0.1.X.
fn dual_stack() -> Cluster {
    let mut cluster = cluster().edit_network("mynet", |n| {
        n.ipv6 = Some(crate::model::NetworkIpv6 {
            subnet: "fd00:1::/64".parse().expect("a subnet"),
            gateway: "fd00:1::1".parse().expect("an address"),
            next_address: "fd00:1::1".parse().expect("an address"),
        });
    });
    for endpoint in cluster.state.endpoints.values_mut().filter(|e| e.network == id("mynet")) {
        let [.., last] = endpoint.ip.octets();
        endpoint.ip6 = Some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into()));
    }
    cluster.edit_service("Hello", |s| s.networks[0].vip6 = "fd00:1::2".parse().ok())
}

#[test]
fn names_on_a_dual_stack_network_have_ipv6_addresses_too() {
    let directory = dual_stack().directory();
    let ask = |name: &str, kind| resolve(&directory, &id("client"), &question(name, kind));
    let ip6 = |texts: &[&str]| {
        Answer::Addresses6(texts.iter().map(|t| t.parse().expect("an address")).collect())
    };
    let aaaa = RecordType::AAAA;
    assert_eq!(ask("my_app.", aaaa), ip6(&["fd00:1::1f"]));
    assert_eq!(ask("tasks.hello.mynet.", aaaa), ip6(&["fd00:1::b", "fd00:1::c"]));
    assert_eq!(ask("rr.", aaaa), ip6(&["fd00:1::15", "fd00:1::16"]), "dnsrr");
    assert_eq!(ask("hello.", aaaa), ip6(&["fd00:1::2"]), "the VIP");
    assert_eq!(ask("hello.mynet.", aaaa), ip6(&["fd00:1::2"]));
    assert_eq!(ask("hello.", RecordType::A), ips(&["10.0.1.2"]));
    assert_eq!(ask("my_app.", RecordType::A), ips(&["10.0.1.31"]));
    assert_eq!(ask("mate.", aaaa), Answer::NoData, "on a network of IPv4 alone");
    assert_eq!(ask("nothing.", aaaa), Answer::Forward);
}

#[test]
fn a_vip_of_ipv4_alone_is_not_resolved_to_ipv6_addresses_of_backends() {
    let cluster = dual_stack().edit_service("Hello", |s| s.networks[0].vip6 = None);
    let query = question("hello.", RecordType::AAAA);
    assert_eq!(resolve(&cluster.directory(), &id("client"), &query), Answer::NoData);
}

#[test]
fn ipv6_addresses_have_names() {
    let directory = dual_stack().directory();
    let ptr = |address: &str| {
        let address: std::net::IpAddr = address.parse().expect("an address");
        let query = Query::query(Name::from(address), RecordType::PTR);
        resolve(&directory, &id("client"), &query)
    };
    assert_eq!(ptr("fd00:1::b"), Answer::Name("hello.1.mynet".to_owned()));
    assert_eq!(ptr("fd00:1::2"), Answer::Name("Hello.mynet".to_owned()), "a VIP");
    assert_eq!(ptr("fd00:1::77"), Answer::NameError, "the subnet is ours alone");
    assert_eq!(ptr("fd00:2::b"), Answer::Forward);
    let short = resolve(&directory, &id("client"), &question("1.ip6.arpa.", RecordType::PTR));
    assert_eq!(short, Answer::Forward);
}

#[test]
fn a_service_without_a_running_backend_is_known_and_empty() {
    assert_eq!(a("idle."), Answer::NoData);
    assert_eq!(a("tasks.idle."), Answer::NoData);
}

#[test]
fn tasks_of_an_unknown_service_do_not_exist_and_are_not_forwarded() {
    for name in ["tasks.nothing.", "tasks.hidden.", "tasks.nothing.mynet.", "tasks.x.team.net."] {
        assert_eq!(a(name), Answer::NameError, "{name}");
    }
}

#[test]
fn everything_else_is_forwarded() {
    for name in [
        "unknown.",
        "hidden.",
        "stranger.",
        "hidden.other.",
        "stranger.other.",
        "closed.secret.",
        "example.org.",
        "hello.example.org.",
        "unknown.mynet.",
        "mynet.",
        "tasks.",
        "team.net.",
        "tasks.example.org.",
        "xmynet.",
        "hellomynet.",
        ".",
        "hel\\.lo.",
        "hello\\.mynet.",
    ] {
        assert_eq!(a(name), Answer::Forward, "{name}");
    }
    let mut chaos = question("hello.", RecordType::TXT);
    chaos.set_query_class(DNSClass::CH);
    let directory = cluster().directory();
    assert_eq!(resolve(&directory, &id("client"), &chaos), Answer::Forward);
}

#[test]
fn addresses_of_the_containers_networks_have_names() {
    for (name, expected) in [
        ("2.1.0.10.in-addr.arpa.", Answer::Name("Hello.mynet".to_owned())),
        ("11.1.0.10.in-addr.arpa.", Answer::Name("hello.1.mynet".to_owned())),
        ("31.1.0.10.IN-ADDR.ARPA.", Answer::Name("my_app.mynet".to_owned())),
        ("40.2.0.10.in-addr.arpa.", Answer::Name("mate.team.net".to_owned())),
        ("99.1.0.10.in-addr.arpa.", Answer::NameError),
        ("50.3.0.10.in-addr.arpa.", Answer::Forward),
        ("1.1.1.1.in-addr.arpa.", Answer::Forward),
        ("1.0.10.in-addr.arpa.", Answer::Forward),
        ("2.1.0.256.in-addr.arpa.", Answer::Forward),
        ("b._dns-sd._udp.2.1.0.10.in-addr.arpa.", Answer::Forward),
    ] {
        assert_eq!(ask("client", name, RecordType::PTR), expected, "{name}");
    }
}

#[test]
fn a_node_local_network_shows_only_the_own_nodes_containers() {
    let ask = |container, name, kind| ask(container, name, kind);
    assert_eq!(ask("here", "neighbour.", RecordType::A), ips(&["172.17.0.3"]));
    assert_eq!(ask("there", "neighbour.", RecordType::A), Answer::Forward);
    let reverse = "2.0.17.172.in-addr.arpa.";
    assert_eq!(ask("here", reverse, RecordType::PTR), Answer::Name("here.bridge".to_owned()));
    assert_eq!(ask("there", reverse, RecordType::PTR), Answer::Name("there.bridge".to_owned()));
}

#[test]
fn a_container_with_internal_networks_alone_asks_nobody_outside() {
    assert_eq!(ask("closed", "closed.", RecordType::A), ips(&["10.0.4.60"]));
    assert_eq!(ask("closed", "example.org.", RecordType::A), Answer::Refused);
    let mixed = cluster().endpoint("closed", "mynet", "n1", "10.0.1.60");
    let query = question("example.org.", RecordType::A);
    assert_eq!(resolve(&mixed.directory(), &id("closed"), &query), Answer::Forward);
}

#[test]
fn zone_transfers_are_refused_and_an_unknown_container_has_to_wait() {
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(ask("client", "example.org.", kind), Answer::Refused);
    }
    assert_eq!(ask("nobody", "hello.", RecordType::A), Answer::NotReady);
}

#[test]
fn a_vip_service_without_a_vip_on_the_network_gives_its_backends() {
    let cluster = cluster().edit_service("Hello", |s| s.networks[0].vip = None);
    let query = question("hello.", RecordType::A);
    let expected = ips(&["10.0.1.11", "10.0.1.12"]);
    assert_eq!(resolve(&cluster.directory(), &id("client"), &query), expected);
}

#[test]
fn only_networks_of_the_served_containers_are_indexed() {
    let served = [id("client")].into();
    let directory = Directory::build(&cluster().state, &served);
    let query = question("stranger.", RecordType::A);
    assert_eq!(resolve(&directory, &id("stranger"), &query), Answer::NotReady);
    let query = question("mate.", RecordType::A);
    assert_eq!(resolve(&directory, &id("client"), &query), ips(&["10.0.2.40"]));
}
