//! The example mappings on recorded events, and what the manager does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vnet_common::api::{File, IngestResponse, ScanRequest};

use super::*;
use crate::api::Sources as _;
use crate::resource::{self, Operation, Resource, TagSource};

/// Every example, with the events that it was made for.
pub(super) const EXAMPLES: [(&str, &str, &str); 5] = [
    (
        "suricata",
        include_str!("../../../policies/sources/suricata.yaml"),
        include_str!("../../../tests/vectors/sources/suricata.json"),
    ),
    ("falco", include_str!("../../../policies/sources/falco.yaml"), include_str!("../../../tests/vectors/sources/falco.json")),
    ("wazuh", include_str!("../../../policies/sources/wazuh.yaml"), include_str!("../../../tests/vectors/sources/wazuh.json")),
    (
        "osquery",
        include_str!("../../../policies/sources/osquery.yaml"),
        include_str!("../../../tests/vectors/sources/osquery.json"),
    ),
    ("login", include_str!("../../../policies/sources/login.yaml"), include_str!("../../../tests/vectors/sources/login.json")),
];
const CLAMAV: &str = include_str!("../../../policies/sources/clamav.yaml");

/// Takes what it is given, unless the tag is named `forbidden`; of `absent` there is none, and for `crowded` no room.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) changes: Mutex<Vec<TagChange>>,
    pub(super) lost: Mutex<Vec<(String, bool)>>,
    /// Whoever holds it holds up every change.
    pub(super) gate: Mutex<()>,
    crowded: AtomicU64,
}

impl Sink for Taken {
    fn change(&self, change: TagChange) -> Result<Applied, Refused> {
        match change.name.as_str() {
            "absent" => return Ok(Applied::Absent),
            "crowded" => {
                self.crowded.fetch_add(1, Ordering::Relaxed);
                return Ok(Applied::NoRoom);
            }
            _ => {}
        }
        if change.name == "forbidden" {
            return Err(Refused("may not".to_owned()));
        }
        if change.name == "panic" {
            panic!("as asked");
        }
        drop(self.gate.lock().unwrap());
        if !change.is_trial() {
            self.changes.lock().unwrap().push(change);
        }
        Ok(Applied::Made)
    }

    fn without_room(&self, _: &SourceName) -> u64 {
        self.crowded.load(Ordering::Relaxed)
    }

    fn lost(&self, source: &SourceName, lost: bool) {
        self.lost.lock().unwrap().push((source.to_string(), lost));
    }
}

/// A directory of its own, the sources in it, and what they said.
pub(super) struct Scene {
    pub(super) dir: PathBuf,
    pub(super) sources: Sources,
    pub(super) taken: Arc<Taken>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.sources.configure(&[]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Scene {
    pub(super) fn new() -> Self {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-source-XXXXXX")).unwrap();
        let known = |name: &str, address: &str| Known {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            mac: Some([2, 0, 0, 0, 0, name.len() as u8]),
            labels: vec![("role".into(), name.split('-').next().unwrap().into())],
        };
        let all = [known("vm", "10.0.0.2"), known("web-1", "10.0.1.11"), known("db-1", "10.0.1.12"), known("desk-7", "10.0.2.7")];
        let (directory, taken) = (Arc::new(Current::default()), Arc::new(Taken::default()));
        directory.replace(all.into_iter().collect());
        let sink: Arc<dyn Sink> = Arc::clone(&taken) as Arc<dyn Sink>;
        let own = Own { run_dir: dir.clone(), state_dir: dir.join("state") };
        Self { sources: Sources::new(own, directory, sink), dir, taken }
    }

    /// Runs these; paths in `/run/vnet` and `DIR` are in this scene's directory.
    pub(super) fn configure(&self, yaml: &str) {
        let dir = self.dir.display().to_string();
        let all = tag_sources(&yaml.replace("/run/vnet", &dir).replace("DIR", &dir));
        self.sources.configure(&all.iter().collect::<Vec<_>>());
    }

    pub(super) fn taken(&self) -> Vec<TagChange> {
        std::mem::take(&mut *self.taken.changes.lock().unwrap())
    }

    pub(super) fn status(&self) -> vnet_common::api::SourceStatus {
        self.sources.status().remove(0)
    }

    pub(super) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "waited for {what}: {:?}", self.sources.status());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub(super) fn tag_sources(yaml: &str) -> Vec<TagSource> {
    let found = resource::parse(&[File { name: "t.yaml".into(), text: yaml.into() }]);
    let found = found.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let only = |resource| match resource {
        Resource::TagSource(source) => source,
        other => panic!("{other:?}"),
    };
    found.into_iter().map(|located| only(located.resource)).collect()
}

/// A JSON source `s` that sets the tag that an event names on the endpoint that it names.
pub(super) const PLAIN: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: s }
spec:
  type: json
  allow: [{ tag: '*' }]
  mappings:
    - { name: m, when: has(event.vm), subject: { endpointFrom: event.vm }, tagFrom: event.tag, valueFrom: 'has(event.n) ? event.n : 0' }
";

fn shown(change: &TagChange) -> String {
    let TagChange { subject, operation, name, instance, value, severity, .. } = change;
    let sign = if *operation == Operation::Set { '+' } else { '-' };
    format!("{subject} {sign}{name}[{instance}]={value} {severity}")
}

#[test]
fn the_examples_turn_recorded_events_into_tags() {
    let expected: [(&str, u64, &[&str]); 5] = [
        ("suricata", 4, &["vm +ids.malware[]=vnet: marked file 9", "vm +ids.alert[9000001]=vnet: marked file 8"]),
        (
            "falco",
            3,
            &[
                "web-1 +runtime.notable[Terminal shell in container]=sh 2",
                "web-1 +runtime.critical[]=Drop and execute new binary in container 9",
            ],
        ),
        (
            "wazuh",
            3,
            &[
                "db-1 +hids.alert[5712]=sshd: brute force trying to get access to the system. Non existent user. 7",
                "db-1 +hids.alert[521]=Rootkit 't0rn' detected by the presence of file '/usr/src/.puta'. 9",
                "db-1 +hids.rootkit[]=Rootkit 't0rn' detected by the presence of file '/usr/src/.puta'. 10",
            ],
        ),
        (
            "osquery",
            3,
            &[
                "web-1 +host.deleted-binary[4711 /tmp/.cache/kworkerd]=/tmp/.cache/kworkerd 6",
                "web-1 -host.deleted-binary[4711 /tmp/.cache/kworkerd]= 5",
            ],
        ),
        ("login", 3, &["desk-7 +session.finance[alice]=alice 0", "desk-7 -session.finance[alice]= 5"]),
    ];
    for ((name, yaml, events), (same, count, tags)) in EXAMPLES.into_iter().zip(expected) {
        assert_eq!(name, same);
        let scene = Scene::new();
        // How they come is another matter.
        let yaml = yaml.replace("type: suricata", "type: json").replace("input: { directory: ", "# ");
        scene.configure(&yaml);
        let response = scene.sources.ingest(name, events.as_bytes()).unwrap();
        let changes = scene.taken();
        assert_eq!(changes.iter().map(shown).collect::<Vec<_>>(), tags, "{name}");
        assert_eq!(response, IngestResponse { events: count, tags: tags.len() as u64, faults: Vec::new() }, "{name}");
        assert!(changes.iter().all(|change| change.source.as_str() == name && change.evidence.len() <= 512), "{changes:?}");
        let status = scene.status();
        assert_eq!((status.events, status.malformed, status.tags), (count, 0, tags.len() as u64), "{status:?}");
    }
    tag_sources(CLAMAV);
}

#[test]
fn what_cannot_be_used_is_counted_and_said_and_never_a_tag() {
    let scene = Scene::new();
    scene.configure(PLAIN);
    let ingest = |text: &str| scene.sources.ingest("s", text.as_bytes());
    let response = ingest(
        r#"[{"vm": "web-1", "tag": "a"}, {"vm": "web-1"}, {"vm": "", "tag": "a"}, {"vm": "web-1", "tag": "a b"},
            {"vm": "elsewhere", "tag": "a"}, 7, {"vm": "web-1", "tag": "forbidden"}, {"vm": "web-1", "tag": "panic"}, {}]"#,
    )
    .unwrap();
    assert_eq!((response.events, response.tags), (8, 1));
    let expected = [
        "No such key: tag",
        "must be text that is not empty",
        "must be a tag's name",
        "must be a JSON object",
        "may not",
        "broke down",
    ];
    assert_eq!(response.faults.len(), expected.len(), "{response:?}");
    for ((fault, part), number) in response.faults.iter().zip(expected).zip([2, 3, 4, 6, 7, 8]) {
        assert!(fault.starts_with(&format!("event {number}: ")) && fault.contains(part), "{fault}: {part}");
    }
    assert_eq!(scene.taken().iter().map(shown).collect::<Vec<_>>(), ["web-1 +a[]=0 5"]);
    let status = scene.status();
    assert_eq!((status.events, status.malformed, status.refused, status.unmatched, status.tags), (9, 4, 2, 1, 1), "{status:?}");
    assert!(status.last_error.unwrap().contains("panic on web-1"));
    assert!(ingest("{").unwrap_err().to_string().contains("the request is not JSON"));
    assert!(scene.sources.ingest("none", b"{}").unwrap_err().to_string().contains("there is no tag source 'none'; there are: s"));
    let scan = ScanRequest { endpoint: "vm".into(), paths: Vec::new() };
    assert!(
        scene
            .sources
            .scan("s", &scan, &AtomicBool::new(false))
            .unwrap_err()
            .to_string()
            .contains("is of type json, and cannot scan")
    );
}

#[test]
fn events_cannot_choose_whom_they_are_from() {
    let scene = Scene::new();
    scene.configure(PLAIN);
    let event = r#"{"vm": "web-1", "tag": "a", "source": "operator", "subject": "vm", "vnet_trial": "x", "name": "b"}"#;
    scene.sources.ingest("s", event.as_bytes()).unwrap();
    let [change]: [TagChange; 1] = scene.taken().try_into().unwrap();
    assert_eq!((change.source.as_str(), change.subject.as_str(), change.name.as_str()), ("s", "web-1", "a"));
}

#[test]
fn a_source_that_falls_silent_is_lost_until_it_is_heard_again() {
    let scene = Scene::new();
    scene.configure(&PLAIN.replace("  type: json", "  type: json\n  lostAfterSeconds: 60"));
    let begun = Instant::now();
    let lost = || scene.taken.lost.lock().unwrap().clone();
    scene.sources.look_after(begun + Duration::from_secs(30));
    assert_eq!((scene.status().state.as_str(), lost()), ("silent", vec![]));
    scene.sources.look_after(begun + Duration::from_secs(61));
    scene.sources.look_after(begun + Duration::from_secs(62));
    assert_eq!((scene.status().state.as_str(), lost()), ("lost", vec![("s".to_owned(), true)]));
    assert!(scene.status().last_error.unwrap().contains("not a word from it for 6"));
    scene.sources.ingest("s", b"{}").unwrap();
    assert_eq!((scene.status().state.as_str(), lost().len()), ("ok", 2));
    assert_eq!(lost()[1], ("s".to_owned(), false));
    scene.sources.look_after(Instant::now() + Duration::from_secs(59));
    assert_eq!(scene.status().state, "ok");
}

#[test]
fn sources_follow_their_resources() {
    let scene = Scene::new();
    scene.configure(PLAIN);
    scene.sources.ingest("s", br#"{"vm": "web-1", "tag": "a"}"#).unwrap();
    scene.configure(&PLAIN.replace("tagFrom: event.tag", "tag: other"));
    scene.sources.ingest("s", br#"{"vm": "web-1", "tag": "a"}"#).unwrap();
    assert_eq!(scene.taken().iter().map(|change| change.name.clone()).collect::<Vec<_>>(), ["a", "other"]);
    assert_eq!(scene.status().events, 2, "what was counted stays");
    scene.configure(&format!("{PLAIN}---\n{CLAMAV}"));
    let inputs: Vec<String> =
        scene.sources.status().into_iter().map(|status| format!("{} {}", status.kind, status.input)).collect();
    assert_eq!(inputs, ["clamav /run/clamav/clamd.ctl", "json POST /v1/sources/s/events"]);
    let operator = "apiVersion: vnet/v1alpha1\nkind: TagSource\nmetadata: { name: operator }\n";
    scene.configure(&format!("{operator}spec: {{ type: operator, allow: [{{ tag: '*', maxSeverity: 3 }}] }}\n"));
    assert_eq!((scene.status().state.as_str(), scene.status().input.as_str()), ("ok", "vnet-ctl tag"));
    scene.sources.configure(&[]);
    assert!(scene.sources.status().is_empty() && !scene.sources.may_send("s", 0));
    let error = scene.sources.ingest("s", b"{}").unwrap_err();
    assert!(error.to_string().contains("there are: none"), "{error}");
}

#[test]
fn a_measurement_goes_to_the_sink_and_has_no_effect() {
    let scene = Scene::new();
    scene.configure(PLAIN);
    let test = scene.sources.test("s", None).unwrap();
    assert_eq!((test.trials, test.latencies_us.len()), (100, 100));
    assert!(scene.taken().is_empty() && scene.status().tags == 0);
}

#[test]
fn a_source_that_names_what_is_the_agents_fails_alone() {
    let scene = Scene::new();
    let own = EXAMPLES[0].1.replace("  allow:", "  input: { socket: DIR/agent.sock }\n  allow:");
    scene.configure(&format!("{PLAIN}---\n{own}"));
    let states: Vec<String> = scene.sources.status().into_iter().map(|status| status.state).collect();
    assert!(states[0] == "silent" && states[1].contains("is the agent's own"), "{states:?}");
    assert!(!scene.dir.join("agent.sock").exists());
}

#[test]
fn only_what_was_made_counts_as_a_tag() {
    let scene = Scene::new();
    scene.configure(PLAIN);
    let events = r#"[{"vm": "vm", "tag": "absent"}, {"vm": "vm", "tag": "crowded"}, {"vm": "vm", "tag": "a"}]"#;
    let response = scene.sources.ingest("s", events.as_bytes()).unwrap();
    assert_eq!((response.events, response.tags, response.faults.len()), (3, 1, 1));
    assert!(response.faults[0].contains("event 2: crowded on vm: there is no room"), "{response:?}");
    let status = scene.status();
    assert_eq!((status.tags, status.dropped, status.refused), (1, 1, 0), "{status:?}");
    assert!(status.last_error.is_some_and(|why| why.contains("there is no room")));
}
