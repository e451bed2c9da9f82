//! `vnet-ctl`, run as people run it, against the agent's real API server.

mod attach;
mod etcd;
mod explain;
mod fake;
mod fleet;
mod help;
mod hooks;
mod hosts;
mod kinds;
mod moving;
mod observe;
mod proxy;
mod quarantine;
mod restoring;
mod rollouts;
mod shared;
mod store;
mod support;
mod tags;
mod trouble;
mod verbs;
