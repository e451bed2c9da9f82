//! Building the kernel half. The agent's build script and `cargo xtask` share this, so it depends on nothing but `std`.

mod ebpf;
mod toolchain;

pub use ebpf::{build_ebpf, clippy_ebpf};
pub use toolchain::{Toolchain, find_linker, find_toolchain};
