//! PID 1's parsers for fuzzers: each takes any bytes and panics when something that always holds does not.

use crate::core::book_is_sane;
use crate::services::{RECORD_BYTES, Slot};
use crate::{modalias, mounts, notify, power, record, uevent};

/// Datagrams of sd_notify.
pub fn notify(bytes: &[u8]) {
    let notice = notify::parse(bytes);
    assert!(notice.main_pid.is_none_or(|pid| pid > 1), "PID 1 is nobody's main process");
    assert!(notice.fd_name.is_none_or(|name| !name.contains(':')), "`:` separates names");
}

/// Messages of the kernel about devices, and of its power button.
pub fn uevent(bytes: &[u8]) {
    uevent::is_new_device(bytes);
    power::is_power_button(bytes);
    power::multicast_group(bytes);
}

/// `/proc/self/mountinfo`.
pub fn mountinfo(text: &str) {
    assert!(mounts::mount_points(text).len() <= text.lines().count());
}

/// A modalias and a pattern, separated by the first zero byte.
pub fn modalias(bytes: &[u8]) {
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        let (pattern, text) = (&bytes[..at], &bytes[at + 1..]);
        if pattern.iter().all(|byte| !b"*?[\\".contains(byte)) {
            assert_eq!(modalias::matches(pattern, text), pattern == text, "without wildcards it is equality");
        } else {
            modalias::matches(pattern, text);
        }
    }
}

/// What a former image of PID 1 left in shared memory: a service's record, then the book.
pub fn shared_memory(bytes: &[u8]) {
    if let Some(record) = bytes.first_chunk::<RECORD_BYTES>()
        && let Some(slot) = Slot::decode(record)
    {
        assert_eq!(Slot::decode(&slot.encode()), Some(slot), "what is accepted has one meaning");
        book_is_sane(&bytes[RECORD_BYTES..]);
    }
    book_is_sane(bytes);
}

/// The file that tells how boots ended.
pub fn boots(bytes: &[u8]) {
    if let Some((number, record, _)) = record::newest(bytes) {
        assert_eq!(record::Record::decode(&record.encode(number)), Some((number, record)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..700), text in "\\PC{0,200}") {
            for target in [notify, uevent, modalias, shared_memory, boots] {
                target(&bytes);
            }
            mountinfo(&text);
        }
    }
}
