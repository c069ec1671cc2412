//! Messages about what a person wrote: file, line, the offending text, the accepted form, the nearest match.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// A file's name (for messages) and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The name shown in messages; nothing is opened by it.
    pub file: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Pairs a file's name with its text.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Source { file: file.into(), text: text.into() }
    }

    /// `FILE:LINE` of a byte of the text.
    pub(crate) fn place(&self, at: usize) -> String {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        format!("{}:{}", self.file, 1 + before.iter().filter(|&&b| b == b'\n').count())
    }
}

/// One error in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    source: Arc<Source>,
    span: Range<usize>,
    title: String,
    label: String,
    context: Option<(Range<usize>, String)>,
    help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn new(source: &Arc<Source>, span: Range<usize>, title: impl Into<String>) -> Self {
        let span = on_characters(&source.text, span);
        Diagnostic {
            source: Arc::clone(source),
            span,
            title: title.into(),
            label: String::new(),
            context: None,
            help: None,
        }
    }

    /// The words beside the marked text.
    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// A second place in the same file.
    pub(crate) fn context(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.context = Some((on_characters(&self.source.text, span), label.into()));
        self
    }

    /// What is accepted, or what to do next.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The file the error is in.
    pub fn file(&self) -> &str {
        &self.source.file
    }

    /// The line the error is on, counted from 1.
    pub fn line(&self) -> usize {
        1 + self.source.text[..self.span.start].matches('\n').count()
    }

    /// The error in one sentence, without its place.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The whole message with the source line, in colour if asked.
    pub fn render(&self, colour: bool) -> String {
        let primary = AnnotationKind::Primary.span(self.span.clone()).label(self.label.as_str());
        let mut snippet =
            Snippet::source(self.source.text.as_str()).path(self.source.file.as_str()).annotation(primary);
        if let Some((span, label)) = &self.context {
            snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(label.as_str()));
        }
        let mut group = Level::ERROR.primary_title(self.title.as_str()).element(snippet);
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Every error found in one run; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// `Err` if there is any.
    pub(crate) fn check(mut found: Vec<Diagnostic>) -> Result<(), Diagnostics> {
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by(|a, b| (a.file(), a.span.start, &a.title).cmp(&(b.file(), b.span.start, &b.title)));
        found.dedup();
        Err(Diagnostics(found))
    }

    /// The errors, by file and place.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    pub(crate) fn into_vec(self) -> Vec<Diagnostic> {
        self.0
    }

    /// All messages, one after the other, in colour if asked.
    pub fn render(&self, colour: bool) -> String {
        let all: Vec<String> = self.0.iter().map(|d| d.render(colour)).collect();
        all.join("\n\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// Spans come from a parser of arbitrary text: keep them inside it, in order and on character boundaries.
fn on_characters(text: &str, span: Range<usize>) -> Range<usize> {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = floor(span.start);
    start..floor(span.end).max(start)
}

/// The known word nearest to a misspelt one, if it is near enough to be what was meant.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let normal = |s: &str| s.to_lowercase().replace('-', "_");
    let limit = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|k| (distance(&normal(word), &normal(k)), k))
        .filter(|&(d, _)| d <= limit)
        .min()
        .map(|(_, k)| k)
}

/// Longest text worth comparing: the table below grows with it.
const DISTANCE_TEXT_MAX: usize = 64;

/// Edits between two words: insert, delete, replace, swap of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(DISTANCE_TEXT_MAX).collect();
    let b: Vec<char> = b.chars().take(DISTANCE_TEXT_MAX).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
