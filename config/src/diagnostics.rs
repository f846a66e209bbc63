//! Everything that is wrong with a configuration, at once.
//!
//! Each [`Diagnostic`] tells the place (file, line, column, when a file is at fault), the object and key, what
//! was wrong and what is allowed. Plain text is a line each, for logs and the API; [`Diagnostics::render`]
//! shows the lines of the file with the fault underlined, for people.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A place in a text: both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in it.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file; `None` when the configuration did not come from one.
    pub path: Option<String>,
    /// Where in the file.
    pub position: Option<Position>,
    /// Object and key, as `port 'web': addresses[1]`.
    pub key: String,
    /// What was wrong.
    pub message: String,
    /// What is allowed.
    pub allowed: Option<String>,
    /// The bytes of the file that are at fault.
    pub span: Option<Range<usize>>,
}

impl Diagnostic {
    /// Returns what was wrong and what is allowed, without the place.
    pub fn sentence(&self) -> String {
        let mut text = String::new();
        if !self.key.is_empty() {
            text.push_str(&self.key);
            text.push_str(": ");
        }
        text.push_str(&self.message);
        if let Some(allowed) = &self.allowed {
            text.push_str("; allowed: ");
            text.push_str(allowed);
        }
        text
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.position) {
            (Some(path), Some(at)) => write!(f, "{path}:{}:{}: ", at.line, at.column)?,
            (Some(path), None) => write!(f, "{path}: ")?,
            (None, _) => {}
        }
        f.write_str(&self.sentence())
    }
}

/// All that is wrong, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
    text: String,
}

impl Diagnostics {
    /// Collects the findings about `text`, the contents of the file (empty when there is none).
    pub(crate) fn new(mut list: Vec<Diagnostic>, text: &str) -> Self {
        debug_assert!(!list.is_empty(), "an error says what is wrong");
        for diagnostic in &mut list {
            // Values of the file are quoted: they must not break lines, nor drive a terminal.
            for text in
                [&mut diagnostic.key, &mut diagnostic.message].into_iter().chain(&mut diagnostic.allowed)
            {
                if text.contains(char::is_control) {
                    *text = text.chars().map(escape).collect();
                }
            }
        }
        list.sort_by_key(|diagnostic| diagnostic.span.as_ref().map(|span| span.start));
        Self { list, text: text.to_owned() }
    }

    /// Returns the findings.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// Returns one line a finding, `file:line:column: key: message; allowed: ...`.
    pub fn lines(&self) -> Vec<String> {
        self.list.iter().map(Diagnostic::to_string).collect()
    }

    /// Shows each finding with the lines of the file that it is about, in colour if `color` is set.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for diagnostic in &self.list {
            out.push_str(&self.render_one(&renderer, diagnostic));
            out.push_str("\n\n");
        }
        out.pop();
        out
    }

    fn render_one(&self, renderer: &Renderer, diagnostic: &Diagnostic) -> String {
        let (Some(path), Some(span)) = (&diagnostic.path, &diagnostic.span) else {
            return format!("error: {diagnostic}");
        };
        let title = if diagnostic.key.is_empty() {
            diagnostic.message.clone()
        } else {
            format!("{}: {}", diagnostic.key, diagnostic.message)
        };
        let snippet = Snippet::source(self.text.as_str())
            .path(path.as_str())
            .annotation(AnnotationKind::Primary.span(span.clone()));
        let mut group = Level::ERROR.primary_title(title).element(snippet);
        if let Some(allowed) = &diagnostic.allowed {
            group = group.element(Level::HELP.message(format!("allowed: {allowed}")));
        }
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// Spells a control character as Rust would.
fn escape(c: char) -> String {
    if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
}

/// Finds lines and columns in one text.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Returns the place of the byte at `offset`, or of the end of the text when it is beyond.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset) - 1;
        // Bytes that begin a character: an offset inside one counts as the next column, never panics.
        let before = &self.text.as_bytes()[self.starts[line]..offset];
        let column = before.iter().filter(|byte| (**byte & 0xc0) != 0x80).count();
        Position { line: line + 1, column: column + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let lines = Lines::new("a\nä = 1\n");
        for (offset, line, column) in [(0, 1, 1), (2, 2, 1), (5, 2, 3), (9, 3, 1), (99, 3, 1)] {
            assert_eq!(lines.position(offset), Position { line, column }, "{offset}");
        }
    }
}
