//! Every field wrong in some way: where the fault is, and what is said.

use std::collections::BTreeSet;

use serde_json::Value;

use super::policy_fields::*;
use super::{bad, show};

pub(super) const BALANCER: &str = "\
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata:
  name: web
  labels: { tier: front }
spec:
  vips: [10.96.0.10]
  protocol: TCP
  ports: [80, 81]
  members:
    - name: m1
      address: 10.0.1.11
      port: 8080
      weight: 1
      mac: '52:54:00:00:00:01'
    - address: 10.0.1.12
  delivery: stack
  onNoMember: reject
  onMemberRemoved: reset
  healthCheck:
    port: 8080
    intervalMs: 500
    timeoutMs: 200
    rise: 1
    fall: 2
";

pub(super) const SELECTOR: &str = "\
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: web }
spec:
  vips: ['fd00::1']
  protocol: UDP
  ports: [53]
  memberSelector:
    matchLabels: { app: dns }
    port: 5353
";

pub(super) const HTTP: &str = "\
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: web }
spec:
  vips: [10.96.0.10]
  protocol: TCP
  ports: [80]
  members: [{ address: 10.0.1.11 }]
  healthCheck:
    http:
      path: /healthz
      host: www.example
      status: [200, 301-399]
      https: true
      serverName: b.example
      caFile: /etc/ca.pem
  passiveHealth:
    failures: 5
    failedPercent: 50
    windowMs: 10000
    baseEjectMs: 30000
    maxEjectMs: 300000
    maxEjectedPercent: 50
  feedback:
    mode: latencyTarget
    gainPercent: 60
    dampingPercent: 40
    minPercent: 20
    maxPercent: 300
    targetMilliseconds: 50
";

pub(super) const UDP: &str = "\
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: dns }
spec:
  vips: [10.96.0.10]
  protocol: UDP
  ports: [53]
  members: [{ address: 10.0.1.11 }]
  healthCheck:
    port: 5353
    udp:
      send: 'hex:0001'
      expect: pong
      match: prefix
";

pub(super) const ENDPOINT: &str = "\
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: vm1 }
spec:
  device: tap0
  mac: 52:54:00:00:00:01
  addresses: [10.0.0.1, 'fd00::1']
";

/// What is replaced, by what, where the fault is, how it starts.
pub(super) type Row = (&'static str, &'static str, u32, u32, &'static str);

const BALANCER_ROWS: &[Row] = &[
    ("vnet/v1alpha1", "vnet/v2", 1, 13, "`apiVersion` must be `vnet/v1alpha1`, but is `vnet/v2`"),
    ("apiVersion: vnet/v1alpha1\n", "", 1, 1, "the document lacks the field `apiVersion`"),
    ("LoadBalancer", "Loadbalanser", 2, 7, "there is no kind `Loadbalanser`: did you mean `LoadBalancer`?"),
    (
        "kind: LoadBalancer",
        "kind: [a]",
        2,
        1,
        "`kind` must be `LoadBalancer`, `Endpoint`, `SecurityGroup`, `Policy` or `TagSource`",
    ),
    (
        "kind: LoadBalancer\n",
        "",
        1,
        1,
        "the field `kind` is missing: it is `LoadBalancer`, `Endpoint`, `SecurityGroup`, `Policy` or `TagSource`",
    ),
    ("metadata:\n  name: web\n  labels: { tier: front }", "metadata: web", 3, 11, "`metadata` must be a group of fields"),
    ("name: web", "name: Web", 4, 9, "`name` must consist of lower-case letters"),
    ("name: web", "name: -web", 4, 9, "`name` must consist of lower-case letters"),
    ("name: web", "name: 7", 4, 9, "`name` must be text, but is `7`, a number: put it in quotes"),
    ("name: web", "name:", 4, 3, "`name` has no value: it must be text"),
    ("name: web", "nmae: web", 3, 1, "`metadata` lacks the field `name`: unique among resources of one kind"),
    (
        "{ tier: front }",
        "{ tier: front }\n  resourceVersion: 0",
        6,
        20,
        "`resourceVersion` must be a whole number from 1 to 9223372036854775807",
    ),
    ("{ tier: front }", "front", 5, 11, "`labels` must be a group of fields"),
    ("tier: front", "tier: true", 5, 19, "`tier` must be text, but is `true`, a truth value: put it in quotes"),
    ("tier: front", "tier: a b", 5, 19, "`tier` must consist of letters, digits and '_' '.' '-'"),
    ("tier: front", "t ier: front", 5, 13, "the name `t ier` must consist of letters"),
    ("tier: front", "A/b: front", 5, 13, "the name `A/b` (the part before '/') must consist of lower-case"),
    ("spec:", "spec: 1\nx:", 6, 7, "`spec` must be a group of fields, each `name: value`, but is `1`"),
    ("[10.96.0.10]", "10.96.0.10", 7, 9, "`vips` must be a list, as in `[a, b]`, but is `10.96.0.10`"),
    ("[10.96.0.10]", "[]", 7, 3, "`vips` must not be empty"),
    ("[10.96.0.10]", "[10.96.0]", 7, 10, "an entry of `vips` must be an IP address"),
    ("[10.96.0.10]", "[10.96.0.10/24]", 7, 10, "an entry of `vips` must be one address, not a network: write 10.96.0.10"),
    ("[10.96.0.10]", "[10.96.0.10:80]", 7, 10, "an entry of `vips` must be an address alone, without a port: write 10.96.0.10"),
    ("[10.96.0.10]", "[10.96.0.10, 10.96.0.10]", 7, 22, "the VIP 10.96.0.10 is listed twice"),
    ("[10.96.0.10]", "[224.0.0.1]", 7, 10, "the VIP 224.0.0.1 is a multicast address"),
    ("[10.96.0.10]", "[127.0.0.1]", 7, 10, "the VIP 127.0.0.1 is a loopback address"),
    ("[10.96.0.10]", "[255.255.255.255]", 7, 10, "the VIP 255.255.255.255 is the broadcast address"),
    ("[10.96.0.10]", "[0.0.0.0]", 7, 10, "the VIP 0.0.0.0 means \"this host\""),
    ("[10.96.0.10]", "[10.96.0.10, 'fd00::1']", 7, 22, "no member has an IPv6 address to serve the VIP fd00::1"),
    ("TCP", "tcp", 8, 13, "`protocol` must be `TCP` or `UDP`, but is `tcp`: did you mean `TCP`?"),
    ("TCP", "SCTP", 8, 13, "`protocol` must be `TCP` or `UDP`, but is `SCTP`"),
    ("[80, 81]", "80", 9, 10, "`ports` must be a list, as in `[a, b]`, but is `80`"),
    ("[80, 81]", "[80, 0]", 9, 15, "an entry of `ports` must be a whole number from 1 to 65535, but is `0`"),
    ("[80, 81]", "[80, 65536]", 9, 15, "an entry of `ports` must be a whole number from 1 to 65535, but is `65536`"),
    (
        "[80, 81]",
        "[80, '81']",
        9,
        15,
        "an entry of `ports` must be a whole number from 1 to 65535, but is `81`, text: remove the quotes",
    ),
    ("[80, 81]", "[80, 81, 80]", 9, 19, "the port 80 is listed twice"),
    ("[80, 81]", "[]", 6, 1, "`spec` needs `ports`, `portRanges` or `anyPort: true`"),
    ("[80, 81]", "[80, 81]\n  portRanges: [{ port: 9, endPort: 9 }]", 10, 16, "the range from 9 to 9 is none"),
    ("[80, 81]", "[80, 81]\n  portRanges: [{ port: 9, endPort: 80 }]", 10, 16, "the port 80 is in `ports` and in this range"),
    (
        "[80, 81]",
        "[80]\n  portRanges: [{ port: 81, endPort: 90 }, { port: 90, endPort: 99 }]",
        10,
        43,
        "the range from 81 to 90 has some",
    ),
    ("[80, 81]", "[80, 81]\n  portRanges: [{ port: 90 }]", 10, 16, "an entry of `portRanges` lacks the field `endPort`"),
    ("[80, 81]", "[80, 81]\n  anyPort: 1", 10, 12, "`anyPort` must be `true` or `false`"),
    (
        "[80, 81]",
        "[80, 81]\n  algorithm: rr",
        10,
        14,
        "`algorithm` must be `maglev`, `roundRobin`, `leastConnections` or `sourceHash`",
    ),
    ("[80, 81]", "[80, 81]\n  affinity: 9", 10, 13, "`affinity` must be a group of fields"),
    (
        "[80, 81]",
        "[80, 81]\n  affinity: { timeoutSeconds: 0 }",
        10,
        31,
        "`timeoutSeconds` must be a whole number from 1 to 604800",
    ),
    ("[80, 81]", "[80, 81]\n  prefer: near", 10, 11, "`prefer` must be `any`, `zone` or `local`"),
    ("[80, 81]", "[80, 81]\n  minHealthyPercent: 101", 10, 22, "`minHealthyPercent` must be a whole number from 0 to 100"),
    ("[80, 81]", "[80, 81]\n  slowStartSeconds: 3601", 10, 21, "`slowStartSeconds` must be a whole number from 0 to 3600"),
    ("[80, 81]", "[80, 81]\n  memberGroups: web", 10, 17, "`memberGroups` must be a list"),
    (
        "[80, 81]",
        "[80, 81]\n  memberGroups: [{ backup: no }]",
        10,
        18,
        "an entry of `memberGroups` lacks the field `loadBalancer`",
    ),
    ("[80, 81]", "[80, 81]\n  memberGroups: [{ loadBalancer: other }]", 10, 34, "there is no LoadBalancer `other`"),
    (
        "[80, 81]",
        "[80, 81]\n  memberGroups: [{ loadBalancer: web }]",
        10,
        34,
        "LoadBalancer `web` would contain itself: web contains web",
    ),
    ("weight: 1", "zone: ''", 14, 13, "`zone` must not be empty"),
    ("weight: 1", "backup: maybe", 14, 15, "`backup` must be `true` or `false`"),
    ("members:\n", "members: 3\n  x:\n", 10, 12, "`members` must be a list"),
    ("- address: 10.0.1.12", "- 10.0.1.12", 16, 7, "an entry of `members` must be a group of fields"),
    ("- address: 10.0.1.12", "- weight: 1", 16, 7, "an entry of `members` lacks the field `address`: where it serves"),
    ("name: m1", "name: m 1", 11, 13, "`name` must consist of letters, digits and '_' '.' '-' ':'"),
    ("10.0.1.12", "10.0.1.12\n      name: m1", 17, 13, "member 1 has the name `m1` already"),
    ("10.0.1.12", "10.0.1.11\n      port: 8080", 16, 16, "member 1 has the same address and port"),
    (
        "10.0.1.12",
        "10.0.1.12\n    - address: 10.0.1.12\n      name: x\n      port: 80",
        17,
        16,
        "member 2 has the same address and port",
    ),
    ("10.0.1.12", "10.0.1.12\n    - address: 10.0.1.12\n      port: 90", 17, 16, "member 2 is called 10.0.1.12 too"),
    ("10.0.1.12", "nowhere", 16, 16, "`address` must be an IP address"),
    ("10.0.1.12", "'[fd00::1]:80'", 16, 16, "`address` must be an address alone, without brackets and port: write fd00::1"),
    ("10.0.1.12", "fd00::1", 16, 16, "there is no IPv6 VIP that fd00::1 could serve"),
    ("10.0.1.12", "10.96.0.10", 16, 16, "10.96.0.10 is a VIP of LoadBalancer `web` (t.yaml:1)"),
    ("port: 8080\n      weight", "port: -1\n      weight", 13, 13, "`port` must be a whole number from 1 to 65535, but is `-1`"),
    ("weight: 1", "weight: 1001", 14, 15, "`weight` must be a whole number from 0 to 1000, but is `1001`"),
    ("weight: 1", "weight: 1.5", 14, 15, "`weight` must be a whole number from 0 to 1000, but is `1.5`"),
    ("weight: 1", "wieght: 1", 14, 7, "an entry of `members` has no field `wieght`: did you mean `weight`?"),
    ("weight: 1", "name: 1", 14, 7, "`name` is already set on line 11: remove one of the two"),
    ("52:54:00:00:00:01", "52:54:00:00:00", 15, 12, "`mac` must be a MAC address: six pairs"),
    ("52:54:00:00:00:01", "01:00:5e:00:00:01", 15, 12, "`mac` must be the MAC address of one NIC"),
    ("stack", "direct", 17, 13, "`delivery` must be `stack` or `redirect`, but is `direct`: did you mean `redirect`?"),
    ("reject", "deny", 18, 15, "`onNoMember` must be `reject` or `drop`, but is `deny`"),
    ("reset", "[]", 19, 3, "`onMemberRemoved` must be `reset` or `repick`"),
    ("healthCheck:\n", "healthCheck: yes\n  x:\n", 20, 16, "`healthCheck` must be a group of fields"),
    ("port: 8080\n    intervalMs", "port: 0\n    intervalMs", 21, 11, "`port` must be a whole number from 1 to 65535"),
    ("intervalMs: 500", "intervalMs: 99", 22, 17, "`intervalMs` must be a whole number from 100 to 3600000, but is `99`"),
    ("intervalMs: 500", "interval_ms: 500", 22, 5, "`healthCheck` has no field `interval_ms`: did you mean `intervalMs`?"),
    ("timeoutMs: 200", "timeoutMs: 1s", 23, 16, "`timeoutMs` must be a whole number from 10 to 60000, but is `1s`"),
    ("timeoutMs: 200", "timeoutMs: 501", 23, 16, "the timeout of 501 ms is longer than the interval of 500 ms"),
    ("rise: 1", "rise: 0", 24, 11, "`rise` must be a whole number from 1 to 10, but is `0`"),
    ("fall: 2", "fall: 11", 25, 11, "`fall` must be a whole number from 1 to 10, but is `11`"),
    (
        "fall: 2",
        "fall: 99999999999999999999",
        25,
        11,
        "`fall` must be a whole number from 1 to 10, but is `99999999999999999999`",
    ),
    ("fall: 2", "fall: *x", 25, 11, "aliases (`*name`) are not supported"),
    ("fall: 2", "fall: !!int 2", 25, 17, "tags are not supported: remove `!!int`"),
    ("fall: 2", "fall: &x 2", 25, 14, "anchors (`&name`) are not supported"),
    ("    fall: 2", "   fall: 2", 25, 4, "this is not YAML: "),
];

const SELECTOR_ROWS: &[Row] = &[
    ("matchLabels: { app: dns }", "matchLabels: {}", 9, 5, "`matchLabels` must not be empty"),
    ("app: dns", "app:", 9, 20, "`app` has no value: it must be text"),
    (
        "    matchLabels: { app: dns }\n",
        "",
        8,
        3,
        "`memberSelector` lacks the field `matchLabels`: every one of these labels must match",
    ),
    ("5353", "70000", 10, 11, "`port` must be a whole number from 1 to 65535"),
    ("  memberSelector", "  members: [{ address: 'fd00::2' }]\n  memberSelector", 9, 3, "there are `members` as well"),
    (
        "  memberSelector:\n    matchLabels: { app: dns }\n    port: 5353\n",
        "",
        4,
        1,
        "`spec` needs `members`, a `memberSelector` or `memberGroups`",
    ),
    ("memberSelector", "selector", 8, 3, "`spec` has no field `selector`: its fields are `affinity`, `algorithm`"),
    ("fd00::1", "fe80::1", 5, 10, "the VIP fe80::1 is link-local"),
    ("fd00::1", "::ffff:10.0.0.1", 5, 10, "the VIP ::ffff:10.0.0.1 is an IPv4 address in IPv6 form: write 10.0.0.1"),
    ("fd00::1", "fd00::1%eth0", 5, 10, "an entry of `vips` must be an address without a device: write fd00::1"),
];

const HTTP_ROWS: &[Row] = &[
    ("    http:", "    icmp: {}\n    http:", 10, 5, "a health check has one of `http`, `icmp`: keep one of them"),
    ("    http:", "    htpp:", 10, 5, "`healthCheck` has no field `htpp`: did you mean `http`?"),
    ("path: /healthz", "path: healthz", 11, 13, "`path` must start with `/`"),
    ("path: /healthz", "path: /a b", 11, 13, "`path` must be what a URL has after the host"),
    ("path: /healthz", "path: '/a#b'", 11, 13, "`path` must be what a URL has after the host"),
    ("host: www.example", "host: http://www.example", 12, 13, "`host` must be a name or an address"),
    ("host: www.example", "host: 'a b'", 12, 13, "`host` must be a name or an address"),
    ("[200, 301-399]", "200", 13, 15, "`status` must be a list, as in `[a, b]`, but is `200`"),
    ("[200, 301-399]", "[]", 13, 7, "`status` must not be empty"),
    ("[200, 301-399]", "[200, 99]", 13, 21, "an entry of `status` must be a status code from 100 to 599"),
    ("[200, 301-399]", "[200, 2xx]", 13, 21, "an entry of `status` must be a status code from 100 to 599"),
    ("[200, 301-399]", "[200, 399-301]", 13, 21, "an entry of `status` ends before it starts: write 301-399"),
    ("[200, 301-399]", "[200, true]", 13, 21, "an entry of `status` must be a status code or a range of them"),
    ("https: true", "https: 1", 14, 14, "`https` must be `true` or `false`, but is `1`"),
    ("https: true", "https: false", 15, 19, "`serverName` is for TLS: add `https: true`"),
    ("https: true", "https: false", 16, 15, "`caFile` is for TLS: add `https: true`"),
    ("serverName: b.example", "serverName: b_.example:80", 15, 19, "`serverName` must be a DNS name or an IP address"),
    ("serverName: b.example", "insecureSkipVerify: true", 15, 27, "with `insecureSkipVerify` any certificate is taken"),
    ("caFile: /etc/ca.pem", "caFile: ca.pem", 16, 15, "`caFile` must be the full path of a file"),
    ("passiveHealth:\n", "passiveHealth: on\n  x:\n", 17, 18, "`passiveHealth` must be a group of fields"),
    ("failures: 5", "failures: 0", 18, 15, "`failures` must be a whole number from 1 to 100000, but is `0`"),
    ("failedPercent: 50", "failedPercent: 101", 19, 20, "`failedPercent` must be a whole number from 1 to 100, but is `101`"),
    ("windowMs: 10000", "windowMs: 999", 20, 15, "`windowMs` must be a whole number from 1000 to 60000, but is `999`"),
    ("baseEjectMs: 30000", "baseEjectMs: 30s", 21, 18, "`baseEjectMs` must be a whole number from 1000 to 3600000, but is `30s`"),
    ("maxEjectMs: 300000", "maxEjectMs: 0", 22, 17, "`maxEjectMs` must be a whole number from 1000 to 86400000, but is `0`"),
    ("maxEjectMs: 300000", "maxEjectMs: 29999", 22, 17, "at most 29999 ms out is less than the 30000 ms of the first time"),
    ("maxEjectedPercent: 50", "maxEjectedPercent: 0", 23, 24, "`maxEjectedPercent` must be a whole number from 1 to 100"),
    ("feedback:\n", "feedback: on\n  x:\n", 24, 13, "`feedback` must be a group of fields"),
    ("mode: latencyTarget", "mode: latency", 25, 11, "`mode` must be `off`, `leastLoad` or `latencyTarget`, but is `latency`"),
    ("mode: latencyTarget", "mode: leastLoad", 30, 25, "`targetMilliseconds` is for `mode: latencyTarget`"),
    ("gainPercent: 60", "gainPercent: 0", 26, 18, "`gainPercent` must be a whole number from 1 to 100, but is `0`"),
    ("dampingPercent: 40", "dampingPercent: 96", 27, 21, "`dampingPercent` must be a whole number from 0 to 95, but is `96`"),
    ("minPercent: 20", "minPercent: 101", 28, 17, "`minPercent` must be a whole number from 1 to 100, but is `101`"),
    ("maxPercent: 300", "maxPercent: 99", 29, 17, "`maxPercent` must be a whole number from 100 to 1000, but is `99`"),
    ("50\n  feedback", "50\n  fedback", 24, 3, "`spec` has no field `fedback`: did you mean `feedback`?"),
    ("    targetMilliseconds: 50\n", "", 25, 11, "`mode: latencyTarget` needs a target: give `targetMilliseconds`"),
    ("Milliseconds: 50", "Milliseconds: 0", 30, 25, "`targetMilliseconds` must be a whole number from 1 to 60000, but is `0`"),
];

const UDP_ROWS: &[Row] = &[
    ("    udp:", "    http: {}\n    udp:", 12, 5, "a health check has one of `http`, `udp`: keep one of them"),
    ("udp:", "udp: x\n    y:", 11, 10, "`udp` must be a group of fields"),
    ("      send: 'hex:0001'\n", "", 11, 5, "`udp` lacks the field `send`: what to send"),
    ("'hex:0001'", "'hex:001'", 12, 13, "`send` has `hex:` in front: pairs of hexadecimal digits must follow"),
    ("'hex:0001'", "17", 12, 13, "`send` must be text, but is `17`, a number: put it in quotes"),
    ("expect: pong", "expect: 'hex:xy'", 13, 15, "`expect` has `hex:` in front: pairs of hexadecimal digits must follow"),
    ("      expect: pong\n", "", 13, 14, "`match` says where `expect` must be, which is not given"),
    ("match: prefix", "match: regex", 14, 14, "`match` must be `contains`, `prefix` or `exact`, but is `regex`"),
    (
        "    udp:\n      send: 'hex:0001'\n      expect: pong\n      match: prefix\n",
        "    icmp: {}\n",
        10,
        11,
        "a ping goes to no port: remove `port`, or `icmp`",
    ),
];

const ENDPOINT_ROWS: &[Row] = &[
    ("device: tap0", "dev: tap0", 4, 1, "`spec` lacks the field `device`: the host-side device"),
    ("tap0", "a-very-long-name", 5, 11, "`device` must be at most 15 bytes long"),
    ("tap0", "a/b", 5, 11, "`device` must not contain '/'"),
    ("tap0", "a b", 5, 11, "`device` must not contain '/', ':' or white space"),
    ("tap0", "''", 5, 11, "`device` must be the name of a network device"),
    ("52:54:00:00:00:01", "[]", 6, 3, "`mac` must be a MAC address in quotes, but is a list"),
    ("52:54:00:00:00:01", "00:00:00:00:00:00", 6, 8, "`mac` must be the MAC address of one NIC"),
    ("10.0.0.1", "10.0.0.256", 7, 15, "an entry of `addresses` must be an IP address"),
    ("10.0.0.1", "'::'", 7, 15, "the address :: means \"this host\""),
    ("10.0.0.1", "'ff02::1'", 7, 15, "the address ff02::1 is a multicast address"),
    ("10.0.0.1", "'fd00:0::1'", 7, 28, "the address fd00::1 is listed twice"),
];

fn all() -> impl Iterator<Item = (&'static str, &'static Row)> {
    let policy = [
        (GROUP, GROUP_ROWS),
        (QUARANTINE, QUARANTINE_ROWS),
        (POLICY, POLICY_ROWS),
        (SOURCE, SOURCE_ROWS),
        (SCANNER, SCANNER_ROWS),
    ];
    [(BALANCER, BALANCER_ROWS), (SELECTOR, SELECTOR_ROWS), (HTTP, HTTP_ROWS), (UDP, UDP_ROWS), (ENDPOINT, ENDPOINT_ROWS)]
        .into_iter()
        .chain(policy)
        .flat_map(|(base, rows)| rows.iter().map(move |row| (base, row)))
}

#[test]
fn wrong_in_some_way() {
    let mut wrong = String::new();
    for (base, (from, to, line, column, message)) in all() {
        assert!(base.contains(from), "{from}");
        let faults = bad(&base.replacen(from, to, 1));
        if !faults.iter().any(|f| (f.line, f.column) == (*line, *column) && f.message.starts_with(message)) {
            wrong += &format!("{from:?} -> {to:?}: not {line}:{column}: {message}\n{}", show(&faults));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_line_is_shown_with_a_mark_under_the_value() {
    let snippet = &bad(&BALANCER.replace("10.0.1.12", "10.0.1.12\t# 中\n      mac: \u{1b}[2J\n"))[0].snippet;
    assert!(!snippet.contains('\u{1b}'), "{snippet}");
    assert_eq!(
        bad(&BALANCER.replace("weight: 1", "weight: 5000 # lots"))[0].snippet,
        "14 |       weight: 5000 # lots\n   |               ^^^^"
    );
    let long = BALANCER.replace("[10.96.0.10]", &format!("[x{}]", " ".repeat(500)));
    let snippet = &bad(&long)[0].snippet;
    assert!(snippet.starts_with("7 |   vips: [x ") && snippet.lines().all(|line| line.chars().count() < 250), "{snippet}");
}

/// Each field of the schema is in some row's fault, so that a new field comes with one.
#[test]
fn no_field_is_left_out() {
    let mut names = BTreeSet::new();
    collect(&super::schema(), &mut names);
    let messages: Vec<&str> = all().map(|(_, row)| row.4).collect();
    let missing: Vec<&String> = names.iter().filter(|name| !messages.iter().any(|m| m.contains(&format!("`{name}`")))).collect();
    assert!(missing.is_empty(), "no row has a fault of {missing:?}");
}

fn collect(schema: &Value, names: &mut BTreeSet<String>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        names.extend(properties.keys().cloned());
    }
    match schema {
        Value::Object(fields) => fields.values().for_each(|field| collect(field, names)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}
