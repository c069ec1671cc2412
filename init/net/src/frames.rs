//! Ethernet frames with which an address is asked for and announced: ARP (RFC 826, 5227) and neighbour discovery
//! (RFC 4861, 4862). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dyad_spec::Mac;

const BROADCAST: [u8; 6] = [0xff; 6];
const ICMP6: u8 = 58;
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;
/// This advertisement replaces what neighbours remember.
const OVERRIDE: u32 = 1 << 29;
const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// Ethernet type of the frames that speak of an address.
pub fn ethertype(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => 0x0806,
        IpAddr::V6(_) => 0x86dd,
    }
}

/// Asks whether somebody has an address, without claiming any.
pub fn probe(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_request(own, Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => solicit(own, Ipv6Addr::UNSPECIFIED, address),
    }
}

/// Asks a neighbour for a sign of life, from an address of one's own. `None`: they are of two families.
pub fn ask(own: Mac, from: IpAddr, neighbour: IpAddr) -> Option<Vec<u8>> {
    match (from, neighbour) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(arp_request(own, from, to)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(solicit(own, from, to)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// Tells everybody on the link that this address is here now.
pub fn announce(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_request(own, address, address),
        IpAddr::V6(address) => {
            let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            // Option 2: the link address of the target.
            icmp6(own, address, all, ADVERTISE, OVERRIDE, address, Some(2))
        }
    }
}

/// Who says in this frame to have which address; `None`: it says nothing of the kind.
pub fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let body = frame.get(ETHERNET..)?;
    let mac = |bytes: Option<&[u8]>| <[u8; 6]>::try_from(bytes?).ok().map(Mac);
    match frame.get(12..14)? {
        // Ethernet and IPv4, requests and replies: the sender's pair of addresses.
        [0x08, 0x06] if body.get(..6)? == [0, 1, 8, 0, 6, 4] => {
            let sender: [u8; 4] = body.get(14..18)?.try_into().ok()?;
            (sender != [0; 4]).then_some((IpAddr::from(sender), mac(body.get(8..14))?))
        }
        [0x86, 0xdd] if body.get(6)? == &ICMP6 && body.get(IPV6)? == &ADVERTISE => {
            let target: [u8; 16] = body.get(IPV6 + 8..IPV6 + 24)?.try_into().ok()?;
            let own = mac(frame.get(6..12))?;
            Some((IpAddr::from(target), own))
        }
        _ => None,
    }
}

fn arp_request(own: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, own, [0x08, 0x06]);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&own.0);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&target.octets());
    frame
}

fn solicit(own: Mac, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
    group[13..].copy_from_slice(&[a, b, c]);
    // Option 1: the link address of the sender, which one without an address must not give.
    let option = (!sender.is_unspecified()).then_some(1);
    icmp6(own, sender, group.into(), SOLICIT, 0, target, option)
}

fn icmp6(
    own: Mac,
    sender: Ipv6Addr,
    group: Ipv6Addr,
    kind: u8,
    flags: u32,
    target: Ipv6Addr,
    option: Option<u8>,
) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0];
    body.extend_from_slice(&flags.to_be_bytes());
    body.extend_from_slice(&target.octets());
    if let Some(option) = option {
        body.extend_from_slice(&[option, 1]);
        body.extend_from_slice(&own.0);
    }
    let mut pseudo = Vec::from(sender.octets());
    pseudo.extend_from_slice(&group.octets());
    pseudo.extend_from_slice(&[0, 0, 0, body.len() as u8, 0, 0, 0, ICMP6]);
    pseudo.extend_from_slice(&body);
    body[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let group = group.octets();
    let mut frame = ethernet([0x33, 0x33, group[12], group[13], group[14], group[15]], own, [0x86, 0xdd]);
    // Hop limit 255: a frame from another link would have less.
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, body.len() as u8, ICMP6, 255]);
    frame.extend_from_slice(&sender.octets());
    frame.extend_from_slice(&group);
    frame.extend_from_slice(&body);
    frame
}

fn ethernet(to: [u8; 6], from: Mac, kind: [u8; 2]) -> Vec<u8> {
    [&to[..], &from.0, &kind].concat()
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn an_announcement_is_a_claim_and_a_probe_is_none() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(claim(&announce(OWN, address)), Some((address, OWN)));
            assert_eq!(claim(&probe(OWN, address)), None);
            for cut in 0..announce(OWN, address).len().min(40) {
                claim(&announce(OWN, address)[..cut]);
            }
        }
        assert_eq!(ask(OWN, "192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()), None);
    }

    proptest::proptest! {
        /// Whatever is on the wire: an answer names what stands in the frame, and never a place beyond its end.
        #[test]
        fn any_frame_is_read_or_passed_over(
            kind in proptest::sample::select(vec![[0x08_u8, 0x06], [0x86, 0xdd], [0x08, 0x00]]),
            marked in proptest::bool::ANY,
            mut body in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
        ) {
            // Half of them have the marks that are looked for.
            if marked {
                let marks: &[(usize, u8)] = match kind {
                    [0x08, _] => &[(0, 0), (1, 1), (2, 8), (3, 0), (4, 6), (5, 4)],
                    _ => &[(6, ICMP6), (IPV6, ADVERTISE)],
                };
                for (at, byte) in marks {
                    if let Some(place) = body.get_mut(*at) {
                        *place = *byte;
                    }
                }
            }
            let frame = [&[0xff; 6][..], &OWN.0, &kind, &body].concat();
            if let Some((address, _)) = claim(&frame) {
                let octets = match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                proptest::prop_assert!(body.windows(octets.len()).any(|window| window == octets));
            }
        }
    }

    #[test]
    fn checksums_come_to_nothing() {
        let frame = announce(OWN, "2001:db8::7".parse().unwrap());
        let body = &frame[ETHERNET + IPV6..];
        let mut pseudo = frame[ETHERNET + 8..ETHERNET + IPV6].to_vec();
        pseudo.extend_from_slice(&[0, 0, 0, body.len() as u8, 0, 0, 0, ICMP6]);
        pseudo.extend_from_slice(body);
        assert_eq!(checksum(&pseudo), 0);
    }
}
