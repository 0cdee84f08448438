//! A server of a [`World`] that means ill, or somebody between it and the gateway: what it answers is others' answers, changed, late, many
//! times, or nothing; and it speaks unasked.

use std::net::{Ipv4Addr, SocketAddr};

use engine::entropy::Entropy;
use engine::gateway::Event;
use engine::time::Duration;
use wire::natpmp;
use wire::pcp::{self, Body, OptionCode, PcpOption, Protocol, ResultCode};

use super::{EXTERNAL, Parcel, SERVER, World};

/// Answers that may come once more.
const REMEMBERED: usize = 16;
/// External addresses that nobody should believe, and some that look well.
const ADDRESSES: [Ipv4Addr; 9] = [
    EXTERNAL,
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(192, 168, 1, 1),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::new(198, 51, 100, 9),
];

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Tamper {
    /// So many of sixteen answers are changed; 0: it is honest.
    share: u8,
    remembered: Vec<Vec<u8>>,
}

impl World {
    /// From now on so many of sixteen answers of the provider's servers are not as they should be.
    pub fn tamper(&mut self, share: u8) {
        self.note(format!("of sixteen answers {share} are tampered with"));
        self.tamper.share = share;
        if share == 0 {
            self.tamper.remembered.clear();
            // Nor does what was said late, some minutes ago, come any more.
            let (now, delay) = (self.now, self.link.delay * 2);
            self.parcels.retain(|(at, _), parcel| {
                !matches!(parcel, Parcel::ToGateway { .. } | Parcel::Announcement(_)) || *at <= now + delay
            });
        }
    }

    pub(super) fn tampers(&self) -> bool {
        self.tamper.share > 0
    }

    fn roll(&mut self, sides: u16) -> u16 {
        let mut octets = [0; 2];
        self.entropy.fill(&mut octets);
        u16::from_be_bytes(octets) % sides
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.roll(u16::try_from(of.len()).unwrap_or(u16::MAX)))]
    }

    /// What comes of an answer, and after how long.
    pub(super) fn on_the_way_back(&mut self, answer: Option<Vec<u8>>) -> Vec<(Duration, Vec<u8>)> {
        let delay = self.link.delay;
        if self.roll(16) >= self.tamper.share.into() {
            return answer.into_iter().map(|bytes| (delay, bytes)).collect();
        }
        let Some(bytes) = answer.or_else(|| self.tamper.remembered.last().cloned()) else {
            return Vec::new();
        };
        self.tamper.remembered.insert(0, bytes.clone());
        self.tamper.remembered.truncate(REMEMBERED);
        match self.roll(10) {
            0 => Vec::new(),
            1 => {
                let late = self.one_of(&[300, 1500, 4000, 19_000, 60_000, 700_000]);
                vec![(Duration::from_millis(late), bytes)]
            }
            2 => {
                let times = 2 + u64::from(self.roll(20));
                (0..times).map(|nth| (delay + Duration::from_millis(nth * 7), bytes.clone())).collect()
            }
            3 => {
                let nth = usize::from(self.roll(16)) % self.tamper.remembered.len();
                vec![(delay, self.tamper.remembered[nth].clone()), (delay, bytes)]
            }
            4 => {
                let lie = self.lie_about_versions(&bytes);
                vec![(delay, lie)]
            }
            5 => {
                let garbage = self.garble(&bytes);
                vec![(delay, garbage), (delay, bytes)]
            }
            _ => {
                let changed = self.change(&bytes);
                // The right answer comes after it, or never.
                let right = (self.roll(2) == 0).then_some((delay + Duration::from_millis(5), bytes));
                std::iter::once((delay, changed)).chain(right).collect()
            }
        }
    }

    fn lie_about_versions(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self.roll(4) {
            0 => natpmp::Response::UnsupportedVersion { opcode: 128, epoch: self.roll(9).into() }.to_bytes(),
            1 => pcp::error_response(bytes, ResultCode::UNSUPP_VERSION, 1800, 7),
            2 => {
                let mut lie = pcp::error_response(bytes, ResultCode::UNSUPP_VERSION, u32::MAX, 0);
                lie[0] = self.one_of(&[0, 1, 3, 255]);
                lie
            }
            _ => [0, 129, 0, 1, 0, 0, 0, 9].to_vec(),
        }
    }

    /// Octets are others, missing, or too many.
    fn garble(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self.roll(4) {
            0 => {
                let len = usize::from(self.roll(70)).min(bytes.len());
                bytes.truncate(len);
            }
            1 => {
                let more = usize::from(self.roll(1200));
                bytes.extend(vec![self.entropy.derive(b"more")[0]; more]);
            }
            2 => self.entropy.fill(&mut bytes),
            _ => {
                for _ in 0..=self.roll(4) {
                    let at = usize::from(self.roll(u16::try_from(bytes.len()).unwrap_or(1).max(1)));
                    let bit = 1 << self.roll(8);
                    if let Some(octet) = bytes.get_mut(at) {
                        *octet ^= bit;
                    }
                }
            }
        }
        bytes
    }

    /// A whole answer, with something in it that is not so.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Ok(mut response) = pcp::Response::parse(bytes) else { return self.garble(bytes) };
        for _ in 0..=self.roll(2) {
            let (addr, port) =
                (self.one_of(&ADDRESSES), self.one_of(&[0, 1, 22, 80, 5351, 5003, 40_000, 65_535]));
            match self.roll(8) {
                0 => response.lifetime = self.one_of(&[0, 1, 3, 30, 86_400, u32::MAX]),
                1 => {
                    response.epoch =
                        self.one_of(&[0, 1, u32::MAX, response.epoch / 2, response.epoch.wrapping_add(9000)]);
                }
                2 => {
                    let result = u8::try_from(self.roll(30)).unwrap_or_default();
                    response.result = ResultCode(result);
                }
                3 => match self.roll(3) {
                    0 => response.options.clear(),
                    1 => response.options.push(PcpOption::ThirdParty(addr.to_ipv6_mapped())),
                    _ => {
                        let (code, data) = (OptionCode(200), vec![7; 9]);
                        response.options.push(PcpOption::Unknown { code, data });
                    }
                },
                what => {
                    if let Body::Map(map) = &mut response.body {
                        match what {
                            4 => map.external_addr = addr.to_ipv6_mapped(),
                            5 => map.external_port = port,
                            6 => map.nonce.0[0] ^= 1,
                            _ if port < 100 => map.protocol = Protocol(map.protocol.0 ^ 23),
                            _ => map.internal_port ^= 1,
                        }
                    }
                }
            }
        }
        let changed = response.to_bytes();
        if changed.len() <= pcp::MAX_LEN { changed } else { bytes.to_vec() }
    }

    /// The server speaks unasked: an old answer, an announcement of another life, garbage; by itself or by somebody else.
    pub fn server_says_something(&mut self) {
        let server = SocketAddr::V4(SERVER);
        let other = SocketAddr::from(([100, 64, 0, 9], pcp::SERVER_PORT));
        let from = if self.roll(8) == 0 { other } else { server };
        let nth = usize::from(self.roll(16)) % self.tamper.remembered.len().max(1);
        let old = self.tamper.remembered.get(nth).cloned().unwrap_or(vec![2, 129, 0, 0]);
        match self.roll(6) {
            0 => self.handle(Event::Uplink { from, bytes: &old }),
            1 => {
                let garbage = self.garble(&old);
                self.handle(Event::Uplink { from, bytes: &garbage });
            }
            2 => self.handle(Event::UplinkUnreachable(from)),
            3 => {
                let changed = self.change(&old);
                self.handle(Event::Uplink { from, bytes: &changed });
            }
            _ => {
                let epoch = self.one_of(&[0, 1, 2, 100_000, u32::MAX]);
                let (result, body) = (ResultCode::SUCCESS, Body::Announce);
                let said = pcp::Response { result, lifetime: 0, epoch, body, options: Vec::new() };
                let bytes = said.to_bytes();
                let multicast = self.roll(2) == 0 || !self.open;
                self.handle(if multicast {
                    Event::Announcement { from, bytes: &bytes }
                } else {
                    Event::Uplink { from, bytes: &bytes }
                });
            }
        }
    }
}
