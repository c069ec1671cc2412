//! Virtual machines run where their volume is held. Which of them run at all is settled by memory: a machine is admitted
//! only if either node could hold it and all that come before it alone, so no take-over can run out of room. Nothing ever
//! moves back.

use std::cmp::Reverse;

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

/// Which of the cluster's machines may run, in the order in which they start: by priority (the lower id first among
/// equals), as far as the smaller node's memory goes. A machine that does not fit does not keep smaller ones out.
pub fn admit(all: &[Vm], memory_mib: [u64; 2]) -> Vec<Vm> {
    let mut order = all.to_vec();
    order.sort_by_key(|vm| (Reverse(vm.priority), vm.id));
    let mut left = memory_mib[0].min(memory_mib[1]);
    order.retain(|vm| {
        let fits = vm.memory_mib <= left;
        left -= if fits { vm.memory_mib } else { 0 };
        fits
    });
    order
}

impl State {
    /// Machines that are configured and not admitted: losing a node would leave no room for them.
    pub fn without_room(&self) -> Vec<VmId> {
        let admitted = admit(&self.config.vms, self.config.memory_mib);
        let out = |vm: &&Vm| admitted.iter().all(|a| a.id != vm.id);
        self.config.vms.iter().filter(out).map(|vm| vm.id).collect()
    }

    pub(crate) fn advance_vms(&mut self, now: Tick, out: &mut Actions) {
        for vm in admit(&self.config.vms, self.config.memory_mib) {
            let here = self.admits(vm.volume);
            if here && !self.vms_running.contains(&vm.id) {
                let needs = self.while_leased(vm.volume);
                self.issue(now, out, Some(vm.volume), Action::StartVm(vm.id), needs);
            }
        }
    }

    /// Whatever stopped the volume has stopped its machines first, or moved them.
    pub(crate) fn vms_left(&mut self, r: ResourceId) {
        let volume = |id: &VmId| self.config.vms.iter().any(|vm| vm.id == *id && vm.volume == r);
        self.vms_running.retain(|id| !volume(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: u16, memory_mib: u64, priority: u8) -> Vm {
        Vm { id: VmId(id), volume: ResourceId(id), memory_mib, priority }
    }

    #[test]
    fn the_smaller_node_decides_and_priority_orders() {
        let all = [vm(0, 4_000, 1), vm(1, 3_000, 9), vm(2, 6_000, 5), vm(3, 1_000, 1)];
        let ids = |memory| admit(&all, memory).iter().map(|vm| vm.id.0).collect::<Vec<_>>();
        assert_eq!(ids([8_000, 64_000]), [1, 0, 3]);
        assert_eq!(ids([64_000, 14_000]), [1, 2, 0, 3]);
        assert_eq!(ids([500, 64_000]), [0u16; 0]);
    }
}
