//! Settings of Suricata, and of this host, on which it depends how soon an alert is here.

use std::path::Path;

use serde_json::Value;

/// Where Debian's Suricata has its settings.
const CONFIG: &str = "/etc/suricata/suricata.yaml";
/// Bytes of a file of settings.
const MOST: u64 = 4 << 20;
/// Files included in each other.
const DEEPEST: usize = 8;
/// How many datagrams may wait in a socket.
const QUEUE: &str = "/proc/sys/net/unix/max_dgram_qlen";
/// Fewer are soon full: Suricata then waits, or drops alerts.
const SHORT_QUEUE: u32 = 512;

/// What should be known about the settings in `config` (default: Debian's), given that alerts are to come to `socket`: each a
/// sentence with what to do.
pub(in super::super) fn notes(socket: &Path, config: Option<&Path>) -> Vec<String> {
    let path = config.unwrap_or(Path::new(CONFIG));
    let mut notes = match load(path, DEEPEST) {
        Ok(config) => of(&config, socket),
        Err(why) => vec![format!("Suricata's settings were not looked at: {why}; name the file with --config")],
    };
    let queue = std::fs::read_to_string(QUEUE).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(queue) = queue.filter(|queue| *queue < SHORT_QUEUE) {
        notes.push(format!(
            "only {queue} alerts may wait in the socket: `sysctl -w net.unix.max_dgram_qlen={SHORT_QUEUE}` and restart the agent, so \
             that a burst does not hold up Suricata"
        ));
    }
    notes
}

/// A file of settings with those that it includes.
fn load(path: &Path, depth: usize) -> Result<Value, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?.len();
    if size > MOST || depth == 0 {
        return Err(format!("{shown} is too large, or included by itself"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    // Suricata's files begin with a directive that says which YAML they are.
    let text = text.strip_prefix("%YAML 1.1").unwrap_or(&text);
    let mut config: Value = serde_saphyr::from_str(text).map_err(|error| format!("{shown}: {error}"))?;
    let files: Vec<String> = match config.get("include") {
        Some(Value::String(file)) => vec![file.clone()],
        Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    for file in files {
        let included = load(&path.parent().unwrap_or(Path::new("/")).join(file), depth - 1)?;
        if let (Value::Object(config), Value::Object(included)) = (&mut config, included) {
            config.extend(included);
        }
    }
    Ok(config)
}

fn of(config: &Value, socket: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    outputs(config, socket, &mut notes);
    if !is(config.pointer("/stream/inline"), true) {
        notes.push(
            "`stream.inline` is not `yes`: what a connection carries is looked at only once it was acknowledged, in large pieces, \
             or when the connection ends; set `stream: { inline: yes }`"
                .to_owned(),
        );
    }
    if config.get("runmode").and_then(Value::as_str) != Some("workers") {
        notes.push("`runmode` is not `workers`: packets change threads on their way; set `runmode: workers`".to_owned());
    }
    for interface in config.get("af-packet").and_then(Value::as_array).into_iter().flatten() {
        let name = interface.get("interface").and_then(Value::as_str).unwrap_or_default();
        if name != "default" && !is(interface.get("tpacket-v3"), false) {
            notes.push(format!(
                "af-packet, `interface: {name}`: without `tpacket-v3: no` packets are collected in blocks, for up to 10 ms; set it, \
                 with `use-mmap: yes`"
            ));
        }
    }
    notes
}

fn outputs(config: &Value, socket: &Path, notes: &mut Vec<String>) {
    let outputs = config.get("outputs").and_then(Value::as_array).into_iter().flatten();
    let eve: Vec<&Value> =
        outputs.filter_map(|output| output.get("eve-log")).filter(|eve| is(eve.get("enabled"), true)).collect();
    let text = |eve: &Value, field: &str| eve.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let socket = socket.display().to_string();
    let Some(ours) = eve.iter().find(|eve| text(eve, "filename") == socket) else {
        notes.push(format!(
            "no `eve-log` goes to {socket}: add one with `filetype: unix_dgram` and `filename: {socket}` (see suricata-vnet.yaml)"
        ));
        return;
    };
    if text(ours, "filetype") != "unix_dgram" {
        notes.push(format!("the `eve-log` to {socket} has `filetype: {}`: it must be `unix_dgram`", text(ours, "filetype")));
    }
    let types: Vec<&Value> = ours.get("types").and_then(Value::as_array).into_iter().flatten().collect();
    let named = |one: &Value| match one {
        Value::String(name) => name.clone(),
        Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    if !types.iter().any(|one| named(one) == "alert") {
        notes.push(format!("the `eve-log` to {socket} has no `alert` among its `types`: add it"));
    }
    if types.len() > 1 {
        let others: Vec<String> = types.iter().map(|one| named(one)).filter(|name| name != "alert").collect();
        notes.push(format!(
            "the `eve-log` to {socket} also sends {}: unless a mapping asks for them, give alerts an `eve-log` of their own",
            others.join(", ")
        ));
    }
}

/// `yes` and `no` are text to some parsers of YAML, and truth values to others.
fn is(value: Option<&Value>, wanted: bool) -> bool {
    match value {
        Some(Value::Bool(is)) => *is == wanted,
        Some(Value::String(is)) => match wanted {
            true => ["yes", "true", "on", "1"].contains(&is.to_lowercase().as_str()),
            false => ["no", "false", "off", "0"].contains(&is.to_lowercase().as_str()),
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../dist/suricata-vnet.yaml");

    fn noted(text: &str, socket: &str) -> Vec<String> {
        let text = text.strip_prefix("%YAML 1.1").unwrap_or(text);
        of(&serde_saphyr::from_str(text).unwrap(), Path::new(socket))
    }

    #[test]
    fn the_fragment_that_is_shipped_has_nothing_to_be_noted() {
        assert_eq!(noted(GOOD, "/run/vnet/suricata/eve.sock"), Vec::<String>::new());
    }

    #[test]
    fn each_setting_that_matters_is_noted() {
        for (from, to, expected) in [
            ("inline: yes", "inline: no", "`stream.inline` is not"),
            ("inline: yes", "inline: auto", "`stream.inline` is not"),
            ("tpacket-v3: no", "tpacket-v3: yes", "for up to 10 ms"),
            ("runmode: workers", "runmode: autofp", "`runmode` is not"),
            ("filetype: unix_dgram", "filetype: regular", "must be `unix_dgram`"),
            ("/run/vnet/suricata/eve.sock", "eve.json", "no `eve-log` goes to"),
            ("- alert:", "- flow:", "no `alert` among"),
            ("- alert:", "- http\n        - alert:", "also sends http"),
        ] {
            let changed = GOOD.replace(from, to);
            assert_ne!(changed, GOOD, "{from}");
            let notes = noted(&changed, "/run/vnet/suricata/eve.sock");
            assert!(notes.iter().any(|note| note.contains(expected)), "{to}: {notes:?}");
        }
    }

    #[test]
    fn files_that_are_included_count() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-settings-XXXXXX")).unwrap();
        let main = dir.join("main.yaml");
        std::fs::write(&main, "%YAML 1.1\n---\ninclude:\n  - part.yaml\n").unwrap();
        std::fs::write(dir.join("part.yaml"), GOOD).unwrap();
        let noted = |path: &Path| notes(Path::new("/run/vnet/suricata/eve.sock"), Some(path));
        assert!(!noted(&main).iter().any(|note| note.contains("eve-log")), "{:?}", noted(&main));
        std::fs::write(dir.join("part.yaml"), "include: main.yaml").unwrap();
        assert!(noted(&main)[0].contains("included by itself"));
        assert!(noted(&dir.join("absent"))[0].contains("were not looked at"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
