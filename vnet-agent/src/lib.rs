//! The vnet agent: compiles resources into map rows and keeps the datapath of this host.

pub mod api;
pub mod datapath;
pub mod lb;
pub mod object;
pub mod resource;
pub mod store;
