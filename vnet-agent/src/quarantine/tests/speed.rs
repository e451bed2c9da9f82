//! How fast it is at scale. Numbers of a debug build say nothing: run it with
//! `cargo test --release -p vnet-agent --lib quarantine::tests::speed -- --nocapture`.

use std::time::Instant;

use super::*;

const ENDPOINTS: usize = 10_000;
const GROUPS: usize = 1_000;
const SESSIONS: usize = 20;

/// 1,000 groups of ten endpoints each, with three transfers; 20 more by session.
fn resources() -> String {
    let mut yaml = String::from(COMMON);
    for n in 0..GROUPS {
        yaml += &format!(
            r#"---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: {{ name: g{n} }}
spec:
  selector: {{ matchLabels: {{ app: app{n} }} }}
  brakes: {{ maxEndpoints: 1000000 }}
  transfers:
    - {{ name: worst, priority: 1, to: strict, when: 'tags.exists(t, t.name == "ids.malware" && t.severity >= 9)', minHoldSeconds: 60 }}
    - {{ name: bad, priority: 2, to: strict, when: 'tags.exists(t, t.name == "ids.malware" && t.severity >= 7)', releaseWhen: 'tags.exists(t, t.name == "clean")' }}
    - {{ name: odd, priority: 3, to: lax, when: 'tags.exists(t, t.name.startsWith("ids.") && t.severity >= 5 && t.confidence > 50) && labels.app == "app{n}"' }}
"#
        );
    }
    for n in 0..SESSIONS {
        yaml += &format!(
            "---\napiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: {{ name: s{n} }}\nspec: {{ precedence: 10, selector: {{ matchLabels: {{ desktop: d{n} }}, expression: 'tags.exists(t, t.name == \"session\" && t.value == \"s{n}\")' }} }}\n"
        );
    }
    yaml
}

/// Notes when a hold arrives.
struct Stopwatch {
    begun: Mutex<Instant>,
    took: Mutex<Vec<Duration>>,
}

impl Enforce for Stopwatch {
    fn hold(&self, _: &str, _: &str, _: u32) -> Result<bool> {
        let took = self.begun.lock().unwrap().elapsed();
        self.took.lock().unwrap().push(took);
        Ok(true)
    }
    fn release(&self, _: &str, _: u32) -> Result<bool> {
        Ok(true)
    }
    fn pinned(&self) -> Result<Vec<Pinned>> {
        Ok(Vec::new())
    }
}

fn percentiles(what: &str, mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:?}, p99 {:?}, max {:?} (n {})", at(0.5), at(0.99), at(1.0), took.len());
    at(0.99)
}

#[test]
#[cfg_attr(debug_assertions, ignore = "measures; run it in a release build")]
fn a_tag_is_enforced_well_within_200_us_at_scale() {
    let mut w = World::new("apiVersion: vnet/v1alpha1\nkind: SecurityGroup\nmetadata: { name: x }\nspec: {}");
    w.resources(&resources());
    w.endpoints.clear();
    for n in 0..ENDPOINTS {
        let labels = [("app", format!("app{}", n % GROUPS)), ("desktop", format!("d{}", n % SESSIONS)), ("os", "linux".into())];
        w.endpoints.insert(format!("vm{n}"), labels.map(|(k, v)| (k.to_owned(), v)).into());
    }
    let watch = Arc::new(Stopwatch { begun: Mutex::new(Instant::now()), took: Mutex::default() });
    let clock: Arc<dyn super::super::clock::Clock> = Arc::new(super::super::clock::SystemClock::new().unwrap());
    let dir = std::env::temp_dir().join(format!("vnet-speed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let store = crate::store::redb::RedbStore::open(&dir.join("vnet.redb")).unwrap();
    let service = Service::open(Arc::new(store), Arc::clone(&watch) as Arc<_>, clock).unwrap();
    w.service = Some(Arc::new(service));
    let begun = Instant::now();
    w.set_inputs();
    println!("all resources and endpoints: {:?}", begun.elapsed());
    let running = w.service().start().unwrap();
    let change = |n: usize, name: &str, severity: u8| TagChange {
        subject: format!("vm{n}"),
        source: "ids".into(),
        name: name.into(),
        instance: String::new(),
        operation: set(severity, Some(3600), OnExpiry::Release),
    };
    for n in 0..ENDPOINTS {
        w.service().apply_event(&change(n, "ids.scan", 2)).unwrap();
        w.service().apply_event(&change(n, "owner", 0)).unwrap();
    }
    let mut total = Vec::new();
    for n in 0..5_000 {
        let change = change(n * 2, "ids.malware", 8);
        let begun = Instant::now();
        *watch.begun.lock().unwrap() = begun;
        w.service().apply_event(&change).unwrap();
        total.push(begun.elapsed());
        if n % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let took = std::mem::take(&mut *watch.took.lock().unwrap());
    assert_eq!(took.len(), 5_000);
    let p99 = percentiles("tag event to hold, 10,000 endpoints, 1,000 groups, redb writing", took);
    percentiles("tag event to return", total);

    // The same while resources change all the time.
    let service = Arc::clone(w.service());
    let stop = Arc::new(AtomicBool::new(false));
    let applying = std::thread::scope(|scope| {
        let applying = scope.spawn(|| {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let inputs = Inputs {
                    groups: w.groups.iter().filter(|g| took.len() % 2 == 0 || g.metadata.name != "g7").collect(),
                    sources: w.sources.iter().collect(),
                    endpoints: w.endpoints.iter().map(|(name, labels)| (name.as_str(), labels)).collect(),
                };
                service.set_inputs(&inputs);
                took.push(begun.elapsed());
            }
            took
        });
        for n in 0..2_000 {
            *watch.begun.lock().unwrap() = Instant::now();
            service.apply_event(&change(n * 2 + 1, "ids.malware", 8)).unwrap();
            std::thread::sleep(Duration::from_micros(500));
        }
        stop.store(true, Ordering::Relaxed);
        applying.join().unwrap()
    });
    percentiles("the same while a group comes and goes", std::mem::take(&mut *watch.took.lock().unwrap()));
    percentiles("a group coming or going", applying);

    let begun = Instant::now();
    for n in 0..100_000_usize {
        let mut change = change(1, "ids.noise", 3);
        change.instance = (n % 1000).to_string();
        w.service().apply_event(&change).unwrap();
    }
    println!("100,000 alerts about one endpoint: {:?}", begun.elapsed());
    let begun = Instant::now();
    for n in 0..100_000_usize {
        w.service().apply_event(&change(n % 100, "ids.scan", 2)).unwrap();
    }
    println!("100,000 alerts, the same again and again: {:?}", begun.elapsed());
    drop(running);
    let _ = std::fs::remove_dir_all(&dir);
    assert!(p99 < Duration::from_micros(200), "{p99:?}");
}
