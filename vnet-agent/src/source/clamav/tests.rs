//! What a scan means for tags, with a server that speaks clamd's protocol: it finds what the name of a virus stands in. The real
//! clamd is in the end-to-end tests.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use vnet_common::api::{ScanReport, ScanRequest};

use super::super::tests::Scene;
use crate::api::Sources as _;

/// A file that clamd does not take.
const TOO_LARGE: usize = 1 << 20;

fn serve(path: PathBuf) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| drop(answer(stream.unwrap()))));
}

fn answer(mut stream: UnixStream) -> std::io::Result<()> {
    let mut command = Vec::new();
    let mut byte = [0];
    while byte != [0] || command.is_empty() {
        stream.read_exact(&mut byte)?;
        command.push(byte[0]);
    }
    if command == b"zVERSION\0" {
        return stream.write_all(b"ClamAV 1.4.3/27500/Tue Dec 30 09:00:00 2025\0");
    }
    assert_eq!(command, b"zINSTREAM\0");
    let mut file = Vec::new();
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_be_bytes(len) as usize;
        if len == 0 {
            break;
        }
        let start = file.len();
        file.resize(start + len, 0);
        stream.read_exact(&mut file[start..])?;
        if file.len() > TOO_LARGE {
            return stream.write_all(b"INSTREAM size limit exceeded. ERROR\0");
        }
    }
    let text = String::from_utf8_lossy(&file);
    match text.split_once("virus ") {
        Some((_, name)) => write!(stream, "stream: {} FOUND\0", name.split(' ').next().unwrap_or_default()),
        None => stream.write_all(b"stream: OK\0"),
    }
}

const YAML: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: av }
spec:
  type: clamav
  allow: [{ tag: av.* }]
  input: { socket: DIR/clamd, maxFileMib: 4, guests: { web-1: DIR/guest } }
";

fn scene() -> Scene {
    let scene = Scene::new();
    serve(scene.dir.join("clamd"));
    std::fs::create_dir(scene.dir.join("guest")).unwrap();
    scene.configure(YAML);
    scene
}

fn scan(scene: &Scene, endpoint: &str, paths: &[&str]) -> Result<ScanReport, String> {
    let paths = paths.iter().map(|path| scene.dir.join(path).display().to_string()).collect();
    let request = ScanRequest { endpoint: endpoint.to_owned(), paths };
    scene.sources.scan("av", &request, &AtomicBool::new(false)).map_err(|refusal| refusal.to_string())
}

fn tags(scene: &Scene) -> Vec<String> {
    scene.taken().iter().map(|c| format!("{:?} {} {} {}", c.operation, c.name, c.value, c.severity)).collect()
}

const CLEAN_NOW: [&str; 2] = ["Set av.clean ClamAV 1.4.3/27500/Tue Dec 30 09:00:00 2025 0", "Clear av.malware  0"];

#[test]
fn infected_clean_and_unknown() {
    let scene = scene();
    let write = |name: &str, text: &[u8]| std::fs::write(scene.dir.join("guest").join(name), text).unwrap();
    write("fine", b"nothing to see");
    let report = scan(&scene, "web-1", &[]).unwrap();
    assert_eq!((report.scanned, report.bytes, report.tags.len(), report.cleared.len()), (1, 14, 1, 1));
    assert_eq!(tags(&scene), CLEAN_NOW);
    write("bad", b"virus Eicar here");
    let report = scan(&scene, "web-1", &[]).unwrap();
    assert_eq!(report.infected, [(scene.dir.join("guest/bad").display().to_string(), "Eicar".to_owned())]);
    assert_eq!(tags(&scene), ["Set av.malware Eicar 8", "Clear av.clean  0"]);
    // One file that cannot be scanned: who was infected stays so, and nobody becomes clean.
    std::fs::remove_file(scene.dir.join("guest/bad")).unwrap();
    for (len, part) in
        [(TOO_LARGE + 1, "size limit exceeded"), (TOO_LARGE * 3, "size limit exceeded"), ((4 << 20) + 1, "than 4 MiB")]
    {
        write("large", &vec![b'x'; len]);
        let report = scan(&scene, "web-1", &[]).unwrap();
        assert!(report.failed.len() == 1, "{report:?}");
        assert!(report.failed[0].1.contains(part) || report.failed[0].1.contains("size limit"), "{report:?}");
        assert_eq!((report.scanned, tags(&scene).len()), (1, 0));
    }
    write("large", b"virus Heuristics.Limits.Exceeded.MaxFileSize x");
    assert!(scan(&scene, "web-1", &[]).unwrap().failed[0].1.contains("beyond clamd's limits"));
    assert!(tags(&scene).is_empty());
    let status = scene.status();
    assert_eq!((status.kind.as_str(), status.state.as_str(), status.events), ("clamav", "ok", 6));
}

#[test]
fn only_a_scan_of_all_that_is_a_guests_makes_it_clean() {
    let scene = scene();
    std::fs::create_dir(scene.dir.join("guest/part")).unwrap();
    std::fs::write(scene.dir.join("guest/part/fine"), "").unwrap();
    assert_eq!(scan(&scene, "web-1", &["guest/part"]).unwrap().scanned, 1);
    assert!(tags(&scene).is_empty());
    scan(&scene, "web-1", &["guest/part", "guest"]).unwrap();
    assert_eq!(tags(&scene), CLEAN_NOW);
    // Not by the name of a directory that it is in.
    scan(&scene, "web-1", &["."]).unwrap();
    assert!(tags(&scene).is_empty());
    // Of this one the resource says nothing: what the operator names is all.
    scan(&scene, "db-1", &["guest/part"]).unwrap();
    assert_eq!(tags(&scene), CLEAN_NOW);
    std::fs::write(scene.dir.join("guest/part/bad"), "virus X").unwrap();
    scan(&scene, "web-1", &["guest/part"]).unwrap();
    assert_eq!(tags(&scene), ["Set av.malware X 8", "Clear av.clean  0"]);
}

#[test]
fn where_there_is_nothing_nobody_is_clean() {
    let scene = scene();
    std::fs::create_dir(scene.dir.join("guest/empty")).unwrap();
    std::fs::create_dir(scene.dir.join("other")).unwrap();
    std::fs::write(scene.dir.join("other/fine"), "").unwrap();
    for paths in [&[][..], &["guest"], &["guest", "other"], &["other", "guest"]] {
        let report = scan(&scene, "web-1", paths).unwrap();
        let guest = scene.dir.join("guest").display().to_string();
        assert_eq!(report.failed, [(guest, "there is nothing to scan: is it mounted?".to_owned())], "{paths:?}");
        assert!(report.tags.is_empty() && tags(&scene).is_empty(), "{paths:?}");
    }
}

#[test]
fn a_scan_that_was_stopped_makes_nobody_clean() {
    let scene = scene();
    std::fs::write(scene.dir.join("guest/fine"), "").unwrap();
    let request = ScanRequest { endpoint: "web-1".into(), paths: Vec::new() };
    let report = scene.sources.scan("av", &request, &AtomicBool::new(true)).unwrap();
    assert!(report.failed[0].1.contains("was stopped") && tags(&scene).is_empty(), "{report:?}");
}

#[test]
fn what_cannot_be_scanned_is_refused() {
    let scene = scene();
    assert!(scan(&scene, "nobody", &[]).unwrap_err().contains("there is no endpoint 'nobody'"));
    assert!(scan(&scene, "db-1", &[]).unwrap_err().contains("has no directory of db-1"));
    let relative = ScanRequest { endpoint: "db-1".into(), paths: vec!["etc".into()] };
    assert!(scene.sources.scan("av", &relative, &AtomicBool::new(false)).unwrap_err().to_string().contains("is not absolute"));
    assert!(scene.sources.ingest("av", b"{}").unwrap_err().to_string().contains("is of type clamav"));
    let report = scan(&scene, "db-1", &["absent"]).unwrap();
    assert!(report.failed.len() == 1 && report.tags.is_empty(), "{report:?}");
    scene.configure(&YAML.replace("DIR/clamd", "DIR/nothing"));
    let error = scan(&scene, "web-1", &[]).unwrap_err();
    assert!(error.contains("connecting to clamd at") && error.contains("is it running"), "{error}");
    assert!(tags(&scene).is_empty());
}

#[test]
fn a_measurement_has_clamd_scan() {
    let scene = scene();
    let test = scene.sources.test("av", None).unwrap();
    assert!(test.trials == 20 && test.notes[0].contains("ClamAV 1.4.3/27500"), "{test:?}");
}
