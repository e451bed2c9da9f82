//! What the program says about itself.

use crate::support::Host;

const VERBS: [&str; 68] = [
    "apply",
    "diff",
    "get",
    "describe",
    "delete",
    "status",
    "lb",
    "lb ls",
    "lb members",
    "lb drain",
    "lb undrain",
    "lb weight",
    "lb flows",
    "endpoint",
    "endpoint ls",
    "endpoint attach",
    "endpoint export",
    "endpoint import",
    "endpoint move",
    "group",
    "group ls",
    "policy",
    "policy ls",
    "host",
    "host ls",
    "host drain",
    "host undrain",
    "host add",
    "host remove",
    "rollout",
    "rollout ls",
    "rollout status",
    "rollout promote",
    "rollout rollback",
    "store",
    "store init",
    "store status",
    "store backup",
    "store restore",
    "store migrate",
    "tag",
    "tag add",
    "tag rm",
    "tag ls",
    "tag source",
    "tag source ls",
    "tag source test",
    "tag source scan",
    "tag source send",
    "quarantine",
    "quarantine ls",
    "quarantine hold",
    "quarantine release",
    "quarantine approve",
    "quarantine dismiss",
    "quarantine never",
    "quarantine never ls",
    "quarantine never add",
    "quarantine never rm",
    "quarantine log",
    "events",
    "flows",
    "top",
    "explain",
    "detach",
    "completions",
    "man",
    "version",
];

#[test]
fn every_verb_says_what_it_does_and_gives_examples() {
    let host = Host::start();
    for verb in VERBS {
        let args: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let ran = host.run(&args);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{verb}");
        let about = ran.out.lines().next().unwrap_or_default();
        assert!(about.len() > 15 && !about.starts_with("Usage"), "{verb} does not say what it does:\n{}", ran.out);
        assert!(ran.out.contains("\nExamples:\n  vnet-ctl "), "{verb} has no examples:\n{}", ran.out);
        assert!(ran.out.contains("--socket <PATH>"), "{verb} does not know the global options");
    }
}

/// The names in a help text's list of commands.
fn listed(help: &str) -> Vec<&str> {
    let commands = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    commands.lines().take_while(|line| line.starts_with("  ")).filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn no_verb_is_left_out_here_or_in_the_documentation() {
    let host = Host::start();
    let document = include_str!("../../../docs/CLI.md");
    let mut told = 0;
    let mut groups = vec![String::new()];
    while let Some(group) = groups.pop() {
        let args: Vec<&str> = group.split_whitespace().chain(["-h"]).collect();
        let help = host.run(&args).out;
        let verbs: Vec<String> =
            listed(&help).into_iter().filter(|verb| *verb != "help").map(|verb| format!("{group}{verb}")).collect();
        groups.extend(verbs.iter().map(|verb| format!("{verb} ")));
        for verb in verbs {
            assert!(VERBS.contains(&verb.as_str()), "{verb} is not in the list of this test");
            assert!(document.contains(&format!("`{verb}")), "docs/CLI.md does not tell of `{verb}`");
            told += 1;
        }
    }
    assert_eq!(told, VERBS.len(), "a verb of this test is not in any list");
}

#[test]
fn wrong_usage_is_told_with_2() {
    let host = Host::start();
    for args in [&["aply"][..], &["get"], &["lb", "drain", "web"], &["status", "--colour"], &["get", "lb", "-o", "xml"], &[]] {
        let ran = host.run(args);
        assert!(
            ran.code == 2 && ran.out.is_empty() && ran.err.contains("Usage:") || ran.err.contains("possible values"),
            "{args:?}: {ran:?}"
        );
    }
    assert!(host.run(&["aply"]).err.contains("'apply'"));
}

#[test]
fn help_is_coloured_as_asked() {
    let host = Host::start();
    assert!(host.run(&["--color", "always", "--help"]).out.contains('\x1b'));
    assert!(!host.run(&["--help"]).out.contains('\x1b'));
}

#[test]
fn manual_pages_and_completions_know_every_verb() {
    let host = Host::start();
    let ran = host.run(&["man", "pages"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for verb in VERBS {
        let page = host.directory.join(format!("pages/vnet-ctl-{}.1", verb.replace(' ', "-")));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains("\n.SH EXAMPLES\n  vnet"), "{} has no examples", page.display());
    }
    for shell in ["bash", "zsh", "fish"] {
        let ran = host.run(&["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("undrain") && ran.out.contains("hold-on-expiry"), "{shell}: {ran:?}");
    }
}
