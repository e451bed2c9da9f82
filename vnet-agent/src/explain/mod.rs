//! What would become of a packet, and why.
pub mod packet;
pub mod rows;
pub mod target;
pub mod view;
