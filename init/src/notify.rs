//! The sd_notify protocol: what one datagram says.

/// Longest datagram that is read, bytes.
pub(crate) const DATAGRAM_MAX: usize = 4096;

/// A parsed datagram. Unknown and malformed assignments are left out, as the protocol wants it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notice<'a> {
    /// `READY=1`
    pub(crate) ready: bool,
    /// `STOPPING=1`
    pub(crate) stopping: bool,
    /// `STATUS=`
    pub(crate) status: Option<&'a str>,
    /// `MAINPID=`
    pub(crate) main_pid: Option<u32>,
    /// `WATCHDOG=1`
    pub(crate) alive: bool,
    /// `WATCHDOG=trigger`
    pub(crate) hung: bool,
    /// `FDSTORE=1`
    pub(crate) store: bool,
    /// `FDSTOREREMOVE=1`
    pub(crate) remove: bool,
    /// `FDNAME=`, if it is a name that systemd would accept.
    pub(crate) fd_name: Option<&'a str>,
    /// `BARRIER=1`: close the descriptor that came with it.
    pub(crate) barrier: bool,
}

/// Longest name of a stored descriptor, bytes.
pub(crate) const FD_NAME_MAX: usize = 255;

/// Reads a datagram.
pub(crate) fn parse(datagram: &[u8]) -> Notice<'_> {
    let mut notice = Notice::default();
    for line in datagram.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        match line.split_once('=') {
            Some(("READY", "1")) => notice.ready = true,
            Some(("STOPPING", "1")) => notice.stopping = true,
            Some(("STATUS", text)) => notice.status = Some(text),
            Some(("MAINPID", text)) => notice.main_pid = text.parse().ok().filter(|pid| *pid > 1),
            Some(("WATCHDOG", "1")) => notice.alive = true,
            Some(("WATCHDOG", "trigger")) => notice.hung = true,
            Some(("FDSTORE", "1")) => notice.store = true,
            Some(("FDSTOREREMOVE", "1")) => notice.remove = true,
            Some(("FDNAME", name)) => notice.fd_name = Some(name).filter(|name| is_fd_name(name)),
            Some(("BARRIER", "1")) => notice.barrier = true,
            _ => {}
        }
    }
    notice
}

/// Printable ASCII without `:`, which separates names in LISTEN_FDNAMES.
fn is_fd_name(name: &str) -> bool {
    name.len() <= FD_NAME_MAX && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_postgresql_and_journald_send() {
        let notice = parse(b"MAINPID=77\nREADY=1\nSTATUS=ready to serve\n");
        assert_eq!(
            notice,
            Notice { ready: true, main_pid: Some(77), status: Some("ready to serve"), ..Notice::default() }
        );
        assert!(parse(b"FDSTORE=1\nFDNAME=stream").store);
        assert_eq!(parse(b"FDSTORE=1\nFDNAME=a:b").fd_name, None);
        assert!(parse(b"WATCHDOG=trigger").hung);
        assert!(!parse(b"WATCHDOG=trigger").alive);
    }

    #[test]
    fn nonsense_says_nothing() {
        for datagram in
            [&b""[..], b"READY", b"READY=0", b"MAINPID=1", b"MAINPID=-3", b"MAINPID=x", b"\xff=1\n"]
        {
            assert_eq!(parse(datagram), Notice::default(), "{datagram:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in any::<Vec<u8>>()) {
            let notice = parse(&bytes);
            prop_assert!(notice.main_pid.is_none_or(|pid| pid > 1));
        }
    }
}
