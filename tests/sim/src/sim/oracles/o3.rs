//! O3: epochs rise by one, and nothing else changes a register.

use dyad_cluster::arbiter::Durable;

pub(crate) fn o3_epochs_rise(before: &Durable, after: &Durable) -> Option<String> {
    before.registers.iter().find_map(|(id, old)| {
        let new = after.registers.get(id);
        let rises = new.is_some_and(|new| new == old || new.epoch == old.epoch.next());
        (!rises).then(|| format!("O3: register {} went from {old:?} to {new:?}", id.0))
    })
}
