//! Which compiler and linker build for BPF.
//!
//! The source of `core` must belong to the very compiler that builds it. Three kinds of machine have such a pair:
//! those with a rustup nightly and its `rust-src`, those with Debian's `rust-web-src`, and those whose stable has
//! `rust-src` too. The first complete one is used.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Older compilers bring an LLVM that bpf-linker cannot link.
const OLDEST: (u32, u32) = (1, 95);

/// Variables by which cargo hands its own choice of compiler to its children; a build for BPF makes another choice.
const INHERITED: [&str; 8] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler that has the source of its own `core`, and the cargo to run it.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// The command that is cargo.
    cargo: Vec<OsString>,
    /// What cargo must call instead of its own compiler.
    rustc: Option<PathBuf>,
    /// Unstable options need to be asked for: this is no nightly.
    bootstrap: bool,
    /// What the compiler says it is.
    version: String,
}

impl Toolchain {
    /// What the compiler says it is, for messages.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its cargo, free of what a calling cargo has put into the environment.
    #[must_use]
    pub fn cargo(&self) -> Command {
        self.run(&self.cargo)
    }

    /// Its `cargo clippy`. Cargo would look for clippy in `~/.cargo/bin` first, where rustup keeps that of another compiler,
    /// so the one beside the compiler is called by its path.
    #[must_use]
    pub fn cargo_clippy(&self) -> Command {
        let Some((cargo, before)) = self.cargo.split_last() else { return Command::new("cargo-clippy") };
        let mut program = before.to_vec();
        program.push(Path::new(cargo).with_file_name("cargo-clippy").into());
        let mut command = self.run(&program);
        command.env("CARGO", cargo).arg("clippy");
        command
    }

    fn run(&self, program: &[OsString]) -> Command {
        let mut command = command(program);
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
        if self.bootstrap {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    fn rustup(version: String) -> Self {
        Self { cargo: ["rustup", "run", "nightly", "cargo"].map(OsString::from).into(), rustc: None, bootstrap: false, version }
    }

    fn plain(rustc: PathBuf, version: String) -> Self {
        // The cargo beside it is of the same age; rustup's `cargo` on PATH would run another compiler's.
        let beside = rustc.with_file_name("cargo");
        let cargo = if rustc.is_absolute() && beside.is_file() { beside.into_os_string() } else { "cargo".into() };
        Self { cargo: vec![cargo], rustc: Some(rustc), bootstrap: true, version }
    }
}

/// The compiler for the kernel half: `VNET_BPF_RUSTC`, else rustup's nightly, else the `rustc` on PATH, else `/usr/bin/rustc`.
///
/// # Errors
/// None of them is complete; the message says what was looked at.
pub fn find_toolchain() -> Result<Toolchain, String> {
    if let Some(rustc) = env::var_os("VNET_BPF_RUSTC") {
        return match usable(std::slice::from_ref(&rustc)) {
            Ok(version) => Ok(Toolchain::plain(rustc.into(), version)),
            Err(why) => Err(format!("VNET_BPF_RUSTC={}: {why}", Path::new(&rustc).display())),
        };
    }
    let nightly = ["rustup", "run", "nightly", "rustc"].map(OsString::from);
    let mut tried = match usable(&nightly) {
        Ok(version) => return Ok(Toolchain::rustup(version)),
        Err(why) => format!("\n  rustup's nightly: {why}"),
    };
    for rustc in ["rustc", "/usr/bin/rustc"] {
        match usable(&[rustc.into()]) {
            Ok(version) => return Ok(Toolchain::plain(rustc.into(), version)),
            Err(why) => tried.push_str(&format!("\n  {rustc}: {why}")),
        }
    }
    Err(format!("no Rust compiler that can build for BPF; run ./setup. Looked at:{tried}"))
}

/// bpf-linker: in `.tools/bin` (`VNET_TOOLS` names another place), where `./setup` puts it, else on PATH.
///
/// # Errors
/// It is in none of these.
pub fn find_linker(root: &Path) -> Result<PathBuf, String> {
    let tools = env::var_os("VNET_TOOLS").map_or_else(|| root.join(".tools"), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools.join("bin"))
        .chain(env::split_paths(&path))
        .map(|dir| dir.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("no bpf-linker in {} nor on PATH; run ./setup", tools.join("bin").display()))
}

/// The version of a compiler that can build `core` for BPF, or why it cannot.
fn usable(rustc: &[OsString]) -> Result<String, String> {
    let version = output(rustc, &["--version"])?;
    if parse_version(&version).is_none_or(|number| number < OLDEST) {
        return Err(format!("{version} is older than {}.{}", OLDEST.0, OLDEST.1));
    }
    let sysroot = output(rustc, &["--print", "sysroot"])?;
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.is_file() { Ok(version) } else { Err(format!("{version} has no rust-src ({} is missing)", core.display())) }
}

/// `rustc 1.96.0-nightly (…)` → (1, 96).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(' ').nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn output(program: &[OsString], args: &[&str]) -> Result<String, String> {
    let out = command(program).args(args).output().map_err(|error| format!("cannot be run: {error}"))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        return Err(stderr.lines().next().unwrap_or("failed without a message").trim().to_owned());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn command(program: &[OsString]) -> Command {
    let (first, rest) = program.split_first().expect("a program is named");
    let mut command = Command::new(first);
    command.args(rest);
    for name in INHERITED {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, number) in [
            ("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)", Some((1, 96))),
            ("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)", Some((1, 97))),
            ("rustc 1.63.0", Some((1, 63))),
            ("rustc", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), number, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_says_so() {
        let why = usable(&["/nonexistent/rustc".into()]).unwrap_err();
        assert!(why.starts_with("cannot be run"), "{why}");
    }
}
