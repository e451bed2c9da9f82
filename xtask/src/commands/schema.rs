//! `cargo xtask schema`

use crate::system::{cargo, root, set_up};
use std::process::Stdio;

/// Writes the JSON schema of the resources, as the agent's types have it, into `policies/schema.json`.
pub fn run(args: &[String]) -> Result<(), String> {
    if !args.is_empty() {
        return Err(format!("schema takes nothing, not {}", args.join(" ")));
    }
    set_up("build")?;
    let mut print = cargo()?;
    print.args(["run", "--quiet", "--package=vnet-agent", "--example=schema"]).stderr(Stdio::inherit());
    let out = print.output().map_err(|error| format!("running {print:?}: {error}"))?;
    if !out.status.success() {
        return Err(format!("{print:?}: {}", out.status));
    }
    let file = root()?.join("policies/schema.json");
    if std::fs::read(&file).is_ok_and(|old| old == out.stdout) {
        println!("{} is as the types say", file.display());
        return Ok(());
    }
    std::fs::write(&file, &out.stdout).map_err(|error| format!("writing {}: {error}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}
