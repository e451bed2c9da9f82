//! The store of a fleet: who may write what, and what is desired, as `vnet-ctl` would write it.

use anyhow::{Context as _, Result};
use vnet_agent::resource::Resource;
use vnet_common::etcd::{Access, Client, RoleSet, Rotation, Tls, Write};
use vnet_common::fleet::{Key, Registration, SERIAL, Stored};
use vnet_tests::{Fleet, Host, ROOT};

/// Runs something that talks to the store from within a host.
pub fn within<T: Send, F: Future<Output = Result<T>>>(host: &Host, act: impl FnOnce() -> F + Send) -> Result<T> {
    host.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(act()))?
}

/// Connects as root.
pub async fn connect(fleet: &Fleet) -> Result<Client> {
    let root = fleet.etcd.pki.client(ROOT)?;
    let tls = Tls { ca: root.ca, cert: root.certificate, key: root.key };
    Rotation::new(Access::new(&fleet.etcd.endpoints(), Some(tls))?, 0).connect_any().await
}

/// Registers hosts, writes what is desired, and has the store check from then on who writes.
pub fn seed(fleet: &Fleet, hosts: &[String], resources: impl IntoIterator<Item = Resource> + Send) -> Result<()> {
    within(&fleet.core, || async {
        let mut client = connect(fleet).await?;
        let mut writes = Vec::new();
        for (number, host) in (1..).zip(hosts) {
            let registration = Registration { number, ..Registration::default() };
            writes.push(put(&Key::Registration(host.clone()), &registration)?);
        }
        for resource in resources {
            writes.push(resource_put(&resource)?);
        }
        writes.push(serial());
        client.write(&writes).await?;
        let mut roles = RoleSet(&mut client);
        roles.operators(&[]).await?;
        for host in hosts {
            roles.host(host).await?;
        }
        roles.enable().await
    })
    .context("writing what the fleet begins with")
}

/// A resource as it is desired.
pub fn resource_put(resource: &Resource) -> Result<Write> {
    let key = Key::Resource(resource.kind().to_owned(), resource.name().to_owned());
    put(&key, &Stored { resource: serde_json::to_value(resource)?, ..Stored::default() })
}

/// What goes with each change of what is desired.
pub fn serial() -> Write {
    Write::Put(SERIAL.to_owned(), ROOT.into(), 0)
}

/// A value under a key.
pub fn put(key: &Key, value: &impl serde::Serialize) -> Result<Write> {
    Ok(Write::Put(key.to_string(), serde_json::to_vec(value)?, 0))
}
