//! The eBPF programs, run on single packets with BPF_PROG_TEST_RUN, one module for each topic.
//!
//! All topics share one process, and with it the programs that the rig has loaded into the kernel.

mod t05_rig;
mod t10_container;
mod t15_too_big;
mod t16_replication;
mod t17_ipv6;
mod t20_tunnel;
mod t21_underlay6;
mod t22_xdp;
mod t23_xdp6;
mod t25_next_hop;
mod t26_kernel_fallback;
mod t27_endpoint_cache;
mod t30_service;
mod t31_balance;
mod t32_fragments;
mod t33_flows;
mod t34_stale_backends;
mod t35_dsr;
mod t36_dsr6;
mod t37_evictions;
mod t38_services6;
mod t40_published;
mod t41_tuples;
mod t45_egress;
mod t50_malformed;
mod t70_observe;
