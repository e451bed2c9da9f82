//! `vnet-ctl`, run as people run it, against the agent's real API server.

mod attach;
mod explain;
mod fake;
mod help;
mod hooks;
mod kinds;
mod moving;
mod observe;
mod quarantine;
mod support;
mod tags;
mod trouble;
mod verbs;
