//! Puts the kernel half where `src/object.rs` includes it: built here, or the file that `VNET_EBPF_OBJ` names (for
//! packagers, who build it once for all).

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    // Cargo prints each as `error: …` and stops. Ending with a non-zero code would print all of this script's output too.
    if let Err(error) = place_object() {
        error.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

fn place_object() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("vnet-agent lies in no workspace")?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run by cargo only")?);
    for name in ["VNET_EBPF_OBJ", "VNET_BPF_RUSTC", "VNET_TOOLS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let object = match env::var_os("VNET_EBPF_OBJ") {
        Some(file) => {
            println!("cargo::rerun-if-changed={}", Path::new(&file).display());
            PathBuf::from(file)
        }
        None => {
            for path in ["vnet-ebpf", "vnet-common", "Cargo.toml", "Cargo.lock"] {
                println!("cargo::rerun-if-changed={}", root.join(path).display());
            }
            let previous = env::var_os("CARGO_FEATURE_PREVIOUS_ABI").map(|_| "previous-abi");
            xtask::build_ebpf(root, &out_dir.join("bpf"), previous.as_slice())?
        }
    };
    let place = out_dir.join("vnet");
    std::fs::copy(&object, &place)
        .map(|_| ())
        .map_err(|error| format!("copying the eBPF object {} to {}: {error}", object.display(), place.display()))
}
