//! The guard library, compiled for tests: those of the guard and those of the supervisor include this file.

#![allow(clippy::disallowed_methods, reason = "a test that starts cargo")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The library that is tested. Cargo links none for the tests of a library that is nothing but a `cdylib`.
pub(crate) fn library() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guard");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--offline", "--package", "dyad-guard", "--target-dir"])
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        target.join("debug/libdyad_guard.so")
    });
    BUILT.clone()
}
