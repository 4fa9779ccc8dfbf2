//! Answers that the programs give themselves: ARP, neighbour discovery, echo, ICMP errors, and
//! rejected flows.

pub mod arp;
pub mod echo;
pub mod icmp;
pub mod icmp6;
pub mod nd;
pub mod reject;
pub mod reject6;
