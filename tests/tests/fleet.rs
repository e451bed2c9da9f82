//! Many hosts that share an etcd, end to end.

#[path = "fleet/certificates.rs"]
mod certificates;
#[path = "fleet/changes.rs"]
mod changes;
#[path = "fleet/clocks.rs"]
mod clocks;
#[path = "fleet/etcd.rs"]
mod etcd;
#[path = "fleet/feedback.rs"]
mod feedback;
#[path = "fleet/health.rs"]
mod health;
#[path = "fleet/moving.rs"]
mod moving;
#[path = "fleet/network.rs"]
mod network;
#[path = "fleet/peers.rs"]
mod peers;
#[path = "fleet/restoring.rs"]
mod restoring;
#[path = "fleet/scene.rs"]
mod scene;
#[path = "fleet/store.rs"]
mod store;
#[path = "fleet/support.rs"]
mod support;
#[path = "fleet/upgrade.rs"]
mod upgrade;
