//! `portferry pcp …`: the command line, and the errand that it means.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use wire::pcp::{Filter, GetData, Nonce, OptionCode, PcpOption, PortSet, Protocol, ip_from_wire, ip_to_wire};

use super::parse::{self, ServerName, Suggestion};
use super::plan::{Job, Mapping, Plan, Speak, reset_filters};
use super::{hex, nonce};
use crate::exit::Failure;

/// What the exit codes of a subcommand mean: those that all have, and of the others its own.
fn exit_codes(own: &[u8]) -> String {
    let all = [
        (0, "done"),
        (64, "wrong command line"),
        (66, "the nonce file cannot be read"),
        (69, "nobody answers or can be asked"),
        (71, "the system refuses"),
        (73, "the nonce file cannot be written"),
        (
            75,
            "the server refuses (EX_TEMPFAIL: each refusal says how long it holds, and the same may be granted later)",
        ),
        (76, "the server's success is not what was asked for, or makes no sense (EX_PROTOCOL)"),
    ];
    let has = |code: &u8| ![66, 73, 76].contains(code) || own.contains(code);
    let codes = all.iter().filter(|(code, _)| has(code)).map(|(code, what)| format!("{code} {what}"));
    format!("Exit codes: {}.", codes.collect::<Vec<_>>().join(", "))
}

/// Longest request, in octets (RFC 6887 §7).
const DATAGRAM: usize = wire::pcp::MAX_LEN;

/// Of `portferry pcp`.
pub(crate) const EXAMPLES: &str = "\
Examples:
  portferry pcp announce                is the default router a server?
  portferry pcp external                our address on the Internet
  portferry pcp map tcp 80 8080 --keep  a port, until Ctrl-C
  portferry pcp map tcp 80 --hex        every octet that is said";

/// Ask a PCP or NAT-PMP server, and see octet by octet what it says.
#[derive(Debug, Subcommand)]
pub(crate) enum PcpCommand {
    /// Ask for a mapping (MAP), and keep it if you like
    #[command(after_help = exit_codes(&[66, 73, 76]))]
    Map(MapArgs),
    /// Delete a mapping
    #[command(after_help = exit_codes(&[66, 76]))]
    Delete(DeleteArgs),
    /// Ask for a mapping towards one remote peer (PEER)
    #[command(after_help = exit_codes(&[66, 73, 76]))]
    Peer(PeerArgs),
    /// Ask whether the server is there, and for its epoch (ANNOUNCE; by NAT-PMP the external address request)
    #[command(after_help = exit_codes(&[]))]
    Announce(AnnounceArgs),
    /// List your mappings (GET and NEXT of expired drafts, opcode 98 and option 224; few servers have it)
    #[command(after_help = exit_codes(&[76]))]
    Get(GetArgs),
    /// Tell the external address; PCP has no question for it, so a short mapping is made and deleted again
    #[command(after_help = exit_codes(&[]))]
    External(ExternalArgs),
    /// Listen for the announcements that servers multicast (224.0.0.1 and ff02::1, UDP 5350)
    #[command(
        after_help = "Exit codes: 0 done, 64 wrong command line, 69 nothing was heard in time, 71 the system refuses."
    )]
    Listen(ListenArgs),
}

/// Whom, how, and how it is shown.
#[derive(Args, Clone, Debug)]
pub(super) struct Asking {
    /// The server; without a port 5351, without --server the default router
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::server)]
    pub(super) server: Option<ServerName>,
    /// Which protocol is spoken
    #[arg(long = "protocol", value_name = "WHICH", value_enum, default_value_t)]
    pub(super) speak: Speak,
    /// Send from this address of ours
    #[arg(long, value_name = "ADDR")]
    pub(super) source: Option<IpAddr>,
    /// Say in the request that it comes from this address: the outside of a NAT between here and the server
    #[arg(long, value_name = "ADDR")]
    pub(super) client_address: Option<IpAddr>,
    /// Wait so long for each answer, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds, default_value = "10")]
    wait: Duration,
    /// Repeat a question at most so often; without it as the time allows: after 1 s, then doubling, ±10 % (NAT-PMP 250 ms).
    /// What --keep has lost is asked for until somebody answers
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    #[command(flatten)]
    pub(super) show: Show,
}

/// How it is shown.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Show {
    /// Show the octets sent and received, in groups of four
    #[arg(long)]
    pub(super) hex: bool,
    /// Print one JSON document instead of text (docs/pcp-json.md); listen prints one a line
    #[arg(long)]
    pub(super) json: bool,
    /// Say which datagrams are not believed, and why
    #[arg(long, short)]
    pub(super) verbose: bool,
}

/// Which nonce proves that the mapping is ours.
#[derive(Args, Clone, Debug)]
pub(super) struct NonceArgs {
    /// The mapping's nonce, 24 hexadecimal digits; random without it
    #[arg(long, value_name = "HEX", value_parser = parse::nonce, conflicts_with = "nonce_file")]
    nonce: Option<Nonce>,
    /// Take the nonce from this file; map and peer make the file when it is not there
    #[arg(long, value_name = "FILE")]
    nonce_file: Option<PathBuf>,
}

/// Options that say whose mapping it is, and any other.
#[derive(Args, Clone, Debug)]
pub(super) struct AnyOptions {
    /// THIRD_PARTY: the mapping is for this internal address
    #[arg(long, value_name = "ADDR")]
    third_party: Option<IpAddr>,
    /// Any other option by its number, with its data in hexadecimal digits; repeatable
    #[arg(long = "option", value_name = "CODE:HEX", value_parser = parse::option)]
    options: Vec<PcpOption>,
}

/// What a mapping is to be like.
#[derive(Args, Clone, Debug)]
pub(super) struct WishArgs {
    /// Ask for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    lifetime: u32,
    /// DESCRIPTION: a text for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Renew it as RFC 6887 §11.2.1 says until Ctrl-C, then delete it (one of PEER is left to end)
    #[arg(long)]
    keep: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct MapArgs {
    /// tcp, udp, another name or number, or all (with all ports)
    #[arg(value_name = "PROTOCOL", value_parser = parse::protocol)]
    transport: Protocol,
    /// The port inside; 0 or all for all ports
    #[arg(value_parser = parse::port)]
    internal_port: u16,
    /// The port, address or address:port outside to suggest; 0.0.0.0 asks a NAT64 for IPv4
    #[arg(value_parser = parse::suggestion)]
    external: Option<Suggestion>,
    #[command(flatten)]
    wish: WishArgs,
    #[command(flatten)]
    nonce: NonceArgs,
    /// PREFER_FAILURE: EXTERNAL or nothing
    #[arg(long, requires = "external")]
    prefer_failure: bool,
    /// FILTER: let in only these remote peers; repeatable
    #[arg(long = "filter", value_name = "PREFIX[,PORT]", value_parser = parse::filter)]
    filters: Vec<Filter>,
    /// FILTER with prefix length 0, before the others: drop all filters set before
    #[arg(long)]
    reset_filters: bool,
    /// PORT_SET: so many consecutive ports from the internal port on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port_set: Option<u16>,
    /// Let the external ports of the set have the parity of the internal ones
    #[arg(long, requires = "port_set")]
    port_set_parity: bool,
    /// PREFIX64: ask for the NAT64's prefix
    #[arg(long)]
    prefix64: bool,
    #[command(flatten)]
    any: AnyOptions,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DeleteArgs {
    /// As the mapping was made
    #[arg(value_name = "PROTOCOL", value_parser = parse::protocol)]
    transport: Protocol,
    /// As the mapping was made; by NAT-PMP, 0 or all deletes every mapping of the protocol
    #[arg(value_parser = parse::port)]
    internal_port: u16,
    #[command(flatten)]
    nonce: NonceArgs,
    /// PORT_SET: as the mapping was made
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port_set: Option<u16>,
    #[command(flatten)]
    any: AnyOptions,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PeerArgs {
    /// tcp, udp, or another name or number
    #[arg(value_name = "PROTOCOL", value_parser = parse::protocol)]
    transport: Protocol,
    /// The port inside
    #[arg(value_parser = parse::port)]
    internal_port: u16,
    /// The remote peer
    #[arg(value_name = "REMOTE_ADDR:PORT")]
    remote: std::net::SocketAddr,
    /// The port, address or address:port outside to suggest
    #[arg(value_parser = parse::suggestion)]
    external: Option<Suggestion>,
    #[command(flatten)]
    wish: WishArgs,
    #[command(flatten)]
    nonce: NonceArgs,
    #[command(flatten)]
    any: AnyOptions,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AnnounceArgs {
    /// PREFIX64: ask for the NAT64's prefix
    #[arg(long)]
    prefix64: bool,
    /// Any option by its number, with its data in hexadecimal digits; repeatable
    #[arg(long = "option", value_name = "CODE:HEX", value_parser = parse::option)]
    options: Vec<PcpOption>,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct GetArgs {
    /// Only mappings of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = parse::protocol)]
    transport: Option<Protocol>,
    /// Only mappings of this internal address, port or address:port
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::suggestion)]
    internal: Option<Suggestion>,
    /// Only mappings with this external address, port or address:port
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::suggestion)]
    external: Option<Suggestion>,
    /// THIRD_PARTY: ask for the mappings of this internal address, not for all of ours
    #[arg(long, value_name = "ADDR")]
    third_party: Option<IpAddr>,
    /// Any other option by its number, with its data in hexadecimal digits; repeatable
    #[arg(long = "option", value_name = "CODE:HEX", value_parser = parse::option)]
    options: Vec<PcpOption>,
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ExternalArgs {
    #[command(flatten)]
    pub(super) asking: Asking,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ListenArgs {
    /// Listen on this interface; repeatable, without it on every one that is up and no loopback
    #[arg(long = "interface", value_name = "NAME")]
    pub(super) interfaces: Vec<String>,
    /// End after so many announcements
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse::seconds)]
    pub(super) wait: Option<Duration>,
    #[command(flatten)]
    pub(super) show: Show,
}

/// An errand that the shell can run.
#[derive(Debug)]
pub(super) struct Errand {
    /// The subcommand.
    pub(super) name: &'static str,
    pub(super) plan: Plan,
    pub(super) asking: Asking,
}

impl PcpCommand {
    /// The errand, or `None` for `listen`.
    pub(super) fn errand(&self) -> Result<Option<Errand>, Failure> {
        let (name, job, asking) = match self {
            PcpCommand::Map(args) => ("map", args.job()?, &args.asking),
            PcpCommand::Delete(args) => ("delete", args.job()?, &args.asking),
            PcpCommand::Peer(args) => ("peer", args.job()?, &args.asking),
            PcpCommand::Announce(args) => {
                let prefix64 = args.prefix64.then(parse::prefix64_request);
                let options = prefix64.into_iter().chain(args.options.clone()).collect();
                ("announce", Job::Announce { options }, &args.asking)
            }
            PcpCommand::Get(args) => ("get", args.job(), &args.asking),
            PcpCommand::External(args) => {
                // The port is that of our own socket, which the shell knows.
                let job = Job::External { nonce: nonce::random(), internal_port: 0 };
                ("external", job, &args.asking)
            }
            PcpCommand::Listen(_) => return Ok(None),
        };
        if asking.speak == Speak::NatPmp {
            let question = job.question(true, IpAddr::from([0, 0, 0, 0]), None);
            question.map_err(|why| Failure::usage(format!("{why}; --protocol pcp can")))?;
        }
        let octets = job.question(false, IpAddr::from([0, 0, 0, 0]), None).map_or(0, |q| q.to_bytes().len());
        if octets > DATAGRAM {
            return Err(Failure::usage(format!(
                "a request of {octets} octets is too long, PCP has {DATAGRAM}; give less options"
            )));
        }
        let plan = Plan { job, speak: asking.speak, patience: asking.wait, retries: asking.retries };
        Ok(Some(Errand { name, plan, asking: asking.clone() }))
    }
}

impl AnyOptions {
    fn third_party(&self) -> Option<PcpOption> {
        self.third_party.map(|addr| PcpOption::ThirdParty(ip_to_wire(addr)))
    }
}

impl WishArgs {
    fn description(&self) -> Option<PcpOption> {
        self.description.as_ref().map(|text| PcpOption::Description(text.clone().into_bytes()))
    }

    /// On the wire, a lifetime of 0 deletes (RFC 6887 §15): `instead` says what is meant.
    fn check(&self, instead: &str) -> Result<(), Failure> {
        match self.lifetime {
            0 => Err(Failure::usage(format!("--lifetime has to be above 0: {instead}"))),
            _ => Ok(()),
        }
    }
}

impl MapArgs {
    fn job(&self) -> Result<Job, Failure> {
        self.wish.check("`portferry pcp delete` takes a mapping away")?;
        // RFC 6887 §13.2: a suggested port of 0 is a malformed PREFER_FAILURE.
        if self.prefer_failure && self.external.is_none_or(|external| external.port == 0) {
            return Err(Failure::usage("--prefer-failure needs a port in EXTERNAL"));
        }
        let port_set = self.port_set.map(|size| {
            PcpOption::PortSet(PortSet {
                size,
                first_internal_port: self.internal_port,
                parity: self.port_set_parity,
            })
        });
        let reset = self.reset_filters.then(|| reset_filters(self.filters.first()));
        let options = self.any.third_party().into_iter();
        let options = options.chain(self.prefer_failure.then_some(PcpOption::PreferFailure));
        let options = options.chain(reset).chain(self.filters.iter().copied().map(PcpOption::Filter));
        let options = options.chain(self.wish.description()).chain(port_set);
        let options = options.chain(self.prefix64.then(parse::prefix64_request));
        Ok(Job::Mapping(Mapping {
            nonce: self.nonce.make()?,
            protocol: self.transport,
            internal_port: self.internal_port,
            suggestion: self.external.unwrap_or_default(),
            lifetime: self.wish.lifetime,
            peer: None,
            options: options.chain(self.any.options.clone()).collect(),
            keep: self.wish.keep,
        }))
    }
}

impl DeleteArgs {
    fn job(&self) -> Result<Job, Failure> {
        let port_set = self.port_set.map(|size| {
            PcpOption::PortSet(PortSet { size, first_internal_port: self.internal_port, parity: false })
        });
        let options = self.any.third_party().into_iter().chain(port_set);
        Ok(Job::Mapping(Mapping {
            nonce: self.nonce.read()?,
            protocol: self.transport,
            internal_port: self.internal_port,
            suggestion: Suggestion::default(),
            lifetime: 0,
            peer: None,
            options: options.chain(self.any.options.clone()).collect(),
            keep: false,
        }))
    }
}

impl PeerArgs {
    fn job(&self) -> Result<Job, Failure> {
        self.wish.check("a mapping of PEER cannot be deleted, it ends by itself")?;
        let options = self.any.third_party().into_iter().chain(self.wish.description());
        Ok(Job::Mapping(Mapping {
            nonce: self.nonce.make()?,
            protocol: self.transport,
            internal_port: self.internal_port,
            suggestion: self.external.unwrap_or_default(),
            lifetime: self.wish.lifetime,
            peer: Some((self.remote.ip(), self.remote.port())),
            options: options.chain(self.any.options.clone()).collect(),
            keep: self.wish.keep,
        }))
    }
}

impl GetArgs {
    fn job(&self) -> Job {
        let endpoint = |side: Option<Suggestion>| {
            let Suggestion { addr, port } = side.unwrap_or_default();
            (addr.map_or(GetData::ALL.internal_addr, ip_to_wire), port)
        };
        let (internal_addr, internal_port) = endpoint(self.internal);
        let (external_addr, external_port) = endpoint(self.external);
        let protocol = self.transport.unwrap_or(Protocol::ALL);
        let filters = GetData { protocol, internal_addr, external_addr, internal_port, external_port };
        let third_party = self.third_party.map(|addr| PcpOption::ThirdParty(ip_to_wire(addr)));
        let options = third_party.into_iter().chain(self.options.clone()).collect();
        Job::Get { filters, options }
    }
}

impl NonceArgs {
    /// For a new mapping, or one more request about an old one.
    fn make(&self) -> Result<Nonce, Failure> {
        match (&self.nonce, &self.nonce_file) {
            (Some(nonce), _) => Ok(*nonce),
            (None, Some(path)) => nonce::read_or_make(path),
            (None, None) => Ok(nonce::random()),
        }
    }

    /// For an old mapping. A random one is not its own, which some servers do not mind, and NAT-PMP has none.
    fn read(&self) -> Result<Nonce, Failure> {
        match (&self.nonce, &self.nonce_file) {
            (Some(nonce), _) => Ok(*nonce),
            (None, Some(path)) => nonce::read(path),
            (None, None) => Ok(nonce::random()),
        }
    }
}

/// The words that a mapping's options take on the command line, for the delete that is suggested.
pub(super) fn option_words(options: &[PcpOption]) -> String {
    let word = |option: &PcpOption| match option {
        PcpOption::ThirdParty(addr) => Some(format!(" --third-party {}", ip_from_wire(*addr))),
        PcpOption::PortSet(set) => Some(format!(" --port-set {}", set.size)),
        PcpOption::ThirdPartyId(id) => {
            Some(format!(" --option {}:{}", OptionCode::THIRD_PARTY_ID.0, hex::plain(id)))
        }
        _ => None,
    };
    options.iter().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use wire::pcp::Body;

    use super::*;
    use crate::pcp_client::message::Question;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: PcpCommand,
    }

    fn parsed(line: &str) -> Result<PcpCommand, String> {
        let words = std::iter::once("pcp").chain(line.split(' '));
        Line::try_parse_from(words).map(|line| line.command).map_err(|error| error.to_string())
    }

    fn errand(line: &str) -> Errand {
        parsed(line).unwrap().errand().unwrap().expect("not listen")
    }

    /// What is asked, as the trace has it, of a client at 192.0.2.10.
    fn question(line: &str) -> String {
        errand(line).plan.job.question(false, IpAddr::from([192, 0, 2, 10]), None).unwrap().to_string()
    }

    const NONCE: &str = "--nonce 000102030405060708090a0b";

    #[test]
    fn every_option_of_map_is_on_the_wire() {
        assert_eq!(
            question(&format!(
                "map tcp 8080 198.51.100.7:9090 {NONCE} --lifetime 60 --third-party 10.0.0.5 --prefer-failure \
                 --reset-filters --filter 203.0.113.0/24,80 --filter 203.0.113.9 --description web --port-set 4 \
                 --port-set-parity --prefix64 --option 224:00ff --option 96:"
            )),
            "PCP MAP request TCP internal 8080, suggested 198.51.100.7:9090, 60 s, nonce 0001…, THIRD_PARTY 10.0.0.5, \
             PREFER_FAILURE, FILTER none, FILTER 203.0.113.0/24 port 80, FILTER 203.0.113.9/32, DESCRIPTION \"web\", \
             PORT_SET 4 from 8080 with parity, PREFIX64 ::/96, NEXT (2 octets), option 96 (0 octets)"
        );
        assert_eq!(
            question(&format!("map all all {NONCE}")),
            "PCP MAP request all protocols, suggested 0.0.0.0:0, 3600 s, nonce 0001…"
        );
        assert_eq!(
            question(&format!("map 47 0 {NONCE}")),
            "PCP MAP request protocol 47 all ports, suggested 0.0.0.0:0, 3600 s, nonce 0001…"
        );
    }

    #[test]
    fn the_other_questions() {
        assert_eq!(
            question(&format!("delete udp 53 {NONCE} --third-party 10.0.0.5 --port-set 2")),
            "PCP MAP request UDP internal 53, delete, nonce 0001…, THIRD_PARTY 10.0.0.5, PORT_SET 2 from 53"
        );
        assert_eq!(
            question(&format!("peer udp 53 203.0.113.9:443 8053 {NONCE}")),
            "PCP PEER request UDP internal 53, suggested 0.0.0.0:8053, remote peer 203.0.113.9:443, 3600 s, nonce 0001…"
        );
        assert_eq!(question("announce"), "PCP ANNOUNCE request");
        assert_eq!(question("announce --prefix64"), "PCP ANNOUNCE request, PREFIX64 ::/96");
        assert_eq!(question("get"), "PCP GET request for all mappings");
        assert_eq!(
            question("get --transport tcp --internal 10.0.0.5:80 --external 443 --third-party 10.0.0.5"),
            "PCP GET request for TCP, internal 10.0.0.5:80, external [::]:443, THIRD_PARTY 10.0.0.5"
        );
        assert!(parsed("listen --count 2 --wait 5 --interface wan0").unwrap().errand().unwrap().is_none());
    }

    #[test]
    fn how_it_is_asked() {
        let Errand { plan, asking, .. } = errand(
            "announce --server [fe80::1%wan0]:53510 --source fe80::2 --wait 2.5 --retries 0 --protocol pcp",
        );
        assert_eq!((plan.patience, plan.retries), (Duration::from_millis(2500), Some(0)));
        assert_eq!(plan.speak, Speak::Pcp);
        let server = asking.server.unwrap();
        assert_eq!((server.port, server.zone.as_deref()), (53510, Some("wan0")));
        assert_eq!(asking.source, Some("fe80::2".parse().unwrap()));
        assert_eq!(errand("announce").plan.speak, Speak::Auto);
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_a_packet_is_sent() {
        for (line, word) in [
            ("map tcp", "INTERNAL_PORT"),
            ("map icmpx 80", "expected tcp"),
            ("map tcp 80 --prefer-failure", "EXTERNAL"),
            ("map tcp 80 --port-set 0", "0 is not in"),
            ("map tcp 80 --port-set-parity", "--port-set"),
            ("map tcp 80 --nonce 00", "24 hexadecimal digits"),
            ("map tcp 80 --nonce 000102030405060708090a0b --nonce-file x", "cannot be used with"),
            ("map tcp 80 --wait 0", "expected seconds"),
            ("announce --protocol igd", "nat-pmp"),
            ("peer tcp 80 203.0.113.9", "REMOTE_ADDR:PORT"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
        let long = format!("map tcp 80 --description {}", "x".repeat(1100));
        for (line, word) in [
            ("map tcp 80 --lifetime 0", "portferry pcp delete"),
            ("peer tcp 80 203.0.113.9:80 --lifetime 0", "cannot be deleted"),
            ("map tcp 80 198.51.100.7 --prefer-failure", "needs a port"),
            ("get --protocol nat-pmp", "list"),
            ("map tcp 80 80 --prefer-failure --protocol nat-pmp", "PREFER_FAILURE"),
            ("map all all --protocol nat-pmp", "TCP and UDP"),
            (long.as_str(), "too long"),
        ] {
            let error = parsed(line).unwrap().errand().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    /// RFC 6887 §11.1: a nonce is random, and each mapping has its own.
    #[test]
    fn nonces_are_drawn_anew() {
        let nonce = || match errand("map tcp 80").plan.job.question(false, IpAddr::from([192, 0, 2, 1]), None)
        {
            Ok(Question::Pcp(request)) => match request.body {
                Body::Map(map) => map.nonce,
                _ => panic!("MAP"),
            },
            _ => panic!("PCP"),
        };
        assert_ne!(nonce(), nonce());
    }
}
