//! New clusters.

use jiff::Timestamp;

use super::super::{
    init,
    testing::{World, init_request, refused},
};
use crate::{
    api::{ErrorCode, NetworkCreate},
    model::{ClusterState, NodeState, Role},
    pki::Authority,
};

#[test]
fn a_new_cluster_has_dockers_networks_and_its_first_node() {
    let world = World::new();
    let ingress = world.state.ingress().expect("ingress");
    assert_eq!((ingress.name.as_str(), ingress.vni), ("ingress", 4096));
    assert_eq!(ingress.subnet.to_string(), "10.255.0.0/16");
    assert_eq!(ingress.gateway.to_string(), "10.255.0.1");
    assert!(!ingress.attachable);
    let bridge = world.state.network("bridge").expect("bridge");
    assert!(bridge.is_local() && bridge.attachable);
    assert_eq!((bridge.vni, bridge.gateway.to_string()), (1, "172.17.0.1".to_owned()));
    let node = world.state.node("h1").expect("the node");
    assert_eq!((node.role, node.state), (Role::Manager, NodeState::Down));
    assert_eq!(node.ingress_ip.to_string(), "10.255.0.2");
}

#[test]
fn another_pool_gives_its_first_subnet_to_ingress_and_the_next_to_the_first_network() {
    let pool = "20.20.0.0/16".parse().expect("a subnet");
    let mut world = World::with(&init::InitCluster { default_pool: pool, ..init_request() });
    assert_eq!(world.state.ingress().expect("ingress").subnet.to_string(), "20.20.0.0/24");
    assert_eq!(world.named_network("one").subnet.to_string(), "20.20.1.0/24");
}

#[test]
fn an_ingress_subnet_around_the_hosts_is_refused_when_given_and_avoided_otherwise() {
    let addr = "10.255.3.4".parse().expect("an address");
    let request = init::InitCluster { data_path_addr: addr, ..init_request() };
    let world = World::with(&request);
    assert_eq!(world.state.ingress().expect("ingress").subnet.to_string(), "10.0.0.0/24");
    let given = Some("10.255.0.0/16".parse().expect("a subnet"));
    let request = init::InitCluster { ingress_subnet: given, ..request };
    refused(
        init::init(&ClusterState::default(), &request, Timestamp::now()),
        ErrorCode::Conflict,
        &["10.255.3.4", "node h1", "--ingress-subnet"],
    );
}

#[test]
fn impossible_clusters_are_refused_with_the_reason() {
    let state = ClusterState::default();
    type Spoil = fn(&mut init::InitCluster);
    let cases: [(Spoil, &str); 9] = [
        (|r| r.name = "a b".to_owned(), "invalid node name"),
        (|r| r.data_path_addr = "127.0.0.1".parse().expect("an address"), "127.0.0.1"),
        (|r| r.api_addr = "0.0.0.0:2377".parse().expect("an address"), "--advertise-addr"),
        (|r| r.default_pool = "10.0.0.1/8".parse().expect("a subnet"), "write 10.0.0.0/8"),
        (|r| r.pool_prefix = 7, "/7"),
        (|r| r.pool_prefix = 31, "/31"),
        (|r| r.data_path_port = 80, "port 80"),
        (|r| r.node_timeout_ms = 1, "1 ms"),
        (|r| r.bridge_subnet = "127.0.0.0/16".parse().expect("a subnet"), "--bridge-subnet"),
    ];
    for (spoil, why) in cases {
        let mut request = init_request();
        spoil(&mut request);
        refused(init::init(&state, &request, Timestamp::now()), ErrorCode::Invalid, &[why]);
    }
}

#[test]
fn a_store_with_a_cluster_is_left_alone() {
    let world = World::new();
    let again = init::init(&world.state, &init_request(), Timestamp::now());
    refused(again, ErrorCode::Conflict, &["already", "overlay leave --force"]);
}

#[test]
fn the_authority_is_a_secret_and_signs_for_the_first_node() {
    let (plan, initialized) =
        init::init(&ClusterState::default(), &init_request(), Timestamp::now()).expect("made");
    assert!(!serde_json::to_string(&plan.changes).expect("JSON").contains("PRIVATE KEY"));
    let [crate::store::SecretChange::Put(key, json)] = &plan.secrets[..] else {
        panic!("one secret")
    };
    let authority: Authority = serde_json::from_slice(json).expect("an authority");
    assert_eq!((key.as_str(), &authority.certificate_pem), ("ca", &initialized.pki.ca_pem));
    assert_eq!(initialized.pki.node().expect("a node"), initialized.node.id);
    initialized.pki.server_config().expect("fit for a server");
    initialized.pki.client_config().expect("fit for a client");
}

#[test]
fn networks_need_a_cluster() {
    let request = NetworkCreate { name: "n".to_owned(), ..Default::default() };
    let state = ClusterState::default();
    let result = super::super::network::create(&state, &request, Timestamp::now());
    refused(result, ErrorCode::Internal, &["overlay init"]);
}
