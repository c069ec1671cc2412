//! The lab's network: the user-space switch under virtual machines, the kernel's bridges under containers. Both know the
//! same cuts, by the names of members.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control::Cable;
use crate::error::{Result, refuse};
use crate::netlink::{self, Far, Netlink};
use crate::process::Program;
use crate::switch::fabric::{Link, PortId};
use crate::switch::relay::Relay;
use crate::topology::{HOST, Node, Role, port_name};

/// How long `nft` may take.
const NFT_WAIT: Duration = Duration::from_secs(10);
/// The chain that all frames between two ports of a bridge go through, empty. Each change makes the table anew: the bridges
/// are the lab's own, and a chain that is older than the first of them sees nothing (Linux 6.18).
const NFT_EMPTY: &str = "add table bridge lab; delete table bridge lab; add table bridge lab; \
     add chain bridge lab cuts { type filter hook forward priority 0; policy accept; }";

/// From whom, to whom.
pub(crate) type Cut = (String, String);

/// The network of one lab.
pub(crate) enum Network {
    /// Virtual machines.
    Switch(Arc<Relay>),
    /// Containers.
    Bridges(Bridges),
}

/// Bridges in the lab's network namespace.
pub(crate) struct Bridges {
    nft: Program,
    state: Mutex<State>,
}

#[derive(Default, Clone)]
struct State {
    cuts: BTreeSet<Cut>,
    /// Members that stand still: the kernel would answer for them.
    silent: BTreeSet<String>,
    /// Ports that lose every frame.
    mute: BTreeSet<String>,
}

/// A port made by [`Network::plug`].
pub(crate) enum Plugged {
    /// A port of the switch.
    Port(PortId),
    /// An interface that is a bridge's port.
    Interface(String),
}

impl Network {
    /// The switch with the host's port. In a fresh network namespace that this process owns.
    pub(crate) fn with_switch() -> Result<Self> {
        let host = netlink::switch_port()?;
        let relay = Relay::start()?;
        relay.plug_host(HOST, host)?;
        Ok(Network::Switch(Arc::new(relay)))
    }

    /// The bridges of a lab of so many nodes, with the host's port. In a fresh network namespace that this process owns.
    pub(crate) fn with_bridges(nft: Program, nodes: u8) -> Result<Self> {
        let netlink = Netlink::open()?;
        let wires = Node::first(nodes).flat_map(|n| Role::ALL.map(|role| bridge(n.link(role))));
        for name in wires.collect::<BTreeSet<_>>() {
            netlink.bridge(&name)?;
        }
        netlink::bridge_port(&netlink, &port_name(HOST, "lan0"), &bridge(Link::Lan))?;
        Ok(Network::Bridges(Bridges { nft, state: Mutex::default() }))
    }

    /// The switch, into which machines plug their NICs.
    pub(crate) fn switch(&self) -> Result<&Arc<Relay>> {
        match self {
            Network::Switch(relay) => Ok(relay),
            Network::Bridges(_) => refuse("a lab of containers has no switch"),
        }
    }

    /// Gives the network namespace of a process an interface on `link`. It is gone with the namespace.
    pub(crate) fn plug(&self, owner: &str, link: Link, far: &Far<'_>) -> Result<Plugged> {
        let netlink = Netlink::open()?;
        let near = port_name(owner, far.name);
        // The kernel takes a moment to remove what belonged to a process that has just ended.
        netlink.remove(&near)?;
        netlink.veth(&near, far)?;
        match self {
            Network::Switch(relay) => {
                let socket = netlink::cable(&netlink, &near)?;
                Ok(Plugged::Port(relay.plug_packet(owner, link, socket)?))
            }
            Network::Bridges(_) => {
                netlink.port(&near, &bridge(link))?;
                Ok(Plugged::Interface(near))
            }
        }
    }

    /// Takes a port out.
    pub(crate) fn unplug(&self, port: &Plugged) {
        match (self, port) {
            (Network::Switch(relay), Plugged::Port(port)) => relay.unplug(*port),
            // It went with the namespace at its other end, or goes when its name is wanted again.
            (Network::Bridges(bridges), Plugged::Interface(name)) => {
                if bridges.lock().mute.contains(name)
                    && let Err(e) = bridges.mute(name, false)
                {
                    eprintln!("daemon: {name}: {e}");
                }
                let _ = Netlink::open().and_then(|n| n.remove(name));
            }
            (Network::Switch(_), Plugged::Interface(_)) | (Network::Bridges(_), Plugged::Port(_)) => {}
        }
    }

    /// Drops everything that goes from the first to the second of each pair.
    pub(crate) fn cut(&self, pairs: &[Cut]) -> Result<()> {
        self.change(|cuts| cuts.extend(pairs.iter().cloned()))
    }

    /// Undoes these cuts.
    pub(crate) fn heal(&self, pairs: &[Cut]) -> Result<()> {
        self.change(|cuts| cuts.retain(|cut| !pairs.contains(cut)))
    }

    /// Undoes all cuts.
    pub(crate) fn heal_all(&self) -> Result<()> {
        self.change(BTreeSet::clear)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Cut>)) -> Result<()> {
        match self {
            Network::Switch(relay) => {
                relay.with_fabric(|f| {
                    let mut cuts = f.cuts().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
                    change(&mut cuts);
                    f.set_cuts(cuts.iter().map(|(a, b)| (a.as_str(), b.as_str())));
                });
                Ok(())
            }
            Network::Bridges(bridges) => bridges.change(|state| change(&mut state.cuts)),
        }
    }

    /// Lets nothing from or to a member pass while it stands still, or lets all pass again.
    pub(crate) fn silence(&self, member: &str, silent: bool) -> Result<()> {
        match self {
            Network::Switch(relay) => {
                relay.with_fabric(|f| f.silence(member, silent));
                Ok(())
            }
            Network::Bridges(bridges) => bridges.change(|state| {
                state.silent.remove(member);
                state.silent.extend(silent.then(|| member.to_owned()));
            }),
        }
    }

    /// Plugs the cable of a port in, pulls it, or lets it carry nothing.
    pub(crate) fn cable(&self, port: &Plugged, cable: Cable) -> Result<()> {
        match (self, port) {
            (Network::Bridges(bridges), Plugged::Interface(name)) => {
                bridges.mute(name, cable == Cable::Silent)?;
                Netlink::open()?.carrier(name, cable != Cable::Unplugged)
            }
            (Network::Switch(_), _) | (_, Plugged::Port(_)) => {
                refuse("the cable of a machine's NIC is pulled at the machine")
            }
        }
    }

    /// The cuts in force.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        match self {
            Network::Switch(relay) => {
                relay.with_fabric(|f| f.cuts().map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
            }
            Network::Bridges(bridges) => bridges.lock().cuts.iter().cloned().collect(),
        }
    }
}

impl Bridges {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops every frame from and to a port, or no longer.
    fn mute(&self, port: &str, mute: bool) -> Result<()> {
        self.change(|state| {
            state.mute.remove(port);
            state.mute.extend(mute.then(|| port.to_owned()));
        })
    }

    /// One transaction of the packet filter, or no change.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.lock();
        let mut next = state.clone();
        change(&mut next);
        self.nft.output(&[&rules(&next)], &[], NFT_WAIT)?;
        *state = next;
        Ok(())
    }
}

/// The bridge of a link.
fn bridge(link: Link) -> String {
    match link {
        Link::Lan => "lan".to_owned(),
        Link::Wire(number) => format!("wire{number}"),
    }
}

fn rules(state: &State) -> String {
    let mut text = NFT_EMPTY.to_owned();
    let mut rule = |words: String| text += &format!("; add rule bridge lab cuts {words} drop");
    for (from, to) in &state.cuts {
        rule(format!("iifname \"{}\" oifname \"{}\"", port_name(from, "*"), port_name(to, "*")));
    }
    let silent = state.silent.iter().map(|member| port_name(member, "*"));
    for ports in silent.chain(state.mute.iter().cloned()) {
        rule(format!("iifname \"{ports}\""));
        rule(format!("oifname \"{ports}\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_one_rule_in_one_direction() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let cuts = BTreeSet::from([pair("node-a", "witness")]);
        let state = State {
            cuts,
            silent: BTreeSet::from(["node-b".to_owned()]),
            mute: BTreeSet::from(["node-a-repl0".to_owned()]),
        };
        assert_eq!(
            rules(&state).strip_prefix(NFT_EMPTY),
            Some(
                "; add rule bridge lab cuts iifname \"node-a-*\" oifname \"witness-*\" drop\
                 ; add rule bridge lab cuts iifname \"node-b-*\" drop\
                 ; add rule bridge lab cuts oifname \"node-b-*\" drop\
                 ; add rule bridge lab cuts iifname \"node-a-repl0\" drop\
                 ; add rule bridge lab cuts oifname \"node-a-repl0\" drop"
            )
        );
        assert_eq!(rules(&State::default()), NFT_EMPTY);
    }
}
