//! Compiling and linting package `vnet-ebpf` for BPF.

use crate::toolchain::{find_linker, find_toolchain};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds package `vnet-ebpf` of the workspace at `root` with these of its features; gives the object's path, under `target_dir`.
///
/// # Errors
/// The toolchain is incomplete (the message says what to do), or the build failed (the message is the compiler's).
pub fn build_ebpf(root: &Path, target_dir: &Path, features: &[&str]) -> Result<PathBuf, String> {
    let toolchain = find_toolchain()?;
    let mut cargo = toolchain.cargo();
    cargo.arg("build");
    add_arguments(&mut cargo, root, target_dir, features)?;
    let out = cargo.output().map_err(|error| format!("running {cargo:?}: {error}"))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        return Err(format!("building vnet-ebpf with {} failed:\n{stderr}", toolchain.version()));
    }
    Ok(target_dir.join(triple()).join("release/vnet"))
}

/// Lints package `vnet-ebpf`, in a call of its own: a lint of the whole workspace sees only its empty host half.
/// What clippy prints goes to standard error.
///
/// # Errors
/// The toolchain is incomplete or has no clippy, or a lint fired.
pub fn clippy_ebpf(root: &Path, target_dir: &Path, features: &[&str]) -> Result<(), String> {
    let toolchain = find_toolchain()?;
    let mut cargo = toolchain.cargo_clippy();
    add_arguments(&mut cargo, root, target_dir, features)?;
    cargo.args(["--", "-Dwarnings"]);
    let status = cargo.status().map_err(|error| format!("running {cargo:?} (./setup test installs it): {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("clippy of vnet-ebpf with {}: {status}", toolchain.version())) }
}

/// What every command of cargo needs when it compiles for BPF.
fn add_arguments(cargo: &mut Command, root: &Path, target_dir: &Path, features: &[&str]) -> Result<(), String> {
    cargo
        .current_dir(root)
        .args(["--quiet", "--locked", "--release", "--package", "vnet-ebpf", "--bins", "-Zbuild-std=core"])
        .args(["--target", &triple(), "--features", &features.join(",")])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root, &find_linker(root)?));
    Ok(())
}

/// BPF in the byte order of the machine that will run it. A build script knows it from cargo; they may differ when cross-compiling.
fn triple() -> String {
    let big = env::var("CARGO_CFG_TARGET_ENDIAN").map_or(cfg!(target_endian = "big"), |endian| endian == "big");
    format!("{}-unknown-none", if big { "bpfeb" } else { "bpfel" })
}

fn rustflags(root: &Path, linker: &Path) -> OsString {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned());
    [
        // aya-ebpf's bindings of registers differ by the machine below.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit operations in one instruction each (Linux 5.1); without them half of the program is shifts.
        "-Ctarget-cpu=v3".to_owned(),
        // bpf-linker's default makes every memmove and memset a call of a byte loop: 64-byte rows cost 64 rounds, and the
        // verifier walked 2.5 times as many instructions.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        format!("-Clinker={}", linker.display()),
        // The same object wherever the checkout and the registry lie.
        format!("--remap-path-prefix={}=/vnet", root.display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
    ]
    .join("\x1f")
    .into()
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}
