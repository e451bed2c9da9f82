//! Load balancing: from resources to map rows.
//!
//! [`compile`] says what should be, [`surroundings`] where members may be and [`share`] who of a group serves, [`plan`] how to get there
//! from what is ([`live`], [`known`]), [`apply`] does it, [`health`] tells who serves, [`eject`] whose connections fail, [`feedback`] what
//! the members have to do for all hosts, [`status`] what users see of it.

pub mod apply;
pub mod compile;
pub mod eject;
pub mod feedback;
pub(crate) mod free;
pub mod health;
pub mod known;
pub mod live;
pub mod plan;
pub mod share;
pub mod status;
pub mod surroundings;
pub mod table;
mod tally;
