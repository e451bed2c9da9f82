//! An explanation, for people to read.

use vnet_common::api::{Explanation, Hop, RuleRef};

use crate::style::{Look, Paint};
use crate::{human, rule};

/// Before what is said about something.
const WIDTH: usize = 15;

/// Hop by hop, and the outcome in the last line.
pub fn text(explanation: &Explanation, wide: bool, paint: Paint) -> String {
    let hops = explanation.hops.iter().enumerate().map(|(i, hop)| hop_text(i + 1, hop, wide, paint) + "\n").collect::<String>();
    let notes: String =
        explanation.notes.iter().map(|note| format!("{} {}\n", paint.paint(Look::Yellow, "!"), human::clean(note))).collect();
    let live = match &explanation.differences {
        None => String::new(),
        Some(none) if none.is_empty() => format!("{} the kernel's program does the same\n", paint.paint(Look::Green, "live:")),
        Some(all) => {
            all.iter().map(|what| format!("{} {}\n", paint.paint(Look::Red, "live: DIFFERENT:"), human::clean(what))).collect()
        }
    };
    hops + &notes + &live + &outcome(explanation, paint)
}

fn hop_text(number: usize, hop: &Hop, wide: bool, paint: Paint) -> String {
    let title = format!("{number}. {} ({}), {}", hop.endpoint, hop.device, hop.direction);
    let mut text = format!("{}\n", paint.paint(Look::Bold, &title));
    let mut line = |title: &str, value: String| text += &format!("   {title:<WIDTH$} {value}\n");
    line("packet", human::clean(&hop.packet));
    for stage in &hop.stages {
        line(&stage.stage, human::clean(&stage.found));
    }
    if let Some(by) = &hop.rule {
        line("decided by", deciding(by, wide, paint));
    }
    for (i, shadowed) in hop.shadowed.iter().enumerate() {
        let what = format!("{}: {}", rule::placed(shadowed), rule::action(shadowed));
        line(if i == 0 { "shadows" } else { "" }, paint.paint(Look::Dim, &what));
    }
    if let Some(rewritten) = &hop.rewritten {
        line("rewritten", paint.paint(Look::Cyan, &human::clean(rewritten)));
    }
    line("verdict", format!("{} ({})", paint.paint(verdict_look(&hop.verdict), &hop.verdict), hop.reason));
    text
}

fn deciding(by: &RuleRef, wide: bool, paint: Paint) -> String {
    let action = rule::action(by);
    let id = if wide { format!(", number {}", by.id) } else { String::new() };
    format!("{}: {}{id}", rule::placed(by), paint.paint(rule::look(&action), &action))
}

fn verdict_look(verdict: &str) -> Look {
    match verdict {
        "next" => Look::Green,
        "drop" => Look::Red,
        _ => Look::Yellow,
    }
}

/// `dropped: denied, by policy/base no-ssh (base.yaml:12)`.
fn outcome(explanation: &Explanation, paint: Paint) -> String {
    let Explanation { outcome, reason, .. } = explanation;
    let by = explanation.hops.last().and_then(|hop| hop.rule.as_ref());
    let by = by.map(|by| format!(", by {}", rule::placed(by))).unwrap_or_default();
    let reason = if reason == outcome { String::new() } else { format!(": {reason}") };
    format!("{}{reason}{by}\n", paint.paint(rule::look(outcome), outcome))
}
