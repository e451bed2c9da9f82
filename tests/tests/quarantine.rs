//! Security groups, tags and quarantine, end to end: the real agent, the real CLI, real sockets, IDS and scanner.

#[path = "quarantine/crash.rs"]
mod crash;
#[path = "quarantine/evidence.rs"]
mod evidence;
#[path = "quarantine/moves.rs"]
mod moves;
#[path = "quarantine/policy.rs"]
mod policy;
#[path = "quarantine/support.rs"]
mod support;
#[path = "quarantine/survival.rs"]
mod survival;
