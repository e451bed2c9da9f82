//! The load balancer, end to end: the real agent, the real CLI, clients and servers that nobody here wrote.

#[path = "lb/bridge.rs"]
mod bridge;
#[path = "lb/errors.rs"]
mod errors;
#[path = "lb/flood.rs"]
mod flood;
#[path = "lb/fragments.rs"]
mod fragments;
#[path = "lb/guest.rs"]
mod guest;
#[path = "lb/health.rs"]
mod health;
#[path = "lb/members.rs"]
mod members;
#[path = "lb/moving.rs"]
mod moving;
#[path = "lb/picking.rs"]
mod picking;
#[path = "lb/redirect.rs"]
mod redirect;
#[path = "lb/routed.rs"]
mod routed;
#[path = "lb/scale.rs"]
mod scale;
#[path = "lb/support.rs"]
mod support;
#[path = "lb/survival.rs"]
mod survival;
#[path = "lb/systemd.rs"]
mod systemd;
