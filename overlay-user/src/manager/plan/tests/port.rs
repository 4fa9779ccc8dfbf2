//! Published ports.

use super::super::testing::{World, ports, refused};
use crate::{
    api::{EndpointCreate, ErrorCode, ServiceUpdate},
    model::{Port, PublishMode, Service},
};

const HOST_80: &str = "published=80,target=80,mode=host";

fn world() -> World {
    let mut world = World::new();
    world.join("h2", "172.16.1.11").expect("joined");
    world.named_network("mynet");
    world
}

fn published(service: &Service) -> Vec<u16> {
    service.ports.iter().map(|p| p.published.expect("a port")).collect()
}

fn update(name: &str, add: &str, remove: &str) -> ServiceUpdate {
    ServiceUpdate {
        reference: name.to_owned(),
        publish_add: ports(add),
        publish_remove: ports(remove),
        ..Default::default()
    }
}

fn with_ports(world: &World, node: &str, name: &str, on: &str, list: &str) -> EndpointCreate {
    EndpointCreate { ports: ports(list), ..world.container(node, name, &[on]) }
}

#[test]
fn a_port_is_published_once_per_protocol() {
    let mut world = world();
    world.published("web", &["mynet"], "80:80").expect("made");
    refused(
        world.published("other", &["mynet"], "80:8080"),
        ErrorCode::Conflict,
        &["80/tcp", "service web", "--publish-rm"],
    );
    world.published("dns", &["mynet"], "80:80/udp").expect("another protocol");
    refused(
        world.published("twice", &["mynet"], "81:80 81:81"),
        ErrorCode::Conflict,
        &["81/tcp", "twice"],
    );
    world.published("same-target", &["mynet"], "81:80 82:80").expect("made");
}

#[test]
fn an_ingress_port_conflicts_with_a_host_port_and_the_other_way_round() {
    let mut world = world();
    world.published("host", &["mynet"], HOST_80).expect("made");
    refused(world.published("web", &["mynet"], "80:80"), ErrorCode::Conflict, &["service host"]);
    world.remove_service("host").expect("removed");
    world.published("web", &["mynet"], "80:80").expect("made");
    refused(world.published("host", &["mynet"], HOST_80), ErrorCode::Conflict, &["service web"]);
}

#[test]
fn host_ports_of_two_services_conflict_only_where_they_share_a_node() {
    let mut world = world();
    world.published("one", &["mynet"], HOST_80).expect("made");
    world.published("two", &["mynet"], HOST_80).expect("made");
    world.backend("h1", "one.1", "one");
    world.backend("h1", "one.2", "one");
    world.backend("h2", "two.1", "two");
    let there =
        EndpointCreate { service: Some("two".to_owned()), ..world.container("h1", "two.2", &[]) };
    refused(world.endpoint(&there), ErrorCode::Conflict, &["80/tcp", "service one"]);
    let add = update("two", "published=81,target=81,mode=host", "");
    world.update_service(add.clone()).expect("free everywhere");
    world.published("three", &["mynet"], "").expect("made");
    world.backend("h2", "three.1", "three");
    let add = ServiceUpdate { reference: "three".to_owned(), ..add };
    refused(world.update_service(add), ErrorCode::Conflict, &["81/tcp", "service two"]);
}

#[test]
fn ports_of_the_cluster_itself_are_not_published() {
    let mut world = world();
    refused(
        world.published("web", &["mynet"], "4789:80/udp"),
        ErrorCode::Conflict,
        &["4789/udp", "VXLAN"],
    );
    refused(
        world.published("web", &["mynet"], "2377:80"),
        ErrorCode::Conflict,
        &["2377/tcp", "managers'"],
    );
    world.published("web", &["mynet"], "4789:80 2377:80/udp").expect("other protocols");
}

#[test]
fn automatic_ports_come_from_dockers_range_past_those_in_use() {
    let mut world = world();
    world.published("fixed", &["mynet"], "30000:80 30001:80/udp").expect("made");
    let web = world.published("web", &["mynet"], "80 81 80/udp 30002:82").expect("made");
    let given: Vec<String> = web.ports.iter().map(Port::to_string).collect();
    assert_eq!(given, ["*:30002->82/tcp", "*:30001->80/tcp", "*:30003->81/tcp", "*:30000->80/udp"]);
}

#[test]
fn automatic_ports_run_out_with_a_word() {
    let mut world = world();
    world.published("all", &["mynet"], "30000-32766:30000-32766").expect("made");
    let last = world.published("last", &["mynet"], "80").expect("made");
    assert_eq!(published(&last), [32767]);
    refused(world.published("more", &["mynet"], "80"), ErrorCode::Exhausted, &["30000 to 32767"]);
}

#[test]
fn nothing_is_published_into_an_internal_network() {
    let mut world = world();
    let internal = crate::api::NetworkCreate {
        name: "inside".to_owned(),
        internal: true,
        attachable: true,
        ..Default::default()
    };
    world.network(internal).expect("made");
    refused(
        world.published("web", &["inside", "mynet"], "80:80"),
        ErrorCode::Invalid,
        &["inside", "internal"],
    );
    world.published("web", &["mynet", "inside"], "80:80").expect("the first network counts");
    let alone = with_ports(&world, "h1", "alone", "inside", "81:80");
    refused(world.endpoint(&alone), ErrorCode::Invalid, &["inside", "internal"]);
}

#[test]
fn updates_add_and_remove_ports() {
    let mut world = world();
    world.published("web", &["mynet"], "8080:8080").expect("made");
    let web = world.update_service(update("web", "9090:9090", "")).expect("updated");
    assert_eq!(published(&web), [8080, 9090]);
    let web = world.update_service(update("web", "", "8080")).expect("updated");
    assert_eq!(published(&web), [9090]);
    let next = world.published("next", &["mynet"], "8080:80").expect("a given-up port is free");
    assert_eq!(published(&next), [8080]);
    let web = world.update_service(update("web", "9090:1", "9090:9090")).expect("replaced");
    assert_eq!(web.ports, ports("9090:1"));
    refused(
        world.update_service(update("web", "", "7777")),
        ErrorCode::Invalid,
        &["7777/tcp", "*:9090->1/tcp"],
    );
    refused(world.update_service(update("web", "8080:8080", "")), ErrorCode::Conflict, &["next"]);
    refused(world.update_service(update("web", "9090:2", "")), ErrorCode::Conflict, &["9090"]);
}

#[test]
fn a_port_is_removed_by_its_target_where_that_is_unambiguous() {
    let mut world = world();
    world.published("web", &["mynet"], "8080:80 8081:80 8443:443").expect("made");
    refused(
        world.update_service(update("web", "", "80")),
        ErrorCode::Invalid,
        &["more than once", "8080", "8081"],
    );
    let web = world.update_service(update("web", "", "443")).expect("updated");
    assert_eq!(published(&web), [8080, 8081]);
    let udp = update("web", "", "8080/udp");
    refused(world.update_service(udp), ErrorCode::Invalid, &["8080/udp"]);
}

#[test]
fn a_container_on_the_bridge_publishes_on_its_own_host() {
    let mut world = world();
    let one = with_ports(&world, "h1", "web", "bridge", "80:8080");
    let two = with_ports(&world, "h2", "web", "bridge", "80:8080");
    let clash = with_ports(&world, "h1", "other", "bridge", "80:80");
    let endpoint = world.endpoint(&one).expect("made").remove(0);
    let owned = world.state.services[endpoint.service.as_ref().expect("a service")].clone();
    assert_eq!((owned.name.as_str(), owned.owner.as_ref()), ("web", Some(&endpoint.id)));
    assert_eq!(owned.ports[0].mode, PublishMode::Host);
    assert_eq!((owned.networks.len(), owned.networks[0].vip), (1, None));
    world.endpoint(&two).expect("another host");
    refused(world.endpoint(&clash), ErrorCode::Conflict, &["80/tcp", "container web", "detach"]);
    refused(world.published("all", &["mynet"], "80:80"), ErrorCode::Conflict, &["80/tcp"]);
    world.detach(&endpoint).expect("detached");
    assert!(!world.state.services.contains_key(&owned.id));
    world.endpoint(&clash).expect("the port is free now");
}

#[test]
fn a_container_on_an_overlay_publishes_on_every_host_unless_it_says_host() {
    let mut world = world();
    let everywhere = with_ports(&world, "h1", "web", "mynet", "80:8080 81");
    let endpoint = world.endpoint(&everywhere).expect("made").remove(0);
    let owned = &world.state.services[endpoint.service.as_ref().expect("a service")];
    assert!(owned.ports.iter().all(|p| p.mode == PublishMode::Ingress));
    assert_eq!(published(owned), [80, 30000]);
    let host = with_ports(&world, "h2", "local", "mynet", "published=90,target=9,mode=host");
    let endpoint = world.endpoint(&host).expect("made").remove(0);
    let owned = &world.state.services[endpoint.service.as_ref().expect("a service")];
    assert_eq!(owned.ports[0].mode, PublishMode::Host);
}

#[test]
fn port_0_is_no_port() {
    let mut world = world();
    let zero = |published, target| Port {
        published,
        target,
        protocol: crate::model::Protocol::Tcp,
        mode: PublishMode::Ingress,
    };
    for port in [zero(Some(0), 80), zero(Some(80), 0), zero(None, 0)] {
        let request = crate::api::ServiceCreate {
            name: "web".to_owned(),
            ports: vec![port],
            ..Default::default()
        };
        refused(world.service(request), ErrorCode::Invalid, &["0 is not a port"]);
    }
}
