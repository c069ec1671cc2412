//! A directory of unpacked packages in the cache, and programs in it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dyad_archive::{Cache, Fetch, Overrides, Refresh, Silent, Sources, clock};
use dyad_debian::{LockedPackage, Request, Wanted};
use dyad_tree::unpack::{Limits, Member, MemberKind, Verdict, unpack};
use sha2::{Digest, Sha256};

use super::sets::{ARCH, SUITE, Set};
use crate::error::{AtPath, LabError, Result, refuse};
use crate::process::Program;

/// Directories of a Debian root that are links into /usr.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Where shared libraries lie.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];
/// The dynamic loader that goes with them.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// What no tool reads.
const UNUSED: [&str; 5] =
    ["/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/lintian/", "/usr/share/bug/"];

/// A root with one set of tools.
pub(super) struct Root {
    path: PathBuf,
    fresh: bool,
}

impl Root {
    /// The set's root: the one in the cache, else a new one from the archive as it is today.
    pub(super) fn obtain(set: Set<'_>, say: &dyn Fn(&str)) -> Result<Self> {
        let cache = Cache::open_default().map_err(|e| failed(set, e))?;
        let tools = cache.root().join("tools");
        let link = tools.join(set.name);
        if let Ok(path) = fs::canonicalize(&link) {
            return Ok(Root { path, fresh: false });
        }
        say(&format!("{} is not on this host: taking it from Debian packages", set.name));
        let packages = packages(set, &cache).map_err(|e| failed(set, e))?;
        fs::create_dir_all(&tools).at("create directory", &tools)?;
        let path = tools.join(identity(&packages));
        if !path.exists() {
            lay(&packages, &tools, &path)?;
        }
        point(&link, &path)?;
        Ok(Root { path, fresh: true })
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was made just now.
    pub(super) fn fresh(&self) -> bool {
        self.fresh
    }

    /// A file or directory in it, which must exist.
    pub(super) fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(LabError::NoTool { name: name.into(), place: self.path.clone() })
    }

    /// A program in it, started by the root's own loader with the root's own libraries.
    pub(super) fn program(&self, file: PathBuf) -> Result<Program> {
        let mut libraries = OsString::new();
        for (number, directory) in LIBRARIES.iter().enumerate() {
            if number > 0 {
                libraries.push(":");
            }
            libraries.push(self.path.join(directory));
        }
        let before = vec![
            "--library-path".into(),
            libraries,
            "--argv0".into(),
            file.clone().into_os_string(),
            file.into_os_string(),
        ];
        Ok(Program { file: self.file(LOADER)?, before, env: Vec::new() })
    }
}

/// What could not be had, and the way around.
fn failed(set: Set<'_>, error: impl std::fmt::Display) -> LabError {
    LabError::Refused(format!(
        "{0} is not on this host and cannot be taken from Debian packages: {error}. Install {1} or repair the sources",
        set.name,
        set.packages.join(" "),
    ))
}

type Fetched = (LockedPackage, PathBuf);

fn packages(set: Set<'_>, cache: &Cache) -> std::result::Result<Vec<Fetched>, Box<dyn std::error::Error>> {
    let overrides = Overrides { suite: SUITE.into(), arch: ARCH.into(), ..Overrides::default() };
    let sources = Sources::discover(&overrides)?;
    let universe = sources.refresh(cache, Refresh { offline: false, now: clock::unix_now() }, &Silent)?;
    let mut packages = Vec::new();
    for name in set.packages {
        packages.push(name.parse::<Wanted>()?);
    }
    let omit = set.omitted.iter().map(|name| (*name).to_owned()).collect();
    let resolution = dyad_debian::resolve(&universe, &Request { packages, essential: false, omit })?;
    let locked: Vec<_> = resolution.packages.iter().map(dyad_debian::Selected::to_locked).collect();
    let paths = sources.fetch(cache, &locked, Fetch::default(), &Silent)?;
    Ok(locked.into_iter().zip(paths).collect())
}

/// The same packages laid out by the same rules have the same name.
fn identity(packages: &[Fetched]) -> String {
    let mut hash = Sha256::new();
    packages.iter().for_each(|(package, _)| hash.update(package.sha256.0));
    hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect()
}

/// Unpacks next to the final place and renames: a root is there completely or not at all.
fn lay(packages: &[Fetched], tools: &Path, path: &Path) -> Result<()> {
    let fresh =
        tempfile::Builder::new().prefix(".new-").tempdir_in(tools).at("create a directory in", tools)?;
    let mut writer = Writer { root: fresh.path(), links: BTreeSet::new() };
    for name in MERGED {
        let target = fresh.path().join("usr").join(name);
        fs::create_dir_all(&target).at("create directory", &target)?;
        symlink(Path::new("usr").join(name), fresh.path().join(name)).at("link in", fresh.path())?;
    }
    for (package, file) in packages {
        let deb = Bytes::from(fs::read(file).at("read", file)?);
        let filter = |path: &[u8]| match UNUSED.iter().any(|u| path.starts_with(u.as_bytes())) {
            true => Verdict::Drop(0),
            false => Verdict::Keep,
        };
        let unpacked = unpack(&deb, &Limits::default(), &filter)
            .map_err(|e| LabError::Refused(format!("package {} ({}): {e}", package.name, file.display())))?;
        unpacked.members.iter().try_for_each(|m| writer.member(m))?;
    }
    match fs::rename(fresh.path(), path) {
        // Somebody else was faster with the same packages.
        Err(e) if !path.exists() => Err(e).at("rename into place", path),
        _ => Ok(()),
    }
}

/// Makes `link` name `path`, in one step.
fn point(link: &Path, path: &Path) -> Result<()> {
    let fresh = link.with_extension(format!("{}", std::process::id()));
    crate::state::remove_file(&fresh)?;
    symlink(path, &fresh).at("make the link", &fresh)?;
    fs::rename(&fresh, link).at("rename into place", link)
}

struct Writer<'a> {
    root: &'a Path,
    /// Paths written as symbolic links: nothing may be written through one.
    links: BTreeSet<Vec<u8>>,
}

impl Writer<'_> {
    fn member(&mut self, member: &Member) -> Result<()> {
        let name = String::from_utf8_lossy(&member.path).into_owned();
        let through = (1..member.path.len())
            .filter(|i| member.path[*i] == b'/')
            .any(|i| self.links.contains(&member.path[..i]));
        if through {
            return refuse(format!("package member {name} lies behind a symbolic link"));
        }
        let place = self.place(&member.path);
        let write = |result: std::io::Result<()>| result.at("write", &place);
        if !matches!(member.kind, MemberKind::Dir) {
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent).at("create directory", parent)?;
            }
            // A later package may bring the same path again.
            crate::state::remove_file(&place)?;
        }
        match &member.kind {
            MemberKind::Dir => write(fs::create_dir_all(&place)),
            MemberKind::File(content) => {
                // Only the owner uses it: no set-uid, and always removable.
                let mode = if member.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                write(fs::write(&place, content))?;
                write(fs::set_permissions(&place, fs::Permissions::from_mode(mode)))
            }
            MemberKind::HardLink(target) => write(fs::hard_link(self.place(target), &place)),
            MemberKind::Symlink(target) => {
                self.links.insert(member.path.clone());
                write(symlink(std::ffi::OsStr::from_bytes(&inside(&member.path, target)), &place))
            }
            // No tool has device nodes of its own, and a plain user cannot make them.
            MemberKind::Char(..) | MemberKind::Block(..) | MemberKind::Fifo => Ok(()),
        }
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
    }
}

/// A link's target as it must be below a root that is not `/`: relative.
fn inside(path: &[u8], target: &[u8]) -> Vec<u8> {
    let Some(rest) = target.strip_prefix(b"/") else { return target.to_vec() };
    let depth = path.iter().filter(|b| **b == b'/').count().saturating_sub(1);
    let mut out = b"../".repeat(depth);
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, kind: MemberKind) -> Member {
        Member {
            path: path.into(),
            kind,
            mode: 0o4755,
            uid: 0,
            gid: 0,
            user: String::new(),
            group: String::new(),
            xattrs: Default::default(),
        }
    }

    #[test]
    fn absolute_links_stay_inside_and_nothing_is_written_through_a_link() {
        let temp = tempfile::tempdir().unwrap();
        let mut writer = Writer { root: temp.path(), links: BTreeSet::new() };
        let file = |text: &'static str| MemberKind::File(Bytes::from_static(text.as_bytes()));
        writer.member(&member("/usr/share/x/real", file("here"))).unwrap();
        writer
            .member(&member("/usr/lib/a/link", MemberKind::Symlink(b"/usr/share/x/real".to_vec())))
            .unwrap();
        assert_eq!(fs::read_to_string(temp.path().join("usr/lib/a/link")).unwrap(), "here");
        let mode = fs::metadata(temp.path().join("usr/share/x/real")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "no set-uid");

        writer.member(&member("/usr/evil", MemberKind::Symlink(b"/etc".to_vec()))).unwrap();
        let through = writer.member(&member("/usr/evil/passwd", file("x"))).unwrap_err();
        assert!(through.to_string().contains("/usr/evil/passwd"), "{through}");
        assert_eq!(inside(b"/a", b"/b/c"), b"b/c");
        assert_eq!(inside(b"/a/b", b"c"), b"c");
    }

    #[test]
    fn the_name_of_a_set_is_repointed_in_one_step() {
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("qemu");
        for name in ["one", "two"] {
            let root = temp.path().join(name);
            fs::create_dir(&root).unwrap();
            point(&link, &root).unwrap();
            assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(&root).unwrap());
        }
    }
}
