//! Finishing TCP and UDP checksums of frames that the host's kernel hands over.
//!
//! The kernel leaves these sums to the NIC (a veth pair says it has checksum offload, and turning that off takes an
//! ioctl without a safe wrapper). Whoever reads frames from the pair is the NIC, so the sums are computed here.

const ETHER_HEADER: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Bytes that the destination option and hop-by-hop headers of IPv6 may take before a frame is passed as it is.
const EXTENSIONS_MAX: usize = 8;

/// Writes the transport checksum into an Ethernet frame with an unfragmented TCP or UDP packet; leaves others alone.
pub(crate) fn complete(frame: &mut [u8]) {
    let Some(ether_type) = frame.get(12..14) else { return };
    let found = match (ether_type[0], ether_type[1]) {
        (0x08, 0x00) => ipv4(&frame[ETHER_HEADER..]),
        (0x86, 0xdd) => ipv6(&frame[ETHER_HEADER..]),
        _ => None,
    };
    let Some(Segment { protocol, start, end, pseudo }) = found else { return };
    let Some(segment) = frame.get_mut(ETHER_HEADER + start..ETHER_HEADER + end) else { return };
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return,
    };
    if segment.len() < at + 2 {
        return;
    }
    segment[at..at + 2].fill(0);
    let length = segment.len() as u64;
    let sum = fold(pseudo + u64::from(protocol) + length + sum(segment));
    // A UDP sum of zero means "none", so that value is sent as its other form.
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A transport segment inside an IP packet: where it lies and the sum of the two addresses.
struct Segment {
    protocol: u8,
    start: usize,
    end: usize,
    pseudo: u64,
}

fn ipv4(packet: &[u8]) -> Option<Segment> {
    let start = usize::from(packet.first()? & 0x0f) * 4;
    let end = usize::from(be16(packet, 2)?);
    let fragment = be16(packet, 6)? & 0x3fff;
    if start < 20 || end < start || fragment != 0 {
        return None;
    }
    Some(Segment { protocol: *packet.get(9)?, start, end, pseudo: sum(packet.get(12..20)?) })
}

fn ipv6(packet: &[u8]) -> Option<Segment> {
    let end = 40 + usize::from(be16(packet, 4)?);
    let mut protocol = *packet.get(6)?;
    let mut start = 40;
    for _ in 0..EXTENSIONS_MAX {
        match protocol {
            // Hop-by-hop and destination options: next header, then length in eight-byte units beyond the first.
            0 | 60 => {
                protocol = *packet.get(start)?;
                start += 8 + 8 * usize::from(*packet.get(start + 1)?);
            }
            TCP | UDP if start <= end => {
                return Some(Segment { protocol, start, end, pseudo: sum(packet.get(8..40)?) });
            }
            _ => return None,
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn sum(bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(2);
    let mut total: u64 = pairs.by_ref().map(|p| u64::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    if let [last] = pairs.remainder() {
        total += u64::from(*last) << 8;
    }
    total
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet whose checksum is not there yet.
    fn udp4(payload: &[u8]) -> Vec<u8> {
        let mut f = vec![0; 12];
        f.extend([0x08, 0x00, 0x45, 0]);
        f.extend((28 + payload.len() as u16).to_be_bytes());
        f.extend([0, 0, 0x40, 0, 64, UDP, 0, 0, 10, 77, 0, 1, 10, 77, 0, 11]);
        f.extend([0x30, 0x39, 0x00, 0x35]);
        f.extend((8 + payload.len() as u16).to_be_bytes());
        f.extend([0xde, 0xad]);
        f.extend(payload);
        f
    }

    /// Adding up a segment with its checksum in place and the pseudo header gives all ones.
    fn holds(frame: &[u8]) -> bool {
        let seg = match frame[13] {
            0x00 => ipv4(&frame[14..]),
            _ => ipv6(&frame[14..]),
        }
        .unwrap();
        let body = &frame[14 + seg.start..14 + seg.end];
        fold(seg.pseudo + u64::from(seg.protocol) + body.len() as u64 + sum(body)) == 0
    }

    #[test]
    fn known_udp_checksum() {
        // 10.77.0.1:12345 -> 10.77.0.11:53, "hi": 0a4d+0001+0a4d+000b+0011+000a+3039+0035+000a+6869 = ada2.
        let mut f = udp4(b"hi");
        complete(&mut f);
        assert_eq!(f[40..42], (!0xada2u16).to_be_bytes());
        assert!(holds(&f));
    }

    #[test]
    fn odd_lengths_padding_and_ipv6_with_options() {
        let mut f = udp4(b"odd");
        f.extend([0x55; 15]);
        complete(&mut f);
        assert!(holds(&f), "Ethernet padding after the packet is not summed");
        assert_eq!(f[f.len() - 15..], [0x55; 15]);

        let mut six = vec![0; 12];
        six.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, 0, 64]);
        six.extend([0xfd; 32]);
        six.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        six.extend([0x12; 20]);
        complete(&mut six);
        assert!(holds(&six));
        assert_ne!(six[14 + 48 + 16..14 + 48 + 18], [0x12, 0x12]);
    }

    #[test]
    fn fragments_other_protocols_and_rubbish_stay_as_they_are() {
        let mut fragment = udp4(b"hi");
        fragment[20] = 0x20;
        let mut icmp = udp4(b"hi");
        icmp[23] = 1;
        let mut lying = udp4(b"hi");
        lying[16] = 0xff;
        for original in [fragment, icmp, lying, vec![0x08; 14], vec![8; 3], Vec::new()] {
            let mut f = original.clone();
            complete(&mut f);
            assert_eq!(f, original);
        }
        for cut in 0..udp4(b"hi").len() {
            complete(&mut udp4(b"hi")[..cut]);
        }
    }
}
