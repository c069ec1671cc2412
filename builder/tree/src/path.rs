//! Canonical paths: absolute, normalised, with Debian's merged-/usr links already followed.

use dyad_formats::tree::parent;

/// Top-level directories that are links into /usr in the image, whatever a package says.
pub(crate) const USR_LINKS: [&str; 6] = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];

/// A name from an archive (`./bin/sh`, `usr/bin/`) as a canonical path (`/usr/bin/sh`), or the rule that it breaks.
pub(crate) fn from_archive(raw: &[u8], is_dir: bool) -> Result<Vec<u8>, &'static str> {
    if raw.first() == Some(&b'/') {
        return Err("is an absolute path (accepted: ./relative)");
    }
    let mut rest = raw.strip_prefix(b"./").unwrap_or(raw);
    match (rest.last(), is_dir) {
        (Some(b'/'), true) => rest = &rest[..rest.len() - 1],
        (Some(b'/'), false) => return Err("ends in `/` but is not a directory"),
        _ => {}
    }
    if rest.is_empty() || rest == b"." {
        return if is_dir { Ok(b"/".to_vec()) } else { Err("has no name") };
    }
    let mut path = Vec::with_capacity(rest.len() + 5);
    path.push(b'/');
    path.extend_from_slice(rest);
    check(&path)?;
    Ok(merge_usr(path))
}

/// A path as a person wrote it (`/bin/sh`), made canonical.
pub(crate) fn from_text(text: &str) -> Result<Vec<u8>, &'static str> {
    let path = text.as_bytes();
    if path.first() != Some(&b'/') {
        return Err("is not absolute");
    }
    if path != b"/" {
        check(path)?;
    }
    Ok(merge_usr(path.to_vec()))
}

fn check(path: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(path).map_err(|_| "is not UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("has control characters");
    }
    for component in path[1..].split(|&b| b == b'/') {
        match component {
            b"" => return Err("has an empty component"),
            b"." => return Err("has a `.` component"),
            b".." => return Err("has a `..` component"),
            long if long.len() > 255 => return Err("has a component longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// `/bin/x` -> `/usr/bin/x`.
pub(crate) fn merge_usr(path: Vec<u8>) -> Vec<u8> {
    let first = path[1..].split(|&b| b == b'/').next().unwrap_or_default();
    if USR_LINKS.iter().any(|link| link.as_bytes() == first) { [b"/usr", &path[..]].concat() } else { path }
}

/// Where a symbolic link at `link` points: canonical, or `None` when it leaves the root.
pub(crate) fn link_target(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut path = if target.first() == Some(&b'/') { Vec::new() } else { parent(link).to_vec() };
    if path == b"/" {
        path.clear();
    }
    for component in target.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." if path.is_empty() => return None,
            b".." => {
                let keep = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                path.truncate(keep);
            }
            name => {
                path.push(b'/');
                path.extend_from_slice(name);
            }
        }
    }
    if path.is_empty() {
        path.push(b'/');
    }
    Some(merge_usr(path))
}

/// Every directory above a path except the root: `/a/b/c` -> `/a`, `/a/b`.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().skip(1).filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

/// For messages; every path in a tree is UTF-8, checked at its entry.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_names() {
        let ok = |raw: &[u8], dir| String::from_utf8(from_archive(raw, dir).unwrap()).unwrap();
        assert_eq!(ok(b"./", true), "/");
        assert_eq!(ok(b"./bin/sh", false), "/usr/bin/sh");
        assert_eq!(ok(b"lib64/", true), "/usr/lib64");
        assert_eq!(ok(b"./library/x", false), "/library/x");
        for bad in
            [&b"/etc/passwd"[..], b"./../x", b"a/../b", b"a//b", b"./a/./b", b"a\xff", b"a\nb", b"", b"a/"]
        {
            assert!(from_archive(bad, false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn link_targets() {
        let to =
            |link: &[u8], target: &[u8]| link_target(link, target).map(|p| String::from_utf8(p).unwrap());
        assert_eq!(to(b"/usr/bin/awk", b"mawk").as_deref(), Some("/usr/bin/mawk"));
        assert_eq!(to(b"/usr/lib/x", b"../../bin/y").as_deref(), Some("/usr/bin/y"));
        assert_eq!(to(b"/a/b", b"/lib/z/../q").as_deref(), Some("/usr/lib/q"));
        assert_eq!(to(b"/a/b", b"../../../etc").as_deref(), None);
        assert_eq!(ancestors(b"/a/b/c").collect::<Vec<_>>(), [&b"/a"[..], b"/a/b"]);
    }
}
