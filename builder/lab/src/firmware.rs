//! UEFI firmware for the machines: the pair of code and empty variable store, wherever a distribution puts it.

use std::path::{Path, PathBuf};

/// Known pairs, relative to a root: 4 MiB builds first, without Secure Boot keys.
const PAIRS: [(&str, &str); 6] = [
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),
    ("usr/share/qemu/edk2-x86_64-code.fd", "usr/share/qemu/edk2-i386-vars.fd"),
];

/// Code and variable store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Firmware {
    pub(crate) code: PathBuf,
    pub(crate) vars: PathBuf,
}

/// The first pair below `root` whose files both exist.
pub(crate) fn below(root: &Path) -> Option<Firmware> {
    PAIRS
        .iter()
        .map(|(code, vars)| Firmware { code: root.join(code), vars: root.join(vars) })
        .find(|f| f.code.is_file() && f.vars.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_is_no_pair() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("usr/share/OVMF");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("OVMF_CODE_4M.fd"), "").unwrap();
        std::fs::write(dir.join("OVMF_CODE.fd"), "").unwrap();
        assert_eq!(below(temp.path()), None);
        std::fs::write(dir.join("OVMF_VARS.fd"), "").unwrap();
        assert!(below(temp.path()).unwrap().code.ends_with("OVMF_CODE.fd"));
    }
}
