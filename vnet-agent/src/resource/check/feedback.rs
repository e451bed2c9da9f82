//! Faults of load feedback.

use super::super::{FeedbackMode, LoadBalancerSpec};
use super::alone::Report;

/// Looks at the load feedback of a load balancer.
pub(super) fn feedback(spec: &LoadBalancerSpec, report: Report<'_>) {
    let Some(feedback) = &spec.feedback else { return };
    match (feedback.mode, feedback.target_milliseconds) {
        (FeedbackMode::LatencyTarget, None) => {
            let message = "`mode: latencyTarget` needs a target: give `targetMilliseconds`";
            report("/spec/feedback/mode", message.to_owned());
        }
        (FeedbackMode::LeastLoad, Some(_)) => {
            let message = "`targetMilliseconds` is for `mode: latencyTarget`: remove it, or choose that mode";
            report("/spec/feedback/targetMilliseconds", message.to_owned());
        }
        _ => {}
    }
}
