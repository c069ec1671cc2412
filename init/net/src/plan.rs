//! From what is there to what is wanted: pure, and empty when there is nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dyad_spec::site::{Bond, HashPolicy, LacpRate, LinkMatch, Route, Vlan};
use dyad_spec::{IpNet, Mac};

use crate::model::{BondSettings, BondWay, LinkKind, Network, Observed, ObservedLink};

/// One change. Links are named as they are called when the step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take a link down.
    Down(String),
    /// Rename a link that is down.
    Rename {
        /// Present name.
        from: String,
        /// New name.
        to: String,
    },
    /// Keep the name that the kernel gave.
    AltName {
        /// The link.
        link: String,
        /// Its further name.
        name: String,
    },
    /// Make a bond, down and without members.
    CreateBond(String, BondSettings),
    /// Change those settings of a bond that differ: the kernel refuses some while the bond is up or has members,
    /// even if they would stay the same.
    SetBond(String, BondChange),
    /// Make a VLAN, down.
    CreateVlan {
        /// Its name.
        name: String,
        /// The link or bond that carries it.
        link: String,
        /// Its number.
        id: u16,
    },
    /// Remove a VLAN: neither its number nor what carries it can be changed.
    Delete(String),
    /// Make a bridge with a fixed MAC address (else it would change with its members).
    CreateBridge(String, Option<Mac>),
    /// Make a link a member.
    Join {
        /// The member.
        link: String,
        /// The bond or bridge.
        controller: String,
    },
    /// End a membership.
    Leave(String),
    /// Bring a link up.
    Up(String),
    /// Add a static address.
    AddAddress(String, IpNet),
    /// Add a static route, or replace the one to the same network.
    SetRoute(Route),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(link) => write!(f, "{link}: down"),
            Self::Rename { from, to } => write!(f, "{from}: rename to {to}"),
            Self::AltName { link, name } => write!(f, "{link}: also called {name}"),
            Self::CreateBond(name, settings) => {
                write!(f, "{name}: create bond{}", BondChange::from(*settings))
            }
            Self::SetBond(name, change) => write!(f, "{name}: change bond{change}"),
            Self::CreateVlan { name, link, id } => write!(f, "{name}: create VLAN {id} of {link}"),
            Self::Delete(name) => write!(f, "{name}: delete"),
            Self::CreateBridge(name, Some(mac)) => write!(f, "{name}: create bridge {mac}"),
            Self::CreateBridge(name, None) => write!(f, "{name}: create bridge"),
            Self::Join { link, controller } => write!(f, "{link}: join {controller}"),
            Self::Leave(link) => write!(f, "{link}: leave"),
            Self::Up(link) => write!(f, "{link}: up"),
            Self::AddAddress(link, address) => write!(f, "{link}: add {address}"),
            Self::SetRoute(route) => write!(f, "route {} via {}", route.to, route.via),
        }
    }
}

/// Some settings of a bond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BondChange {
    /// How the members work together.
    pub mode: Option<BondWay>,
    /// Milliseconds between two looks at the carrier.
    pub miimon_ms: Option<u32>,
    /// Only with LACP.
    pub lacp_rate: Option<LacpRate>,
    /// Only with LACP.
    pub hash: Option<HashPolicy>,
}

impl BondChange {
    /// What leads from one to the other. A change of mode states everything: the kernel resets some of the rest.
    fn between(now: Option<BondSettings>, wanted: BondSettings) -> Self {
        let all = Self::from(wanted);
        match now {
            Some(now) if now.mode == wanted.mode => Self {
                mode: None,
                miimon_ms: all.miimon_ms.filter(|_| now.miimon_ms != wanted.miimon_ms),
                lacp_rate: all.lacp_rate.filter(|_| now.lacp_rate != wanted.lacp_rate),
                hash: all.hash.filter(|_| now.hash != wanted.hash),
            },
            _ => all,
        }
    }
}

impl From<BondSettings> for BondChange {
    fn from(settings: BondSettings) -> Self {
        let BondSettings { mode, miimon_ms, lacp_rate, hash } = settings;
        Self { mode: Some(mode), miimon_ms: Some(miimon_ms), lacp_rate, hash }
    }
}

impl fmt::Display for BondChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mode) = self.mode {
            write!(f, ", {mode:?}")?;
        }
        if let Some(milliseconds) = self.miimon_ms {
            write!(f, ", miimon {milliseconds} ms")?;
        }
        if let Some(rate) = self.lacp_rate {
            write!(f, ", rate {rate:?}")?;
        }
        self.hash.map_or(Ok(()), |hash| write!(f, ", hash {hash:?}"))
    }
}

/// What to do, and what cannot be done because hardware is missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Changes in order.
    pub steps: Vec<Step>,
    /// Roles for which no link is there, and the VLANs on them: their machine runs without them until they come.
    pub missing: Vec<String>,
}

/// Why there can be no plan: the site file and the machine contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One link answers to two roles.
    #[error("link {link} matches both roles {first} and {second}: each link can have one")]
    TwoRoles {
        /// Present name.
        link: String,
        /// Role.
        first: String,
        /// Other role.
        second: String,
    },
    /// Two links answer to one role.
    #[error(
        "role {role} matches both links {first} and {second}: a permanent MAC address or PCI address names one"
    )]
    TwoLinks {
        /// Role.
        role: String,
        /// Link.
        first: String,
        /// Other link.
        second: String,
    },
    /// A name that is needed belongs to something else.
    #[error("the name {name} is needed for {needed_for} but belongs to {holder}")]
    Taken {
        /// The name.
        name: String,
        /// What needs it.
        needed_for: String,
        /// What has it.
        holder: String,
    },
}

/// Prefix of the names that links have for a moment while two of them exchange theirs.
const TEMPORARY: &str = "dyadtmp";

/// Plans the way from `observed` to `network`. What is as it should be stays untouched; addresses, routes and bridge
/// members that the site does not know (a virtual IP, a guest's tap) are somebody else's and stay, too.
pub fn plan(observed: &Observed, network: &Network) -> Result<Plan, PlanError> {
    let mut planner = Planner {
        observed,
        network,
        plan: Plan::default(),
        down: BTreeSet::new(),
        up: Vec::new(),
        anew: Vec::new(),
    };
    planner.loopback();
    if network.links.is_empty() && network.bonds.is_empty() && network.bridges.is_empty() {
        planner.unconfigured();
    }
    let roles = planner.roles()?;
    planner.renames(&roles)?;
    for bond in &network.bonds {
        planner.bond(bond, &roles)?;
    }
    for vlan in &network.vlans {
        planner.vlan(vlan, &roles)?;
    }
    for bridge in &network.bridges {
        let members: Vec<&str> = bridge.members.iter().map(String::as_str).collect();
        planner.bridge(&bridge.name, &members, &roles)?;
    }
    planner.up_links(&roles);
    planner.addresses(&roles);
    planner.routes();
    Ok(planner.plan)
}

/// Links by role.
type Roles<'a> = BTreeMap<&'a str, &'a ObservedLink>;

struct Planner<'a> {
    observed: &'a Observed,
    network: &'a Network,
    plan: Plan,
    /// Links that an earlier step takes down, by the name that they have in the end.
    down: BTreeSet<String>,
    up: Vec<String>,
    /// Links that are deleted and made again: what they had is gone.
    anew: Vec<u32>,
}

impl<'a> Planner<'a> {
    fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    fn loopback(&mut self) {
        let down = self.observed.links.iter().find(|link| link.kind == LinkKind::Loopback && !link.up);
        if let Some(link) = down {
            self.step(Step::Up(link.name.clone()));
        }
    }

    fn unconfigured(&mut self) {
        for link in self.observed.links.iter().filter(|link| link.kind == LinkKind::Physical && !link.up) {
            self.plan.steps.push(Step::Up(link.name.clone()));
        }
    }

    /// Finds the link of each role.
    fn roles(&mut self) -> Result<Roles<'a>, PlanError> {
        let mut roles = Roles::new();
        for wanted in &self.network.links {
            let mut found = self.observed.links.iter().filter(|link| match &wanted.matches {
                LinkMatch::Mac(mac) => link.identity() == Some(*mac),
                LinkMatch::Pci(address) => {
                    link.kind == LinkKind::Physical && link.pci.as_ref() == Some(address)
                }
            });
            let Some(link) = found.next() else {
                self.plan.missing.push(wanted.role.clone());
                continue;
            };
            if let Some(second) = found.next() {
                return Err(PlanError::TwoLinks {
                    role: wanted.role.clone(),
                    first: link.name.clone(),
                    second: second.name.clone(),
                });
            }
            if let Some((first, _)) = roles.iter().find(|(_, other)| other.index == link.index) {
                return Err(PlanError::TwoRoles {
                    link: link.name.clone(),
                    first: (*first).to_owned(),
                    second: wanted.role.clone(),
                });
            }
            roles.insert(&wanted.role, link);
        }
        Ok(roles)
    }

    /// Gives links the names of their roles. A link must be down for that; at boot all are.
    fn renames(&mut self, roles: &Roles<'a>) -> Result<(), PlanError> {
        // Present name of every link; renames move through it.
        let mut names: BTreeMap<String, u32> =
            self.observed.links.iter().map(|link| (link.name.clone(), link.index)).collect();
        let mut waiting: Vec<(String, &str, &ObservedLink)> = roles
            .iter()
            .filter(|(role, link)| link.name != **role)
            .map(|(role, link)| (link.name.clone(), *role, *link))
            .collect();
        for (_, role, _) in &waiting {
            let elsewhere = self.observed.links.iter().find(|link| {
                let moves = waiting.iter().any(|(_, _, other)| other.index == link.index);
                (link.name == **role && !moves) || link.altnames.iter().any(|name| name == role)
            });
            // A link may have its own role as a further name: the kernel lets it take that only after giving it up.
            if let Some(holder) = elsewhere {
                return Err(PlanError::Taken {
                    name: (*role).to_owned(),
                    needed_for: format!("the link of role {role}"),
                    holder: format!("link {}", holder.name),
                });
            }
        }
        let mut temporary = 0;
        while !waiting.is_empty() {
            let free = waiting.iter().position(|(_, role, _)| !names.contains_key(*role));
            let (at, target) = match free {
                Some(at) => (at, waiting[at].1.to_owned()),
                // Only cycles are left: move one link out of the way.
                None => {
                    temporary += 1;
                    (0, format!("{TEMPORARY}{temporary}"))
                }
            };
            let (now, role, link) = &waiting[at];
            if link.up && *now == link.name {
                self.plan.steps.push(Step::Down(now.clone()));
                self.down.insert((*role).to_owned());
            }
            names.remove(now);
            names.insert(target.clone(), link.index);
            self.plan.steps.push(Step::Rename { from: now.clone(), to: target.clone() });
            if target == **role {
                let kernel_name = link.name.clone();
                waiting.remove(at);
                if !roles.contains_key(kernel_name.as_str()) {
                    self.plan.steps.push(Step::AltName { link: target, name: kernel_name });
                }
            } else {
                waiting[at].0 = target;
            }
        }
        Ok(())
    }

    /// A device of ours by name, or the refusal when the name is another thing's.
    fn own(&self, name: &str, kind: LinkKind, what: &str) -> Result<Option<&'a ObservedLink>, PlanError> {
        let alt = self.observed.links.iter().find(|link| link.altnames.iter().any(|other| other == name));
        match self.observed.named(name).or(alt) {
            Some(link) if link.kind == kind && link.name == name => Ok(Some(link)),
            Some(link) => Err(PlanError::Taken {
                name: name.to_owned(),
                needed_for: what.to_owned(),
                holder: format!("link {} ({:?})", link.name, link.kind),
            }),
            None => Ok(None),
        }
    }

    /// Cannot be there before more hardware is.
    fn missing(&self, name: &str) -> bool {
        self.plan.missing.iter().any(|missing| missing == name)
    }

    fn members_of(&self, controller: &ObservedLink) -> impl Iterator<Item = &'a ObservedLink> {
        let index = controller.index;
        self.observed.links.iter().filter(move |link| link.controller == Some(index))
    }

    fn bond(&mut self, bond: &'a Bond, roles: &Roles<'a>) -> Result<(), PlanError> {
        let wanted = BondSettings::from(bond);
        let there = self.own(&bond.name, LinkKind::Bond, "a bond")?;
        let mut rejoin = there.is_none();
        match there {
            None => self.step(Step::CreateBond(bond.name.clone(), wanted)),
            Some(link) => {
                let strangers: Vec<_> = self
                    .members_of(link)
                    .filter(|member| {
                        !bond.members.iter().any(|role| {
                            roles.get(role.as_str()).is_some_and(|link| link.index == member.index)
                        })
                    })
                    .map(|member| member.name.clone())
                    .collect();
                for stranger in strangers {
                    self.step(Step::Leave(stranger));
                }
                if link.bond != Some(wanted) {
                    rejoin = self.change_bond(bond, link, wanted, roles);
                }
                if !link.up {
                    self.down.insert(bond.name.clone());
                }
            }
        }
        for role in &bond.members {
            let Some(member) = roles.get(role.as_str()) else { continue };
            let joined = there.is_some_and(|link| member.controller == Some(link.index));
            if joined && !rejoin {
                continue;
            }
            if !joined && member.controller.is_some() {
                self.step(Step::Leave(role.clone()));
            } else if !joined && member.up && !self.down.contains(role) {
                // The kernel takes only links that are down; the bond brings them up itself.
                self.step(Step::Down(role.clone()));
            }
            self.step(Step::Join { link: role.clone(), controller: bond.name.clone() });
        }
        if there.is_none() || self.down.contains(&bond.name) {
            self.up.push(bond.name.clone());
        }
        Ok(())
    }

    /// Changes a bond with as little disturbance as the kernel allows; `true` when its members had to leave.
    fn change_bond(
        &mut self,
        bond: &Bond,
        link: &ObservedLink,
        wanted: BondSettings,
        roles: &Roles<'a>,
    ) -> bool {
        let change = BondChange::between(link.bond, wanted);
        let other_mode = change.mode.is_some();
        if other_mode {
            for role in &bond.members {
                if roles.get(role.as_str()).is_some_and(|member| member.controller == Some(link.index)) {
                    self.step(Step::Leave(role.clone()));
                }
            }
        }
        if (other_mode || change.lacp_rate.is_some()) && link.up {
            self.step(Step::Down(bond.name.clone()));
            self.down.insert(bond.name.clone());
        }
        self.step(Step::SetBond(bond.name.clone(), change));
        other_mode
    }

    fn vlan(&mut self, vlan: &'a Vlan, roles: &Roles<'a>) -> Result<(), PlanError> {
        let there = self.own(&vlan.name, LinkKind::Vlan, "a VLAN")?;
        let carrier = roles
            .get(vlan.link.as_str())
            .copied()
            .or_else(|| self.observed.named(&vlan.link).filter(|link| link.kind != LinkKind::Physical));
        if carrier.is_none() && !self.network.bonds.iter().any(|bond| bond.name == vlan.link) {
            // It comes with its card.
            self.plan.missing.push(vlan.name.clone());
            return Ok(());
        }
        let wanted = carrier.map(|carrier| (carrier.index, vlan.id));
        match there {
            Some(link) if wanted.is_some() && link.vlan == wanted => {
                if !link.up {
                    self.up.push(vlan.name.clone());
                }
                return Ok(());
            }
            Some(link) => {
                self.step(Step::Delete(vlan.name.clone()));
                self.anew.push(link.index);
            }
            None => {}
        }
        self.step(Step::CreateVlan { name: vlan.name.clone(), link: vlan.link.clone(), id: vlan.id });
        self.up.push(vlan.name.clone());
        Ok(())
    }

    fn bridge(&mut self, name: &str, members: &[&str], roles: &Roles<'a>) -> Result<(), PlanError> {
        let there = self.own(name, LinkKind::Bridge, "a bridge")?;
        match there {
            None => {
                let mac = members.iter().find_map(|member| self.hardware_mac(member, roles));
                self.step(Step::CreateBridge(name.to_owned(), mac));
                self.up.push(name.to_owned());
            }
            Some(link) if !link.up => self.up.push(name.to_owned()),
            Some(_) => {}
        }
        for member in members {
            let link = roles.get(member).copied().or_else(|| self.observed.named(member));
            let link = link.filter(|link| !self.anew.contains(&link.index));
            let bonds = self.network.bonds.iter().map(|bond| &bond.name);
            let mut made = bonds.chain(self.network.vlans.iter().map(|vlan| &vlan.name));
            let planned = made.any(|name| name == *member) && !self.missing(member);
            let joined = link.zip(there).is_some_and(|(link, bridge)| link.controller == Some(bridge.index));
            if joined || (link.is_none() && !planned) {
                continue;
            }
            if link.is_some_and(|link| link.controller.is_some()) {
                self.step(Step::Leave((*member).to_owned()));
            }
            self.step(Step::Join { link: (*member).to_owned(), controller: name.to_owned() });
        }
        Ok(())
    }

    /// The hardware address that a link, the first member of a bond, or what carries a VLAN has.
    fn hardware_mac(&self, name: &str, roles: &Roles<'a>) -> Option<Mac> {
        if let Some(link) = roles.get(name) {
            return link.identity();
        }
        if let Some(vlan) = self.network.vlans.iter().find(|vlan| vlan.name == name) {
            return self.hardware_mac(&vlan.link, roles);
        }
        let bond = self.network.bonds.iter().find(|bond| bond.name == name)?;
        bond.members.iter().find_map(|member| roles.get(member.as_str())?.identity())
    }

    fn up_links(&mut self, roles: &Roles<'a>) {
        for (role, link) in roles {
            let in_bond =
                self.network.bonds.iter().any(|bond| bond.members.iter().any(|member| member == role));
            // A bond brings its members up when they join; one that went down later is brought up here.
            let joins =
                self.plan.steps.iter().any(|step| matches!(step, Step::Join { link, .. } if link == role));
            if (!link.up || self.down.contains(*role)) && !(in_bond && joins) {
                self.plan.steps.push(Step::Up((*role).to_owned()));
            }
        }
        for name in std::mem::take(&mut self.up) {
            self.plan.steps.push(Step::Up(name));
        }
    }

    fn addresses(&mut self, roles: &Roles<'a>) {
        for wanted in &self.network.addresses {
            let link = roles.get(wanted.interface.as_str()).copied().or_else(|| {
                self.observed.named(&wanted.interface).filter(|link| link.kind != LinkKind::Physical)
            });
            if self.missing(&wanted.interface) {
                continue;
            }
            let there = link.is_some_and(|link| {
                !self.anew.contains(&link.index)
                    && self.observed.addresses.contains(&(link.index, wanted.address))
            });
            if !there {
                self.plan.steps.push(Step::AddAddress(wanted.interface.clone(), wanted.address));
            }
        }
    }

    fn routes(&mut self) {
        for wanted in &self.network.routes {
            let there = self
                .observed
                .routes
                .iter()
                .any(|route| route.to == wanted.to && route.via == Some(wanted.via));
            // A route through a network of a link that is missing cannot be made; it comes with the link.
            let reachable = self
                .network
                .addresses
                .iter()
                .any(|address| address.address.contains(wanted.via) && !self.missing(&address.interface));
            if !there && reachable {
                self.plan.steps.push(Step::SetRoute(*wanted));
            }
        }
    }
}
