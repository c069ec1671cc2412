//! `supervisor [--root DIR]`: all paths below DIR instead of `/`, for tests.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = match root_from_args(std::env::args().skip(1)) {
        Ok(root) => root,
        Err(message) => {
            eprintln!("supervisor: {message}; accepted: supervisor [--root DIR]");
            return ExitCode::from(2);
        }
    };
    match supervisor::run(&root) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn root_from_args(mut args: impl Iterator<Item = String>) -> Result<PathBuf, String> {
    match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Ok(PathBuf::from("/")),
        (Some("--root"), Some(dir), None) => Ok(PathBuf::from(dir)),
        (Some(other), ..) => Err(format!("unexpected argument {other:?}")),
    }
}
