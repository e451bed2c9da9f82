//! Load feedback: what the members' load does to their weights.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Load feedback: hosts that share a store report the load of members, and get back by what to multiply their weights. A host without
/// a store takes no part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Feedback {
    /// What is aimed at.
    #[serde(default)]
    pub mode: FeedbackMode,
    /// How much of the way to the right weights is gone in each window of two seconds, in per cent: 1 to 100.
    #[serde(default = "three_quarters")]
    #[schemars(range(min = 1, max = 100))]
    pub gain_percent: u8,
    /// How much of what earlier windows said still counts in the next one, in per cent: 0 to 95.
    #[serde(default = "half")]
    #[schemars(range(max = 95))]
    pub damping_percent: u8,
    /// Nobody's weight is multiplied by less, in per cent: 1 to 100.
    #[serde(default = "a_tenth")]
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: u16,
    /// Nobody's weight is multiplied by more, in per cent: 100 to 1,000.
    #[serde(default = "four_times")]
    #[schemars(range(min = 100, max = 1000))]
    pub max_percent: u16,
    /// What members may take to answer a connection in the mean, in milliseconds: 1 to 60,000. For `mode: latencyTarget`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 60_000))]
    pub target_milliseconds: Option<u32>,
}

/// What load feedback aims at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FeedbackMode {
    /// Weights are as configured.
    #[default]
    Off,
    /// All members have equally many open flows for their weight, those of all hosts together.
    LeastLoad,
    /// Members that take longer than the target to answer connections get fewer.
    LatencyTarget,
}

impl Feedback {
    /// Does it do anything?
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.mode != FeedbackMode::Off
    }
}

fn three_quarters() -> u8 {
    75
}
fn half() -> u8 {
    50
}
fn a_tenth() -> u16 {
    10
}
fn four_times() -> u16 {
    400
}
