//! What happens, and why: events, flows and metrics, with the names that people know things by.
//!
//! [`Observer`] is shared by the control logic, which tells it names and says what it does; the thread that reads the programs'
//! events; and the API.

pub mod events;
pub mod flows;
pub mod metrics;
pub mod names;
mod reader;

use std::sync::Arc;

pub use events::{Events, Saying};
pub use names::{Directory, Names};
pub use reader::{Reader, Settings};

/// What the agent knows and says about what happens.
#[derive(Debug, Default)]
pub struct Observer {
    /// What numbers in rows stand for.
    pub names: Arc<Directory>,
    /// What happened.
    pub events: Arc<Events>,
    /// How long things took.
    pub timings: metrics::Timings,
}
