//! A file as the user wrote it, and faults that point into it.

use vnet_common::api::{Fault, File};

/// Characters of a line that are shown to either side of a place.
const WINDOW: usize = 100;
/// Characters of a value that are quoted in a message.
const QUOTE: usize = 40;
/// Faults that are reported at once. More are of no use to anyone, and 16 MiB of faulty text has millions.
const FAULTS: usize = 500;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// From 1.
    pub(super) line: u32,
    /// In characters, from 1.
    pub(super) column: u32,
    /// In bytes.
    pub(super) start: usize,
    /// In bytes; not before the start.
    pub(super) end: usize,
}

/// A file.
#[derive(Debug)]
pub(super) struct Source {
    /// As the request names it.
    pub(super) name: String,
    /// All of it.
    pub(super) text: String,
}

impl Source {
    /// Takes a copy: it outlives the request that it came with.
    pub(super) fn new(file: &File) -> Self {
        // A byte order mark is no character of the first line.
        let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
        Self { name: file.name.clone(), text: text.to_owned() }
    }

    /// A fault at a place.
    pub(super) fn fault(&self, span: Span, message: impl Into<String>) -> Fault {
        let (line, column) = (span.line, span.column);
        Fault { file: self.name.clone(), line, column, message: message.into(), snippet: self.snippet(span) }
    }

    /// A fault of the file as a whole.
    pub(super) fn fault_of_file(&self, message: impl Into<String>) -> Fault {
        Fault { file: self.name.clone(), line: 0, column: 0, message: message.into(), snippet: String::new() }
    }

    /// The line, and marks under the place.
    fn snippet(&self, span: Span) -> String {
        let text = &self.text;
        let start = text.floor_char_boundary(span.start);
        let from = text.floor_char_boundary(start.saturating_sub(WINDOW));
        let until = text.floor_char_boundary(start.saturating_add(WINDOW));
        let (before, after) = (&text[from..start], &text[start..until]);

        let (cut_left, before) = match before.rfind(['\n', '\r']) {
            Some(at) => ("", &before[at + 1..]),
            None if from == 0 => ("", before),
            None => ("…", before),
        };
        let (cut_right, after) = match after.find(['\n', '\r']) {
            Some(at) => ("", &after[..at]),
            None if until == text.len() => ("", after),
            None => ("…", after),
        };
        let marked = after.floor_char_boundary(span.end.saturating_sub(start));
        let marks = after[..marked].trim_end().chars().count().max(1);
        let indent = cut_left.chars().count() + before.chars().count();

        let number = span.line.to_string();
        let shown: String = [cut_left, before, after, cut_right].concat().chars().map(printable).collect();
        let gutter = " ".repeat(number.len());
        format!("{number} | {}\n{gutter} | {}{}", shown.trim_end(), " ".repeat(indent), "^".repeat(marks))
    }
}

/// What a user wrote, for a message: in backticks, on one line, not too long.
pub(super) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTE).map(printable).collect();
    if text.chars().nth(QUOTE).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// One column wide, and nothing that a terminal acts on.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Faults as they are found.
#[derive(Debug, Default)]
pub(super) struct Faults {
    found: Vec<Fault>,
    /// Some were found and not kept.
    more: bool,
}

impl Faults {
    /// Takes `fault`, if there are not too many.
    pub(super) fn push(&mut self, fault: Fault) {
        if self.found.len() < FAULTS {
            self.found.push(fault);
        } else {
            self.more = true;
        }
    }

    /// Nothing is gained from looking further.
    pub(super) fn enough(&self) -> bool {
        self.more
    }

    /// All of them, in the order in which `files` has them, and in them from the top.
    pub(super) fn into_sorted(mut self, files: &[&str]) -> Vec<Fault> {
        let rank = |fault: &Fault| files.iter().position(|name| *name == fault.file);
        self.found.sort_by_cached_key(|fault| (rank(fault), fault.line, fault.column));
        if self.more {
            let file = self.found.last().map(|last| last.file.clone()).unwrap_or_default();
            let message = format!("there are more faults: correct these {FAULTS} first");
            self.found.push(Fault { file, line: 0, column: 0, message, snippet: String::new() });
        }
        self.found
    }
}
