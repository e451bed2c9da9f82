//! Settings of Suricata, and of this host, on which it depends how soon an alert is here.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde_json::Value;

/// Where Debian's Suricata has its settings.
const CONFIG: &str = "/etc/suricata/suricata.yaml";
/// Bytes of a file of settings.
const MOST: u64 = 4 << 20;
/// Files included in each other.
const DEEPEST: usize = 8;
/// Files in all.
const FILES: usize = 64;
/// How many datagrams may wait in a socket.
const QUEUE: &str = "/proc/sys/net/unix/max_dgram_qlen";
/// Fewer are soon full: Suricata then waits, or drops alerts.
const SHORT_QUEUE: u32 = 512;

/// What should be known about the settings in `config` (default: Debian's), given that alerts are to come to `socket`: each a
/// sentence with what to do.
pub(in super::super) fn notes(socket: &Path, config: Option<&Path>) -> Vec<String> {
    let path = config.unwrap_or(Path::new(CONFIG));
    let mut notes = match load(path, DEEPEST, &mut 0) {
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

/// A file of settings with those that it includes. Whoever asks may not be allowed to read it: of what is in a file that cannot be
/// used nothing is told.
fn load(path: &Path, depth: usize, files: &mut usize) -> Result<Value, String> {
    let shown = path.display();
    *files += 1;
    if depth == 0 || *files > FILES {
        return Err(format!("{shown} is included by itself, or there are more than {FILES} files"));
    }
    let text = read(path).map_err(|why| format!("{shown}: {why}"))?;
    // Suricata's files begin with a directive that says which YAML they are.
    let text = text.strip_prefix("%YAML 1.1").unwrap_or(&text);
    let mut config: Value = serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location().map(|at| format!(", at line {}, column {}", at.line(), at.column()));
        format!("{shown}: it is no YAML{}", at.unwrap_or_default())
    })?;
    let included: Vec<String> = match config.get("include") {
        Some(Value::String(file)) => vec![file.clone()],
        Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    for file in included {
        let included = load(&path.parent().unwrap_or(Path::new("/")).join(file), depth - 1, files)?;
        if let (Value::Object(config), Value::Object(included)) = (&mut config, included) {
            config.extend(included);
        }
    }
    Ok(config)
}

/// A regular file's text: what would block, or never end, is not read.
fn read(path: &Path) -> Result<String, String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty()).map(File::from).map_err(|error| match error {
        Errno::ELOOP => "it is a symbolic link: name the file that it leads to".to_owned(),
        error => error.desc().to_owned(),
    })?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut text = Vec::new();
    file.take(MOST + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MOST {
        return Err(format!("it is larger than {} MiB", MOST >> 20));
    }
    String::from_utf8(text).map_err(|_| "it is no text".to_owned())
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
        // Each includes the other four times: bounded as a whole, not only in depth.
        for (name, other) in [("a", "b"), ("b", "a")] {
            std::fs::write(dir.join(name), format!("include: [{other}, {other}, {other}, {other}]")).unwrap();
        }
        let mut files = 0;
        load(&dir.join("a"), usize::MAX, &mut files).unwrap_err();
        assert_eq!(files, FILES + 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_no_file_of_settings_is_neither_waited_for_nor_told() {
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("vnet-settings-XXXXXX")).unwrap();
        let file = |name: &str| dir.join(name);
        nix::unistd::mkfifo(&file("pipe"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/null", file("link")).unwrap();
        std::fs::write(file("shadow"), "root:$y$secret:1:2\n  : [ { secret").unwrap();
        std::fs::write(file("text"), "secret").unwrap();
        std::fs::write(file("large"), vec![b' '; MOST as usize + 1]).unwrap();
        std::fs::write(file("including"), "include: shadow").unwrap();
        for (path, part) in [
            (file("pipe"), "no regular file"),
            ("/dev/zero".into(), "no regular file"),
            (dir.clone(), "no regular file"),
            (file("link"), "a symbolic link"),
            (file("large"), "larger than 4 MiB"),
            (file("shadow"), "it is no YAML, at line 2, column"),
            (file("including"), "it is no YAML, at line 2, column"),
            (file("text"), "no `eve-log` goes to"),
        ] {
            let notes = notes(Path::new("/run/x.sock"), Some(&path));
            assert!(notes[0].contains(part), "{path:?}: {notes:?}");
            assert!(!notes.iter().any(|note| note.contains("secret")), "{notes:?}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
