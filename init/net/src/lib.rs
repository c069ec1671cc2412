//! The network of a node: links by hardware, fixed names, bonds, VLANs, bridges, addresses, routes.
//!
//! [`plan`] is pure and says what is to be done; [`converge`] reads, plans and does until nothing is left. It can be
//! called again at any time: what is right is not touched, what somebody changed is put right.
//!
//! The kernel must have its modules before: `bonding` (with `max_bonds=0`, or it makes a `bond0` of its own at once)
//! for bonds, `8021q` for VLANs, `bridge` for bridges. Nothing here loads them.

pub mod frames;
mod gate;
mod model;
mod names;
mod netlink;
mod plan;
mod status;
mod vip;

pub use gate::{Gate, GateError};
pub use model::{BondSettings, BondWay, LinkKind, Network, Observed, ObservedLink, ObservedRoute};
pub use names::{Names, UNNAMED};
pub use netlink::{Kernel, NetError, Netlink};
pub use plan::{BondChange, Plan, PlanError, Step, plan};
pub use status::{BondStatus, LinkStatus, MemberStatus};
pub use vip::{Port, heard, speak, taken};

/// How often is planned and done before it counts as unstable. Two are usual: taking a link down also drops its
/// IPv6 addresses and routes, which only the next look sees.
const PASSES_MAX: usize = 4;

/// What [`converge`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Converged {
    /// The changes made, in order; empty when everything was right.
    pub done: Vec<Step>,
    /// Roles for which no link is there.
    pub missing: Vec<String>,
}

/// Brings the kernel's network to the wanted one. A failing step does not keep the others from being done: the error
/// is returned after a pass that got no further.
pub async fn converge(kernel: &impl Kernel, network: &Network) -> Result<Converged, NetError> {
    let mut done = Vec::new();
    for _ in 0..PASSES_MAX {
        let next = plan(&kernel.observe().await?, network)?;
        if next.steps.is_empty() {
            return Ok(Converged { done, missing: next.missing });
        }
        let mut failed = None;
        let before = done.len();
        for step in next.steps {
            match kernel.execute(&step).await {
                Ok(()) => done.push(step),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let (Some(error), true) = (failed, before == done.len()) {
            return Err(error);
        }
    }
    let left = plan(&kernel.observe().await?, network)?;
    if left.steps.is_empty() {
        return Ok(Converged { done, missing: left.missing });
    }
    let left = left.steps.iter().map(Step::to_string).collect::<Vec<_>>().join("; ");
    Err(NetError::Unstable { passes: PASSES_MAX, left })
}
