//! Every field of security groups, policies and tag sources wrong in some way.

use super::fields::Row;

pub(super) const GROUP: &str = "\
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: web }
spec:
  selector:
    matchLabels: { app: web }
    expression: labels.env == 'prod'
  precedence: 10
  defaults: { ingress: deny, egress: allow }
  ingress:
    - name: clients
      peers:
        - { group: default }
        - { cidr: 10.0.0.0/8, except: [10.1.0.0/16] }
        - { entity: world }
        - { selector: { matchLabels: { app: lb } } }
      ports:
        - { protocol: TCP, port: 80, endPort: 90 }
        - { protocol: ICMP, type: 3, code: 4 }
      action: allow
      log: true
  egress:
    - { name: dns, ports: [{ protocol: UDP, port: 53 }], action: reject }
  transfers:
    - name: malware
      priority: 5
      to: held
      when: tags.exists(t, t.name == 'malware')
      releaseWhen: size(tags) == 0
      minHoldSeconds: 60
      maxHoldSeconds: 3600
      flapDamping: { moves: 3, withinSeconds: 600, holdSeconds: 1800 }
      mode: enforce
  brakes: { maxEndpoints: 5, maxPercent: 10, windowSeconds: 60 }
---
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: held }
spec:
  quarantine: {}
";

pub(super) const QUARANTINE: &str = "\
apiVersion: vnet/v1alpha1
kind: SecurityGroup
metadata: { name: held }
spec:
  quarantine:
    redirectTo: [web]
    mirrorTo: vm1
    keepAlive: [dhcp, neighbors]
---
apiVersion: vnet/v1alpha1
kind: LoadBalancer
metadata: { name: web }
spec: { vips: [10.96.0.10], protocol: TCP, ports: [80], members: [{ address: 10.0.1.12 }] }
---
apiVersion: vnet/v1alpha1
kind: Endpoint
metadata: { name: vm1 }
spec:
  device: tap0
  antiSpoofing: strict
  allowTunnels: true
  router: true
";

pub(super) const POLICY: &str = "\
apiVersion: vnet/v1alpha1
kind: Policy
metadata: { name: base }
spec:
  tier: security
  priority: 7
  appliedTo:
    groups: [default]
    selector: { expression: name.startsWith('web') }
  mode: staged
  ingress:
    - { name: any, action: pass }
  egress:
    - { name: any, action: deny }
";

pub(super) const SOURCE: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: logins }
spec:
  type: json
  allow:
    - { tag: session.*, maxSeverity: 3, set: true, clear: true }
  mappings:
    - name: login
      when: event.what == 'login'
      subject: { endpointFrom: event.vm }
      operation: set
      tag: session.user
      valueFrom: event.group
      instanceFrom: event.user
      severity: 1
      confidence: 90
      evidenceFrom: event.line
      ttlSeconds: 3600
      onExpiry: release
    - name: other
      when: event.what == 'other'
      subject: { labelValueFrom: event.vm, label: uuid }
      tagFrom: event.tag
      severityFrom: event.level
  input: { directory: /var/spool/logins }
  users: [hr, '1000']
  lostAfterSeconds: 600
";

pub(super) const SCANNER: &str = "\
apiVersion: vnet/v1alpha1
kind: TagSource
metadata: { name: clam }
spec:
  type: clamav
  allow: [{ tag: '*' }]
  input:
    socket: /run/clamav/clamd.ctl
    guests: { vm1: /srv/vm1 }
    maxFileMib: 100
";

pub(super) const GROUP_ROWS: &[Row] = &[
    (
        "matchLabels: { app: web }\n    expression: labels.env == 'prod'",
        "{}",
        5,
        3,
        "the selector needs `matchLabels` or an `expression`",
    ),
    ("{ app: web }", "web", 6, 18, "`matchLabels` must be a group of fields"),
    ("labels.env == 'prod'", "env == 'prod'", 7, 17, "`env == 'prod'` knows no variable `env`: there are name, labels, tags"),
    ("labels.env == 'prod'", "labels.env ==", 7, 17, "`labels.env ==` is no CEL expression: "),
    ("labels.env == 'prod'", "''", 7, 17, "`expression` must be a CEL expression, and is empty"),
    ("labels.env == 'prod'", "[]", 7, 5, "`expression` must be text, but is a list"),
    ("precedence: 10", "precedence: 10001", 8, 15, "`precedence` must be a whole number from 0 to 10000"),
    ("{ ingress: deny, egress: allow }", "deny", 9, 13, "`defaults` must be a group of fields"),
    ("ingress: deny", "ingress: drop", 9, 24, "`ingress` must be `allow`, `deny` or `reject`, but is `drop`"),
    ("egress: allow", "egress: pass", 9, 38, "`egress` must be `allow`, `deny` or `reject`, but is `pass`"),
    ("name: clients", "name: c!", 11, 13, "`name` must consist of letters"),
    ("name: clients", "name: default", 11, 13, "`default` is what vnet calls a rule that it adds itself"),
    ("peers:\n", "peers: x\n      y:\n", 12, 14, "`peers` must be a list"),
    ("{ group: default }", "{}", 13, 11, "a peer needs one of `group`, `selector`, `cidr`, `entity`"),
    ("{ group: default }", "{ group: default, entity: host }", 13, 37, "a peer has one of `group`, `entity`: keep one of them"),
    ("group: default", "group: Default", 13, 20, "`group` must consist of lower-case letters"),
    ("group: default", "group: hold", 13, 20, "there is no SecurityGroup `hold`: did you mean `held`?"),
    ("10.0.0.0/8", "10.0.0.1/8", 14, 19, "`cidr` has bits set behind its prefix: write 10.0.0.0/8"),
    ("10.0.0.0/8", "10.0.0.0/33", 14, 19, "`cidr` has a prefix of 33 bits"),
    ("[10.1.0.0/16]", "10.1.0.0/16", 14, 39, "`except` must be a list"),
    ("[10.1.0.0/16]", "[11.1.0.0/16]", 14, 40, "11.1.0.0/16 is not in 10.0.0.0/8"),
    ("[10.1.0.0/16]", "[host]", 14, 40, "an entry of `except` must be an address or a network"),
    (
        "{ entity: world }",
        "{ entity: world, except: [10.1.0.0/16] }",
        15,
        28,
        "`except` takes networks out of `cidr`, which is not given",
    ),
    (
        "entity: world",
        "entity: wrld",
        15,
        21,
        "`entity` must be `host`, `remote-host`, `world`, `unknown`, `health` or `endpoints`, but is `wrld`: did you mean `world`?",
    ),
    ("{ selector: {", "{ selector: 1, x: {", 16, 23, "`selector` must be a group of fields"),
    (
        "{ matchLabels: { app: lb } }",
        "{ expression: size(tags) > 0 }",
        16,
        37,
        "`size(tags) > 0` knows no variable `tags`: there are name, labels",
    ),
    ("ports:\n        -", "ports: 80\n      x:\n        -", 17, 14, "`ports` must be a list"),
    ("protocol: TCP", "protocol: tcp", 18, 23, "`protocol` must be `TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, or a number"),
    ("protocol: TCP", "protocol: '256'", 18, 23, "`protocol` must be `TCP`"),
    ("protocol: TCP", "protocol: SCTP", 18, 35, "`port` is for TCP and UDP, and the protocol is SCTP"),
    ("port: 80,", "port: 0,", 18, 34, "`port` must be a whole number from 1 to 65535"),
    ("endPort: 90", "endPort: 70", 18, 47, "the range ends at 70, before it starts at 80"),
    ("port: 80, ", "", 18, 37, "`endPort` ends a range that starts at `port`"),
    ("endPort: 90", "endPort: 65536", 18, 47, "`endPort` must be a whole number"),
    ("type: 3", "type: 256", 19, 35, "`type` must be a whole number from 0 to 255"),
    ("type: 3, ", "", 19, 35, "`code` is one of a `type`, which is not given"),
    ("code: 4", "code: net", 19, 44, "`code` must be a whole number from 0 to 255"),
    (
        "protocol: ICMP, type: 3, code: 4",
        "protocol: UDP, type: 3",
        19,
        34,
        "`type` is for ICMP and ICMPv6, and the protocol is UDP",
    ),
    ("action: allow\n", "action: pass\n", 20, 15, "`pass` is for policies"),
    ("action: allow\n", "action: accept\n", 20, 15, "`action` must be `allow`, `deny`, `reject` or `pass`, but is `accept`"),
    ("      action: allow\n", "", 11, 7, "an entry of `ingress` lacks the field `action`: what becomes of the flow"),
    ("log: true", "log: 1", 21, 12, "`log` must be `true` or `false`, but is `1`"),
    (
        "{ protocol: UDP, port: 53 }], action: reject }",
        "{ port: 53 }], action: reject }",
        23,
        28,
        "an entry of `ports` lacks the field `protocol`",
    ),
    (
        "action: reject }",
        "action: reject }\n    - { name: dns, action: deny }",
        24,
        15,
        "rule 1 has the name `dns` already: choose another",
    ),
    ("transfers:\n", "transfers: 1\n  x:\n", 24, 14, "`transfers` must be a list"),
    ("name: malware", "name: mal ware", 25, 13, "`name` must consist of letters"),
    ("priority: 5", "priority: -1", 26, 17, "`priority` must be a whole number from 0 to 10000"),
    ("to: held", "to: web", 27, 11, "SecurityGroup `web` is no quarantine group: it lacks `quarantine`"),
    ("to: held", "to: [held]", 27, 7, "`to` must be text"),
    (
        "when: tags.exists(t, t.name == 'malware')",
        "when: tag.exists(t, true)",
        28,
        13,
        "`tag.exists(t, true)` knows no variable `tag`",
    ),
    (
        "when: tags.exists(t, t.name == 'malware')",
        "when: 5",
        28,
        13,
        "`when` must be text, but is `5`, a number: put it in quotes",
    ),
    ("releaseWhen: size(tags) == 0", "releaseWhen: size(tags", 29, 20, "`size(tags` is no CEL expression"),
    ("releaseWhen: size(tags) == 0", "releaseWhen: true", 29, 20, "`releaseWhen` must be text, but is `true`, a truth value"),
    ("minHoldSeconds: 60", "minHoldSeconds: 4000", 31, 23, "it is held for 4000 s at least and 3600 s at most"),
    ("minHoldSeconds: 60", "minHoldSeconds: 1h", 30, 23, "`minHoldSeconds` must be a whole number"),
    ("maxHoldSeconds: 3600", "maxHoldSeconds: 0", 31, 23, "`maxHoldSeconds` must be a whole number from 1 to 31536000"),
    ("{ moves: 3, withinSeconds: 600, holdSeconds: 1800 }", "true", 32, 20, "`flapDamping` must be a group of fields"),
    ("moves: 3", "moves: 1", 32, 29, "`moves` must be a whole number from 2 to 1000"),
    ("withinSeconds: 600", "withinSeconds: 0", 32, 47, "`withinSeconds` must be a whole number"),
    ("holdSeconds: 1800", "holdSeconds: 0", 32, 65, "`holdSeconds` must be a whole number"),
    ("holdSeconds: 1800", "holdSeconds: 7200", 32, 65, "it would be held for 7200 s, but is released after 3600 s"),
    (
        "mode: enforce",
        "mode: dryrun",
        33,
        13,
        "`mode` must be `enforce`, `dry-run` or `require-approval`, but is `dryrun`: did you mean `dry-run`?",
    ),
    (
        "{ maxEndpoints: 5, maxPercent: 10, windowSeconds: 60 }",
        "{ windowSeconds: 60 }",
        34,
        3,
        "`brakes` needs `maxEndpoints` or `maxPercent`",
    ),
    ("maxEndpoints: 5", "maxEndpoints: all", 34, 27, "`maxEndpoints` must be a whole number"),
    ("maxPercent: 10", "maxPercent: 101", 34, 42, "`maxPercent` must be a whole number from 0 to 100"),
    ("windowSeconds: 60", "windowSeconds: 0", 34, 61, "`windowSeconds` must be a whole number from 1 to 86400"),
    ("quarantine: {}", "quarantine: true", 40, 15, "`quarantine` must be a group of fields"),
    ("quarantine: {}", "quarantine: {}\n  selector: { matchLabels: { a: b } }", 41, 3, "a quarantine group selects nobody"),
    (
        "quarantine: {}",
        "quarantine: {}\n  brakes: { maxPercent: 1 }",
        41,
        3,
        "a quarantine group moves nobody, endpoints are moved into it: remove `brakes`",
    ),
];

pub(super) const QUARANTINE_ROWS: &[Row] = &[
    ("redirectTo: [web]", "redirectTo: [web, www]", 6, 23, "there is no LoadBalancer `www`"),
    ("redirectTo: [web]", "redirectTo: web", 6, 17, "`redirectTo` must be a list"),
    ("redirectTo: [web]", "redirectTo: [web, web]", 6, 23, "`web` is listed twice"),
    ("mirrorTo: vm1", "mirrorTo: vm2", 7, 15, "there is no Endpoint `vm2`: did you mean `vm1`?"),
    ("mirrorTo: vm1", "mirrorTo: VM1", 7, 15, "`mirrorTo` must consist of lower-case letters"),
    ("mirrorTo: vm1", "mirrorTo: vm1\n    mirrorDevice: gre0", 8, 19, "there is `mirrorTo` as well: keep one of the two"),
    ("mirrorTo: vm1", "mirrorDevice: a/b", 7, 19, "`mirrorDevice` must not contain '/'"),
    ("[dhcp, neighbors]", "dhcp", 8, 16, "`keepAlive` must be a list"),
    ("[dhcp, neighbors]", "[dhcp, arp]", 8, 23, "an entry of `keepAlive` must be `dhcp` or `neighbors`, but is `arp`"),
    ("[dhcp, neighbors]", "[dhcp, dhcp]", 8, 23, "`dhcp` is listed twice"),
    ("name: held", "name: default", 5, 3, "`default` is the group of all endpoints that no other selects"),
    ("antiSpoofing: strict", "antiSpoofing: on", 20, 17, "`antiSpoofing` must be `auto`, `strict` or `off`, but is `on`"),
    ("allowTunnels: true", "allowTunnels: yes", 21, 17, "`allowTunnels` must be `true` or `false`, but is `yes`"),
    ("router: true", "router: 'true'", 22, 11, "`router` must be `true` or `false`, but is `true`"),
];

pub(super) const POLICY_ROWS: &[Row] = &[
    ("tier: security", "tier: sec", 5, 9, "`tier` must be `emergency`, `security`, `ops`, `app` or `baseline`, but is `sec`"),
    ("priority: 7", "priority: 10001", 6, 13, "`priority` must be a whole number from 0 to 10000"),
    ("appliedTo:\n", "appliedTo: all\n  x:\n", 7, 14, "`appliedTo` must be a group of fields"),
    ("[default]", "default", 8, 13, "`groups` must be a list"),
    ("[default]", "[web]", 8, 14, "there is no SecurityGroup `web`"),
    ("[default]", "[default, default]", 8, 23, "the group `default` is listed twice"),
    ("name.startsWith('web')", "tags.size() > 0", 9, 29, "`tags.size() > 0` knows no variable `tags`: there are name, labels"),
    ("mode: staged", "mode: test", 10, 9, "`mode` must be `enforce` or `staged`, but is `test`"),
    (
        "  ingress:\n    - { name: any, action: pass }\n  egress:\n    - { name: any, action: deny }\n",
        "",
        4,
        1,
        "the policy has no rules",
    ),
];

pub(super) const SOURCE_ROWS: &[Row] = &[
    ("type: json", "type: syslog", 5, 9, "`type` must be `suricata`, `clamav`, `json` or `operator`, but is `syslog`"),
    ("  type: json\n", "", 4, 1, "`spec` lacks the field `type`: what it is"),
    ("type: json", "type: suricata", 26, 23, "a source of type `suricata` has no `directory`: remove it"),
    ("name: logins", "name: operator", 3, 19, "the name `operator` and the type `operator` belong together"),
    ("allow:\n    - {", "allow: []\n  x:\n    - {", 6, 3, "`allow` must not be empty"),
    ("tag: session.*,", "tag: session/*,", 7, 14, "`tag` must consist of letters, digits, '_', '.' and '-', and `*`"),
    ("tag: session.*,", "tag: other.*,", 13, 12, "nothing in `allow` lets this source set the tag `session.user`"),
    ("maxSeverity: 3", "maxSeverity: 11", 7, 38, "`maxSeverity` must be a whole number from 0 to 10"),
    ("set: true", "set: 1", 7, 46, "`set` must be `true` or `false`"),
    ("clear: true", "clear: no", 7, 59, "`clear` must be `true` or `false`"),
    ("set: true, clear: true", "set: false, clear: false", 7, 7, "nothing may be done with `session.*`"),
    ("mappings:\n", "mappings: {}\n  x:\n", 8, 3, "`mappings` must be a list"),
    ("name: other", "name: login", 21, 13, "mapping 1 has the name `login` already"),
    (
        "when: event.what == 'login'",
        "when: what == 'login'",
        10,
        13,
        "`what == 'login'` knows no variable `what`: there are event",
    ),
    ("{ endpointFrom: event.vm }", "event.vm", 11, 16, "`subject` must be a group of fields"),
    (
        "{ endpointFrom: event.vm }",
        "{}",
        11,
        7,
        "a subject needs one of `addressFrom`, `endpointFrom`, `macFrom`, `labelValueFrom`",
    ),
    (
        "{ endpointFrom: event.vm }",
        "{ addressFrom: event.a, macFrom: event.b }",
        11,
        49,
        "a subject has one of `addressFrom`, `macFrom`",
    ),
    (
        "{ endpointFrom: event.vm }",
        "{ endpointFrom: event.vm, label: x }",
        11,
        49,
        "`label` is for `labelValueFrom`, which is not given",
    ),
    ("endpointFrom: event.vm", "endpointFrom: vm", 11, 32, "`vm` knows no variable `vm`"),
    (", label: uuid", "", 23, 34, "`labelValueFrom` needs `label`"),
    ("label: uuid", "label: -x", 23, 51, "`label` must consist of letters"),
    ("operation: set", "operation: add", 12, 18, "`operation` must be `set` or `clear`, but is `add`"),
    ("tag: session.user", "tag: session user", 13, 12, "`tag` must consist of letters"),
    ("      tag: session.user\n", "", 9, 7, "a mapping needs one of `tag`, `tagFrom`"),
    ("tagFrom: event.tag", "tagFrom: event.tag\n      tag: session.x", 24, 16, "a mapping has one of `tag`, `tagFrom`"),
    ("valueFrom: event.group", "valueFrom: []", 14, 7, "`valueFrom` must be text"),
    ("instanceFrom: event.user", "instanceFrom: {}", 15, 7, "`instanceFrom` must be text"),
    ("severity: 1", "severity: high", 16, 17, "`severity` must be a whole number from 0 to 10"),
    ("severity: 1", "severity: 4", 16, 17, "`allow` lets this source set `session.user` with a severity of at most 3, not 4"),
    ("severity: 1", "severity: 1\n      severityFrom: '2'", 17, 21, "there is `severity` as well: keep one of the two"),
    ("severityFrom: event.level", "severityFrom: 3", 25, 21, "`severityFrom` must be text, but is `3`, a number"),
    ("confidence: 90", "confidence: 101", 17, 19, "`confidence` must be a whole number from 0 to 100"),
    ("evidenceFrom: event.line", "evidenceFrom: 1", 18, 21, "`evidenceFrom` must be text"),
    ("ttlSeconds: 3600", "ttlSeconds: 0", 19, 19, "`ttlSeconds` must be a whole number"),
    ("onExpiry: release", "onExpiry: keep", 20, 17, "`onExpiry` must be `release` or `hold`, but is `keep`"),
    (
        "ttlSeconds: 3600\n      onExpiry: release",
        "onExpiry: hold",
        19,
        17,
        "without `ttlSeconds` the tag never expires: remove `onExpiry`",
    ),
    ("directory: /var", "directory: var", 26, 23, "`directory` must be the full path"),
    ("{ directory: /var/spool/logins }", "/var/spool/logins", 26, 10, "`input` must be a group of fields"),
    ("[hr, '1000']", "[hr, 1000]", 27, 15, "an entry of `users` must be text, but is `1000`, a number"),
    ("[hr, '1000']", "[hr, ' ']", 27, 15, "a user has a name or a number, and this is empty"),
    ("lostAfterSeconds: 600", "lostAfterSeconds: 0", 28, 21, "`lostAfterSeconds` must be a whole number"),
];

pub(super) const SCANNER_ROWS: &[Row] = &[
    ("socket: /run", "socket: run", 8, 13, "`socket` must be the full path"),
    (
        "/run/clamav/clamd.ctl",
        "/run/clamav/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl/clamd.ctl",
        8,
        13,
        "a socket's path has at most 107 bytes here",
    ),
    ("guests: { vm1: /srv/vm1 }", "guests: /srv", 9, 13, "`guests` must be a group of fields"),
    ("vm1: /srv/vm1", "VM1: /srv/vm1", 9, 15, "the name `VM1` must consist of lower-case letters"),
    ("vm1: /srv/vm1", "vm1: srv/vm1", 9, 20, "`vm1` must be the full path"),
    ("maxFileMib: 100", "maxFileMib: 5000", 10, 17, "`maxFileMib` must be a whole number from 1 to 4096"),
    ("type: clamav", "type: json", 4, 1, "a source of type `json` needs `mappings`"),
    ("type: clamav", "type: operator", 8, 13, "a source of type `operator` has no `socket`: remove it"),
];
