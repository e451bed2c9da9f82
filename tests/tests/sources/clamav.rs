//! The real clamd.

use super::support::Scene;
use anyhow::{Result, ensure};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use vnet_agent::api::Sources as _;
use vnet_agent::resource::Operation;
use vnet_common::api::{ScanReport, ScanRequest};
use vnet_tests::{Clamd, Host, MARK, TempDir};

const SOURCE: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: clamav }
spec:
  type: clamav
  allow: [{ tag: av.* }]
  input: { socket: SOCKET, guests: { vm: DIR/guest } }
";

/// The source, with these paths.
fn source(clamd: &Clamd, dir: &TempDir) -> String {
    SOURCE.replace("SOCKET", &clamd.socket().display().to_string()).replace("DIR", &dir.path().display().to_string())
}

fn scan(scene: &Scene) -> Result<ScanReport> {
    let request = ScanRequest { endpoint: "vm".to_owned(), paths: Vec::new() };
    Ok(scene.sources.scan("clamav", &request, &AtomicBool::new(false))?)
}

/// The changes since the last call.
fn changes(scene: &Scene, seen: &mut usize) -> Vec<(Operation, String, String)> {
    let all = scene.taken.all();
    let new = all.iter().skip(*seen).map(|(change, _)| (change.operation, change.name.clone(), change.value.clone())).collect();
    *seen = all.len();
    new
}

#[test]
fn an_infected_guest_is_tagged_and_a_clean_one_released() -> Result<()> {
    let (host, dir) = (Host::new("host")?, TempDir::new()?);
    let clamd = Clamd::start(&host)?;
    let guest = dir.path().join("guest");
    std::fs::create_dir_all(guest.join("home/alice"))?;
    for n in 0..200 {
        std::fs::write(guest.join(format!("home/alice/{n}.txt")), format!("letter {n}").repeat(100))?;
    }
    let scene = Scene::new(dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(&source(&clamd, &dir))?;
    let mut seen = 0;

    let begun = Instant::now();
    let report = scan(&scene)?;
    println!("clamd scanned {} files of {} bytes in {:?}", report.scanned, report.bytes, begun.elapsed());
    ensure!((report.scanned, report.infected.len(), report.failed.len()) == (200, 0, 0), "{report:?}");
    let said = changes(&scene, &mut seen);
    ensure!(said.len() == 2 && said[0].1 == "av.clean" && said[0].2.starts_with("ClamAV "), "{said:?}");
    ensure!(said[1] == (Operation::Clear, "av.malware".into(), String::new()), "{said:?}");

    let bad = guest.join("home/alice/invoice.exe");
    std::fs::write(&bad, format!("MZ {MARK}"))?;
    let report = scan(&scene)?;
    let name = Clamd::FOUND;
    ensure!(report.infected == [(bad.display().to_string(), name.to_owned())], "{report:?}");
    let said = changes(&scene, &mut seen);
    ensure!(said[0] == (Operation::Set, "av.malware".into(), name.into()), "{said:?}");
    ensure!(said[1] == (Operation::Clear, "av.clean".into(), String::new()), "{said:?}");
    ensure!(report.tags[0].severity == 8 && report.tags[0].evidence.contains("invoice.exe"), "{report:?}");

    // More than clamd takes at once is not scanned: nobody becomes clean by that.
    std::fs::remove_file(&bad)?;
    std::fs::write(guest.join("large"), vec![b'x'; 3 << 20])?;
    let report = scan(&scene)?;
    ensure!(report.scanned == 200 && report.failed.len() == 1 && report.failed[0].1.contains("size limit"), "{report:?}");
    ensure!(changes(&scene, &mut seen).is_empty());

    std::fs::remove_file(guest.join("large"))?;
    let report = scan(&scene)?;
    ensure!((report.tags.len(), report.cleared.len()) == (1, 1), "{report:?}");
    let said = changes(&scene, &mut seen);
    ensure!(said[1] == (Operation::Clear, "av.malware".into(), String::new()), "{said:?}");

    let test = scene.sources.test("clamav", None)?;
    println!("clamd, 1 KiB at a time: {} us at most", test.latencies_us.iter().max().copied().unwrap_or_default());
    Ok(())
}

#[test]
fn without_clamd_nothing_is_said() -> Result<()> {
    let (host, dir) = (Host::new("host")?, TempDir::new()?);
    let mut clamd = Clamd::start(&host)?;
    std::fs::create_dir(dir.path().join("guest"))?;
    let scene = Scene::new(dir.path(), &[("vm", "10.0.0.2")])?;
    scene.configure(&source(&clamd, &dir))?;
    scan(&scene)?;
    clamd.kill()?;
    let before = scene.taken.count();
    let error = format!("{:#}", scan(&scene).expect_err("there is no clamd"));
    ensure!(error.contains("is it running"), "{error}");
    ensure!(scene.taken.count() == before);
    ensure!(scene.status()?.last_error.is_some_and(|why| why.contains("connecting to clamd")));
    Ok(())
}
