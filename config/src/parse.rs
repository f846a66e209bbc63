//! Text to tree, with the place of every value.
//!
//! The text is read once into a tree of spans; each section of it is then turned into its struct by serde. A
//! field that does not fit is reported, taken out, and the rest is read again, so one run reports them all.
//! When every value fits, the checks of `validate.rs` run and their findings are placed by the same spans.
//!
//! Three phases, each only after the one before found nothing: syntax; types; meaning. Unknown keys belong to
//! the second phase and do not hold up the third, because nothing depends on them.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::diagnostics::{Diagnostic, Diagnostics, Lines};
use crate::document::Document;
use crate::keys;
use crate::validate::{Finding, Step};

/// Bad items of lists that are told one by one in a table. Each costs reading the table again, and nobody
/// mends more than this from one run.
const ITEMS_MAX: usize = 16;

type Value<'t> = Spanned<DeValue<'t>>;

impl Document {
    /// Reads and checks the configuration in `text`; `path` is where it came from, for error texts.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, path: &str) -> Result<Document, Diagnostics> {
        Self::parse_beside(text, path, &Document::default())
    }

    /// Reads and checks like [`Document::parse`], in the company of the objects of `others`, which have other
    /// owners: the file may refer to them, and must not clash with them. Returns what the file says.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse_beside(text: &str, path: &str, others: &Document) -> Result<Document, Diagnostics> {
        let lines = Lines::new(text);
        let place = |span: Range<usize>, key: String, message: String, allowed: Option<String>| Diagnostic {
            path: Some(path.to_owned()),
            position: Some(lines.position(span.start)),
            key,
            message,
            allowed,
            span: Some(clip(text, span)),
        };

        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let found = errors.into_iter().map(|error| {
                place(error.span().unwrap_or(0..0), String::new(), error.message().to_owned(), None)
            });
            return Err(Diagnostics::new(found.collect(), text));
        }

        let mut reader = Reader { text, findings: Vec::new(), fits: true };
        let document = reader.document(root.get_ref());
        let mut found: Vec<Diagnostic> = reader
            .findings
            .into_iter()
            .map(|f| place(f.span, label(root.get_ref(), &f.at), f.message, f.allowed))
            .collect();
        if reader.fits {
            let all = document.beside(others);
            for Finding { at, message, allowed } in all.findings() {
                let key = crate::validate::label(&at, all.name_of(&at).as_deref());
                found.push(match own(&at, others) {
                    Some(at) => place(span_of(root.get_ref(), &at), key, message, allowed),
                    None => Diagnostic { path: None, position: None, key, message, allowed, span: None },
                });
            }
        }
        if found.is_empty() { Ok(document) } else { Err(Diagnostics::new(found, text)) }
    }
}

/// Something that does not fit the tree's types.
struct Misfit {
    at: Vec<Step>,
    span: Range<usize>,
    message: String,
    allowed: Option<String>,
}

/// Turns spans into structs, and collects what does not fit.
struct Reader<'t> {
    text: &'t str,
    findings: Vec<Misfit>,
    /// Every value fitted, so that the tree means what its author wrote.
    fits: bool,
}

impl Reader<'_> {
    fn document(&mut self, root: &DeTable<'_>) -> Document {
        let mut document = Document::default();
        for (key, value) in root {
            match key.get_ref().as_ref() {
                "daemon" => document.daemon = self.section("daemon", value).unwrap_or_default(),
                "workers" => document.workers = self.section("workers", value).unwrap_or_default(),
                "limits" => document.limits = self.section("limits", value).unwrap_or_default(),
                "uplink" => document.uplink = self.section("uplink", value).unwrap_or_default(),
                "overlay" => document.overlay = self.section("overlay", value).unwrap_or_default(),
                "network" => document.networks = self.sections("network", value),
                "port" => document.ports = self.sections("port", value),
                "fdb" => document.fdb = self.sections("fdb", value),
                "peer" => document.peers = self.sections("peer", value),
                "remote" => document.remotes = self.sections("remote", value),
                "route" => document.routes = self.sections("route", value),
                "floating_ip" => document.floating_ips = self.sections("floating_ip", value),
                "publish" => document.publishes = self.sections("publish", value),
                "egress" => document.egresses = self.sections("egress", value),
                "policy" => document.policies = self.sections("policy", value),
                "assert" => document.asserts = self.sections("assert", value),
                other => self.unknown(other, Vec::new(), key.span(), "section", &keys::SECTIONS),
            }
        }
        document
    }

    /// Reads `[name]`.
    fn section<T: DeserializeOwned>(&mut self, name: &'static str, value: &Value<'_>) -> Option<T> {
        self.table(name, vec![Step::key(name)], value)
    }

    /// Reads all `[[name]]`.
    fn sections<T: DeserializeOwned>(&mut self, name: &'static str, value: &Value<'_>) -> Vec<T> {
        let DeValue::Array(array) = value.get_ref() else {
            let message = format!("is of type {}, not a list of tables", value.get_ref().type_str());
            self.misfit(vec![Step::key(name)], value.span(), message, Some(format!("[[{name}]]")));
            return Vec::new();
        };
        let tables = array.iter().enumerate();
        tables
            .filter_map(|(n, table)| self.table(name, vec![Step::key(name), Step::Index(n)], table))
            .collect()
    }

    fn table<T: DeserializeOwned>(
        &mut self,
        section: &'static str,
        at: Vec<Step>,
        value: &Value<'_>,
    ) -> Option<T> {
        let DeValue::Table(table) = value.get_ref() else {
            let message = format!("is of type {}, not a table", value.get_ref().type_str());
            self.misfit(at, value.span(), message, Some(format!("keys of a {section}")));
            return None;
        };
        let known: Vec<&str> = keys::of(section).map(|key| key.name).collect();
        let mut rest = DeTable::new();
        for (key, value) in table {
            if known.contains(&key.get_ref().as_ref()) {
                rest.insert(key.clone(), value.clone());
            } else {
                self.unknown(key.get_ref(), at.clone(), key.span(), "key", &known);
            }
        }
        let mut items = 0;
        loop {
            let whole = Spanned::new(value.span(), DeValue::Table(rest.clone()));
            let error = match T::deserialize(ValueDeserializer::from(whole)) {
                Ok(object) => return Some(object),
                Err(error) => error,
            };
            let span = error.span().unwrap_or_else(|| value.span());
            let culprit = rest.iter().find(|(_, value)| within(&span, &value.span()));
            let Some(name) = culprit.map(|(key, _)| key.get_ref().to_string()) else {
                self.missing(section, at, value, &rest, table, error.message());
                return None;
            };
            let mut at = at.clone();
            at.push(Step::Key(name.clone()));
            let item = item_at(table.get(name.as_str()), &span);
            at.extend(item.map(Step::Index));
            let (message, allowed) = reword(error.message(), self.text.get(span.clone()));
            let allowed = allowed.or_else(|| keys::find(section, &name).map(|key| key.allowed.to_owned()));
            self.misfit(at, span.clone(), message, allowed);
            // Of a list only the item goes, so that the next one is looked at too.
            match item.and_then(|_| rest.get_mut(name.as_str())).map(Spanned::get_mut) {
                Some(DeValue::Array(array)) if items < ITEMS_MAX => {
                    items += 1;
                    *array = array.iter().filter(|item| !within(&span, &item.span())).cloned().collect();
                }
                _ => drop(rest.remove(name.as_str())),
            }
        }
    }

    /// Reports the required keys that a table does not have; those that were taken out were reported before.
    fn missing(
        &mut self,
        section: &str,
        at: Vec<Step>,
        value: &Value<'_>,
        rest: &DeTable<'_>,
        table: &DeTable<'_>,
        otherwise: &str,
    ) {
        self.fits = false;
        let required = keys::of(section).filter(|key| key.default == "required");
        let mut told = table.len() > rest.len();
        for key in required.filter(|key| !table.contains_key(key.name)) {
            told = true;
            let message = format!("key '{}' is missing", key.name);
            self.misfit(at.clone(), value.span(), message, Some(key.allowed.to_owned()));
        }
        if !told {
            self.misfit(at, value.span(), otherwise.to_owned(), None);
        }
    }

    fn unknown(&mut self, found: &str, at: Vec<Step>, span: Range<usize>, what: &str, known: &[&str]) {
        let mut message = format!("unknown {what} '{found}'");
        if let Some(meant) = keys::nearest(found, known.iter().copied()) {
            message.push_str(&format!(", did you mean '{meant}'?"));
        }
        self.findings.push(Misfit { at, span, message, allowed: Some(known.join(", ")) });
    }

    fn misfit(&mut self, at: Vec<Step>, span: Range<usize>, message: String, allowed: Option<String>) {
        self.fits = false;
        self.findings.push(Misfit { at, span, message, allowed });
    }
}

/// Turns serde's message into ours, without names of Rust types, and splits off what it says is allowed.
fn reword(message: &str, value: Option<&str>) -> (String, Option<String>) {
    let message = message.trim();
    // From `values.rs`.
    if let Some((wrong, allowed)) = message.split_once("; allowed: ") {
        return (wrong.to_owned(), Some(allowed.to_owned()));
    }
    if let Some((wrong, _)) = message.split_once(", expected ") {
        for kind in ["invalid type: ", "invalid value: "] {
            if let Some(wrong) = wrong.strip_prefix(kind) {
                return (format!("{wrong} does not fit"), None);
            }
        }
        if let Some(wrong) = wrong.strip_prefix("unknown variant ") {
            return (format!("unknown value {wrong}"), None);
        }
    }
    if let Some(value) = value.filter(|_| message.starts_with("wanted ")) {
        return (format!("{value} does not fit"), None);
    }
    match value.filter(|value| value.len() <= 64 && !value.contains('\n') && !message.contains('\'')) {
        Some(value) => (format!("{value}: {message}"), None),
        None => (message.to_owned(), None),
    }
}

/// Returns which item of the list `value` has `span` in it.
fn item_at(value: Option<&Value<'_>>, span: &Range<usize>) -> Option<usize> {
    match value?.get_ref() {
        DeValue::Array(array) => array.iter().position(|item| within(span, &item.span())),
        _ => None,
    }
}

fn within(inner: &Range<usize>, outer: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Keeps a span inside the text and on character boundaries, whatever the parser said.
fn clip(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let end = text.floor_char_boundary(span.end);
    start..end.max(start)
}

/// Turns a path into the file and `others` into one into the file; `None` when it leads to one of `others`.
fn own(at: &[Step], others: &Document) -> Option<Vec<Step>> {
    let mut at = at.to_vec();
    if let [Step::Key(section), Step::Index(index), ..] = at.as_mut_slice() {
        *index = index.checked_sub(others.count(section))?;
    }
    Some(at)
}

/// Returns the bytes of the value at `at`, or of what is nearest to it when the file does not say it: a value
/// that has its default is placed at its table.
fn span_of(root: &DeTable<'_>, at: &[Step]) -> Range<usize> {
    let mut span = 0..0;
    let mut here: Option<&Value<'_>> = None;
    for step in at {
        let next = match (step, here.map(Spanned::get_ref)) {
            (Step::Key(key), None) => root.get(key.as_str()),
            (Step::Key(key), Some(DeValue::Table(table))) => table.get(key.as_str()),
            (Step::Index(index), Some(DeValue::Array(array))) => array.get(*index),
            _ => None,
        };
        let Some(value) = next else { break };
        span = value.span();
        here = next;
    }
    span
}

/// Spells a path for people: `port 'web': addresses[1]`.
fn label(root: &DeTable<'_>, at: &[Step]) -> String {
    let name = match at {
        [Step::Key(section), Step::Index(index), ..] => root
            .get(section.as_str())
            .and_then(|value| value.get_ref().get(*index)?.get_ref().get("name")?.get_ref().as_str()),
        _ => None,
    };
    crate::validate::label(at, name)
}
