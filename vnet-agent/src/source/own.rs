//! What is the agent's own: nothing that a tag source listens at.

use std::path::{Path, PathBuf};

use crate::resource::{SourceType, TagSourceSpec};

/// Where the agent has its own files.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its sockets and its lock. Sockets of sources without a path of their own are made there, too.
    pub run_dir: PathBuf,
    /// What it stores.
    pub state_dir: PathBuf,
}

impl Own {
    /// Where a Suricata source listens that does not say.
    pub(super) fn default_socket(&self) -> PathBuf {
        self.run_dir.join("suricata").join("eve.sock")
    }

    /// The field that names something of these, if one does, and why it may not.
    pub(super) fn refuses(&self, spec: &TagSourceSpec) -> Option<(&'static str, String)> {
        let (field, named) = match spec.r#type {
            SourceType::Suricata => ("/spec/input/socket", spec.input.socket.as_ref()?),
            SourceType::Json => ("/spec/input/directory", spec.input.directory.as_ref()?),
            // A client of clamd's makes nothing.
            SourceType::Clamav | SourceType::Operator => return None,
        };
        let (path, run_dir, state_dir) = (real(Path::new(named)), real(&self.run_dir), real(&self.state_dir));
        let is_own = path == run_dir || path.parent() == Some(&*run_dir) && is_in_use(&path) || path.starts_with(state_dir);
        is_own.then(|| (field, format!("{named} is the agent's own: choose another path")))
    }
}

/// `agent.sock`, `agent.lock`, and whatever else may come.
fn is_in_use(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"agent."))
}

/// The path without links on the way, as far as it leads anywhere.
fn real(path: &Path) -> PathBuf {
    let plain = || path.components().collect::<PathBuf>();
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => std::fs::canonicalize(parent).map_or_else(|_| plain(), |parent| parent.join(name)),
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_agents_is_a_sources() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-own-XXXXXX")).unwrap();
        std::fs::create_dir(dir.join("run")).unwrap();
        std::os::unix::fs::symlink(dir.join("run"), dir.join("link")).unwrap();
        let own = Own { run_dir: dir.join("run"), state_dir: dir.join("state") };
        let suricata = |path: &str| {
            super::super::tests::EXAMPLES[0].1.replace("  allow:", &format!("  input: {{ socket: {path} }}\n  allow:"))
        };
        let json =
            |path: &str| super::super::tests::PLAIN.replace("  allow:", &format!("  input: {{ directory: {path} }}\n  allow:"));
        let refused = |yaml: String| {
            let yaml = yaml.replace("DIR", &dir.display().to_string());
            own.refuses(&super::super::tests::tag_sources(&yaml)[0].spec)
        };
        for path in
            ["DIR/run/agent.sock", "DIR/run//./agent.sock", "DIR/link/agent.sock", "DIR/run/agent.lock", "DIR/state/x/eve.sock"]
        {
            let (field, why) = refused(suricata(path)).unwrap();
            assert!(field == "/spec/input/socket" && why.contains("is the agent's own"), "{path}: {why}");
        }
        for path in ["DIR/run", "DIR/link/../run", "DIR/state", "DIR/state/in"] {
            assert_eq!(refused(json(path)).map(|(field, _)| field), Some("/spec/input/directory"), "{path}");
        }
        for yaml in
            [suricata("DIR/run/suricata/eve.sock"), suricata("DIR/run/eve.sock"), json("DIR/run/falco"), json("DIR/agent.d")]
        {
            assert_eq!(refused(yaml), None);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
