//! The links as an operator wants to see them.

use std::path::Path;

use rtnetlink::packet_route::link::{
    BondAdInfo, BondMode, InfoBond, InfoBondPort, InfoData, InfoPortData, LacpState, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, MiiStatus,
};
use serde::Serialize;

use crate::netlink::{NetError, Netlink, mac};

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// Name: a role, a bond, a bridge.
    pub name: String,
    /// Present MAC address.
    pub mac: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// Has a partner at the other end of its cable.
    pub carrier: bool,
    /// Megabit per second, where the driver says so.
    pub speed_mbps: Option<u32>,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// The bond or bridge that it belongs to.
    pub controller: Option<String>,
    /// Only of a bond.
    pub bond: Option<BondStatus>,
    /// Only of a bond's member.
    pub member: Option<MemberStatus>,
}

/// A bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BondStatus {
    /// The kernel's word for the mode (`802.3ad`, `active-backup`).
    pub mode: String,
    /// Active-backup: the member in use.
    pub active: Option<String>,
    /// LACP: the other end's system address; none while nobody answers.
    pub partner: Option<String>,
    /// LACP: members in the active aggregator.
    pub aggregated: Option<u16>,
}

/// A bond's member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// The bond has found its carrier good.
    pub mii_up: bool,
    /// How often it was lost.
    pub failures: u32,
    /// LACP: aggregator that it is in.
    pub aggregator: Option<u16>,
    /// LACP: in agreement with the other end, and carrying traffic in both directions.
    pub in_sync: Option<bool>,
}

impl Netlink {
    /// Every link except the loopback.
    pub async fn status(&self) -> Result<Vec<LinkStatus>, NetError> {
        let links = self.links().await?;
        let addresses = self.addresses().await?;
        let named = |index: u32| links.iter().find(|link| link.header.index == index).map(name);
        let visible = links.iter().filter(|link| !link.header.flags.contains(LinkFlags::Loopback));
        Ok(visible
            .map(|link| {
                let own = addresses.iter().filter(|(index, _)| *index == link.header.index);
                let own = own.map(|(_, address)| address.to_string()).collect();
                status(link, own, self.sysfs(), &named)
            })
            .collect())
    }
}

fn name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn status(
    link: &LinkMessage,
    addresses: Vec<String>,
    sysfs: &Path,
    named: &dyn Fn(u32) -> Option<String>,
) -> LinkStatus {
    let mut status = LinkStatus {
        name: name(link),
        mac: None,
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
        speed_mbps: None,
        addresses,
        controller: None,
        bond: None,
        member: None,
    };
    // The driver's answer; -1 or an error while the link is down.
    let speed = std::fs::read_to_string(sysfs.join("class/net").join(&status.name).join("speed"));
    status.speed_mbps = speed.ok().and_then(|text| text.trim().parse().ok());
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => status.mac = mac(bytes).map(|mac| mac.to_string()),
            LinkAttribute::Controller(index) if *index != 0 => status.controller = named(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Data(InfoData::Bond(infos)) => status.bond = Some(bond(infos, named)),
                        LinkInfo::PortData(InfoPortData::BondPort(infos)) => {
                            status.member = Some(member(infos))
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    status
}

fn bond(infos: &[InfoBond], named: &dyn Fn(u32) -> Option<String>) -> BondStatus {
    let mut bond = BondStatus { mode: String::new(), active: None, partner: None, aggregated: None };
    let mut lacp = false;
    for info in infos {
        match info {
            InfoBond::Mode(mode) => {
                lacp = *mode == BondMode::Ieee8023Ad;
                bond.mode = mode.to_string();
            }
            InfoBond::ActivePort(index) => bond.active = named(*index),
            InfoBond::AdInfo(infos) => {
                for info in infos {
                    match info {
                        BondAdInfo::NumPorts(count) => bond.aggregated = Some(*count),
                        BondAdInfo::PartnerMac(bytes) => bond.partner = mac(bytes).map(|mac| mac.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if !lacp {
        (bond.partner, bond.aggregated) = (None, None);
    }
    bond
}

fn member(infos: &[InfoBondPort]) -> MemberStatus {
    let mut member = MemberStatus { mii_up: false, failures: 0, aggregator: None, in_sync: None };
    // Both directions run when this end collects and distributes and the other end says that it is in step.
    let (mut actor, mut partner) = (None, None);
    for info in infos {
        match info {
            InfoBondPort::MiiStatus(status) => member.mii_up = *status == MiiStatus::Up,
            InfoBondPort::LinkFailureCount(count) => member.failures = *count,
            InfoBondPort::AdAggregatorId(id) => member.aggregator = Some(*id),
            InfoBondPort::AdActorOperPortState(state) => actor = Some(*state),
            InfoBondPort::AdPartnerOperPortState(state) => partner = Some(*state),
            _ => {}
        }
    }
    let working = LacpState::COLLECTING | LacpState::DISTRIBUTING;
    member.in_sync = actor.zip(partner).map(|(actor, partner)| {
        actor.contains(working)
            && partner.contains(LacpState::SYNCHRONIZATION)
            && !actor.intersects(LacpState::DEFAULTED | LacpState::EXPIRED)
    });
    member
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_a_partner_is_not_in_sync() {
        let working = LacpState::SYNCHRONIZATION | LacpState::COLLECTING | LacpState::DISTRIBUTING;
        let with = |actor, partner| {
            member(&[
                InfoBondPort::AdActorOperPortState(actor),
                InfoBondPort::AdPartnerOperPortState(partner),
            ])
            .in_sync
        };
        assert_eq!(with(working, LacpState::SYNCHRONIZATION), Some(true));
        // Without a partner the kernel assumes one that agrees to everything.
        assert_eq!(with(working | LacpState::DEFAULTED, LacpState::SYNCHRONIZATION), Some(false));
        assert_eq!(with(working, LacpState::empty()), Some(false));
        assert_eq!(member(&[]).in_sync, None);
    }

    #[test]
    fn only_lacp_has_a_partner() {
        let ad = InfoBond::AdInfo(vec![BondAdInfo::PartnerMac([2; 6]), BondAdInfo::NumPorts(2)]);
        let named = |_| None;
        let lacp = bond(&[InfoBond::Mode(BondMode::Ieee8023Ad), ad.clone()], &named);
        assert_eq!((lacp.partner.as_deref(), lacp.aggregated), (Some("02:02:02:02:02:02"), Some(2)));
        let nobody = InfoBond::AdInfo(vec![BondAdInfo::PartnerMac([0; 6])]);
        assert_eq!(bond(&[InfoBond::Mode(BondMode::Ieee8023Ad), nobody], &named).partner, None);
        assert_eq!(bond(&[InfoBond::Mode(BondMode::ActiveBackup), ad], &named).partner, None);
    }
}
