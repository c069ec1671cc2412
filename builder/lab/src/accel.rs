//! Whether hardware virtualisation is to be trusted here. `/dev/kvm` may exist and still hang every guest, so a guest is
//! asked: the firmware itself, which starts all processors, enters long mode and reports that it found nothing to boot.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::firmware::Firmware;
use crate::machine::Accel;
use crate::tools::Qemu;

/// What the firmware prints when it is done with a machine without disks.
const SIGN_OF_LIFE: &str = "BdsDxe: ";
/// Where KVM works this takes about two seconds.
const PROBE_WAIT: Duration = Duration::from_secs(8);

/// KVM where a probe guest really starts, else translation.
pub(crate) fn choose(qemu: &Qemu, firmware: &Firmware) -> Accel {
    let kvm = Path::new("/dev/kvm");
    let usable = File::options().read(true).write(true).open(kvm).is_ok();
    if usable && starts(qemu, firmware, Accel::Kvm, PROBE_WAIT) { Accel::Kvm } else { Accel::Tcg }
}

fn starts(qemu: &Qemu, firmware: &Firmware, accel: Accel, limit: Duration) -> bool {
    let mut flash = OsString::from("if=pflash,format=raw,unit=0,readonly=on,file=");
    flash.push(&firmware.code);
    let machine = format!("q35,accel={}", accel.name());
    let mut args: Vec<OsString> = ["-nodefaults", "-no-user-config", "-display", "none", "-machine"]
        .into_iter()
        .chain([machine.as_str(), "-cpu", "max", "-smp", "2", "-m", "256", "-serial", "stdio", "-drive"])
        .map(OsString::from)
        .collect();
    args.push(flash);
    if let Some(share) = &qemu.share {
        args.extend(["-L".into(), share.clone().into_os_string()]);
    }
    qemu.program.says(&args, SIGN_OF_LIFE, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    /// The probe itself, on translation: it tells a firmware that runs from one that does not.
    #[test]
    fn a_probe_guest_shows_life_or_does_not() {
        let (qemu, firmware) = (tools::qemu(&|_| ()).unwrap(), tools::firmware(&|_| ()).unwrap());
        assert!(starts(&qemu, &firmware, Accel::Tcg, Duration::from_secs(120)));
        let temp = tempfile::tempdir().unwrap();
        let code = temp.path().join("code.fd");
        std::fs::write(&code, vec![0xf4; 4 << 20]).unwrap();
        let dead = Firmware { code, vars: firmware.vars };
        assert!(!starts(&qemu, &dead, Accel::Tcg, Duration::from_secs(3)));
    }
}
