//! `cargo xtask build-ebpf`

use crate::system::{root, set_up, target_dir};

/// Builds the kernel half alone and prints where the object is.
pub fn run(args: &[String]) -> Result<(), String> {
    let features: &[&str] = match args {
        [] => &[],
        [flag] if flag == "--previous-abi" => &["previous-abi"],
        _ => return Err(format!("build-ebpf takes only --previous-abi, not {}", args.join(" "))),
    };
    set_up("build")?;
    let object = xtask::build_ebpf(&root()?, &target_dir()?.join("bpf"), features)?;
    println!("{}", object.display());
    Ok(())
}
