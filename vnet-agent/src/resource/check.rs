//! What a schema cannot say: how the values of a resource fit together, and how resources do.

mod alone;
mod feedback;
mod group;
mod health;
mod reference;
mod rule;
mod source;
mod together;

pub(super) use alone::alone;
pub use reference::needed;
pub(super) use together::together;
use vnet_common::api::Fault;

use super::source::Faults;
use super::{Located, Resource};

/// Every fault that `applied` has beside `others`: what is in force already and stays.
#[must_use]
pub fn check(applied: &[Located], others: &[&Resource]) -> Vec<Fault> {
    let mut faults = Faults::default();
    together(applied, others, &mut faults);
    together::named(applied, others, &mut faults);
    faults.into_sorted(&[])
}
