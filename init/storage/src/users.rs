//! Numbers of users and groups from the image's own tables; there is no name service this early.

use std::fs;
use std::path::Path;

use crate::error::{Doing, PhaseError};

/// Field `index` of the line of a colon-separated table that starts with `name`.
fn number(table: &str, name: &str, index: usize) -> Option<u32> {
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(index)?.parse().ok())
}

fn read(path: &Path) -> Result<String, PhaseError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.doing("read", path),
    }
}

/// (uid, gid) of a user; `None` when the image has no such user.
pub(crate) fn user(passwd: &Path, name: &str) -> Result<Option<(u32, u32)>, PhaseError> {
    let table = read(passwd)?;
    Ok(number(&table, name, 2).zip(number(&table, name, 3)))
}

/// gid of a group.
pub(crate) fn group(group: &Path, name: &str) -> Result<Option<u32>, PhaseError> {
    Ok(number(&read(group)?, name, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_whole_name() {
        let table = "postgresql:x:1:2::/:\npostgres:x:105:110:PostgreSQL:/var/lib/postgresql:/bin/sh\nbad\n";
        assert_eq!(number(table, "postgres", 2), Some(105));
        assert_eq!(number(table, "postgres", 3), Some(110));
        assert_eq!(number(table, "post", 2), None);
        assert_eq!(number(table, "bad", 2), None);
    }
}
