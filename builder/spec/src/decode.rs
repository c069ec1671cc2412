//! From a TOML document with positions to typed values, reporting every error of a file in one run.
//!
//! serde stops at the first error and loses positions under `flatten` and untagged enums. Here one declaration
//! (`table!`) gives a struct, its decoder (unknown keys refused, nearest match named) and its JSON schema.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Diagnostics, Source, nearest};

/// A value of the document and where it stands.
pub(crate) type Value<'i> = Spanned<DeValue<'i>>;

/// After so many errors a file is not worth reading on.
const ERRORS_MAX: usize = 64;
/// Longest piece of a wrong value repeated in a message.
const SHOWN_CHARS_MAX: usize = 60;

/// Collects errors while a document is decoded.
pub(crate) struct Decoder {
    source: Arc<Source>,
    path: Vec<String>,
    /// Keys that are missing only because they are misspelt.
    misspelt: Vec<String>,
    errors: Vec<Diagnostic>,
}

/// A type that a TOML value can be decoded into.
pub(crate) trait Decode: Sized {
    /// The value, or `None` after having reported why not.
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self>;

    /// The value of a key that is not there; `None`: the key is required.
    fn absent() -> Option<Self> {
        None
    }

    /// JSON schema of the accepted values.
    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value;
}

/// A type written as a TOML string.
pub(crate) trait Scalar: Sized {
    /// The accepted form, after "expected".
    const ACCEPTED: &'static str;

    /// Reads the string; an error says what is wrong with it, beyond not having the accepted form.
    fn parse(text: &str) -> Result<Self, String>;

    /// All accepted words, where they can be listed.
    const WORDS: &'static [&'static str] = &[];
}

/// A type written as a TOML integer within bounds.
pub(crate) trait Number: Sized {
    /// Smallest and largest accepted value.
    const BOUNDS: (i64, i64);

    /// Called with a value within the bounds.
    fn from_i64(value: i64) -> Self;
}

/// A value with its place, for checks that need more than the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Range<usize>,
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: fmt::Display> fmt::Display for At<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

/// A table whose keys are chosen by the author, in the order of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entries<K, V>(pub(crate) Vec<(At<K>, V)>);

impl<K, V> Entries<K, V> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(At<K>, V)> {
        self.0.iter()
    }
}

/// Decodes a whole file.
pub(crate) fn document<T: Decode>(source: &Arc<Source>) -> Result<T, Diagnostics> {
    let (table, syntax) = DeTable::parse_recoverable(&source.text);
    let mut d =
        Decoder { source: Arc::clone(source), path: Vec::new(), misspelt: Vec::new(), errors: Vec::new() };
    if !syntax.is_empty() {
        for error in syntax.iter().take(ERRORS_MAX) {
            let message = format!("not valid TOML: {}", error.message());
            d.errors.push(Diagnostic::new(source, error.span().unwrap_or(0..0), message));
        }
        Diagnostics::check(d.errors)?;
        unreachable!("syntax errors were found and reported");
    }
    let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
    let decoded = T::decode(&root, &mut d);
    Diagnostics::check(d.errors)?;
    Ok(decoded.expect("a decoder that gives no value reports why"))
}

impl Decoder {
    /// Reports an error at a place.
    pub(crate) fn error(&mut self, span: Range<usize>, title: String, label: impl Into<String>) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(Diagnostic::new(&self.source, span, title).label(label));
        }
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(diagnostic);
        }
    }

    /// The key being decoded, as the author would write it from the top of the file.
    fn key(&self) -> String {
        self.path.join(".")
    }

    fn wrong_type(&mut self, value: &Value<'_>, expected: &str) {
        let title = format!("`{}`: expected {expected}, found {}", self.key(), kind(value.get_ref()));
        self.error(value.span(), title, format!("expected {expected}"));
    }

    /// The table behind a value, with its keys checked against the known ones.
    pub(crate) fn table<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        known: &[&str],
        refused: fn(&str) -> Option<&'static str>,
    ) -> Option<&'v DeTable<'i>> {
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(value, "a table");
            return None;
        };
        let place = if self.path.is_empty() { String::new() } else { format!(" in `{}`", self.key()) };
        let mut clean = true;
        for (key, _) in table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            clean = false;
            let title = format!("unknown key `{}`{place}", shown(name));
            if let Some(why) = refused(name) {
                let source = Arc::new(without_value(&self.source, key.span().end));
                self.push(Diagnostic::new(&source, key.span(), title).label(why));
                continue;
            }
            let mut d = Diagnostic::new(&self.source, key.span(), title);
            if let Some(near) = nearest(name, known.iter().copied()) {
                d = d.label(format!("did you mean `{near}`?"));
                self.path.push(near.to_owned());
                self.misspelt.push(self.key());
                self.path.pop();
            }
            self.push(d.help(format!("accepted keys: {}", known.join(", "))));
        }
        clean.then_some(table)
    }

    /// One key of a table; a missing one gets `absent`, or is reported as required.
    pub(crate) fn field<T: Decode>(&mut self, table: &Value<'_>, name: &str, absent: Option<T>) -> Option<T> {
        let DeValue::Table(entries) = table.get_ref() else { return None };
        let found = entries.iter().find(|(key, _)| key.get_ref() == name);
        self.path.push(name.to_owned());
        let result = match found {
            Some((_, value)) => T::decode(value, self),
            None if absent.is_some() => absent,
            None if self.misspelt.contains(&self.key()) => None,
            None => {
                let title = format!("`{}` is missing", self.key());
                self.error(table.span(), title, format!("the key `{name}` is required here"));
                None
            }
        };
        self.path.pop();
        result
    }

    fn scalar<T: Scalar>(&mut self, text: &str, span: Range<usize>, what: &str) -> Option<T> {
        match T::parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                let title = format!("{what}: {:?} is not accepted{}", shown(text), reason(&why));
                let label = match nearest(text, T::WORDS.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => String::new(),
                };
                let d = Diagnostic::new(&self.source, span, title).label(label);
                self.push(d.help(format!("expected {}", T::ACCEPTED)));
                None
            }
        }
    }
}

/// The file as a message about a secret may show it: without what stands behind the key.
fn without_value(source: &Source, key_end: usize) -> Source {
    let text = &source.text;
    let line_end = text[key_end..].find('\n').map_or(text.len(), |at| key_end + at);
    Source::new(source.file.clone(), format!("{} = ...{}", &text[..key_end], &text[line_end..]))
}

fn reason(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

/// Text of a file in a message: short, and with nothing that a terminal would obey.
fn shown(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).map(safe).collect();
    if text.chars().count() > SHOWN_CHARS_MAX {
        out.push_str("...");
    }
    out
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn text_of<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    match value.get_ref() {
        DeValue::String(text) => Some(text),
        _ => None,
    }
}

/// An integer of any notation, if it fits.
pub(crate) fn integer(value: &Value<'_>) -> Option<i64> {
    match value.get_ref() {
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix()).ok(),
        _ => None,
    }
}

impl<T: Scalar> Decode for T {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        match text_of(value) {
            Some(text) => {
                let what = format!("`{}`", d.key());
                d.scalar(text, value.span(), &what)
            }
            None => {
                d.wrong_type(value, &format!("a string, {}", T::ACCEPTED));
                None
            }
        }
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        match T::WORDS {
            [] => serde_json::json!({ "type": "string", "description": T::ACCEPTED }),
            words => serde_json::json!({ "type": "string", "enum": words }),
        }
    }
}

impl Decode for bool {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        match value.get_ref() {
            DeValue::Boolean(yes) => Some(*yes),
            _ => {
                d.wrong_type(value, "true or false");
                None
            }
        }
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "boolean" })
    }
}

/// An integer between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Int<const MIN: i64, const MAX: i64>(pub(crate) i64);

impl<const MIN: i64, const MAX: i64> Number for Int<MIN, MAX> {
    const BOUNDS: (i64, i64) = (MIN, MAX);
    fn from_i64(value: i64) -> Self {
        Int(value)
    }
}

/// Decodes an integer within the bounds of its type.
pub(crate) fn number<T: Number>(value: &Value<'_>, d: &mut Decoder) -> Option<T> {
    let (min, max) = T::BOUNDS;
    if !matches!(value.get_ref(), DeValue::Integer(_)) {
        d.wrong_type(value, &format!("an integer from {min} to {max}"));
        return None;
    }
    match integer(value) {
        Some(n) if (min..=max).contains(&n) => Some(T::from_i64(n)),
        _ => {
            let title = format!("`{}`: the number is out of range", d.key());
            d.error(value.span(), title, format!("expected an integer from {min} to {max}"));
            None
        }
    }
}

impl<const MIN: i64, const MAX: i64> Decode for Int<MIN, MAX> {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        number(value, d)
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        T::decode(value, d).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        T::schema()
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        let DeValue::Array(items) = value.get_ref() else {
            d.wrong_type(value, "a list");
            return None;
        };
        let decoded: Vec<Option<T>> = items.iter().map(|item| T::decode(item, d)).collect();
        decoded.into_iter().collect()
    }

    fn absent() -> Option<Self> {
        Some(Vec::new())
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "array", "items": T::schema() })
    }
}

impl<T: Decode> Decode for At<T> {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        T::decode(value, d).map(|decoded| At { value: decoded, span: value.span() })
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        T::schema()
    }
}

impl<K: Scalar + Ord, V: Decode> Decode for Entries<K, V> {
    fn decode(value: &Value<'_>, d: &mut Decoder) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            d.wrong_type(value, "a table");
            return None;
        };
        let mut entries = Vec::new();
        let mut clean = true;
        for (name, value) in table {
            let what = format!("name in `{}`", d.key());
            let key: Option<K> = d.scalar(name.get_ref(), name.span(), &what);
            d.path.push(shown(name.get_ref()));
            let decoded = V::decode(value, d);
            d.path.pop();
            match (key, decoded) {
                (Some(key), Some(decoded)) => entries.push((At { value: key, span: name.span() }, decoded)),
                _ => clean = false,
            }
        }
        entries.sort_by(|(a, _), (b, _)| a.value.cmp(&b.value));
        clean.then_some(Entries(entries))
    }

    fn absent() -> Option<Self> {
        Some(Entries(Vec::new()))
    }

    #[cfg(feature = "schema")]
    fn schema() -> serde_json::Value {
        serde_json::json!({
            "type": "object",
            "propertyNames": { "description": K::ACCEPTED },
            "additionalProperties": V::schema(),
        })
    }
}

/// Declares a table of the schema: a struct, its decoder and its JSON schema, from one list of fields.
///
/// `field: Type` takes the type's own rule for a missing key (required, unless `Option`, `Vec` or `Entries`);
/// `field: Type = value` gives a default; `refuse FUNCTION` names keys that are refused with a reason of their own.
macro_rules! table {
    (
        $(#[doc = $doc:literal])*
        $vis:vis struct $name:ident $(refuse $refuse:ident)? {
            $( $(#[doc = $fdoc:literal])* $field:ident : $ty:ty $(= $default:expr)? ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name {
            $( $(#[doc = $fdoc])* $vis $field: $ty, )*
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                value: &$crate::decode::Value<'_>,
                d: &mut $crate::decode::Decoder,
            ) -> Option<Self> {
                const KEYS: &[&str] = &[$(stringify!($field)),*];
                let refuse: fn(&str) -> Option<&'static str> = table!(@refuse $($refuse)?);
                let clean = d.table(value, KEYS, refuse).is_some();
                $( let $field: Option<$ty> =
                    d.field(value, stringify!($field), table!(@absent $ty $(, $default)?)); )*
                if !clean {
                    return None;
                }
                Some($name { $( $field: $field?, )* })
            }

            #[cfg(feature = "schema")]
            fn schema() -> serde_json::Value {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $(
                    let mut property = <$ty as $crate::decode::Decode>::schema();
                    let description: &str = concat!($($fdoc),*).trim();
                    let form = property.get("description").and_then(|v| v.as_str()).map(str::to_owned);
                    property["description"] = match form {
                        Some(form) => format!("{description} Form: {form}.").into(),
                        None => description.into(),
                    };
                    let absent: Option<$ty> = table!(@absent $ty $(, $default)?);
                    if absent.is_none() {
                        required.push(stringify!($field));
                    }
                    properties.insert(stringify!($field).to_owned(), property);
                )*
                serde_json::json!({
                    "type": "object",
                    "description": concat!($($doc),*).trim(),
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
        }
    };
    (@absent $ty:ty) => { <$ty as $crate::decode::Decode>::absent() };
    (@absent $ty:ty, $default:expr) => { Some($default) };
    (@refuse) => { |_| None };
    (@refuse $refuse:ident) => { $refuse };
}
pub(crate) use table;

/// Declares an enum written as one of a few words.
macro_rules! words {
    (
        $(#[doc = $doc:literal])*
        $vis:vis enum $name:ident { $( $(#[doc = $vdoc:literal])* $variant:ident = $word:literal ),* $(,)? }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name { $( $(#[doc = $vdoc])* $variant, )* }

        impl $name {
            /// The word as it is written in files.
            $vis const fn word(self) -> &'static str {
                match self { $( $name::$variant => $word, )* }
            }
        }

        impl $crate::decode::Scalar for $name {
            const ACCEPTED: &'static str = concat!("one of" $(, " \"", $word, "\"")*);
            const WORDS: &'static [&'static str] = &[$($word),*];
            fn parse(text: &str) -> Result<Self, String> {
                match text { $( $word => Ok($name::$variant), )* _ => Err(String::new()) }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}
pub(crate) use words;
