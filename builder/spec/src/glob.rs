//! Path patterns of prune and keep rules.

use crate::decode::Scalar;

/// An absolute path with wildcards: `*` and `?` stay within one component, `**` crosses them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathGlob(String);

impl PathGlob {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches this whole path.
    pub fn matches(&self, path: &[u8]) -> bool {
        matches(self.0.as_bytes(), path)
    }

    /// Whether the pattern matches this path or a directory above it: a rule that names a directory means all of it.
    pub fn covers(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'/').map(|(at, _)| at);
        ends.chain([path.len()]).any(|end| self.matches(&path[..end]))
    }
}

/// Matches without recursion: two resume points, one for the last `*` and one for the last `**`. Once a component
/// is behind us an earlier `*` cannot help any more, so only these two can ever be worth going back to.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    let mut deep: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            deep = Some((p, t));
            star = None;
            continue;
        }
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, t));
                continue;
            }
            Some(b'?') if path.get(t).is_some_and(|&b| b != b'/') => (p, t) = (p + 1, t + 1),
            Some(c) if path.get(t) == Some(c) => (p, t) = (p + 1, t + 1),
            None if t == path.len() => return true,
            _ => match (star, deep) {
                (Some((sp, st)), _) if path.get(st).is_some_and(|&b| b != b'/') => {
                    (p, t) = (sp, st + 1);
                    star = Some((p, t));
                }
                (_, Some((dp, dt))) if dt < path.len() => {
                    (p, t) = (dp, dt + 1);
                    deep = Some((p, t));
                    star = None;
                }
                _ => return false,
            },
        }
    }
}

impl Scalar for PathGlob {
    const ACCEPTED: &'static str =
        "an absolute path; `*` and `?` match within one component, `**` matches across components";
    fn parse(text: &str) -> Result<Self, String> {
        if text.contains(['[', ']', '{', '}', '\\']) {
            return Err("only `*`, `**` and `?` are wildcards".into());
        }
        let parts = text.strip_prefix('/').unwrap_or("");
        let normal = parts.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
        if !normal || text.len() > 1024 || text.chars().any(char::is_control) {
            return Err(String::new());
        }
        if parts.chars().all(|c| "*?/".contains(c)) {
            return Err("it would match everything".into());
        }
        Ok(PathGlob(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> PathGlob {
        PathGlob::parse(text).unwrap()
    }

    #[test]
    fn wildcards_know_components() {
        assert!(glob("/usr/share/doc").matches(b"/usr/share/doc"));
        assert!(glob("/usr/lib/*.so").matches(b"/usr/lib/a.so"));
        assert!(!glob("/usr/lib/*.so").matches(b"/usr/lib/x/a.so"));
        assert!(glob("/usr/**/*.so").matches(b"/usr/lib/x/a.so"));
        assert!(glob("/usr/**/a*b/c?").matches(b"/usr/lib/axxb/ab/cd"));
        assert!(glob("/usr/**/x/*").matches(b"/usr/a/x/b/x/c"));
        assert!(glob("/a/**").matches(b"/a/b/c"));
        assert!(!glob("/a/?").matches(b"/a//"));
        assert!(!glob("/a/**/z").matches(b"/a/b/c"));
    }

    #[test]
    fn a_directory_means_all_of_it() {
        assert!(glob("/usr/share/doc").covers(b"/usr/share/doc/a/b"));
        assert!(!glob("/usr/share/doc").covers(b"/usr/share/docbook"));
        assert!(glob("/usr/share/*").covers(b"/usr/share/a/b"));
        assert!(!glob("/usr/share/*").covers(b"/usr/share"));
    }

    #[test]
    fn too_wide_or_malformed_is_refused() {
        for text in ["/*", "/**", "/*/**", "", "usr", "/usr/", "/a/../b", "/a//b", "/[ab]"] {
            assert!(PathGlob::parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        /// The matcher against the definition of the wildcards, written as plain recursion.
        #[test]
        fn agrees_with_the_definition(pattern in "/[ab*?/]{0,9}", path in "/[ab/]{0,9}") {
            fn defined(p: &[u8], t: &[u8]) -> bool {
                match p {
                    [] => t.is_empty(),
                    [b'*', b'*', rest @ ..] => (0..=t.len()).any(|n| defined(rest, &t[n..])),
                    [b'*', rest @ ..] => (0..=t.len())
                        .take_while(|&n| !t[..n].contains(&b'/'))
                        .any(|n| defined(rest, &t[n..])),
                    [b'?', rest @ ..] => t.first().is_some_and(|&b| b != b'/') && defined(rest, &t[1..]),
                    [c, rest @ ..] => t.first() == Some(c) && defined(rest, &t[1..]),
                }
            }
            proptest::prop_assert_eq!(
                matches(pattern.as_bytes(), path.as_bytes()),
                defined(pattern.as_bytes(), path.as_bytes())
            );
        }
    }
}
