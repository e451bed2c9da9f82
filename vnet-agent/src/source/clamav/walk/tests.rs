//! What a walk gives, and what it does not.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

fn directory() -> PathBuf {
    nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-walk-XXXXXX")).unwrap()
}

/// Paths below `root` with what is in the files, or why they cannot be scanned; sorted.
fn walked(walk: &Walk) -> Vec<(String, String)> {
    let mut all = Vec::new();
    walk.run(&AtomicBool::new(false), |item| {
        let path = item.path.strip_prefix(&walk.root).unwrap().display().to_string();
        let said = match item.file {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            }
            Err(why) => format!("! {why}"),
        };
        all.push((path, said));
    });
    all.sort();
    all
}

#[test]
fn every_file_is_given_and_nothing_outside() {
    let (root, outside) = (directory(), directory());
    std::fs::create_dir_all(root.join("a/b/c")).unwrap();
    std::fs::write(root.join("one"), "1").unwrap();
    std::fs::write(root.join("a/b/c/two"), "2").unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("a/out")).unwrap();
    symlink(outside.join("secret"), root.join("a/secret")).unwrap();
    symlink("..", root.join("a/up")).unwrap();
    symlink("../one", root.join("a/one")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    let pairs = |all: &[(&str, &str)]| all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    assert_eq!(walked(&Walk::new(&root)), pairs(&[("a/b/c/two", "2"), ("one", "1")]));
    assert_eq!(walked(&Walk::new(&root.join("one"))), pairs(&[("", "1")]));
    for (path, part) in
        [("absent", "No such file"), ("a/secret", "symbolic link"), ("pipe", "neither a file nor"), ("a/out", "symbolic link")]
    {
        let all = walked(&Walk::new(&root.join(path)));
        assert!(all.len() == 1 && (all[0].1.contains(part) || all[0].1.contains("ELOOP")), "{path}: {all:?}");
    }
    std::fs::remove_dir_all(root).unwrap();
    std::fs::remove_dir_all(outside).unwrap();
}

#[test]
fn the_kernels_own_files_are_refused() {
    for path in ["/proc", "/proc/self/mem", "/sys/kernel"] {
        let all = walked(&Walk::new(Path::new(path)));
        assert!(all.len() == 1 && all[0].1.contains("kernel's own"), "{path}: {all:?}");
    }
}

#[test]
fn another_file_system_is_not_entered() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED another_file_system_is_not_entered: needs root, to mount one");
        return;
    }
    let root = directory();
    std::fs::create_dir(root.join("mounted")).unwrap();
    std::fs::write(root.join("fine"), "1").unwrap();
    let all = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            mount(Some("tmpfs"), &root.join("mounted"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            std::fs::write(root.join("mounted/secret"), "2").unwrap();
            walked(&Walk::new(&root))
        });
        inside.join().unwrap()
    });
    let expected = [("fine", "1"), ("mounted", "! another file system is mounted there: name it as a path of its own")];
    assert_eq!(all, expected.map(|(path, said)| (path.to_owned(), said.to_owned())));
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn what_is_too_much_is_said() {
    let root = directory();
    let mut deep = root.clone();
    for _ in 0..DEEPEST + 2 {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    let all = walked(&Walk::new(&root));
    assert!(all.len() == 1 && all[0].1.contains("directories deep"), "{all:?}");
    let all = walked(&Walk { root: root.clone(), most: 10 });
    assert!(all.len() == 1 && all[0].1.contains("more than 10 files"), "{all:?}");
    std::fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_walk_that_is_stopped_says_so() {
    let root = directory();
    for n in 0..20 {
        std::fs::write(root.join(n.to_string()), "").unwrap();
    }
    for after in [0, 5] {
        let (stop, mut given) = (AtomicBool::new(after == 0), Vec::new());
        Walk::new(&root).run(&stop, |item| {
            given.push(item.file.map(drop));
            stop.store(given.len() >= after, Ordering::Relaxed);
        });
        assert_eq!(given.len(), after + 1);
        assert_eq!(given[after], Err("the scan was stopped".to_owned()));
    }
    std::fs::remove_dir_all(root).unwrap();
}
