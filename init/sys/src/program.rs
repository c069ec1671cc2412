//! What the kernel told this program when it started it.

use std::ffi::CStr;

/// The path that this program was started by; there need be no /proc. `None`: the kernel told none.
pub fn own_path() -> Option<&'static CStr> {
    // SAFETY: it reads a list that the kernel laid on the stack, which nobody changes.
    let at = unsafe { libc::getauxval(libc::AT_EXECFN) } as usize;
    let path = std::ptr::with_exposed_provenance(at);
    if at == 0 {
        return None;
    }
    // SAFETY: it leads to a string that ends with zero and stays for as long as the process lives.
    Some(unsafe { CStr::from_ptr(path) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn it_is_the_path_of_this_very_program() {
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(super::own_path().unwrap().to_bytes()));
        assert_eq!(path.canonicalize().unwrap(), std::env::current_exe().unwrap());
    }
}
