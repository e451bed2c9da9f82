//! All faults at once, and input that is too much.

use std::time::{Duration, Instant};

use super::fields::{BALANCER, ENDPOINT, SELECTOR};
use super::*;

#[test]
fn faults_of_all_files_and_documents_come_together() {
    let broken = format!("{}---\na: [1, 2\n---\n{}", BALANCER.replace("TCP", "tcp"), ENDPOINT.replace("tap0", "a/b"));
    let unknown = BALANCER.replace("rise", "risk").replace("10.0.1.12", "127.0.0.1").replace("name: web", "name: WEB");
    let healthy = SELECTOR.replace("web", "dns").replace("fd00::1", "fd00::9");
    let files =
        [("a", broken.as_str()), ("b", "# nothing\n---\n---\n# at all\n"), ("c", unknown.as_str()), ("d", healthy.as_str())]
            .map(|(name, text)| File { name: name.to_owned(), text: text.to_owned() });
    let faults = parse(&files).unwrap_err();
    let places: Vec<String> = faults.iter().map(|f| format!("{}:{}:{}", f.file, f.line, f.column)).collect();
    assert_eq!(places, ["a:8:13", "a:27:4", "a:33:11", "c:4:9", "c:16:16", "c:24:5"], "{}", show(&faults));
}

#[test]
fn nothing_is_no_fault() {
    for text in ["", "\n", "---\n", "# a\n---\n...\n---\n~\n", "\u{feff}"] {
        assert!(good(text).is_empty());
    }
}

#[test]
fn endpoints_that_were_discovered_are_no_resources() {
    let found = format!("{ENDPOINT}discovered: true\n");
    assert!(good(&found).is_empty());
    assert_eq!(good(&format!("{found}---\n{BALANCER}---\n{ENDPOINT}")).len(), 2);
    for odd in [found.replace("true", "false"), found.replace("true", "'true'"), format!("{BALANCER}discovered: true\n")] {
        assert!(bad(&odd)[0].message.contains("discovered"), "{odd}");
    }
}

#[test]
fn a_byte_order_mark_and_other_line_ends_are_fine() {
    good(&format!("\u{feff}{}", BALANCER.replace('\n', "\r\n")));
    let fault = &bad(&format!("\u{feff}{}", BALANCER.replace("LoadB", "B").replace('\n', "\r\n")))[0];
    assert_eq!(fault.snippet, "2 | kind: Balancer\n  |       ^^^^^^^^");
}

/// Each is refused, or read, in good time.
#[test]
fn too_much() {
    let deep = |open: &str| open.repeat(100_000);
    let members: String = (0..10_001).map(|i| format!("    - {{ address: 10.1.{}.{} }}\n", i / 250, i % 250 + 1)).collect();
    let bomb: String = (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(9))).collect();
    let keys: String = (0..20_000).map(|i| format!("k{i}: {i}\n")).collect();
    let same_keys = "kind: x\n".repeat(20_000);
    let texts = [
        deep("["),
        deep("{a: "),
        deep("- "),
        deep("? "),
        deep("[\n"),
        (0..1_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
        format!("a0: &a0 x\n{bomb}"),
        format!("{}members:\n{members}", BALANCER.split("members").next().unwrap()),
        format!("{BALANCER}{keys}"),
        format!("{BALANCER}{same_keys}"),
        "---\n[\n".repeat(20_000),
        format!("kind: {}", "x".repeat(10 << 20)),
        format!("'{}", "x\n".repeat(1 << 19)),
        format!("[{}", "'', ".repeat(1 << 17)),
        " ".repeat((16 << 20) + 1),
    ];
    for text in texts {
        let start = Instant::now();
        let faults = bad(&text);
        assert!(faults.len() <= 501 && faults.iter().all(|f| f.snippet.len() < 2000 && f.message.len() < 500));
        assert!(start.elapsed() < Duration::from_secs(10), "{:.20}: {:?}", text, start.elapsed());
    }
}
