//! Tables: aligned columns without borders, coloured after the layout, so that colours do not count as width.

use comfy_table::{CellAlignment, ContentArrangement, Table as Layout, TableStyle};

use crate::human;
use crate::style::{Look, Paint};

/// Between columns.
const GAP: u16 = 3;

/// A cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    look: Look,
}

/// A table with a header.
#[derive(Debug)]
pub struct Table {
    header: Vec<Cell>,
    right: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// `text`, looking like this.
    pub fn new(text: impl ToString, look: Look) -> Self {
        Self { text: text.to_string(), look }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Look::Plain)
    }
}

impl Table {
    /// An empty table. Columns whose name starts with `>` are aligned to the right (the sign is not shown).
    pub fn new(columns: &[&str]) -> Self {
        let right = columns.iter().map(|name| name.starts_with('>')).collect();
        let header = columns.iter().map(|name| Cell::new(name.trim_start_matches('>'), Look::Bold)).collect();
        Self { header, right, rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// As text, each line ended. A table without rows is no text.
    pub fn render(&self, paint: Paint) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let mut layout = Layout::new();
        layout.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
        let all: Vec<&Vec<Cell>> = std::iter::once(&self.header).chain(&self.rows).collect();
        for cells in &all {
            layout.add_row(cells.iter().map(|cell| one_line(&cell.text)));
        }
        for (column, right) in layout.column_iter_mut().zip(&self.right) {
            column.set_padding((0, GAP));
            column.set_cell_alignment(if *right { CellAlignment::Right } else { CellAlignment::Left });
        }
        let lines: Vec<String> = layout.lines().collect();
        lines.iter().zip(all).map(|(line, cells)| color(line.trim_end(), cells, paint) + "\n").collect()
    }
}

/// A cell's text never breaks its row, whatever a name contains.
fn one_line(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { human::clean(text) }
}

/// Colours the cells of a laid-out line. Each cell's text is found after the one before it.
fn color(line: &str, cells: &[Cell], paint: Paint) -> String {
    let mut colored = String::with_capacity(line.len());
    let mut rest = line;
    for cell in cells {
        let text = one_line(&cell.text);
        if let Some((before, after)) = rest.split_once(text.as_str()) {
            colored.push_str(before);
            colored.push_str(&paint.paint(cell.look, &text));
            rest = after;
        }
    }
    colored + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let mut table = Table::new(&["NAME", ">FLOWS", "STATE"]);
        table.row(vec!["web".into(), 5.into(), Cell::new("active", Look::Green)]);
        table.row(vec!["a-longer-name".into(), 12345.into(), "".into()]);
        let expected = "NAME            FLOWS   STATE\nweb                 5   active\na-longer-name   12345   -\n";
        assert_eq!(table.render(Paint::OFF), expected);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec!["a\x1b[31m\nb".into()]);
        assert_eq!(table.render(Paint::OFF), "NAME\na [31m b\n");
    }
}
