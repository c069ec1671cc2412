//! From a merged image to the table that PID 1 reads: names of users and groups become numbers.

use std::collections::BTreeMap;

use crate::compiled::{self, ImageTable};
use crate::image::{Directory, Merged, Service};

/// The accounts of the finished image: the base system's and those of the overlays.
pub trait Accounts {
    /// Numbers of a user and of its primary group.
    fn user(&self, name: &str) -> Option<(u32, u32)>;
    /// Number of a group.
    fn group(&self, name: &str) -> Option<u32>;
}

/// A name that the image's passwd or group file does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// No such user.
    #[error(
        "{origin}: {what} names user `{user}`, which neither the base system nor an overlay defines; add `[users.{user}]` with a uid"
    )]
    NoUser {
        /// Who asked.
        origin: String,
        /// `service X` or `directory X`.
        what: String,
        /// The user.
        user: String,
    },
    /// No such group.
    #[error(
        "{origin}: {what} names group `{group}`, which neither the base system nor an overlay defines; add `[groups.{group}]` with a gid"
    )]
    NoGroup {
        /// Who asked.
        origin: String,
        /// `service X` or `directory X`.
        what: String,
        /// The group.
        group: String,
    },
}

/// Makes the table of an image.
pub fn compile(image: &Merged, accounts: &dyn Accounts) -> Result<ImageTable, CompileError> {
    let services = image.services.iter().map(|s| service(s, accounts)).collect::<Result<_, _>>()?;
    Ok(ImageTable {
        name: image.name.clone(),
        version: image.version.clone(),
        services,
        directories: directories(&image.directories, accounts)?,
        links: image
            .boot_links
            .iter()
            .map(|l| compiled::Link { path: l.path.clone(), target: l.target.clone() })
            .collect(),
        sysctls: image.sysctls.clone(),
        modules: image.load_modules.iter().map(|m| m.what.clone()).collect(),
    })
}

/// Numbers of a user and group by name, for one thing that names them.
fn numbers(
    accounts: &dyn Accounts,
    (origin, what): (&str, &str),
    user: &str,
    group: Option<&str>,
) -> Result<(u32, u32), CompileError> {
    let (uid, own) = accounts.user(user).ok_or_else(|| CompileError::NoUser {
        origin: origin.into(),
        what: what.into(),
        user: user.into(),
    })?;
    let gid = group.map_or(Ok(own), |name| group_number(accounts, (origin, what), name))?;
    Ok((uid, gid))
}

fn group_number(
    accounts: &dyn Accounts,
    (origin, what): (&str, &str),
    name: &str,
) -> Result<u32, CompileError> {
    accounts.group(name).ok_or_else(|| CompileError::NoGroup {
        origin: origin.into(),
        what: what.into(),
        group: name.into(),
    })
}

fn service(service: &Service, accounts: &dyn Accounts) -> Result<compiled::Service, CompileError> {
    let what = format!("service {}", service.name());
    let place = (service.origin.as_str(), what.as_str());
    let (uid, gid) = numbers(accounts, place, &service.user, service.group.as_deref())?;
    let groups =
        service.groups.iter().map(|name| group_number(accounts, place, name)).collect::<Result<_, _>>()?;
    Ok(compiled::Service { uid, gid, groups, ..service.table.clone() })
}

/// The mount points exist before any directory is made.
const MOUNTED: [&str; 4] = ["/run", "/var", "/tmp", "/state"];

/// Parents that nobody asked for are root's with 0755.
fn directories(
    asked: &[Directory],
    accounts: &dyn Accounts,
) -> Result<Vec<compiled::Directory>, CompileError> {
    let mut all: BTreeMap<String, compiled::Directory> = BTreeMap::new();
    for directory in asked {
        let what = format!("directory {}", directory.path);
        let place = (directory.origin.as_str(), what.as_str());
        let (uid, gid) = numbers(accounts, place, &directory.user, directory.group.as_deref())?;
        let path = directory.path.clone();
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = path[..at].to_owned();
            if !MOUNTED.contains(&parent.as_str()) {
                let made = compiled::Directory { path: parent.clone(), mode: 0o755, uid: 0, gid: 0 };
                all.entry(parent).or_insert(made);
            }
        }
        all.insert(path.clone(), compiled::Directory { path, mode: directory.mode, uid, gid });
    }
    Ok(all.into_values().collect())
}
