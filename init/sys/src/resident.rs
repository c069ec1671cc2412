//! Memory that only the beginning of a program needed.

unsafe extern "C" {
    /// The first byte of the program in memory; the linker defines it.
    static __executable_start: u8;
    /// The byte after its code, likewise.
    static etext: u8;
}

const PAGE_BYTES: usize = 4096;

/// Gives freed memory back to the kernel; with `pages`, also takes the program's own pages out of this process: what is
/// executed again comes back from the file, or from where the kernel keeps its bytes.
pub fn give_back(pages: bool) {
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(PAGE_BYTES - 1);
    // SAFETY: it returns free memory of the allocator only.
    unsafe { libc::malloc_trim(0) };
    if !pages {
        return;
    }
    // SAFETY: between the two lie the program's constants and its code, mapped from its file, never written to and not
    // writable: a page that is needed again is read from the file with the same bytes. An error changes nothing.
    unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on() {
        let text = "constants are there".to_owned();
        super::give_back(true);
        assert_eq!(text, "constants are there");
    }
}
