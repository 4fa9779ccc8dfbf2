//! Services.

use super::super::testing::{World, names, ports, refused};
use crate::{
    api::{EndpointCreate, ErrorCode, ServiceCreate, ServiceUpdate},
    model::EndpointMode,
};

fn world() -> World {
    let mut world = World::new();
    world.named_network("a");
    world.named_network("b");
    world
}

#[test]
fn a_service_has_a_vip_and_a_number_on_each_of_its_networks() {
    let mut world = world();
    let service = world.published("web", &["b", "a"], "80:80").expect("made");
    let (a, b) = (world.state.network("a").expect("a"), world.state.network("b").expect("b"));
    assert_eq!(service.networks[0].network, b.id);
    assert!(b.subnet.contains(&service.networks[0].vip.expect("a VIP")));
    assert!(a.subnet.contains(&service.networks[1].vip.expect("a VIP")));
    assert_ne!(service.networks[0].number, service.networks[1].number);
    assert_eq!(service.drain_ms, 5000);
}

#[test]
fn without_a_network_a_service_is_on_ingress() {
    let mut world = world();
    let service = world.published("web", &[], "80:80").expect("made");
    assert_eq!(service.networks[0].network, world.state.ingress().expect("ingress").id);
}

#[test]
fn numbers_are_never_given_twice() {
    let mut world = world();
    let first = world.published("web", &["a"], "").expect("made").networks[0].number;
    world.remove_service("web").expect("removed");
    let second = world.published("web", &["a"], "").expect("made").networks[0].number;
    assert!(second > first);
    world.state.cluster.as_mut().expect("a cluster").next_number = 1 << 31;
    refused(world.published("more", &["a"], ""), ErrorCode::Exhausted, &["numbers"]);
}

#[test]
fn names_and_networks_are_checked() {
    let mut world = world();
    world.published("web", &["a"], "").expect("made");
    refused(world.published("web", &["a"], ""), ErrorCode::Conflict, &["web", "exists already"]);
    refused(world.published("-", &["a"], ""), ErrorCode::Invalid, &["service name"]);
    refused(world.published("x", &["nonet"], ""), ErrorCode::NotFound, &["\"nonet\""]);
    refused(world.published("x", &["a", "a"], ""), ErrorCode::Invalid, &["a is given twice"]);
    refused(world.published("x", &["bridge"], ""), ErrorCode::Invalid, &["bridge", "local"]);
    let alone = EndpointCreate { ports: ports("80:80"), ..world.container("h1", "alone", &["a"]) };
    world.endpoint(&alone).expect("made");
    refused(world.published("alone", &["a"], ""), ErrorCode::Conflict, &["container"]);
    refused(world.remove_service("alone"), ErrorCode::Conflict, &["endpoint detach alone"]);
    let update = ServiceUpdate { reference: "alone".to_owned(), ..Default::default() };
    refused(world.update_service(update), ErrorCode::Conflict, &["alone"]);
}

#[test]
fn dnsrr_has_no_vip_and_publishes_in_host_mode_only() {
    let mut world = world();
    let dnsrr = |name: &str, list: &str| ServiceCreate {
        name: name.to_owned(),
        networks: names(&["a"]),
        mode: EndpointMode::Dnsrr,
        ports: ports(list),
        ..Default::default()
    };
    refused(world.service(dnsrr("web", "80:80")), ErrorCode::Invalid, &["dnsrr", "mode=host"]);
    let service = world.service(dnsrr("web", "published=80,target=80,mode=host")).expect("made");
    assert_eq!(service.networks[0].vip, None);
    let update = ServiceUpdate {
        reference: "web".to_owned(),
        publish_add: ports("81:81"),
        ..Default::default()
    };
    refused(world.update_service(update), ErrorCode::Invalid, &["dnsrr"]);
}

#[test]
fn labels_and_drain_time_are_updated() {
    let mut world = world();
    world.published("web", &["a"], "").expect("made");
    let update = |add: &[(&str, &str)], remove: &[&str], drain_ms| ServiceUpdate {
        reference: "web".to_owned(),
        label_add: add.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        label_remove: names(remove),
        drain_ms,
        ..Default::default()
    };
    let service =
        world.update_service(update(&[("x", "1"), ("y", "2")], &[], Some(100))).expect("updated");
    assert_eq!((service.labels.len(), service.drain_ms), (2, 100));
    let service = world.update_service(update(&[("y", "3")], &["x"], None)).expect("updated");
    assert_eq!((service.labels.len(), service.labels["y"].as_str()), (1, "3"));
    assert_eq!(service.drain_ms, 100);
    refused(world.update_service(update(&[], &["x"], None)), ErrorCode::Invalid, &["\"x\""]);
    let week = Some(7 * 24 * 3600 * 1000);
    refused(world.update_service(update(&[], &[], week)), ErrorCode::Invalid, &["a day"]);
    let nobody = ServiceUpdate { reference: "nobody".to_owned(), ..Default::default() };
    refused(world.update_service(nobody), ErrorCode::NotFound, &["nobody"]);
}

#[test]
fn backends_outlive_their_service_as_plain_endpoints() {
    let mut world = world();
    world.published("web", &["a", "b"], "80:80").expect("made");
    let backends = world.backend("h1", "web.1", "web");
    assert_eq!(backends.len(), 2);
    world.remove_service("web").expect("removed");
    for backend in backends {
        let now = &world.state.endpoints[&backend.id];
        assert_eq!((now.service.as_ref(), now.ip), (None, backend.ip));
    }
}
