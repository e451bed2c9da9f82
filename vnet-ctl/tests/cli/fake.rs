//! What the agent answers about tags, quarantine, rules and events: made up, and changed by requests where a test looks at that.
//!
//! Most of it is behind the agent's real routes. [`router`] has what those cannot give: events with gaps and with odd contents, and
//! what comes with them.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::Value;
use vnet_agent::api::{Control, Quarantine, Refusal, Sources};
use vnet_common::api::*;

use crate::support::{Memory, now_ms};

type Fake = State<Arc<Memory>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// What requests may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    endpoint: Option<String>,
    limit: Option<usize>,
    follow: bool,
    since: Option<u64>,
    kind: Option<String>,
    reason: Option<String>,
}

/// The routes.
pub fn router(memory: Arc<Memory>) -> Router {
    let flows = async |State(memory): Fake, Query(asked): Query<Asked>| memory.endpoint_flows(&asked).map(Json);
    Router::new()
        .route("/v1/events", get(events))
        .route("/v1/endpoint-flows", get(flows))
        .route("/v1/explain", post(explain))
        .with_state(memory)
}

/// A rule of `policy/base`, or of `securitygroup/web`.
pub fn rule(name: &str) -> RuleRef {
    let (kind, resource, action, place) = match name {
        "no-ssh" => ("Policy", "base", "deny", "base.yaml:12"),
        "try" => ("Policy", "trial", "deny", "trial.yaml:9"),
        "default" => ("SecurityGroup", "strict", "deny", ""),
        _ => ("SecurityGroup", "web", "allow", "web.yaml:20"),
    };
    let id = name.len() as u32;
    RuleRef {
        id,
        kind: kind.to_owned(),
        resource: resource.to_owned(),
        rule: name.to_owned(),
        direction: "egress".to_owned(),
        action: action.to_owned(),
        staged: name == "try",
        place: place.to_owned(),
    }
}

/// A flow of `tap0` that was opened by it.
pub fn flow(remote: &str) -> EndpointFlow {
    EndpointFlow {
        endpoint: "tap0".to_owned(),
        opened: "out".to_owned(),
        protocol: "TCP".to_owned(),
        local: "10.0.0.1:40000".to_owned(),
        remote: remote.to_owned(),
        peer: "world".to_owned(),
        verdict: "allowed".to_owned(),
        rule: Some(rule("web-out")),
        state: "established".to_owned(),
        packets: [10, 8],
        bytes: [1024, 2048],
        age_seconds: 75,
        idle_seconds: 3,
        ..EndpointFlow::default()
    }
}

/// The event of this number.
pub fn event(number: u64) -> Event {
    let packet = PacketRef {
        protocol: "TCP".to_owned(),
        src: "10.0.0.1".to_owned(),
        sport: Some(40_000),
        dst: "fd00::9".to_owned(),
        dport: Some(22),
        flags: "S".to_owned(),
        bytes: 74,
        peer: "world".to_owned(),
        ..PacketRef::default()
    };
    let drop = Event {
        number,
        at_ms: 1_700_000_000_000 + number,
        kind: "drop".to_owned(),
        endpoint: "tap0".to_owned(),
        direction: "egress".to_owned(),
        reason: "denied".to_owned(),
        rule: Some(rule("no-ssh")),
        packet: Some(packet),
        count: 1,
        message: String::new(),
    };
    match number {
        2 => Event { kind: "suppressed".to_owned(), reason: String::new(), rule: None, packet: None, count: 42, ..drop },
        5 => Event {
            kind: "move".to_owned(),
            at_ms: now_ms(),
            message: "web -> \x1b[31mstrict".to_owned(),
            rule: None,
            packet: None,
            ..drop
        },
        6 => Event { packet: drop.packet.clone().map(|packet| PacketRef { src: "10.0.0.66".to_owned(), ..packet }), ..drop },
        21 => Event { reason: "spoofed-address".to_owned(), rule: None, number, ..event(6) },
        22 => Event {
            direction: "ingress".to_owned(),
            packet: drop.packet.clone().map(|packet| PacketRef {
                protocol: "ICMPv6".to_owned(),
                icmp: Some((1, 3)),
                sport: None,
                dport: None,
                flags: String::new(),
                ..packet
            }),
            ..drop
        },
        _ => drop,
    }
}

impl Memory {
    /// All rules, or those about one endpoint.
    pub fn rules_about(&self, endpoint: Option<&str>) -> Vec<RuleStatus> {
        let hits = self.looks.fetch_add(1, Ordering::Relaxed) * 100;
        let status = |name: &str, tier: &str, hits, would_hit| RuleStatus {
            rule: rule(name),
            tier: tier.to_owned(),
            hits,
            bytes: hits * 60,
            would_hit,
            endpoints: 1,
        };
        let all = vec![status("no-ssh", "security", 7 + hits, 0), status("try", "app", 0, 5), status("web-out", "group", 0, 0)];
        // Nothing else is about the endpoints of this group.
        all.into_iter().filter(|status| endpoint.is_none() || status.tier != "app").collect()
    }

    /// Devices are those of a network namespace of their own: the first has index 2. The first two requests about `tap8` come too
    /// early.
    pub fn attached(&self, request: AttachRequest) -> Result<EndpointStatus, Refusal> {
        self.note("attach", &request);
        let tries = self.asked.lock().unwrap().iter().filter(|(path, _)| path == "attach").count();
        match request.device.as_str() {
            "tap8" if tries < 3 => return Err(anyhow::anyhow!("the datapath is being loaded").into()),
            "tap7" => return Err(Refusal::conflict("device 'tap7' is that of endpoint 'db-1'")),
            _ => {}
        }
        let ifindex = if request.device.ends_with("i1") { 3 } else { 2 };
        let state = if request.device == "tap6" { "failed: another program is in the way" } else { "attached" };
        Ok(EndpointStatus {
            name: request.endpoint.unwrap_or(request.device.clone()),
            device: request.device,
            ifindex,
            state: state.to_owned(),
            group: "strict".to_owned(),
            policy: "quarantined".to_owned(),
            ..EndpointStatus::default()
        })
    }

    fn endpoint_flows(&self, asked: &Asked) -> Result<EndpointFlowList, Refusal> {
        asked.endpoint.as_deref().map_or(Ok(()), |name| self.known(name))?;
        let grown = self.looks.fetch_add(1, Ordering::Relaxed);
        let mut busy = flow("10.0.0.9:443");
        (busy.bytes[0], busy.packets[0]) = (busy.bytes[0] + (grown << 20), busy.packets[0] + grown * 1000);
        let mut balanced = flow("10.0.0.100:80");
        (balanced.lb, balanced.member) = (Some("web".to_owned()), Some("10.0.0.11:8080".to_owned()));
        balanced.verdict = "redirected".to_owned();
        let flows: Vec<_> = [busy, balanced].into_iter().take(asked.limit.unwrap_or(100)).collect();
        Ok(EndpointFlowList { flows, total: 2 })
    }

    fn known(&self, endpoint: &str) -> Result<(), Refusal> {
        match self.endpoints()?.iter().any(|ep| ep.name == endpoint) {
            true => Ok(()),
            false => Err(Refusal::not_found("no such endpoint")),
        }
    }

    pub fn note<T: serde::Serialize>(&self, path: &str, request: &T) {
        self.asked.lock().unwrap().push((path.to_owned(), serde_json::to_value(request).unwrap()));
    }

    fn source(&self, name: &str) -> Result<(), Refusal> {
        match self.sources()?.iter().any(|source| source.name == name) {
            true => Ok(()),
            false => Err(Refusal::not_found("no such source")),
        }
    }
}

impl Sources for Memory {
    fn sources(&self) -> Result<Vec<SourceStatus>, Refusal> {
        let source = |name: &str, kind: &str, state: &str| SourceStatus {
            name: name.to_owned(),
            kind: kind.to_owned(),
            state: state.to_owned(),
            input: format!("/run/vnet/{name}"),
            ..SourceStatus::default()
        };
        let mut suricata = source("suricata", "suricata", "ok");
        (suricata.events, suricata.tags, suricata.malformed) = (12, 3, 1);
        suricata.last_error = Some("line 7 is no JSON".to_owned());
        suricata.last_event_ms = Some(now_ms() - 7_530_000);
        Ok(vec![suricata, source("clamav", "clamav", "silent"), source("falco", "json", "lost")])
    }

    fn may_send(&self, _: &str, _: u32) -> bool {
        false
    }

    fn ingest(&self, source: &str, text: &[u8]) -> Result<IngestResponse, Refusal> {
        self.source(source)?;
        let text = String::from_utf8_lossy(text);
        let (good, bad): (Vec<_>, Vec<_>) = text.lines().partition(|line| serde_json::from_str::<Value>(line).is_ok());
        let faults = bad.iter().map(|line| format!("event {} is no JSON: {line}", good.len() + 1)).collect();
        Ok(IngestResponse { events: good.len() as u64, tags: 1, faults })
    }

    fn scan(&self, source: &str, request: &ScanRequest, _: &AtomicBool) -> Result<ScanReport, Refusal> {
        self.source(source)?;
        self.known(&request.endpoint)?;
        self.note("scan", request);
        let named = |part: &str, what: &str| -> Vec<_> {
            request.paths.iter().filter(|path| path.contains(part)).map(|path| (path.clone(), what.to_owned())).collect()
        };
        let (infected, failed) = (named("eicar", "Eicar-Signature"), named("secret", "permission denied"));
        let tag = |name: &str| vec![Tag { subject: request.endpoint.clone(), name: name.to_owned(), ..Tag::default() }];
        let clean = infected.is_empty() && failed.is_empty();
        let (tags, cleared) = if clean { (tag("av.clean"), tag("av.malware")) } else { Default::default() };
        Ok(ScanReport { scanned: 3, bytes: 2048, infected, failed, tags, cleared })
    }

    fn test(&self, source: &str, config: Option<&Path>) -> Result<SourceTest, Refusal> {
        self.source(source)?;
        if source != "suricata" {
            return Ok(SourceTest { trials: 3, latencies_us: Vec::new(), notes: vec!["nobody sends to its socket".to_owned()] });
        }
        let config = config.unwrap_or(Path::new("suricata.yaml")).display();
        let notes = vec![format!("{config}: threaded is off: alerts wait for others")];
        Ok(SourceTest { trials: 5, latencies_us: vec![900, 215, 1300, 300], notes })
    }
}

impl Quarantine for Memory {
    fn groups(&self) -> Result<Vec<GroupStatus>, Refusal> {
        let group = |name: &str, id, endpoints: &[&str], default: &str| GroupStatus {
            name: name.to_owned(),
            id,
            quarantine: name == "strict",
            built_in: name == "default",
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            rules: 2 * u32::from(name == "web"),
            defaults: [default.to_owned(), "allow".to_owned()],
            transfers: (name == "web").then(|| "infected".to_owned()).into_iter().collect(),
        };
        Ok(vec![group("default", 1, &[], "allow"), group("web", 2, &["tap0"], "deny"), group("strict", 3, &[], "deny")])
    }

    fn tags(&self, subject: Option<&str>) -> Result<Vec<Tag>, Refusal> {
        subject.map_or(Ok(()), |subject| self.known(subject))?;
        let tags = self.tags.lock().unwrap().clone();
        Ok(tags.into_iter().filter(|tag| subject.is_none_or(|subject| tag.subject == subject)).collect())
    }

    fn set_tag(&self, _: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        self.note("tags", request);
        self.known(&request.subject)?;
        let request = request.clone();
        let tag = Tag {
            subject: request.subject,
            name: request.name,
            value: request.value,
            instance: request.instance,
            severity: request.severity,
            confidence: request.confidence.unwrap_or(100),
            source: "operator".to_owned(),
            evidence: request.evidence,
            set_at_ms: now_ms(),
            expires_at_ms: request.ttl_seconds.map(|seconds| now_ms() + u64::from(seconds) * 1000),
            hold_on_expiry: request.hold_on_expiry,
            expired: false,
        };
        self.tags.lock().unwrap().push(tag.clone());
        Ok(vec![tag])
    }

    fn remove_tag(&self, _: &str, request: &TagRequest) -> Result<Vec<Tag>, Refusal> {
        self.known(&request.subject)?;
        let source = request.source.as_deref().unwrap_or("operator");
        let is = |tag: &Tag| {
            (&tag.subject, &tag.name, &tag.instance, tag.source.as_str())
                == (&request.subject, &request.name, &request.instance, source)
        };
        let mut tags = self.tags.lock().unwrap();
        let removed = tags.iter().filter(|tag| is(tag)).cloned().collect();
        tags.retain(|tag| !is(tag));
        Ok(removed)
    }

    fn quarantine(&self) -> Result<QuarantineStatus, Refusal> {
        Ok(self.quarantine.lock().unwrap().clone())
    }

    fn operate(&self, who: &str, endpoint: &str, verb: &str, request: &QuarantineRequest) -> Result<QuarantineStatus, Refusal> {
        assert!(who.starts_with("user "), "{who}");
        self.note(&format!("quarantine/{endpoint}/{verb}"), request);
        self.known(endpoint)?;
        let mut status = self.quarantine.lock().unwrap();
        let held = |group: &str, reason: &str| Held {
            endpoint: endpoint.to_owned(),
            group: group.to_owned(),
            from: "web".to_owned(),
            since_ms: now_ms() - 7_530_000,
            not_before_ms: now_ms() + 12_630_000,
            reason: reason.to_owned(),
            tags: vec!["suricata/ids.malware=x".to_owned()],
            state: "enforced".to_owned(),
            ..Held::default()
        };
        match verb {
            "hold" if request.group.as_deref() == Some("web") => {
                return Err(Refusal::invalid("group 'web' is no quarantine group"));
            }
            "hold" => status.held.push(held(request.group.as_deref().unwrap_or_default(), &request.reason)),
            "release" => status.held.retain(|held| held.endpoint != endpoint),
            "approve" => {
                status.pending.retain(|pending| pending.endpoint != endpoint);
                status.held.push(held("strict", "approved"));
            }
            "dismiss" => status.pending.retain(|pending| pending.endpoint != endpoint),
            "never" if status.held.iter().any(|held| held.endpoint == endpoint) => {
                return Err(Refusal::conflict(format!("{endpoint} is held: release it first")));
            }
            "never" => status.never.push(endpoint.to_owned()),
            "unnever" => status.never.retain(|never| *never != endpoint),
            _ => return Err(Refusal::bad_request(format!("no verb {verb}"))),
        }
        Ok(status.clone())
    }

    fn audit(&self, endpoint: Option<&str>, limit: usize) -> Result<Vec<AuditRecord>, Refusal> {
        endpoint.map_or(Ok(()), |name| self.known(name))?;
        let record = |number: u64, action: &str, who: &str| AuditRecord {
            number,
            at_ms: 1_700_000_000_000,
            endpoint: "tap0".to_owned(),
            action: action.to_owned(),
            from: "web".to_owned(),
            to: "strict".to_owned(),
            transfer: "infected".to_owned(),
            who: who.to_owned(),
            reason: "malware".to_owned(),
            evidence: vec!["suricata/ids.malware=x: sid 2027865".to_owned()],
        };
        let mut all = vec![record(1, "move", "transfer"), record(2, "break-glass", "user alice (1000)")];
        all.drain(..all.len().saturating_sub(limit));
        Ok(all)
    }
}

/// Events 1, 2, 3, 5 and 6 (the fourth was too much); who asks from the 20th on, 21 and 22. With `follow`, one every 20 ms, and no end; or an end, if it is about `vm-end`.
async fn events(Query(asked): Query<Asked>) -> Response {
    let wanted = move |event: &Event| {
        asked.since.is_none_or(|since| event.number > since)
            && asked.kind.as_ref().is_none_or(|kinds| kinds.split(',').any(|kind| kind == event.kind))
    };
    let ends = !asked.follow || asked.reason.as_deref() == Some("end");
    let numbers: &[u64] = if asked.since.is_some_and(|since| since >= 20) { &[21, 22] } else { &[1, 2, 3, 5, 6] };
    let all: Vec<Event> = numbers.iter().map(|number| event(*number)).filter(wanted).collect();
    let stream = futures_util::stream::unfold((all.into_iter(), asked.follow), move |(mut rest, follow)| async move {
        if follow {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let Some(event) = rest.next() else {
            if !ends {
                std::future::pending::<()>().await;
            }
            return None;
        };
        let line = serde_json::to_string(&event).unwrap() + "\n\n";
        Some((Ok::<_, Infallible>(line), (rest, follow)))
    });
    Body::from_stream(stream).into_response()
}

async fn explain(State(memory): Fake, Json(request): Json<ExplainRequest>) -> Answer<Explanation> {
    memory.note("explain", &request);
    if request.to.starts_with("nowhere") {
        return Err(Refusal::not_found("no such endpoint"));
    }
    let denied = request.to.ends_with("22/tcp");
    let stage = |stage: &str, found: &str| Stage { stage: stage.to_owned(), found: found.to_owned() };
    let stages = vec![stage("endpoint", "web-1 in group web, policed"), stage("policy", "2 of 9 rules match")];
    let (decided, other) = if denied { ("no-ssh", "web-out") } else { ("web-out", "default") };
    let hop = Hop {
        endpoint: "web-1".to_owned(),
        device: "tap0".to_owned(),
        direction: "egress".to_owned(),
        stages,
        verdict: if denied { "drop" } else { "next" }.to_owned(),
        reason: if denied { "denied" } else { "allowed" }.to_owned(),
        rule: Some(rule(decided)),
        shadowed: vec![rule(other)],
        packet: "TCP 10.0.0.1:40000 > 10.0.0.9:443 S".to_owned(),
        rewritten: (!denied).then(|| "TCP 10.0.0.1:40000 > 10.0.0.11:8443 S".to_owned()),
    };
    let differences = request.live.then(|| request.sport.map(|_| "verdict: drop".to_owned()).into_iter().collect());
    Ok(Json(Explanation {
        outcome: if denied { "dropped" } else { "allowed" }.to_owned(),
        reason: hop.reason.clone(),
        hops: vec![hop],
        notes: vec!["a flow of these addresses is alive".to_owned()],
        differences,
    }))
}
