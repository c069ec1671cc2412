//! Debian version numbers: `[epoch:]upstream[-revision]`, ordered as dpkg orders them.

use std::cmp::Ordering;

/// A text that is not a Debian version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a Debian version: {problem}; expected [EPOCH:]UPSTREAM[-REVISION], for example 1:2.3-4"
)]
pub struct VersionError {
    /// What stood there.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Checks that `text` is a version that dpkg accepts without a warning.
pub fn check(text: &str) -> Result<(), VersionError> {
    let wrong = |problem| Err(VersionError { text: text.chars().take(80).collect(), problem });
    let (epoch, rest) = match text.split_once(':') {
        Some((epoch, rest)) => (Some(epoch), rest),
        None => (None, text),
    };
    if let Some(epoch) = epoch {
        if epoch.is_empty() || !epoch.bytes().all(|b| b.is_ascii_digit()) {
            return wrong("the epoch before ':' is not a number");
        }
        if epoch.parse::<i32>().is_err() {
            return wrong("the epoch is too large");
        }
    }
    let (upstream, revision) = match rest.rsplit_once('-') {
        Some((upstream, revision)) => (upstream, Some(revision)),
        None => (rest, None),
    };
    if !upstream.starts_with(|c: char| c.is_ascii_digit()) {
        return wrong("the upstream version does not start with a digit");
    }
    if !upstream.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+~:".contains(&b)) {
        return wrong("a character outside A-Z a-z 0-9 . - + ~ : stands in the upstream version");
    }
    match revision {
        Some("") => wrong("the revision after '-' is empty"),
        Some(r) if !r.bytes().all(|b| b.is_ascii_alphanumeric() || b".+~".contains(&b)) => {
            wrong("a character outside A-Z a-z 0-9 . + ~ stands in the revision")
        }
        _ => Ok(()),
    }
}

/// Orders two versions as `dpkg --compare-versions` does. Texts that `check` would refuse get some order too.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, upstream_a, revision_a) = split(a);
    let (epoch_b, upstream_b, revision_b) = split(b);
    compare_numbers(epoch_a, epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

fn split(text: &str) -> (&[u8], &[u8], &[u8]) {
    let (epoch, rest) = text.split_once(':').unwrap_or(("", text));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.as_bytes(), upstream.as_bytes(), revision.as_bytes())
}

/// Digits only; leading zeros do not count, an empty text is zero.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |text: &[u8]| text.iter().take_while(|&&c| c == b'0').count();
    let (a, b) = (&a[strip(a)..], &b[strip(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Sort key of a non-digit: `~` before the end, the end before letters, letters before everything else.
fn weight(c: Option<u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        None | Some(b'0'..=b'9') => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(c),
        Some(c) => i32::from(c) + 256,
    }
}

fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let is_digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_digit);
    while !a.is_empty() || !b.is_empty() {
        while (!a.is_empty() && !is_digit(a.first())) || (!b.is_empty() && !is_digit(b.first())) {
            let order = weight(a.first().copied()).cmp(&weight(b.first().copied()));
            if order != Ordering::Equal {
                return order;
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
        let (number_a, rest_a) = a.split_at(digits(a));
        let (number_b, rest_b) = b.split_at(digits(b));
        match compare_numbers(number_a, number_b) {
            Ordering::Equal => (a, b) = (rest_a, rest_b),
            order => return order,
        }
    }
    Ordering::Equal
}
