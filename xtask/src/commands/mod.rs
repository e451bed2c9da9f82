//! One file per command.

pub mod build_ebpf;
pub mod lab;
pub mod test;
