//! What commands print: JSON for programs, plain tables for people.
//!
//! Everything goes through [`print()`], which reports a closed pipe as an error, so that `vsctl drops -f |
//! head` ends quietly instead of panicking.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table as Grid, presets};
use serde_json::Value;

/// Writes `text` to stdout at once.
///
/// # Errors
/// The other end of the pipe has gone, or the disk is full.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes `value` to stdout as indented JSON.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value:#}\n"))
}

/// A table without borders: a heading in capitals and a line a row.
#[derive(Debug)]
pub(crate) struct Table {
    grid: Grid,
    rows: usize,
}

impl Table {
    /// Makes a table of these columns; a heading that starts with `>` is a column of numbers.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut grid = Grid::new();
        // Long rows are the terminal's business: wrapped cells cannot be read by grep or awk.
        grid.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        grid.set_header(columns.iter().map(|column| column.trim_start_matches('>')));
        for (index, column) in columns.iter().enumerate() {
            if let Some(place) = grid.column_mut(index) {
                place.set_padding((0, 2));
                if column.starts_with('>') {
                    place.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { grid, rows: 0 }
    }

    /// Adds a row; an empty cell is shown as `-`, so that every row has as many words as columns.
    pub(crate) fn row<I, S>(&mut self, cells: I)
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let cell = |cell: S| if cell.as_ref().is_empty() { "-".to_owned() } else { cell.as_ref().to_owned() };
        self.grid.add_row(cells.into_iter().map(cell));
        self.rows += 1;
    }

    /// Returns the table as lines, or `nothing` (one sentence) when it has no row.
    pub(crate) fn or(&self, nothing: &str) -> String {
        if self.rows == 0 {
            return format!("{nothing}\n");
        }
        self.lines()
    }

    /// Returns the table as lines.
    pub(crate) fn lines(&self) -> String {
        self.grid.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// Returns `pairs` as lines of a right-padded key and its value; a value of several lines is indented.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for (key, value) in pairs {
        // Nothing to say is said too: a script that looks for a key finds it.
        let value = if value.is_empty() { "-" } else { value };
        for (number, line) in value.lines().enumerate() {
            let key = if number == 0 { *key } else { "" };
            text.push_str(format!("{key:<width$}{line}").trim_end());
            text.push('\n');
        }
    }
    text
}

/// Returns `things` as words with a space between them.
pub(crate) fn join<T: ToString>(things: &[T]) -> String {
    things.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

/// Returns `yes` or `no`.
pub(crate) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Returns `count` with its noun: `1 port`, `3 ports`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_aligned_and_has_no_borders() {
        let mut table = Table::new(&["PORT", ">RX", "STATE"]);
        table.row(["web", "7", "up"]);
        table.row(["database", "12.3 k", ""]);
        assert_eq!(table.lines(), "PORT          RX  STATE\nweb            7  up\ndatabase  12.3 k  -\n");
    }

    #[test]
    fn empty_table_is_a_sentence() {
        assert_eq!(Table::new(&["PORT"]).or("No ports."), "No ports.\n");
    }

    #[test]
    fn pairs_line_up_and_later_lines_are_indented() {
        let text =
            pairs(&[("name", "web".to_owned()), ("addresses", "a\nb".to_owned()), ("x", String::new())]);
        assert_eq!(text, "name       web\naddresses  a\n           b\nx          -\n");
    }

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!([0, 1, 2].map(|n| plural(n, "port")), ["0 ports", "1 port", "2 ports"]);
    }
}
