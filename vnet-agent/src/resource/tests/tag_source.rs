//! Tag sources: each field wrong in some way, and sources beside each other.

use super::fields::Row;
use super::{bad, check, good, show};

pub(super) const SOURCE: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: ids }
spec:
  type: suricata
  allow:
    - { tag: ids.*, maxSeverity: 8, set: true, clear: true }
  mappings:
    - name: first
      when: event.a == 1
      subject:
        addressFrom: event.ip
      operation: set
      tag: ids.alert
      valueFrom: event.v
      instanceFrom: event.i
      severity: 5
      confidence: 50
      evidenceFrom: event.e
      ttlSeconds: 60
      onExpiry: hold
  input:
    socket: /run/eve.sock
  users: [suricata]
  lostAfterSeconds: 600
";

pub(super) const ROWS: &[Row] = &[
    ("suricata\n", "zeek\n", 5, 9, "`type` must be `suricata`, `clamav`, `json` or `operator`"),
    ("  allow:\n    - { tag: ids.*, maxSeverity: 8, set: true, clear: true }\n", "", 4, 1, "`spec` lacks the field `allow`"),
    ("tag: ids.*, ", "", 7, 7, "an entry of `allow` lacks the field `tag`"),
    ("ids.*", "'ids *'", 7, 14, "`tag` must consist of letters, digits, '_' '.' '-' and '*'"),
    ("maxSeverity: 8", "maxSeverity: 11", 7, 34, "`maxSeverity` must be a whole number from 0 to 10"),
    ("set: true", "set: 1", 7, 42, "`set` must be `true` or `false`"),
    ("clear: true", "clear: never", 7, 55, "`clear` must be `true` or `false`"),
    ("name: first", "name: a b", 9, 13, "`name` must consist of letters"),
    ("event.a == 1", "event.a ==", 10, 13, "`when` is no CEL expression"),
    ("event.a == 1", "evnt.a == 1", 10, 13, "`when` knows no variable `evnt`: there are event"),
    (
        "        addressFrom: event.ip\n",
        "        {}\n",
        11,
        7,
        "a subject has exactly one of `addressFrom`, `endpointFrom`, `macFrom`",
    ),
    ("addressFrom: event.ip", "addressFrom: '('", 12, 22, "`addressFrom` is no CEL"),
    ("addressFrom: event.ip", "endpointFrom: '('", 12, 23, "`endpointFrom` is no CEL"),
    ("addressFrom: event.ip", "macFrom: '('", 12, 18, "`macFrom` is no CEL"),
    ("addressFrom: event.ip", "labelValueFrom: event.l", 11, 7, "`labelValueFrom` needs `label`"),
    ("addressFrom: event.ip", "addressFrom: event.ip\n        label: x", 11, 7, "`label` goes with `labelValueFrom` only"),
    (
        "      subject:\n        addressFrom: event.ip\n",
        "      subject: event.ip\n",
        11,
        16,
        "`subject` must be a group of fields",
    ),
    ("operation: set", "operation: toggle", 13, 18, "`operation` must be `set` or `clear`"),
    ("      tag: ids.alert", "      tag: a b", 14, 12, "`tag` must consist of letters"),
    ("tag: ids.alert", "tagFrom: '('", 14, 16, "`tagFrom` is no CEL"),
    ("tag: ids.alert", "tag: ids.alert\n      tagFrom: event.t", 9, 7, "a mapping has either `tag` or `tagFrom`"),
    ("event.v", "'('", 15, 18, "`valueFrom` is no CEL"),
    ("event.i\n      severity", "'('\n      severity", 16, 21, "`instanceFrom` is no CEL"),
    ("severity: 5", "severity: 11", 17, 17, "`severity` must be a whole number from 0 to 10"),
    ("severity: 5", "severityFrom: '('", 17, 21, "`severityFrom` is no CEL"),
    ("severity: 5", "severity: 5\n      severityFrom: '5'", 17, 17, "there is `severityFrom` as well"),
    ("confidence: 50", "confidence: 101", 18, 19, "`confidence` must be a whole number from 0 to 100"),
    ("event.e\n", "'('\n", 19, 21, "`evidenceFrom` is no CEL"),
    ("ttlSeconds: 60", "ttlSeconds: 0", 20, 19, "`ttlSeconds` must be a whole number from 1 to 31536000"),
    ("onExpiry: hold", "onExpiry: keep", 21, 17, "`onExpiry` must be `release` or `hold`"),
    ("socket: /run/eve.sock", "socket: eve.sock", 23, 13, "`eve.sock` must be an absolute path"),
    ("socket: /run/eve.sock", "socket: 7", 23, 13, "`socket` must be text"),
    ("socket: /run/eve.sock", "directory: /run/x", 23, 16, "this type of source has no use for `directory`"),
    ("socket: /run/eve.sock", "guests: { vm: /srv/vm }", 23, 5, "this type of source has no use for `guests`"),
    ("socket: /run/eve.sock", "maxFileMib: 5", 23, 17, "this type of source has no use for `maxFileMib`"),
    ("input:\n    socket: /run/eve.sock", "input: /run", 22, 10, "`input` must be a group of fields"),
    ("users: [suricata]", "users: suricata", 24, 10, "`users` must be a list"),
    ("lostAfterSeconds: 600", "lostAfterSeconds: 0", 25, 21, "`lostAfterSeconds` must be a whole number from 1"),
    ("name: ids", "name: operator", 5, 9, "`operator` is `vnet-ctl tag`"),
    ("type: suricata", "type: operator", 3, 19, "a source of type `operator` is named `operator`"),
    ("type: suricata", "type: clamav", 8, 3, "this type of source has no events to map: remove `mappings`"),
    ("type: suricata", "type: operator", 24, 3, "this type of source has no use for `users`"),
    ("type: suricata", "type: operator", 25, 21, "this type of source has no use for `lostAfterSeconds`"),
];

#[test]
fn each_source_is_reached_in_a_place_of_its_own() {
    let other = SOURCE.replace("name: ids", "name: other");
    let faults = bad(&format!("{SOURCE}---\n{other}"));
    assert!(
        faults.len() == 1 && faults[0].message.contains("has socket `/run/eve.sock` already: two cannot share it"),
        "{}",
        show(&faults)
    );
    good(&format!("{SOURCE}---\n{}", other.replace("/run/eve.sock", "/run/other.sock")));
    let unsaid = |name: &str| SOURCE.replace("name: ids", name).replace("  input:\n    socket: /run/eve.sock\n", "");
    let in_force: Vec<super::Resource> = good(&unsaid("name: one")).into_iter().map(|located| located.resource).collect();
    let faults = check(&good(&unsaid("name: two")), &in_force.iter().collect::<Vec<_>>());
    assert!(
        faults.len() == 1 && faults[0].message.contains("TagSource `one` (in force) has socket `suricata/eve.sock`"),
        "{}",
        show(&faults)
    );
}

#[test]
fn a_source_of_events_has_mappings() {
    let (head, rest) = SOURCE.split_once("  mappings:\n").unwrap();
    let without = format!("{head}{}", &rest[rest.find("  input:").unwrap()..]);
    let faults = bad(&without);
    assert!(faults.len() == 1 && faults[0].message.starts_with("`spec` needs `mappings`"), "{}", show(&faults));
}
