//! The cluster directory: there is a whole one, or none.
//!
//! initdb works in `main.new`. Only its complete, flushed result is renamed to `main`; no server was ever started in
//! `main.new`, so what a crash leaves there holds nothing and is emptied.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dyad_api::control::{CAPTURE_MAX, ExitStatus, Finished, Oneshot, Refusal};

use crate::files::{self, Access, At, FileError};
use crate::paths::Paths;
use crate::pg::{MAJOR, Owner};
use crate::pid1::{Pid1, Pid1Error};

/// initdb takes 14 s under emulation; a slow disk may need a multiple.
const INITDB_DEADLINE_MS: u32 = 300_000;
/// For programs that only look.
const CHECK_DEADLINE_MS: u32 = 30_000;
/// Pause before a one-shot whose predecessor still dies is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// How often it is tried.
const BUSY_TRIES: u32 = 150;

/// Why there is no cluster directory to start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Data of another major version.
    #[error("{path} holds a cluster of PostgreSQL {found:?}, this image runs {MAJOR}; it is left alone", path = .path.display())]
    Version {
        /// Cluster directory.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Files, but no cluster.
    #[error("{path} is not empty and holds no PG_VERSION (first entry: {found:?}); it is left alone, an empty or absent directory is accepted", path = .path.display())]
    Foreign {
        /// Cluster directory.
        path: PathBuf,
        /// What lies there.
        found: String,
    },
    /// A program failed.
    #[error("{program} {how}: {stderr}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its end.
        how: String,
        /// What it said.
        stderr: String,
    },
    /// initdb says it is done, and it is not.
    #[error("initdb ended well but {path} is missing", path = .0.display())]
    Incomplete(PathBuf),
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// PID 1.
    #[error(transparent)]
    Pid1(#[from] Pid1Error),
}

/// PostgreSQL's programs, run through PID 1 as PostgreSQL's user.
pub(crate) struct Tools<'a> {
    pub(crate) pid1: &'a Pid1,
    pub(crate) paths: &'a Paths,
    pub(crate) owner: Owner,
}

impl Tools<'_> {
    async fn run(&self, name: &str, exec: Vec<String>, deadline_ms: u32) -> Result<Finished, Pid1Error> {
        let oneshot = Oneshot {
            name: name.to_owned(),
            exec,
            env: vec![("TZ".into(), "UTC".into()), ("LC_ALL".into(), "C".into())],
            uid: self.owner.uid,
            gid: self.owner.gid,
            cwd: self.paths.pg_volume().display().to_string(),
            deadline_ms,
            capture_max: CAPTURE_MAX,
        };
        let mut tries = 0;
        loop {
            match self.pid1.run(oneshot.clone()).await {
                // The one-shot of a supervisor that was killed is being killed too.
                Err(Pid1Error::Refused(Refusal::Busy(_))) if tries < BUSY_TRIES => {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Runs one of PostgreSQL's programs to its end; its standard output when that ended well.
    pub(crate) async fn program(
        &self,
        program: &'static str,
        arguments: Vec<String>,
        deadline: Duration,
    ) -> Result<String, ClusterError> {
        let finished = self.finish(program, arguments, deadline).await?;
        expect_success(program, finished)
    }

    /// Waits until no run of a program is left that an earlier supervisor, or a request that was given up, began: another
    /// one of its name, which only tells its version, is not started before. Returns that version.
    pub(crate) async fn none_left(&self, program: &'static str) -> Result<String, ClusterError> {
        let told = self.run(program, vec![bin(program), "--version".into()], CHECK_DEADLINE_MS).await?;
        Ok(expect_success(program, told)?.trim().to_owned())
    }

    /// The same, however it ended.
    pub(crate) async fn finish(
        &self,
        program: &'static str,
        arguments: Vec<String>,
        deadline: Duration,
    ) -> Result<Finished, ClusterError> {
        let mut exec = vec![bin(program)];
        exec.extend(arguments);
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        Ok(self.run(program, exec, deadline_ms).await?)
    }

    /// Has the server read its configuration and stop; the error is its own text.
    pub(crate) async fn check_config(&self) -> Result<(), ClusterError> {
        let config = self.paths.pg_config().join("postgresql.conf");
        let exec = vec![
            bin("postgres"),
            "-D".into(),
            self.paths.pg_main().display().to_string(),
            "-c".into(),
            format!("config_file={}", config.display()),
            "-C".into(),
            "data_checksums".into(),
        ];
        expect_success("postgres -C", self.run("postgres-check", exec, CHECK_DEADLINE_MS).await?).map(drop)
    }

    /// Makes the cluster directory if there is none; says whether it did.
    pub(crate) async fn ensure_cluster(&self) -> Result<bool, ClusterError> {
        let (main, new) = (self.paths.pg_main(), self.paths.pg_new());
        if is_cluster(&main)? {
            return Ok(false);
        }
        // It would work in the directory that is emptied next.
        let version = self.none_left("initdb").await?;
        tracing::info!(version, "making a new database cluster");
        remove_tree(&new)?;
        files::ensure_dir(&new, Access { mode: 0o700, uid: self.owner.uid, gid: self.owner.gid })?;
        let made = self.run("initdb", self.initdb(&new), INITDB_DEADLINE_MS).await?;
        expect_success("initdb", made)?;
        for file in ["PG_VERSION", "global/pg_control"] {
            if !new.join(file).is_file() {
                return Err(ClusterError::Incomplete(new.join(file)));
            }
        }
        files::sync_dir(&new)?;
        fs::rename(&new, &main).at("rename into place", &main)?;
        files::sync_dir(&self.paths.pg_volume())?;
        Ok(true)
    }

    fn initdb(&self, directory: &Path) -> Vec<String> {
        // Sorting by code point is the same with every C library; C.UTF-8 adds upper and lower case beyond ASCII.
        let locale = if self.paths.at("/usr/lib/locale/C.utf8").is_dir() { "C.UTF-8" } else { "C" };
        let mut exec = vec![bin("initdb"), "-D".into(), directory.display().to_string()];
        let options = ["--username=postgres", "--encoding=UTF8", "--data-checksums", "--no-instructions"];
        exec.extend(options.map(str::to_owned));
        exec.extend(["--auth-local=peer", "--auth-host=reject"].map(str::to_owned));
        exec.push(format!("--locale={locale}"));
        exec
    }
}

fn bin(program: &str) -> String {
    format!("/usr/lib/postgresql/{MAJOR}/bin/{program}")
}

/// Whether the directory holds a cluster of our version; an error if it holds anything else.
pub(crate) fn is_cluster(main: &Path) -> Result<bool, ClusterError> {
    if let Some(version) = files::read_plain(&main.join("PG_VERSION"))? {
        let found = version.trim().to_owned();
        return if found == MAJOR {
            Ok(true)
        } else {
            Err(ClusterError::Version { path: main.to_path_buf(), found })
        };
    }
    let mut entries = match fs::read_dir(main) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at("list", main)?,
    };
    match entries.next() {
        None => Ok(false),
        Some(entry) => {
            let found = entry.at("list", main)?.file_name().to_string_lossy().into_owned();
            Err(ClusterError::Foreign { path: main.to_path_buf(), found })
        }
    }
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", path),
    }
}

/// Standard output of a program that ended with status 0.
fn expect_success(program: &'static str, finished: Finished) -> Result<String, ClusterError> {
    let how = match finished.status {
        ExitStatus::Exited(0) => return Ok(String::from_utf8_lossy(&finished.stdout).into_owned()),
        ExitStatus::Exited(status) => format!("ended with status {status}"),
        ExitStatus::Signaled(signal) => format!("was ended by signal {signal}"),
        ExitStatus::DeadlinePassed => "took too long and was killed".to_owned(),
        ExitStatus::NotStarted(why) => format!("could not be started ({why})"),
    };
    let stderr = String::from_utf8_lossy(&finished.stderr).trim().to_owned();
    Err(ClusterError::Program { program, how, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cluster_of_our_version_or_nothing_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("main");
        assert!(!is_cluster(&main).unwrap(), "absent");
        fs::create_dir(&main).unwrap();
        assert!(!is_cluster(&main).unwrap(), "empty");
        fs::write(main.join("report.txt"), "x").unwrap();
        let error = is_cluster(&main).unwrap_err().to_string();
        assert!(error.contains("report.txt") && error.contains("left alone"), "{error}");
        fs::write(main.join("PG_VERSION"), "13\n").unwrap();
        let error = is_cluster(&main).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL \"13\", this image runs 15"), "{error}");
        fs::write(main.join("PG_VERSION"), "15\n").unwrap();
        assert!(is_cluster(&main).unwrap());
    }
}
