//! Cables between hosts.

use crate::Host;
use crate::host::nodad;
use anyhow::{Context as _, Result};

/// One end of a cable: where it is plugged in, the device's name there, and its addresses with prefix lengths.
pub type End<'a> = (&'a Host, &'a str, &'a [&'a str]);

/// Joins two hosts, or two devices of one, with a veth pair that carries packets when this returns.
///
/// # Errors
/// A name is taken or an address is none.
pub fn connect(one: End<'_>, other: End<'_>) -> Result<()> {
    let what = || format!("connecting {} of {} to {} of {}", one.1, one.0.name(), other.1, other.0.name());
    // The peer is made in its namespace under its own name: no clash on the way.
    let peer = format!("name {} netns {}", other.1, other.0.net_path().display());
    one.0.ip(&format!("link add name {} type veth peer {peer}", one.1)).with_context(what)?;
    for (host, device, addresses) in [one, other] {
        let mut commands = format!("link set dev {device} up\n");
        for address in addresses {
            commands += &format!("address add {address} dev {device}{}\n", nodad(address));
        }
        host.ip(&commands).with_context(what)?;
    }
    one.0.wait_up(one.1)?;
    other.0.wait_up(other.1)
}
