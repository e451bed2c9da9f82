//! Directories: which files are read, when, and what becomes of them.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::tests::{PLAIN, Scene};
use super::*;

const EVENT: &str = r#"{"vm": "web-1", "tag": "a"}"#;

fn watched() -> String {
    PLAIN.replace("  type: json", "  type: json\n  input: { directory: DIR/in }")
}

fn scene() -> (Scene, PathBuf) {
    let scene = Scene::new();
    scene.configure(&watched());
    let inside = scene.dir.join("in");
    (scene, inside)
}

/// All but the marker.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != MARKER);
    names.sort();
    names
}

#[test]
fn files_are_read_once_they_are_complete_and_removed() {
    let (scene, inside) = scene();
    assert_eq!(scene.status().input, format!("POST /v1/sources/s/events, {}", inside.display()));
    assert_eq!(std::fs::metadata(&inside).unwrap().permissions().mode() & 0o777, 0o700);
    let mut slow = File::create(inside.join("slow.json")).unwrap();
    slow.write_all(&EVENT.as_bytes()[..10]).unwrap();
    std::fs::write(inside.join("one.json"), EVENT).unwrap();
    std::fs::write(scene.dir.join("two"), format!("{EVENT}\n{EVENT}\n")).unwrap();
    std::fs::rename(scene.dir.join("two"), inside.join("two.ndjson")).unwrap();
    scene.wait("three tags", || scene.status().tags == 3);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(names(&inside), ["slow.json"], "it is still being written");
    slow.write_all(&EVENT.as_bytes()[10..]).unwrap();
    drop(slow);
    scene.wait("the fourth", || scene.status().tags == 4);
    scene.wait("its removal", || names(&inside).is_empty());
    assert_eq!(scene.status().malformed, 0);
}

#[test]
fn what_was_there_before_is_read_too() {
    let scene = Scene::new();
    let inside = scene.dir.join("in");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join(MARKER), "").unwrap();
    std::fs::write(inside.join(format!("{TAKEN}.1")), EVENT).unwrap();
    std::fs::write(inside.join("fresh.json"), EVENT).unwrap();
    let old = File::create(inside.join("old.json")).unwrap();
    (&old).write_all(EVENT.as_bytes()).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    scene.configure(&watched());
    scene.wait("what a dead agent had begun, and the old one", || scene.status().tags == 2);
    assert_eq!(names(&inside), ["fresh.json"], "it may still be written");
    scene.wait("the fresh one", || scene.status().tags == 3);
}

#[test]
fn a_directory_with_somebodys_files_is_left_alone() {
    let scene = Scene::new();
    let inside = scene.dir.join("in");
    std::fs::create_dir(&inside).unwrap();
    for name in ["precious.json", "notes.txt"] {
        std::fs::write(inside.join(name), EVENT).unwrap();
        scene.configure(&watched());
        let status = scene.status();
        assert!(status.state.contains(&format!("{name} is in it")) && names(&inside) == [name], "{status:?}");
        std::fs::remove_file(inside.join(name)).unwrap();
    }
    scene.configure(&watched());
    assert_eq!(scene.status().state, "silent");
    // From now on it is the source's, whatever there is in it at the next start.
    scene.sources.configure(&[]);
    std::fs::write(inside.join("one.json"), EVENT).unwrap();
    scene.configure(&watched());
    scene.wait("the tag", || scene.status().tags == 1);
}

#[test]
fn what_is_wrong_is_kept_with_the_reason() {
    let (scene, inside) = scene();
    let secret = scene.dir.join("secret.json");
    std::fs::write(&secret, EVENT).unwrap();
    std::fs::write(inside.join("bad.json"), "{").unwrap();
    std::fs::write(inside.join("some.ndjson"), format!("{EVENT}\nx\n")).unwrap();
    std::fs::write(inside.join("large.json"), vec![b' '; MOST + 1]).unwrap();
    symlink(&secret, scene.dir.join("link")).unwrap();
    std::fs::rename(scene.dir.join("link"), inside.join("link.json")).unwrap();
    std::fs::create_dir(scene.dir.join("folder")).unwrap();
    std::fs::rename(scene.dir.join("folder"), inside.join("folder.json")).unwrap();
    nix::unistd::mkfifo(&scene.dir.join("pipe"), Mode::S_IRWXU).unwrap();
    std::fs::rename(scene.dir.join("pipe"), inside.join("pipe.json")).unwrap();
    std::fs::write(inside.join("notes.txt"), EVENT).unwrap();
    std::fs::write(inside.join(".hidden.json"), EVENT).unwrap();
    let rejected = inside.join(REJECTED);
    scene.wait("six that are rejected", || rejected.exists() && names(&rejected).len() == 12);
    let why = |name: &str| std::fs::read_to_string(rejected.join(format!("{name}.why"))).unwrap();
    // A reason is there a moment before its text.
    scene.wait("the reasons", || {
        names(&rejected).iter().filter_map(|name| name.strip_suffix(".why")).all(|name| !why(name).is_empty())
    });
    for (name, part) in [
        ("bad.json", "it is not JSON: EOF"),
        ("some.ndjson", "event 2: expected value"),
        ("large.json", "larger than 4 MiB"),
        ("link.json", "symbolic link"),
        ("folder.json", "no regular file"),
        ("pipe.json", "no regular file"),
    ] {
        assert!(why(name).contains(part), "{name}: {}", why(name));
    }
    assert_eq!(names(&inside), [".hidden.json", "notes.txt", "rejected"]);
    let status = scene.status();
    assert_eq!((status.tags, status.malformed, status.refused), (1, 3, 3), "{status:?}");
    // Another of the same name has a place of its own.
    std::fs::write(inside.join("bad.json"), "[").unwrap();
    scene.wait("it", || rejected.join("bad.json.1.why").exists());
    assert_eq!(std::fs::read_to_string(rejected.join("bad.json")).unwrap(), "{");
}

#[test]
fn nothing_that_a_sender_puts_in_the_way_stops_the_others() {
    let (scene, inside) = scene();
    for name in [TAKEN.to_owned(), format!("{TAKEN}.1")] {
        std::fs::create_dir_all(inside.join(name).join("x")).unwrap();
    }
    std::fs::create_dir_all(scene.dir.join("folder/x")).unwrap();
    std::fs::rename(scene.dir.join("folder"), inside.join("folder.json")).unwrap();
    scene.wait("the refusal", || inside.join("rejected/folder.json.why").exists());
    std::fs::write(inside.join("one.json"), EVENT).unwrap();
    scene.wait("the tag", || scene.status().tags == 1);
    // Nor after a restart: what cannot be read is set aside.
    scene.sources.configure(&[]);
    scene.configure(&watched());
    std::fs::write(inside.join("one.json"), EVENT).unwrap();
    scene.wait("the tag", || scene.status().tags == 1);
    scene.wait("the order", || names(&inside) == ["rejected"]);
}

#[test]
fn files_of_others_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED files_of_others_are_refused: needs root, to give files away");
        return;
    }
    let (scene, inside) = scene();
    let give = |name: &str| {
        let file = scene.dir.join(name);
        std::fs::write(&file, EVENT).unwrap();
        nix::unistd::chown(&file, Some(4711.into()), None).unwrap();
        std::fs::rename(file, inside.join(name)).unwrap();
    };
    give("one.json");
    scene.wait("the refusal", || inside.join("rejected/one.json.why").exists());
    assert_eq!((scene.status().refused, scene.status().tags), (1, 0));
    scene.configure(&watched().replace("  type: json", "  type: json\n  users: ['4711']"));
    give("two.json");
    scene.wait("the tag", || scene.status().tags == 1);
}

#[test]
fn a_directory_that_goes_is_watched_again_when_it_is_back() {
    let (scene, inside) = scene();
    std::fs::remove_dir_all(&inside).unwrap();
    scene.configure(&watched());
    std::fs::write(inside.join("one.json"), EVENT).unwrap();
    scene.wait("the tag", || scene.status().tags == 1);
    std::fs::write(scene.dir.join("s.txt"), "").unwrap();
    scene.configure(&PLAIN.replace("  type: json", "  type: json\n  input: { directory: DIR/s.txt }"));
    assert!(scene.status().state.starts_with("failed: watching "), "{:?}", scene.status());
}

#[test]
fn thousands_of_files_at_once_are_all_read() {
    let (scene, inside) = scene();
    let many = 2000;
    for n in 0..many {
        std::fs::write(inside.join(format!("{n}.json")), format!(r#"{{"vm": "web-1", "tag": "a", "n": {n}}}"#)).unwrap();
    }
    scene.wait("all", || scene.status().tags == many);
    scene.wait("their removal", || names(&inside).is_empty());
}
