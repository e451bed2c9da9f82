//! `vnet-ctl`, run as people run it, against the agent's real API server.

mod help;
mod support;
mod trouble;
mod verbs;
