//! One file per command.

pub mod bench;
pub mod budget;
pub mod build_ebpf;
pub mod lab;
pub mod schema;
pub mod test;
