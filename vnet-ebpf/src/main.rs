//! The kernel programs: they only translate between the kernel's context and `vnet_common`'s pipeline.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(all(target_arch = "bpf", feature = "bench"))]
mod bench;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod steps;

// The object is built for the BPF target alone; this lets `cargo build --workspace` pass over the package.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
