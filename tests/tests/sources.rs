//! Tag sources, end to end: the real Suricata and the real clamd, and users who may not.

#[path = "sources/clamav.rs"]
mod clamav;
#[path = "sources/socket.rs"]
mod socket;
#[path = "sources/support.rs"]
mod support;
#[path = "sources/suricata.rs"]
mod suricata;
