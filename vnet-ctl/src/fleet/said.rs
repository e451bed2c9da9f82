//! What was written is said before it is waited for, so that whoever does not want to wait knows it.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::{InForce, wait_for};
use crate::failure::Interrupted;
use crate::output::{Session, print};

/// What was written, and who is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// The store's revision; `None`: there was nothing to write.
    pub revision: Option<i64>,
    /// How long to wait.
    pub limit: Duration,
    /// These hosts; `None`: all.
    pub hosts: Option<&'a [String]>,
}

/// Tells people `text`, and then who has it in force. Programs are told what `all` makes of that, at the end.
///
/// # Errors
/// It cannot be printed, or somebody broke the waiting off.
pub async fn say<T: Serialize>(
    session: &Session,
    written: Written<'_>,
    text: &str,
    all: impl FnOnce(Option<InForce>) -> T,
) -> Result<()> {
    let Written { revision, limit, hosts } = written;
    if session.for_people() {
        print(text)?;
    }
    let force = tokio::select! {
        force = wait_for(session, revision, limit, hosts) => force,
        Ok(()) = tokio::signal::ctrl_c() => return Err(Interrupted(revision.unwrap_or_default()).into()),
    };
    if session.for_people() {
        return print(&force.as_ref().map(InForce::line).unwrap_or_default());
    }
    session.show(&all(force), |_| String::new())
}
