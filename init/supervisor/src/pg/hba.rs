//! Who may connect: `pg_hba.conf` and `pg_ident.conf`.

use dyad_spec::site::Access;

use crate::pg::stance::Stance;

/// Text of `pg_ident.conf`: root and postgres are the superuser over the unix socket.
pub(crate) const IDENT: &str = "# Written by the supervisor; what is changed here is put back.\n\
     dyad root postgres\n\
     dyad postgres postgres\n";

/// Text of `pg_hba.conf`. Without rules of the site every network that the node itself is in may try, over TLS and with a
/// password.
pub(crate) fn render(rules: &[Access], stance: &Stance) -> String {
    let mut out = String::from(
        "# Written by the supervisor; what is changed here is put back. Rules belong in the site file.\n\
         local all postgres peer map=dyad\n",
    );
    out.push_str(&stance.access());
    out.push_str(
        "local all all scram-sha-256\n\
         # The superuser has no password and never comes over the network.\n\
         host all postgres all reject\n",
    );
    if rules.is_empty() {
        out.push_str("hostssl all all samehost scram-sha-256\nhostssl all all samenet scram-sha-256\n");
    }
    for Access { database, role, network, tls } in rules {
        let kind = if *tls { "hostssl" } else { "host" };
        out.push_str(&format!("{kind} {} {} {network} scram-sha-256\n", name(database), name(role)));
    }
    out
}

/// `all` keeps its meaning; any other name is quoted, so that none is a keyword, a group or a file.
fn name(text: &str) -> String {
    if text == "all" { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use dyad_spec::IpNet;

    use super::*;

    #[test]
    fn without_rules_the_nodes_own_networks_may_try() {
        assert_eq!(render(&[], &Stance::alone()), include_str!("../../tests/golden/pg_hba_default.conf"));
    }

    #[test]
    fn rules_of_the_site_come_after_the_fixed_ones_and_are_quoted() {
        let rule = |database: &str, role: &str, address: [u8; 4], prefix, tls| Access {
            database: database.into(),
            role: role.into(),
            network: IpNet { address: address.into(), prefix },
            tls,
        };
        let rules =
            [rule("shop", "app", [10, 0, 0, 0], 24, false), rule("all", "+staff", [192, 0, 2, 7], 32, true)];
        assert_eq!(render(&rules, &Stance::alone()), include_str!("../../tests/golden/pg_hba_site.conf"));
    }
}
