//! Roles and databases of the site file: made when missing, put back when different, never dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use dyad_spec::site::{Database, SqlRole};

use crate::credentials::Credential;
use crate::pg::session::{Session, SqlError, identifier, literal};
use crate::pg::stance::{REPLICATION, REWIND};

/// Creating a database copies its template, on a slow disk some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Makes the server have these roles and databases. Returns what had to be done, in words.
pub(crate) async fn ensure(
    session: &Session,
    roles: &[SqlRole],
    databases: &[Database],
    credentials: &BTreeMap<String, Credential>,
) -> Result<Vec<String>, SqlError> {
    let mut done = Vec::new();
    let query = "select rolname, rolcanlogin, rolsuper, rolcreatedb, rolpassword from pg_catalog.pg_authid";
    let found = by_name(session.rows(DEADLINE, query).await?);
    for role in roles {
        let Some(credential) = credentials.get(&role.name) else { continue };
        let flag = |set: bool| Some(if set { "t" } else { "f" }.to_owned());
        let declared = [flag(true), flag(false), flag(role.create_db), Some(credential.verifier.clone())];
        let verb = match found.get(&role.name) {
            Some(values) if *values == declared => continue,
            Some(_) => "alter",
            None => "create",
        };
        let create_db = if role.create_db { "createdb" } else { "nocreatedb" };
        let statement = format!(
            "{verb} role {} login nosuperuser {create_db} password {}",
            identifier(&role.name),
            literal(&credential.verifier)
        );
        session.execute(DEADLINE, &statement).await?;
        done.push(format!("{verb} role {}", role.name));
    }
    let query = "select datname, pg_catalog.pg_get_userbyid(datdba) from pg_catalog.pg_database";
    let found = by_name(session.rows(DEADLINE, query).await?);
    for Database { name, owner } in databases {
        let (quoted, quoted_owner) = (identifier(name), identifier(owner));
        let (statement, what) = match found.get(name) {
            Some(values) if values.first() == Some(&Some(owner.clone())) => continue,
            Some(_) => (format!("alter database {quoted} owner to {quoted_owner}"), "change the owner of"),
            None => (format!("create database {quoted} owner {quoted_owner}"), "create"),
        };
        session.execute(DEADLINE, &statement).await?;
        done.push(format!("{what} database {name}"));
    }
    Ok(done)
}

/// The two roles that the other node logs in as. The second may do what `pg_rewind` needs and nothing else.
pub(crate) async fn ensure_own(
    session: &Session,
    credentials: &BTreeMap<String, Credential>,
) -> Result<Vec<String>, SqlError> {
    let query =
        "select rolname, rolcanlogin, rolsuper, rolreplication, rolpassword from pg_catalog.pg_authid";
    let found = by_name(session.rows(DEADLINE, query).await?);
    let mut done = Vec::new();
    for (role, replication) in [(REPLICATION, true), (REWIND, false)] {
        let Some(credential) = credentials.get(role) else { continue };
        let flag = |set: bool| Some(if set { "t" } else { "f" }.to_owned());
        let declared = [flag(true), flag(false), flag(replication), Some(credential.verifier.clone())];
        let verb = match found.get(role) {
            Some(values) if *values == declared => continue,
            Some(_) => "alter",
            None => "create",
        };
        let replication = if replication { "replication" } else { "noreplication" };
        let password = literal(&credential.verifier);
        let statement = format!("{verb} role {role} login nosuperuser {replication} password {password}");
        session.execute(DEADLINE, &statement).await?;
        done.push(format!("{verb} role {role}"));
    }
    let functions = "pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text), \
         pg_read_binary_file(text, bigint, bigint, boolean)";
    let granted =
        "select pg_catalog.has_function_privilege('dyad_rewind', 'pg_read_binary_file(text)', 'execute')";
    if session.value(DEADLINE, granted).await?.as_deref() != Some("t") {
        session.execute(DEADLINE, &format!("grant execute on function {functions} to {REWIND}")).await?;
        done.push(format!("grant to role {REWIND}"));
    }
    Ok(done)
}

/// Rows by their first value.
fn by_name(rows: Vec<Vec<Option<String>>>) -> BTreeMap<String, Vec<Option<String>>> {
    let split = |mut row: Vec<Option<String>>| {
        let rest = row.split_off(1.min(row.len()));
        row.pop().flatten().map(|name| (name, rest))
    };
    rows.into_iter().filter_map(split).collect()
}
