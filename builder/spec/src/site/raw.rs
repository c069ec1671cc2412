//! The site file as written.

use std::net::{IpAddr, SocketAddr};

use super::{BondModeWord, HashPolicy, LacpRate, Pairing, Profile, PublicKey, WithoutWitness};
use crate::decode::{At, Entries, Int, Scalar, table};
use crate::overlay::SettingText;
use crate::scalar::{ByteSize, GucName, IfName, IpNet, Mac, Millis, Name, PciPath, Role, SqlName};

/// Keys that people try, and that must not exist.
fn secrets(key: &str) -> Option<&'static str> {
    let words = ["password", "passwd", "secret", "token", "psk", "private_key", "site_key", "key"];
    words
        .contains(&key)
        .then_some("secrets never stand in a site file: they are generated, or laid beside it")
}

table! {
    /// A site file: one cluster's names, addresses, storage and databases. No secret ever stands in it.
    pub(crate) struct RawSite refuse secrets {
        /// Name of the cluster.
        cluster: Name,
        /// How long a silence means loss: 3 s, 5 s or 15 s.
        profile: Profile = Profile::Lan,
        /// How two blank nodes prove that they belong together.
        pairing: Pairing = Pairing::Key,
        /// What a pair that has no witness does when one of the two is lost; not beside `witness`.
        without_witness: Option<At<WithoutWitness>>,
        /// The third vote.
        witness: Option<At<SocketAddr>>,
        /// Resolvers.
        dns: Vec<At<IpAddr>>,
        /// Time servers.
        ntp: Vec<At<IpAddr>>,
        /// The machines: one or two.
        nodes: At<Entries<Name, RawNode>>,
        /// Links that are found by the same PCI address on every node.
        links: Entries<Role, RawLink>,
        /// Several links as one, the same on every node.
        bonds: Entries<IfName, RawBond>,
        /// Tagged networks on links or bonds, the same on every node.
        vlans: Entries<IfName, RawVlan>,
        /// Bridges for virtual machines, the same on every node.
        bridges: Entries<IfName, RawBridge>,
        /// Static routes, the same on every node.
        routes: Vec<RawRoute>,
        /// Addresses that follow the writer.
        vips: Entries<Name, RawVip>,
        /// Services of the image that clients need beside PostgreSQL: where one of them is down and the other node's are not,
        /// the database moves there.
        client_services: Vec<At<Name>>,
        /// PostgreSQL.
        postgresql: RawPostgresql = RawPostgresql::default(),
        /// Replicated volumes.
        volumes: Entries<Name, RawVolume>,
        /// Virtual machines.
        vms: Entries<Name, RawVm>,
        /// Who may operate the cluster from afar: a name and a public key each.
        operators: Entries<Name, PublicKey>,
    }
}

table! {
    /// One machine.
    pub(crate) struct RawNode refuse secrets {
        /// Physical links of this machine, by role.
        links: Entries<Role, RawLink>,
        /// Static addresses, by interface.
        addresses: Entries<IfName, Vec<At<IpNet>>>,
    }
}

table! {
    /// How a physical link is found: by one of the two.
    pub(crate) struct RawLink {
        /// Permanent MAC address.
        mac: Option<At<Mac>>,
        /// PCI address.
        pci: Option<At<PciPath>>,
    }
}

table! {
    /// Several links as one.
    pub(crate) struct RawBond {
        /// How they work together.
        mode: BondModeWord,
        /// Roles of the members.
        members: At<Vec<At<Role>>>,
        /// Time between two looks at the carrier.
        miimon: At<Millis> = At { value: Millis::new(100), span: 0..0 },
        /// How often the ends hear of each other; 802.3ad only, "fast" without this key.
        lacp_rate: Option<At<LacpRate>>,
        /// What spreads the traffic; 802.3ad only, "layer3+4" without this key.
        hash_policy: Option<At<HashPolicy>>,
    }
}

table! {
    /// One tagged network of those that a cable carries (802.1Q).
    pub(crate) struct RawVlan {
        /// A link's role or a bond.
        link: At<IfName>,
        /// Its number.
        id: Int<1, 4094>,
    }
}

table! {
    /// A bridge.
    pub(crate) struct RawBridge {
        /// Links, bonds and VLANs in it; without any it joins only the machines of one node.
        members: Vec<At<IfName>>,
    }
}

table! {
    /// A static route.
    pub(crate) struct RawRoute {
        /// Network, or "default".
        to: At<RouteTo>,
        /// Gateway.
        via: At<IpAddr>,
    }
}

table! {
    /// An address that follows the writer.
    pub(crate) struct RawVip {
        /// Address and prefix length.
        address: At<IpNet>,
        /// A link's role, a bond, a VLAN or a bridge.
        interface: At<IfName>,
    }
}

table! {
    /// PostgreSQL.
    pub(crate) struct RawPostgresql refuse secrets {
        /// Port.
        port: Int<1, 65535> = Int(5432),
        /// Memory for shared pages; without this key an eighth of the machine's.
        shared_buffers: Option<ByteSize>,
        /// Memory for one sort or hash.
        work_mem: Option<ByteSize>,
        /// Memory for one maintenance job.
        maintenance_work_mem: Option<ByteSize>,
        /// What the planner assumes is cached.
        effective_cache_size: Option<ByteSize>,
        /// Sessions at a time.
        max_connections: Option<Int<10, 10000>>,
        /// Most that a copy of the whole data takes from the primary in a second; without this key as much as there is.
        copy_rate: Option<At<ByteSize>>,
        /// Further settings; not those that the appliance decides itself.
        settings: Entries<GucName, SettingText>,
        /// Roles that may log in; their passwords are generated.
        roles: Entries<SqlName, RawSqlRole>,
        /// Databases.
        databases: Entries<SqlName, RawDatabase>,
        /// Who may connect from where; without any rule, every network of the node with a password.
        access: Vec<RawAccess>,
    }
}

impl Default for RawPostgresql {
    fn default() -> Self {
        RawPostgresql {
            port: Int(5432),
            shared_buffers: None,
            work_mem: None,
            maintenance_work_mem: None,
            effective_cache_size: None,
            max_connections: None,
            copy_rate: None,
            settings: Entries(Vec::new()),
            roles: Entries(Vec::new()),
            databases: Entries(Vec::new()),
            access: Vec::new(),
        }
    }
}

table! {
    /// A role that may log in.
    pub(crate) struct RawSqlRole refuse secrets {
        /// May make databases.
        create_db: bool = false,
    }
}

table! {
    /// A database.
    pub(crate) struct RawDatabase {
        /// One of the roles.
        owner: At<SqlName>,
    }
}

table! {
    /// Who may connect from where; always with a password.
    pub(crate) struct RawAccess refuse secrets {
        /// A database of this file; without this key all.
        database: Option<At<SqlName>>,
        /// A role of this file; without this key all.
        role: Option<At<SqlName>>,
        /// From where.
        network: At<IpNet>,
        /// Over TLS only; false also lets in who does not ask for it.
        tls: bool = true,
    }
}

table! {
    /// A replicated block device.
    pub(crate) struct RawVolume {
        /// Size.
        size: At<ByteSize>,
    }
}

table! {
    /// A virtual machine.
    pub(crate) struct RawVm refuse secrets {
        /// Main memory.
        memory: At<ByteSize>,
        /// Virtual processors.
        cpus: Int<1, 128> = Int(1),
        /// Its disk.
        volume: At<Name>,
        /// Bridge that it is attached to.
        bridge: Option<At<IfName>>,
        /// MAC address of its card.
        mac: Option<At<Mac>>,
        /// Higher starts first.
        priority: Int<0, 1000> = Int(100),
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RouteTo {
    /// Everywhere.
    Default,
    /// A network.
    Net(IpNet),
}

impl Scalar for RouteTo {
    const ACCEPTED: &'static str = "\"default\" or a network such as \"198.51.100.0/24\"";
    fn parse(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(RouteTo::Default);
        }
        IpNet::parse(text).map(RouteTo::Net)
    }
}
