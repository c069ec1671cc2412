//! What every history is checked for, one file each.

mod lease;
mod o1;
mod o10;
mod o11;
mod o2;
mod o3;
mod o4;
mod o5;
mod o6;
mod o7;
mod o8;
mod o9;
mod price;
mod status;

use super::cluster::Cluster;

pub(crate) use o1::o1_acknowledged_is_there;
pub(crate) use o2::o2_one_acknowledges;
pub(crate) use o3::o3_epochs_rise;
pub(crate) use o4::o4_own_timeline;
pub(crate) use o7::o7_counter_is_monotone;
pub(crate) use o8::is_best;
pub(crate) use o9::o9_nothing_moves;
pub(crate) use o10::o10_quarantined;
pub(crate) use price::price_was_true;
pub(crate) use status::unmarked;

/// At every look.
pub(crate) fn at_every_moment(cluster: &Cluster) -> Option<String> {
    o6::o6_one_address(cluster)
        .or_else(|| o7::o7_one_machine(cluster))
        .or_else(|| o11::o11_reset_is_not_withheld(cluster))
        .or_else(|| lease::gate_ends_before_grant(cluster))
        .or_else(|| status::status_is_true(cluster))
        .or_else(|| status::stays_untrue(cluster))
}

/// After a long peace.
pub(crate) fn at_the_end(cluster: &Cluster) -> Option<String> {
    o8::o8_best_protection(cluster)
        .or_else(|| o5::o5_pair_agrees(cluster))
        .or_else(|| o1::o1_at_the_end(cluster))
}
