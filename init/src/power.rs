//! The last resort, and the power button, by the kernel's ACPI event messages (generic netlink family `acpi_event`; module `button`).

use crate::log::warning;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with,
};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const FAMILY: &[u8] = b"acpi_event\0";
const NLM_F_REQUEST: u16 = 1;
const HEADER_BYTES: usize = 16;
const GENL_BYTES: usize = 4;
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// The process namespace that the kernel made first has this number (`PROC_PID_INIT_INO`).
const WHOLE_MACHINE: &str = "pid:[4026531836]";
const SYSRQ: &str = "/proc/sysrq-trigger";

/// Resets the machine without asking drivers or file systems, which could hang; in a container, ends that.
pub(crate) fn reset_now() {
    // In a container this file is its host's.
    let is_machine =
        std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == WHOLE_MACHINE);
    if is_machine && let Err(error) = std::fs::write(SYSRQ, "b") {
        warning!("cannot write to {SYSRQ}: {error}");
    }
    if let Err(errno) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        warning!("the kernel refuses a reset: {errno}");
    }
}

/// Subscribes; `None` where there is no ACPI.
pub(crate) fn open() -> Option<OwnedFd> {
    match try_open() {
        Ok(socket) => socket,
        Err(errno) => {
            warning!("no events of the power button: {errno}");
            None
        }
    }
}

fn try_open() -> Result<Option<OwnedFd>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ask = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))?;
    send(&ask, &family_request(), SendFlags::empty())?;
    let mut answer = [0u8; 4096];
    // The kernel answers before send returns.
    let (length, _) = recv(&ask, &mut answer[..], RecvFlags::DONTWAIT)?;
    let Some(group) = multicast_group(&answer[..length]).filter(|group| (1..=32).contains(group)) else {
        return Ok(None);
    };
    let events = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::GENERIC))?;
    bind(&events, &netlink::SocketAddrNetlink::new(0, 1 << (group - 1)))?;
    Ok(Some(events))
}

fn family_request() -> Vec<u8> {
    let mut request = Vec::with_capacity(64);
    let padded = FAMILY.len().next_multiple_of(4);
    let total = HEADER_BYTES + GENL_BYTES + 4 + padded;
    request.extend_from_slice(&(total as u32).to_ne_bytes());
    request.extend_from_slice(&GENL_ID_CTRL.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one request, one answer.
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.extend_from_slice(&(4 + FAMILY.len() as u16).to_ne_bytes());
    request.extend_from_slice(&CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    request.extend_from_slice(FAMILY);
    request.resize(total, 0);
    request
}

/// Attributes of a netlink message part: (type, payload).
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & ATTRIBUTE_TYPE;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    })
}

/// The number of the family's first multicast group.
pub(crate) fn multicast_group(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes([*answer.get(4)?, *answer.get(5)?]);
    if kind != GENL_ID_CTRL {
        return None;
    }
    let body = answer.get(HEADER_BYTES + GENL_BYTES..)?;
    let groups = attributes(body).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GROUPS)?.1;
    let first = attributes(groups).next()?.1;
    let id = attributes(first).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GRP_ID)?.1;
    Some(u32::from_ne_bytes(id.get(..4)?.try_into().ok()?))
}

/// Reads all events; `true` if the power button was among them.
pub(crate) fn button_pressed(socket: &OwnedFd) -> bool {
    let mut pressed = false;
    let mut bytes = [0u8; 4096];
    loop {
        match recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => pressed |= is_power_button(&bytes[..length]),
            Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(_) => return pressed,
        }
    }
}

/// One attribute: device class (20 bytes), bus id (15), type, data.
pub(crate) fn is_power_button(message: &[u8]) -> bool {
    let body = message.get(HEADER_BYTES + GENL_BYTES..).unwrap_or(&[]);
    attributes(body).any(|(_, event)| event.starts_with(b"button/power\0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_button_and_other_events() {
        let event = |class: &[u8]| {
            let mut message = vec![0; 20];
            let mut payload = vec![0; 44];
            payload[..class.len()].copy_from_slice(class);
            message.extend_from_slice(&48u16.to_ne_bytes());
            message.extend_from_slice(&1u16.to_ne_bytes());
            message.extend_from_slice(&payload);
            message
        };
        assert!(is_power_button(&event(b"button/power\0PWRF")));
        assert!(!is_power_button(&event(b"ac_adapter\0")));
        assert!(!is_power_button(b""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in any::<Vec<u8>>()) {
            is_power_button(&bytes);
            multicast_group(&bytes);
        }
    }
}
