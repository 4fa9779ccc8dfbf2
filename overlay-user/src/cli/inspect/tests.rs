//! Exact shapes of what `inspect` prints.

use serde_json::{Value, json};

use super::*;
use crate::cli::inspect::testing::three_nodes;

fn inspected(name: &str, here: &str, verbose: bool) -> Value {
    let state = three_nodes();
    let found = state.network(name).expect("the network");
    serde_json::to_value(network(&state, found, &Id::from_text(here), verbose)).expect("JSON")
}

#[test]
fn ingress_is_shown_as_docker_shows_it_in_dockers_order() {
    let state = three_nodes();
    let ingress = state.ingress().expect("ingress");
    let shown = vec![network(&state, ingress, &Id::from_text("node1"), false)];
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"), @r#"
    [
      {
        "Name": "ingress",
        "Id": "net-ingress",
        "Created": "2025-03-01T12:00:00.5Z",
        "Scope": "swarm",
        "Driver": "overlay",
        "EnableIPv6": false,
        "IPAM": {
          "Driver": "default",
          "Options": null,
          "Config": [
            {
              "Subnet": "10.255.0.0/16",
              "Gateway": "10.255.0.1"
            }
          ]
        },
        "Internal": false,
        "Attachable": true,
        "Ingress": true,
        "ConfigFrom": {
          "Network": ""
        },
        "ConfigOnly": false,
        "Containers": {
          "container-edge": {
            "Name": "edge",
            "EndpointID": "endpoint-edge",
            "MacAddress": "02:42:0a:ff:00:05",
            "IPv4Address": "10.255.0.5/16",
            "IPv6Address": ""
          },
          "ingress-sbox": {
            "Name": "ingress-endpoint",
            "EndpointID": "node1",
            "MacAddress": "02:42:0a:ff:00:02",
            "IPv4Address": "10.255.0.2/16",
            "IPv6Address": ""
          }
        },
        "Options": {
          "com.docker.network.driver.overlay.vxlanid_list": "4096"
        },
        "Labels": {},
        "Peers": [
          {
            "Name": "h1",
            "IP": "172.16.1.10"
          },
          {
            "Name": "h2",
            "IP": "172.16.1.11"
          },
          {
            "Name": "h3",
            "IP": "172.16.1.12"
          }
        ]
      }
    ]
    "#);
}

#[test]
fn an_ingress_without_containers_still_has_the_sandbox_of_this_node() {
    let shown = inspected("ingress", "node3", false);
    assert_eq!(
        shown["Containers"],
        json!({"ingress-sbox": {
            "Name": "ingress-endpoint",
            "EndpointID": "node3",
            "MacAddress": "02:42:0a:ff:00:04",
            "IPv4Address": "10.255.0.4/16",
            "IPv6Address": "",
        }})
    );
}

#[test]
fn a_network_shows_its_own_containers_here_and_peers_that_share_it() {
    let shown = inspected("mynet", "node2", false);
    let containers = shown["Containers"].as_object().expect("an object");
    let names: Vec<_> = containers.values().map(|c| c["Name"].as_str().unwrap_or("")).collect();
    assert_eq!(names, ["hello.2", "web"]);
    assert_eq!(
        shown["Peers"],
        json!([{"Name": "h1", "IP": "172.16.1.10"}, {"Name": "h2", "IP": "172.16.1.11"}])
    );
    assert_eq!(shown["Options"], json!({OPTION_VNI: "4097"}));
    assert_eq!(shown.get("Services"), None);
}

#[test]
fn a_dual_stack_network_has_a_second_pool_and_containers_a_second_address() {
    let mut state = three_nodes();
    let mynet = state.networks.get_mut(&Id::from_text("net-mynet")).expect("mynet");
    mynet.ipv6 = Some(crate::model::NetworkIpv6 {
        subnet: "fd00:1::/64".parse().expect("a subnet"),
        gateway: "fd00:1::1".parse().expect("an address"),
        next_address: "fd00:1::2".parse().expect("an address"),
    });
    let web = state.endpoints.get_mut(&Id::from_text("endpoint-web")).expect("web");
    web.ip6 = Some("fd00:1::5".parse().expect("an address"));
    let hello = state.services.get_mut(&Id::from_text("service-hello")).expect("hello");
    hello.networks[0].vip6 = Some("fd00:1::2".parse().expect("an address"));
    let found = state.network("mynet").expect("mynet");
    let shown = serde_json::to_value(network(&state, found, &Id::from_text("node2"), true));
    let shown = shown.expect("JSON");
    assert_eq!(shown["EnableIPv6"], true);
    let hello = &shown["Services"]["hello"];
    assert_eq!((&hello["VIP"], &hello["VIP6"]), (&json!("10.0.0.2"), &json!("fd00:1::2")));
    let service = service(&state, state.service("hello").expect("hello"));
    let service = serde_json::to_value(service).expect("JSON");
    assert_eq!(
        service["Endpoint"]["VirtualIPs"],
        json!([
            {"NetworkID": "net-mynet", "Addr": "10.0.0.2/24"},
            {"NetworkID": "net-mynet", "Addr": "fd00:1::2/64"},
        ])
    );
    assert_eq!(
        shown["IPAM"]["Config"],
        json!([
            {"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"},
            {"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1"},
        ])
    );
    let containers = &shown["Containers"];
    assert_eq!(containers["container-web"]["IPv6Address"], "fd00:1::5/64");
    assert_eq!(containers["container-hello.2"]["IPv6Address"], "", "made before it was");
}

#[test]
fn verbose_adds_the_services_with_backends_on_all_nodes() {
    let shown = inspected("mynet", "node3", true);
    assert_eq!(
        shown["Services"],
        json!({"hello": {
            "VIP": "10.0.0.2",
            "Ports": ["Target: 80, Publish: 8080"],
            "LocalLBIndex": 7,
            "Tasks": [
                {
                    "Name": "hello.1",
                    "EndpointID": "endpoint-hello.1",
                    "EndpointIP": "10.0.0.3",
                    "Info": {"Host IP": "172.16.1.10"},
                },
                {
                    "Name": "hello.2",
                    "EndpointID": "endpoint-hello.2",
                    "EndpointIP": "10.0.0.4",
                    "Info": {"Host IP": "172.16.1.11"},
                },
            ],
        }})
    );
}

#[test]
fn the_bridge_has_no_peers_and_no_vni() {
    let shown = inspected("bridge", "node1", false);
    assert_eq!(shown["Scope"], "local");
    assert_eq!(shown["Driver"], "bridge");
    assert_eq!(shown["Options"], json!({}));
    assert_eq!(shown.get("Peers"), None);
}

#[test]
fn options_with_a_field_of_their_own_are_shown_under_dockers_names() {
    let mut state = three_nodes();
    let mynet = state.networks.get_mut(&Id::from_text("net-mynet")).expect("mynet");
    mynet.mtu = Some(1400);
    mynet.ip_range = Some("10.0.0.128/25".parse().expect("a range"));
    mynet.aux_addresses.insert("router".to_owned(), "10.0.0.9".parse().expect("an address"));
    let mynet = state.network("mynet").expect("mynet");
    let shown = network(&state, mynet, &Id::from_text("node1"), false);
    let shown = serde_json::to_value(shown).expect("JSON");
    assert_eq!(shown["Options"], json!({OPTION_VNI: "4097", OPTION_MTU: "1400"}));
    assert_eq!(
        shown["IPAM"]["Config"],
        json!([{
            "Subnet": "10.0.0.0/24",
            "IPRange": "10.0.0.128/25",
            "Gateway": "10.0.0.1",
            "AuxiliaryAddresses": {"router": "10.0.0.9"},
        }])
    );
}

#[test]
fn the_modes_of_run_have_no_addresses() {
    let shown = pseudo_network(&three_nodes(), PseudoNetwork::None);
    let shown = serde_json::to_value(shown).expect("JSON");
    assert_eq!((&shown["Name"], &shown["Driver"]), (&json!("none"), &json!("null")));
    assert_eq!(shown["IPAM"]["Config"], json!([]));
}

#[test]
fn a_service_is_shown_with_its_addresses_ports_and_backends() {
    let state = three_nodes();
    let shown = service(&state, state.service("hello").expect("hello"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"), @r#"
    {
      "ID": "service-hello",
      "CreatedAt": "2025-03-01T12:00:00.5Z",
      "Spec": {
        "Name": "hello",
        "Labels": {},
        "Networks": [
          {
            "Target": "net-mynet"
          }
        ],
        "EndpointSpec": {
          "Mode": "vip",
          "Ports": [
            {
              "Protocol": "tcp",
              "TargetPort": 80,
              "PublishedPort": 8080,
              "PublishMode": "ingress"
            }
          ]
        },
        "DrainMilliseconds": 5000,
        "Balance": {
          "Scheduler": "rr",
          "AffinitySeconds": 0,
          "TcpTimeoutSeconds": 0,
          "UdpTimeoutSeconds": 0,
          "OnLoss": "reset",
          "Return": "asked"
        }
      },
      "Endpoint": {
        "VirtualIPs": [
          {
            "NetworkID": "net-mynet",
            "Addr": "10.0.0.2/24"
          }
        ]
      },
      "Tasks": [
        {
          "Name": "hello.1",
          "EndpointID": "endpoint-hello.1",
          "NetworkID": "net-mynet",
          "EndpointIP": "10.0.0.3",
          "Node": "h1",
          "State": "running",
          "Weight": 1
        },
        {
          "Name": "hello.2",
          "EndpointID": "endpoint-hello.2",
          "NetworkID": "net-mynet",
          "EndpointIP": "10.0.0.4",
          "Node": "h2",
          "State": "running",
          "Weight": 1
        }
      ]
    }
    "#);
}

#[test]
fn a_node_is_shown_with_its_role_and_addresses() {
    let mut state = three_nodes();
    let address = "2001:db8::1".parse().expect("an address");
    state.nodes.get_mut(&Id::from_text("node1")).expect("h1").addresses6 = vec![address];
    let shown = [node(state.node("h1").expect("h1")), node(state.node("h2").expect("h2"))];
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown).expect("JSON"), @r#"
    [
      {
        "ID": "node1",
        "CreatedAt": "2025-03-01T12:00:00.5Z",
        "Spec": {
          "Role": "manager",
          "Availability": "active"
        },
        "Description": {
          "Hostname": "h1"
        },
        "Status": {
          "State": "ready",
          "Addr": "172.16.1.10"
        },
        "ManagerStatus": {
          "Addr": "172.16.1.10:2377"
        },
        "IngressAddress": "10.255.0.2",
        "IPv6Addresses": [
          "2001:db8::1"
        ]
      },
      {
        "ID": "node2",
        "CreatedAt": "2025-03-01T12:00:00.5Z",
        "Spec": {
          "Role": "agent",
          "Availability": "active"
        },
        "Description": {
          "Hostname": "h2"
        },
        "Status": {
          "State": "ready",
          "Addr": "172.16.1.11"
        },
        "IngressAddress": "10.255.0.3",
        "IPv6Addresses": []
      }
    ]
    "#);
}
