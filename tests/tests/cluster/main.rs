//! Clusters of network namespaces with real `overlay` daemons, real containers and real traffic,
//! one module for each topic.
//!
//! `cargo xtask test` runs each topic in its own process, one after the other.

mod t00_harness;
mod t10_init_join;
mod t20_networks;
mod t21_two_hosts;
mod t25_shapes;
mod t26_vxlan_interop;
mod t27_ipv6;
mod t28_underlay6;
mod t29_multicast;
mod t30_services;
mod t31_balance;
mod t32_fragments;
mod t33_health;
mod t34_services6;
mod t35_dsr;
mod t36_idle;
mod t37_full;
mod t38_rolling;
mod t39_sockets;
mod t40_published;
mod t41_publish;
mod t45_egress;
mod t46_xdp;
mod t50_dns;
mod t60_restart;
mod t61_node_death;
mod t62_migrate;
mod t70_single_host;
mod t80_bad_input;
mod t85_observe;
mod t90_cleanup;
