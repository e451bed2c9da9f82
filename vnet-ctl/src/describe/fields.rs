//! The layout of a description: titles with values, and sections.

use crate::human;
use crate::style::{Look, Paint};

/// Lines of `Title:   value`, aligned.
pub struct Fields {
    text: String,
    paint: Paint,
}

impl Fields {
    /// The longest title, its colon and a gap.
    const WIDTH: usize = 21;

    /// None yet.
    pub fn new(paint: Paint) -> Self {
        Self { text: String::new(), paint }
    }

    /// Adds a line; a value that is empty is shown as `-`.
    pub fn add(&mut self, title: &str, value: &str) {
        self.add_as(title, value, Look::Plain);
    }

    /// The same, with a value that looks like this.
    pub fn add_as(&mut self, title: &str, value: &str, look: Look) {
        let value = if value.is_empty() { "-".to_owned() } else { self.paint.paint(look, &human::clean(value)) };
        let title = format!("{:<width$}", format!("{title}:"), width = Self::WIDTH);
        self.text += &format!("{}{value}\n", self.paint.paint(Look::Bold, &title));
    }

    /// Adds a section of lines.
    pub fn section(&mut self, title: &str, lines: &str) {
        self.text += &format!("{}\n", self.paint.paint(Look::Bold, &format!("{title}:")));
        self.text += &lines.lines().map(|line| format!("  {line}\n")).collect::<String>();
    }

    /// All of it.
    pub fn text(self) -> String {
        self.text
    }
}
