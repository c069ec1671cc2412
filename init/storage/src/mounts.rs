//! Mounting, each call safe to repeat.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::Host;
use crate::error::{Doing, PhaseError};

/// One line of mountinfo, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Device number, `major:minor`.
    pub(crate) device: String,
    /// Where.
    pub(crate) at: PathBuf,
}

/// Parses `/proc/self/mountinfo`: `id parent major:minor root mountpoint options...`.
pub(crate) fn parse(mountinfo: &str) -> Vec<Mounted> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            Some(Mounted { device: fields.next()?.to_owned(), at: unescape(fields.nth(1)?) })
        })
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut out = String::with_capacity(field.len());
    let mut parts = field.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    PathBuf::from(out)
}

fn current() -> Result<Vec<Mounted>, PhaseError> {
    let path = Path::new("/proc/self/mountinfo");
    fs::read_to_string(path).doing("read", path).map(|text| parse(&text))
}

/// What is mounted at a path, the topmost mount.
fn mounted_at(path: &Path) -> Result<Option<Mounted>, PhaseError> {
    Ok(current()?.into_iter().rev().find(|mounted| mounted.at == path))
}

fn device_number(device: &Path) -> Result<String, PhaseError> {
    let number = fs::metadata(device).doing("look at", device)?.rdev();
    Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
}

/// Whether this device is what a path shows now.
pub(crate) fn is_mounted(device: &Path, at: &Path) -> Result<bool, PhaseError> {
    Ok(mounted_at(at)?.is_some_and(|there| device_number(device).is_ok_and(|number| number == there.device)))
}

fn c_string(path: &Path) -> Result<CString, PhaseError> {
    CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::from).doing("use the path", path)
}

/// A file system on a block device.
pub(crate) struct FileSystem<'a> {
    pub(crate) device: &'a Path,
    pub(crate) at: &'a Path,
    pub(crate) kind: &'static str,
    pub(crate) flags: MountFlags,
    pub(crate) options: &'static str,
}

/// Mounts a file system unless it is mounted there. `true`: it was mounted now.
pub(crate) fn mount(host: &Host, fs: &FileSystem) -> Result<bool, PhaseError> {
    let expected = device_number(fs.device)?;
    if let Some(there) = mounted_at(fs.at)? {
        if there.device == expected {
            return Ok(false);
        }
        return Err(PhaseError::MountedElse { path: fs.at.to_owned(), found: there.device, expected });
    }
    let options =
        CString::new(fs.options).map_err(std::io::Error::from).doing("use the options for", fs.at)?;
    rustix::mount::mount(fs.device, fs.at, fs.kind, fs.flags, options.as_c_str()).doing("mount on", fs.at)?;
    host.log.line(&format!("mounted {} on {}", fs.device.display(), fs.at.display()));
    Ok(true)
}

/// Mounts a small tmpfs unless something is mounted there.
pub(crate) fn tmpfs(at: &Path, options: &str) -> Result<bool, PhaseError> {
    if mounted_at(at)?.is_some() {
        return Ok(false);
    }
    let options = CString::new(options).map_err(std::io::Error::from).doing("use the options for", at)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(c"tmpfs", c_string(at)?.as_c_str(), c"tmpfs", flags, options.as_c_str())
        .doing("mount a tmpfs on", at)?;
    Ok(true)
}

/// Shows a directory at a second place unless it is shown there already.
pub(crate) fn bind(from: &Path, to: &Path) -> Result<bool, PhaseError> {
    let source = fs::metadata(from).doing("look at", from)?;
    let there = fs::metadata(to).doing("look at", to)?;
    if (source.dev(), source.ino()) == (there.dev(), there.ino()) {
        return Ok(false);
    }
    rustix::mount::mount_bind(from, to).doing("bind-mount on", to)?;
    Ok(true)
}

/// What became of the mounts at a shutdown.
#[derive(Debug, Default)]
pub(crate) struct Unmounted {
    /// Unmounted.
    pub(crate) gone: Vec<PathBuf>,
    /// Still in use and read-only now.
    pub(crate) read_only: Vec<PathBuf>,
    /// Still writable, because something has a file open for writing.
    pub(crate) writable: Vec<PathBuf>,
}

/// Unmounts everything at and below the given directories, the latest mount first.
///
/// A mount that is still in use cannot go; it is made read-only, which writes back all of it. One that cannot even
/// be that is flushed and told: the machine must not hang on it, and the others must still go.
pub(crate) fn unmount_below(directories: &[PathBuf]) -> Result<Unmounted, PhaseError> {
    let mut result = Unmounted::default();
    for mounted in current()?.into_iter().rev() {
        if !directories.iter().any(|directory| mounted.at.starts_with(directory)) {
            continue;
        }
        let path = mounted.at;
        if rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW).is_ok() {
            result.gone.push(path);
        } else if rustix::mount::mount_remount(&path, MountFlags::RDONLY, c"").is_ok() {
            result.read_only.push(path);
        } else {
            rustix::fs::sync();
            result.writable.push(path);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_parsed() {
        let text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                    37 35 0:5 / /a\\040b\\134c rw - tmpfs tmpfs rw\n";
        let all = parse(text);
        assert_eq!(all[0].device, "98:0");
        assert_eq!(all[0].at, Path::new("/mnt2"));
        assert_eq!(all[1].at, Path::new("/a b\\c"));
    }

    #[test]
    fn a_line_that_ends_early_is_no_mount() {
        assert_eq!(parse("36 35 98:0\n\n"), []);
    }
}
