//! What end-to-end tests, the benchmark and the lab are made of: hosts that are network namespaces, cables between
//! them, programs in them, and the real agent.
//!
//! ```no_run
//! use vnet_tests::{Agent, Host, connect};
//!
//! # fn main() -> anyhow::Result<()> {
//! let host = Host::new("host")?;
//! let client = Host::new("client")?;
//! connect((&host, "client0", &["10.0.0.1/24", "fd00::1/64"]), (&client, "eth0", &["10.0.0.10/24", "fd00::10/64"]))?;
//! client.ip("route add default via 10.0.0.1")?;
//! host.forward()?;
//! let agent = Agent::start(&host, &["client*"])?;
//! println!("{}", agent.ctl(&["status"])?);
//! println!("{}", client.output("ping", &["-c", "1", "10.0.0.1"])?);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing outlives the process that made it, not even when that is killed: namespaces are held by descriptors, never by
//! names; programs get SIGKILL from the kernel when it dies; maps are pinned in a bpffs that only the host's mount
//! namespace has. What it cannot remove then, its temporary directories, the next one removes.

mod agent;
mod cable;
mod capture;
mod clamd;
mod etcd;
mod fleet;
mod guest;
mod host;
mod machine;
mod marked;
mod named;
mod pins;
mod pki;
pub mod policy;
mod process;
mod routed;
mod session;
mod suricata;
mod tempdir;
mod traffic;
mod wait;

pub use agent::{Agent, bin_dir, wait_for_group};
pub use cable::connect;
pub use capture::Capture;
pub use clamd::Clamd;
pub use etcd::{Etcd, ROOT};
pub use fleet::{Fleet, OPERATOR};
pub use guest::Guest;
pub use host::Host;
pub use machine::Machine;
pub use marked::Marked;
pub use named::{Open, serve_name};
pub use pins::Pins;
pub use pki::{Identity, Pki};
pub use process::Process;
pub use routed::{Routed, machine_behind, plug};
pub use session::Session;
pub use suricata::{MARK, Suricata};
pub use tempdir::TempDir;
pub use traffic::{Clients, Farm, Server, imbalance};
pub use wait::{skip, wait_for};
