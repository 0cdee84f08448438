//! The question for PCP servers by DHCP: octets are a sequence of sources, answers and time.

use std::net::{Ipv4Addr, Ipv6Addr};

use engine::dhcp::{DhcpInquiry, Output, Source, Version};
use engine::entropy::SeededEntropy;
use engine::time::{Duration, Instant};
use wire::dhcp::v4::Inform;
use wire::dhcp::v6::InformationRequest;
use wire::dhcp::{v4, v6};

use crate::are_bounded;

/// Outputs of one happening.
const MAX_OUTPUTS: usize = 16;
/// Timeouts at one moment.
const MAX_TIMEOUTS: usize = 16;

struct Run<'a> {
    left: &'a [u8],
    inquiry: DhcpInquiry,
    now: Instant,
    /// The open sockets, and what was last asked by each.
    open: [bool; 2],
    inform: Option<Inform>,
    request: Option<InformationRequest>,
}

/// Octets as a sequence of events into an inquiry.
pub fn dhcp_events(data: &[u8]) {
    let inquiry = DhcpInquiry::new(Box::new(SeededEntropy::new(1)));
    let now = Instant::default();
    let mut run = Run { left: data, inquiry, now, open: [false; 2], inform: None, request: None };
    while !run.left.is_empty() {
        run.step();
        run.drain();
    }
}

fn nth(version: Version) -> usize {
    usize::from(version == Version::V6)
}

impl<'a> Run<'a> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.left.split_first() else { return 0 };
        self.left = rest;
        first
    }

    fn take(&mut self) -> &'a [u8] {
        let most = usize::from(self.next());
        let (taken, rest) = self.left.split_at(most.min(self.left.len()));
        self.left = rest;
        taken
    }

    fn step(&mut self) {
        let what = self.next();
        let version = if what & 0x80 == 0 { Version::V4 } else { Version::V6 };
        match what % 8 {
            0 => {
                let last = what >> 3 & 3;
                let source = match version {
                    _ if last == 0 => None,
                    Version::V4 => {
                        Some(Source::V4(Ipv4Addr::new(100, 64, 0, last), Some([2, 0, 0, 0, 0, last])))
                    }
                    Version::V6 => Some(Source::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last.into()))),
                };
                self.inquiry.set_source(self.now, version, source);
            }
            1 => {
                let until = self.now + Duration::from_millis(1 << (self.next() % 32));
                let mut here = 0;
                // A month of questions to nobody is enough for one input.
                for _ in 0..200 {
                    let Some(at) = self.inquiry.next_timeout().filter(|&at| at <= until) else { break };
                    here = if at > self.now { 0 } else { here + 1 };
                    assert!(here < MAX_TIMEOUTS, "a timeout does not move on");
                    self.now = self.now.max(at);
                    self.inquiry.handle_timeout(self.now);
                    self.drain();
                }
                self.now = self.now.max(until.min(self.inquiry.next_timeout().unwrap_or(until)));
            }
            // It was asked for, and could not be made.
            2 if std::mem::take(&mut self.open[nth(version)]) => {
                self.inquiry.handle_unopened(self.now, version, "no".to_owned());
            }
            2 => {}
            3 => {
                let bytes = self.take();
                self.inquiry.handle_datagram(self.now, version, bytes);
            }
            _ => self.answer(version, what),
        }
    }

    /// A server answers what was asked last, with options as the octets say.
    fn answer(&mut self, version: Version, what: u8) {
        let shape = self.next();
        let value = self.take().to_vec();
        let bytes = match version {
            Version::V4 => {
                let Some(Inform { xid, client, .. }) = self.inform else { return };
                let pcp_servers = (shape & 1 == 0).then_some(value);
                let server = Ipv4Addr::new(100, 64, 0, 1);
                v4::Ack { xid: xid ^ u32::from(shape & 2), client, server, pcp_servers }.to_bytes()
            }
            Version::V6 => {
                let Some(InformationRequest { transaction, client, .. }) = self.request.clone() else {
                    return;
                };
                let more = (shape & 4 != 0).then(|| self.take().to_vec());
                let reply = v6::Reply {
                    transaction,
                    client: (shape & 2 == 0).then_some(client),
                    server: vec![0, 3, 0, 1],
                    status: (shape & 8 != 0).then_some(u16::from(shape >> 6)),
                    refresh: (shape & 16 != 0).then_some(1 << (what >> 3 & 31)),
                    max_timeout: (shape & 32 != 0).then_some(u32::from(what) * 600),
                    pcp_servers: std::iter::once(value)
                        .chain(more)
                        .filter(|value| !value.is_empty())
                        .collect(),
                };
                reply.to_bytes()
            }
        };
        self.inquiry.handle_datagram(self.now, version, &bytes);
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some(output) = self.inquiry.poll_output() {
            count += 1;
            assert!(count <= MAX_OUTPUTS, "one happening has too many outputs");
            match output {
                Output::Open(source) => {
                    let open = &mut self.open[nth(source.version())];
                    assert!(!std::mem::replace(open, true), "{source:?} is open already");
                }
                Output::Close(version) => self.open[nth(version)] = false,
                Output::Send { version, to, bytes } => {
                    assert!(self.open[nth(version)], "a datagram without a socket");
                    match version {
                        Version::V4 => {
                            assert_eq!(to, (Ipv4Addr::BROADCAST, v4::SERVER_PORT).into());
                            self.inform = Some(Inform::parse(&bytes).expect("what is sent is a DHCPINFORM"));
                        }
                        Version::V6 => {
                            assert_eq!(to, (v6::SERVERS, v6::SERVER_PORT).into());
                            let request = InformationRequest::parse(&bytes);
                            self.request = Some(request.expect("what is sent is an Information-request"));
                        }
                    }
                }
                Output::Changed(_) => {}
                Output::Notice(notice) => assert!(notice.to_string().len() < 4000),
            }
        }
        for version in Version::ALL {
            are_bounded(self.inquiry.servers(version), &[0; 256]);
        }
    }
}
