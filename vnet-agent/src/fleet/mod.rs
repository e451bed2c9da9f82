//! Many hosts with one network.

pub mod load;
