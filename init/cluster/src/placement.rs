//! Virtual machines run where their volume is held, by priority, as far as the memory goes. Nothing ever moves back.

use serde::{Deserialize, Serialize};

use crate::action::{Action, Actions, VmId};
use crate::state::State;
use crate::types::{ResourceId, Tick};

/// One virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its volume.
    pub volume: ResourceId,
    /// Memory that it is promised, in MiB.
    pub memory_mib: u64,
    /// Higher starts earlier.
    pub priority: u8,
}

/// Which of the wanted machines fit, highest priority first (the lower id first among equals). A machine that runs
/// keeps its memory whatever its priority: nothing is stopped to make room.
pub fn admit(wanted: &[Vm], running: impl Fn(VmId) -> bool, memory_mib: u64) -> Vec<VmId> {
    let mut order: Vec<&Vm> = wanted.iter().collect();
    order.sort_by_key(|vm| (!running(vm.id), std::cmp::Reverse(vm.priority), vm.id));
    let mut left = memory_mib;
    let mut admitted = Vec::new();
    for vm in order {
        if vm.memory_mib <= left {
            left -= vm.memory_mib;
            admitted.push(vm.id);
        }
    }
    admitted
}

impl State {
    pub(crate) fn advance_vms(&mut self, now: Tick, out: &mut Actions) {
        if self.config.vms.is_empty() {
            return;
        }
        let here = |vm: &&Vm| self.seats.get(&vm.volume).is_some_and(|seat| seat.phase.admits());
        let wanted: Vec<Vm> = self.config.vms.iter().filter(here).copied().collect();
        let starting = |vm| self.pending.keys().any(|id| id.kind == crate::action::Kind::StartVm(vm));
        let taken = |vm| self.vms_running.contains(&vm) || starting(vm);
        let admitted = admit(&wanted, taken, self.config.memory_mib);
        for vm in self.config.vms.clone() {
            let runs = self.vms_running.contains(&vm.id);
            if admitted.contains(&vm.id) && !runs {
                self.issue(now, out, Some(vm.volume), Action::StartVm(vm.id), vec![]);
            } else if runs && !wanted.iter().any(|w| w.id == vm.id) {
                self.issue(now, out, Some(vm.volume), Action::StopVm(vm.id), vec![]);
            }
        }
    }
}
