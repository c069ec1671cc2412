//! Prune and keep rules: which paths stay out of an image, and why.

use dyad_spec::PathGlob;
use dyad_spec::image::PathRule;

struct Matcher {
    /// The part of the pattern before its first wildcard: what most paths fail at.
    literal: Vec<u8>,
    pattern: PathGlob,
}

impl Matcher {
    fn new(pattern: &PathGlob) -> Self {
        let text = pattern.as_str();
        let literal = text.as_bytes()[..text.find(['*', '?']).unwrap_or(text.len())].to_vec();
        Matcher { literal, pattern: pattern.clone() }
    }

    fn covers(&self, path: &[u8]) -> bool {
        path.starts_with(&self.literal) && self.pattern.covers(path)
    }
}

/// All rules of an image, ready to be asked for every path.
pub(crate) struct Rules {
    drop: Vec<Matcher>,
    keep: Vec<Matcher>,
}

impl Rules {
    pub(crate) fn new(prune: &[PathRule], keep: &[PathRule]) -> Self {
        let matchers = |rules: &[PathRule]| rules.iter().map(|r| Matcher::new(&r.path)).collect();
        Rules { drop: matchers(prune), keep: matchers(keep) }
    }

    /// The index of the first prune rule that covers the path, unless a keep rule does too.
    pub(crate) fn dropped(&self, path: &[u8]) -> Option<u32> {
        let rule = self.drop.iter().position(|r| r.covers(path))?;
        if self.kept(path) { None } else { Some(rule as u32) }
    }

    /// Whether a keep rule covers the path.
    pub(crate) fn kept(&self, path: &[u8]) -> bool {
        self.keep.iter().any(|r| r.covers(path))
    }
}
