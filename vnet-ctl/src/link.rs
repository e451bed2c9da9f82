//! Setting a network device up and down.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use rtnetlink::{Error, Handle, LinkUnspec};

/// A network device of this host, by its index: another one that gets its name later is not meant.
#[derive(Debug)]
pub struct Link {
    name: String,
    index: u32,
    handle: Handle,
}

impl Link {
    /// The device of this name.
    ///
    /// # Errors
    /// When there is none, or netlink cannot be opened.
    pub fn open(name: &str) -> Result<Self> {
        let index = match nix::net::if_::if_nametoindex(name) {
            Ok(index) => index,
            Err(Errno::ENODEV | Errno::ENXIO) => bail!("there is no device '{name}' on this host; ip link shows those there are"),
            Err(error) => return Err(error).with_context(|| format!("looking up the device '{name}'")),
        };
        let (connection, handle, _) =
            rtnetlink::new_connection().with_context(|| format!("opening netlink to set the device '{name}' up and down"))?;
        tokio::spawn(connection);
        Ok(Self { name: name.to_owned(), index, handle })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Sets it up, or down.
    pub async fn set(&self, up: bool) -> Result<()> {
        let message = LinkUnspec::new_with_index(self.index);
        let message = if up { message.up() } else { message.down() };
        let word = if up { "up" } else { "down" };
        let Err(error) = self.handle.link().set(message.build()).execute().await else { return Ok(()) };
        let doing = format!("setting the device '{}' {word}", self.name);
        match &error {
            Error::NetlinkError(message) if message.raw_code() == -(Errno::EPERM as i32) => {
                bail!("{doing}: only root (CAP_NET_ADMIN) may; use sudo, or leave --hold away")
            }
            Error::NetlinkError(message) if message.raw_code() == -(Errno::ENODEV as i32) => {
                bail!("{doing}: the device is gone")
            }
            _ => Err(error).context(doing),
        }
    }
}
