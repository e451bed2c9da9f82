//! Many hosts that share an etcd, end to end.

#[path = "fleet/etcd.rs"]
mod etcd;
#[path = "fleet/moving.rs"]
mod moving;
#[path = "fleet/network.rs"]
mod network;
#[path = "fleet/support.rs"]
mod support;
