//! Where resources were written.

use serde::{Deserialize, Serialize};

/// The file that a resource was applied from, and the lines of its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The file, as whoever applied it named it.
    pub file: String,
    /// The line at which the resource starts.
    pub line: u32,
    /// The line of each rule in its `egress`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<u32>,
    /// The line of each rule in its `ingress`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<u32>,
}

impl Origin {
    /// Of a line, as `web.yaml:12`.
    #[must_use]
    pub fn place(&self, line: u32) -> String {
        format!("{}:{line}", self.file)
    }
}
