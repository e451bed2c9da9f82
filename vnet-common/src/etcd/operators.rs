//! Who may do what at the store: users are the common names of certificates.

use anyhow::{Context, Result, bail};
use etcd_client::{Error, Permission, UserAddOptions};

use super::error::Told;
use super::{Access, Client, describe};
use crate::fleet::{self, ROOT};

/// The role of those who write what is desired.
const OPERATORS: &str = "vnet-operators";
/// The roles of hosts begin like this.
const HOST: &str = "vnet-host-";
/// The user whom etcd wants before it checks anybody, and that user's role.
pub const ROOT_USER: &str = "root";

/// Sets up users and roles. It takes a certificate of `root`, or an etcd that does not check yet.
pub struct RoleSet<'a>(pub &'a mut Client);

impl RoleSet<'_> {
    /// Makes the roles of operators, and lets `operators` have it; whoever has it already keeps it.
    ///
    /// # Errors
    /// The member does not answer, or we may not do this.
    pub async fn operators(&mut self, operators: &[String]) -> Result<()> {
        let permission = Permission::read_write(ROOT).with_prefix();
        self.role(OPERATORS, vec![permission, Permission::read_write(fleet::LOAD).with_prefix()]).await?;
        for user in operators {
            self.user(user, OPERATORS).await?;
        }
        Ok(())
    }

    /// Lets a host read what all share, and write what is its own.
    ///
    /// # Errors
    /// See [`RoleSet::operators`].
    pub async fn host(&mut self, host: &str) -> Result<()> {
        let (single, below) = fleet::writable(host);
        let mut permissions = vec![Permission::read(ROOT).with_prefix(), Permission::read(fleet::LOAD).with_prefix()];
        permissions.extend(single.into_iter().map(Permission::read_write));
        permissions.extend(below.into_iter().map(|prefix| Permission::read_write(prefix).with_prefix()));
        self.role(&role_of(host), permissions).await?;
        self.user(host, &role_of(host)).await
    }

    /// Takes a host's rights away. A user who has others, too, keeps these.
    ///
    /// # Errors
    /// See [`RoleSet::operators`]. That there are none is no error.
    pub async fn remove_host(&mut self, host: &str) -> Result<()> {
        let roles = self.roles_of(host).await?;
        if roles.is_some_and(|roles| roles.iter().all(|role| *role == role_of(host))) {
            self.remove_user(host).await?;
        }
        let role = self.0.inner.role_delete(role_of(host)).await;
        absent_is_fine(role.map(drop)).with_context(|| format!("removing the store's role {}", role_of(host)))
    }

    /// Does the store check who its clients are? Asked by somebody whom it does not know.
    ///
    /// # Errors
    /// The member does not answer.
    pub async fn is_enabled(access: &Access, endpoint: &str) -> Result<bool> {
        // A question of its own came with etcd 3.5.
        match access.connect_as(endpoint, "vnet-nobody", "-").await {
            Ok(_) => Ok(true),
            Err(error) => match format!("{error:#}") {
                text if text.contains("authentication is not enabled") => Ok(false),
                text if text.contains("authentication failed") => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// The users that there are.
    ///
    /// # Errors
    /// See [`RoleSet::operators`].
    pub async fn users(&mut self) -> Result<Vec<String>> {
        let list = self.0.inner.user_list().await.map_err(Told::from);
        Ok(list.context("asking for the store's users")?.users().to_vec())
    }

    pub(super) async fn remove_user(&mut self, user: &str) -> Result<()> {
        let removed = self.0.inner.user_delete(user).await;
        absent_is_fine(removed.map(drop)).with_context(|| format!("removing the store's user {user}"))
    }

    pub(super) async fn role_of_root(&mut self) -> Result<()> {
        present_is_fine(self.0.inner.role_add(ROOT_USER).await.map(drop)).context("making the store's role root")
    }

    /// The roles of a user; `None`: there is none of this name.
    async fn roles_of(&mut self, user: &str) -> Result<Option<Vec<String>>> {
        match self.0.inner.user_get(user).await {
            Ok(found) => Ok(Some(found.roles().to_vec())),
            Err(error) if describe(&error).contains("not found") => Ok(None),
            Err(error) => Err(Told::from(error)).with_context(|| format!("asking for the roles of the store's user {user}")),
        }
    }

    async fn role(&mut self, name: &str, permissions: Vec<Permission>) -> Result<()> {
        let made = self.0.inner.role_add(name).await;
        present_is_fine(made.map(drop)).with_context(|| format!("making the store's role {name}"))?;
        // To give a right that is there changes nothing.
        for permission in permissions {
            let granted = self.0.inner.role_grant_permission(name, permission).await.map_err(Told::from);
            granted.with_context(|| format!("giving the store's role {name} its rights"))?;
        }
        Ok(())
    }

    pub(super) async fn user(&mut self, user: &str, role: &str) -> Result<()> {
        if let Some(other) = self.roles_of(user).await?.iter().flatten().find(|other| is_ours(other) && *other != role) {
            bail!("the store's user {user} has the role {other} already, and gets no {role}: choose another name");
        }
        let made = self.0.inner.user_add(user, "", Some(UserAddOptions::new().with_no_pwd())).await;
        present_is_fine(made.map(drop)).with_context(|| format!("making the store's user {user}"))?;
        if role == ROOT_USER {
            self.role_of_root().await?;
        }
        let granted = self.0.inner.user_grant_role(user, role).await.map_err(Told::from);
        granted.map(drop).with_context(|| format!("giving the store's user {user} the role {role}"))
    }
}

fn role_of(host: &str) -> String {
    format!("{HOST}{host}")
}

/// Is it a role that is given here?
fn is_ours(role: &str) -> bool {
    role == OPERATORS || role == ROOT_USER || role.starts_with(HOST)
}

fn present_is_fine(result: Result<(), Error>) -> Result<(), Told> {
    match result {
        Err(e) if describe(&e).contains("already exist") => Ok(()),
        other => other.map_err(Told::from),
    }
}

fn absent_is_fine(result: Result<(), Error>) -> Result<(), Told> {
    match result {
        Err(e) if describe(&e).contains("not found") => Ok(()),
        other => other.map_err(Told::from),
    }
}
