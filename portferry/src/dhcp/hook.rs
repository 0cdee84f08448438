//! `portferry dhcp-servers`: what a DHCP client's hook calls. Each client says what happened, and the value of the option, in its
//! own way; all of it comes from the network, and only addresses leave here.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use engine::dhcp::Version;
use wire::dhcp::{ServerAddresses, bounded, decode_option_86, decode_option_158};

use super::offer;
use crate::config::{DEFAULT_SOCKET, is_interface_name};
use crate::control::{self, Question};
use crate::exit::Failure;

/// The command line.
#[derive(Args, Debug)]
pub struct DhcpServers {
    #[command(subcommand)]
    by: By,
    /// The running gateway's control socket ([control] socket); what was said is kept in the same directory
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET, global = true)]
    socket: PathBuf,
}

/// Who calls.
#[derive(Debug, Subcommand)]
enum By {
    /// ISC dhclient's hook: takes $reason, $interface, $new_pcp_server, $new_dhcp6_pcp_server
    Dhclient,
    /// A hook of dhcpcd: takes $reason, $interface, $new_pcp_servers, $new_dhcp6_pcp_servers
    Dhcpcd,
    /// The script of busybox udhcpc: takes $interface and $opt158
    Udhcpc {
        /// What happened, the script's first argument: bound, renew, deconfig, ...
        happened: String,
    },
    /// The script of odhcp6c: takes $OPTION_86
    Odhcp6c {
        /// The interface, the script's first argument
        interface: String,
        /// What happened, the script's second argument: bound, informed, stopped, ...
        happened: String,
    },
    /// Any other DHCP client: these are the PCP servers now; without one, none is offered
    Set {
        /// The interface
        interface: String,
        /// By which DHCP
        dhcp: Dhcp,
        /// The addresses of one PCP server, separated by commas
        #[arg(value_name = "ADDRESSES", conflicts_with = "octets")]
        servers: Vec<String>,
        /// The option's value in hexadecimal, with or without colons; for DHCPv6 once for each instance
        #[arg(long, value_name = "HEX")]
        octets: Vec<String>,
    },
    /// Any other DHCP client: the lease is over, or another client has taken its place
    Clear {
        /// The interface
        interface: String,
        /// By which DHCP
        dhcp: Dhcp,
    },
}

/// Which DHCP.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dhcp {
    /// Option 158
    Dhcpv4,
    /// Option 86
    Dhcpv6,
}

impl From<Dhcp> for Version {
    fn from(dhcp: Dhcp) -> Self {
        match dhcp {
            Dhcp::Dhcpv4 => Version::V4,
            Dhcp::Dhcpv6 => Version::V6,
        }
    }
}

/// What it comes to.
#[derive(Debug, PartialEq)]
enum Said {
    /// These are offered; the texts are what was wrong with the rest.
    Offered(Version, Vec<ServerAddresses>, Vec<String>),
    /// Nothing of these is offered any more.
    Over(&'static [Version]),
    /// Nothing of PCP servers.
    Nothing,
}

/// Does what the hook says, and tells the running gateway, if there is one.
///
/// # Errors
/// The interface or a value on the command line makes no sense, the file cannot be written, or the gateway does not take it.
pub fn run(command: &DhcpServers) -> Result<(), Failure> {
    let (interface, said) = said(&command.by, &|name| std::env::var(name).ok())?;
    let directory = offer::directory(&command.socket);
    let failed = |error: std::io::Error| {
        Failure::cannot_create(format!(
            "cannot keep what DHCP offers in {}: {error}; name the gateway's socket with --socket",
            directory.display()
        ))
    };
    match said {
        Said::Nothing => return Ok(()),
        Said::Over(versions) => {
            for version in versions {
                offer::remove(directory, &interface, *version).map_err(failed)?;
            }
        }
        Said::Offered(version, servers, wrong) => {
            for what in wrong {
                let _ = writeln!(std::io::stderr(), "portferry: {version} on {interface}: {what}");
            }
            offer::write(directory, &interface, version, &servers).map_err(failed)?;
        }
    }
    tell(&command.socket)
}

/// A gateway that is not running reads the files when it starts.
fn tell(socket: &Path) -> Result<(), Failure> {
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(())
        }
        _ => control::query(socket, Question::DhcpServers).map(drop),
    }
}

/// The interface, and what is said of it.
fn said(by: &By, variable: &dyn Fn(&str) -> Option<String>) -> Result<(String, Said), Failure> {
    let of_environment = |name: &str| {
        variable(name).ok_or_else(|| {
            Failure::usage(format!("expected ${name} in the environment, as a DHCP client's hook has it"))
        })
    };
    let (interface, said) = match by {
        By::Dhclient => (of_environment("interface")?, dhclient(&of_environment("reason")?, variable)),
        By::Dhcpcd => (of_environment("interface")?, dhcpcd(&of_environment("reason")?, variable)),
        By::Udhcpc { happened } => (of_environment("interface")?, udhcpc(happened, variable)),
        By::Odhcp6c { interface, happened } => (interface.clone(), odhcp6c(happened, variable)),
        By::Set { interface, dhcp, servers, octets } => {
            (interface.clone(), set((*dhcp).into(), servers, octets)?)
        }
        By::Clear { interface, dhcp: Dhcp::Dhcpv4 } => (interface.clone(), Said::Over(&[Version::V4])),
        By::Clear { interface, dhcp: Dhcp::Dhcpv6 } => (interface.clone(), Said::Over(&[Version::V6])),
    };
    if !is_interface_name(&interface) {
        return Err(Failure::usage(format!("expected the name of a network interface, got {interface:?}")));
    }
    Ok((interface, said))
}

/// What a hook leaves behind.
pub(crate) struct Heard {
    pub(crate) interface: String,
    pub(crate) offered: Option<(Version, Vec<ServerAddresses>)>,
    pub(crate) wrong: Vec<String>,
}

/// What is made of a call by this client; `None` where it is refused, or says nothing of PCP servers.
pub(crate) fn heard(
    client: &str,
    happened: &str,
    interface: &str,
    variables: &[(&str, &str)],
) -> Option<Heard> {
    let (interface_text, happened_text) = (interface.to_owned(), happened.to_owned());
    let by = match client {
        "dhclient" => By::Dhclient,
        "dhcpcd" => By::Dhcpcd,
        "udhcpc" => By::Udhcpc { happened: happened_text },
        "odhcp6c" => By::Odhcp6c { interface: interface_text, happened: happened_text },
        "set4" | "set6" => {
            let dhcp = if client == "set4" { Dhcp::Dhcpv4 } else { Dhcp::Dhcpv6 };
            let of = |wanted: &str| {
                let named = variables.iter().filter(move |(name, _)| *name == wanted);
                named.map(|(_, value)| (*value).to_owned()).collect()
            };
            By::Set { interface: interface_text, dhcp, servers: of("server"), octets: of("octets") }
        }
        _ => return None,
    };
    let variable = |name: &str| match name {
        "interface" => Some(interface.to_owned()),
        "reason" => Some(happened.to_owned()),
        _ => variables.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned()),
    };
    let (interface, said) = said(&by, &variable).ok()?;
    match said {
        Said::Offered(version, servers, wrong) => {
            Some(Heard { interface, offered: Some((version, servers)), wrong })
        }
        Said::Over(_) => Some(Heard { interface, offered: None, wrong: Vec::new() }),
        Said::Nothing => None,
    }
}

/// dhclient-script(8). Octets of an option without a type come without leading zeros, `4:c0:0:2:1`; IPv6 addresses as text.
fn dhclient(reason: &str, variable: &dyn Fn(&str) -> Option<String>) -> Said {
    match reason {
        "BOUND" | "RENEW" | "REBIND" | "REBOOT" => v4(variable("new_pcp_server")),
        "EXPIRE" | "FAIL" | "STOP" | "RELEASE" => Said::Over(&[Version::V4]),
        "BOUND6" | "RENEW6" | "REBIND6" => texts(variable("new_dhcp6_pcp_server")),
        "EXPIRE6" | "STOP6" | "RELEASE6" => Said::Over(&[Version::V6]),
        _ => Said::Nothing,
    }
}

/// dhcpcd-run-hooks(8). `binhex` is plain hexadecimal; IPv6 addresses come as text.
fn dhcpcd(reason: &str, variable: &dyn Fn(&str) -> Option<String>) -> Said {
    match reason {
        "BOUND" | "RENEW" | "REBIND" | "REBOOT" | "INFORM" | "TIMEOUT" => v4(variable("new_pcp_servers")),
        "EXPIRE" | "FAIL" | "STOP" | "RELEASE" | "NAK" => Said::Over(&[Version::V4]),
        "BOUND6" | "RENEW6" | "REBIND6" | "REBOOT6" | "INFORM6" => texts(variable("new_dhcp6_pcp_servers")),
        "EXPIRE6" | "STOP6" | "RELEASE6" => Said::Over(&[Version::V6]),
        "NOCARRIER" | "DEPARTED" | "STOPPED" => Said::Over(&Version::ALL),
        _ => Said::Nothing,
    }
}

/// The README of udhcpc; an option that it does not know is plain hexadecimal.
fn udhcpc(happened: &str, variable: &dyn Fn(&str) -> Option<String>) -> Said {
    match happened {
        "bound" | "renew" => v4(variable("opt158")),
        "deconfig" => Said::Over(&[Version::V4]),
        _ => Said::Nothing,
    }
}

/// The README of odhcp6c; an option that it does not know is plain hexadecimal.
fn odhcp6c(happened: &str, variable: &dyn Fn(&str) -> Option<String>) -> Said {
    match happened {
        "bound" | "informed" | "updated" | "rebound" => v6(variable("OPTION_86")),
        "started" | "stopped" | "unbound" => Said::Over(&[Version::V6]),
        _ => Said::Nothing,
    }
}

fn set(version: Version, servers: &[String], octets: &[String]) -> Result<Said, Failure> {
    let said = match version {
        _ if octets.is_empty() => {
            let servers = servers.iter().map(|server| addresses(server));
            Said::Offered(
                version,
                bounded(servers.collect::<Result<Vec<_>, _>>().map_err(Failure::usage)?),
                vec![],
            )
        }
        Version::V4 if octets.len() > 1 => {
            return Err(Failure::usage("expected one value of DHCPv4's option"));
        }
        Version::V4 => v4(octets.first().cloned()),
        Version::V6 => v6(octets.iter().cloned()),
    };
    match said {
        Said::Offered(_, _, wrong) if !wrong.is_empty() => Err(Failure::usage(wrong.join("; "))),
        said => Ok(said),
    }
}

/// Option 158 in hexadecimal. No value: nothing was offered. One that cannot be read counts as none.
fn v4(value: Option<String>) -> Said {
    let servers = value.filter(|value| !value.is_empty()).map(|value| {
        let octets = octets(&value).ok_or_else(|| unreadable(&value));
        octets.and_then(|octets| decode_option_158(&octets).map_err(|_| unreadable(&value)))
    });
    let (servers, wrong) = match servers {
        None => (Vec::new(), Vec::new()),
        Some(Ok(servers)) => (servers, Vec::new()),
        Some(Err(wrong)) => (Vec::new(), vec![wrong]),
    };
    Said::Offered(Version::V4, servers, wrong)
}

/// Option 86 in hexadecimal, each a server.
fn v6(values: impl IntoIterator<Item = String>) -> Said {
    instances(values, |value| {
        let octets = octets(value).ok_or_else(|| unreadable(value))?;
        decode_option_86(&octets).map_err(|_| unreadable(value))
    })
}

/// Option 86 as text: one server, for clients tell no more than one.
fn texts(value: Option<String>) -> Said {
    instances(value, addresses)
}

fn instances(
    values: impl IntoIterator<Item = String>,
    read: impl Fn(&str) -> Result<ServerAddresses, String>,
) -> Said {
    let (mut servers, mut wrong) = (Vec::new(), Vec::new());
    for value in values.into_iter().filter(|value| !value.is_empty()) {
        match read(&value) {
            Ok(addresses) => servers.push(addresses),
            Err(what) => wrong.push(what),
        }
    }
    Said::Offered(Version::V6, bounded(servers), wrong)
}

/// Addresses separated by commas or blanks, one at least.
fn addresses(text: &str) -> Result<ServerAddresses, String> {
    let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
    let addresses = parts.map(str::parse::<IpAddr>).collect::<Result<ServerAddresses, _>>();
    addresses.ok().filter(|addresses| !addresses.is_empty()).ok_or_else(|| unreadable(text))
}

/// `04c0000201`, or `4:c0:0:2:1`.
fn octets(text: &str) -> Option<Vec<u8>> {
    let octet = |digits: &str| {
        let fits = (1..=2).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        fits.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    if text.contains(':') {
        return text.split(':').map(octet).collect();
    }
    let pairs =
        text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2));
    pairs.map(|pair| pair.and_then(octet)).collect()
}

/// A terminal, or a log, must not be steered by what a stranger wrote.
fn unreadable(value: &str) -> String {
    let start: String = crate::table::printable(value).chars().take(60).collect();
    format!("a value that is no list of PCP servers counts as none: {start}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str) -> Vec<ServerAddresses> {
        let server = |server: &str| server.split(' ').map(|addr| addr.parse().unwrap()).collect();
        text.split(';').filter(|server| !server.is_empty()).map(server).collect()
    }

    /// What `by` says where these variables are set.
    fn hear(by: &By, environment: &[(&str, &str)]) -> Result<(String, Said), String> {
        let variable = |name: &str| {
            environment.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned())
        };
        said(by, &variable).map_err(|failure| failure.to_string())
    }

    fn offered(version: Version, text: &str) -> Result<(String, Said), String> {
        Ok(("wan0".into(), Said::Offered(version, servers(text), vec![])))
    }

    /// dhclient-script(8): DHCPv4 has octets without leading zeros, DHCPv6 text.
    #[test]
    fn dhclients_environment() {
        let hear = |reason, name, value| {
            hear(&By::Dhclient, &[("reason", reason), ("interface", "wan0"), (name, value)])
        };
        for reason in ["BOUND", "RENEW", "REBIND", "REBOOT"] {
            let said = hear(reason, "new_pcp_server", "4:c6:33:64:1:8:c0:0:2:1:c0:0:2:2");
            assert_eq!(said, offered(Version::V4, "198.51.100.1;192.0.2.1 192.0.2.2"), "{reason}");
            assert_eq!(hear(reason, "old_pcp_server", "4:c6:33:64:1"), offered(Version::V4, ""), "{reason}");
        }
        for reason in ["BOUND6", "RENEW6", "REBIND6"] {
            let said = hear(reason, "new_dhcp6_pcp_server", "2001:db8::1 ::ffff:192.0.2.1");
            assert_eq!(said, offered(Version::V6, "2001:db8::1 192.0.2.1"), "{reason}");
        }
        for (reason, version) in [
            ("EXPIRE", &[Version::V4]),
            ("FAIL", &[Version::V4]),
            ("STOP", &[Version::V4]),
            ("RELEASE", &[Version::V4]),
            ("EXPIRE6", &[Version::V6]),
            ("STOP6", &[Version::V6]),
            ("RELEASE6", &[Version::V6]),
        ] {
            let said = hear(reason, "new_pcp_server", "4:c6:33:64:1").map(|(_, said)| said);
            assert_eq!(said, Ok(Said::Over(version)), "{reason}");
        }
        for reason in ["PREINIT", "PREINIT6", "MEDIUM", "TIMEOUT", "DEPREF6", "whatever"] {
            let said = hear(reason, "new_pcp_server", "4:c6:33:64:1").map(|(_, said)| said);
            assert_eq!(said, Ok(Said::Nothing), "{reason}");
        }
    }

    /// dhcpcd-run-hooks(8), dhcpcd.conf(5) for `binhex`.
    #[test]
    fn dhcpcds_environment() {
        let hear = |environment: &[(&str, &str)]| {
            hear(&By::Dhcpcd, &[&[("interface", "wan0")], environment].concat())
        };
        for reason in ["BOUND", "RENEW", "REBIND", "REBOOT", "INFORM", "TIMEOUT"] {
            let said = hear(&[("reason", reason), ("new_pcp_servers", "04c6336401")]);
            assert_eq!(said, offered(Version::V4, "198.51.100.1"), "{reason}");
        }
        for reason in ["BOUND6", "RENEW6", "REBIND6", "REBOOT6", "INFORM6"] {
            let one = hear(&[("reason", reason), ("new_dhcp6_pcp_servers", "2001:db8::1 2001:db8::2")]);
            assert_eq!(one, offered(Version::V6, "2001:db8::1 2001:db8::2"), "{reason}");
        }
        for (reason, versions) in [
            ("EXPIRE", &Version::ALL[1..]),
            ("NAK", &Version::ALL[1..]),
            ("RELEASE6", &Version::ALL[..1]),
            ("NOCARRIER", &Version::ALL[..]),
            ("DEPARTED", &Version::ALL[..]),
            ("STOPPED", &Version::ALL[..]),
        ] {
            let said = hear(&[("reason", reason)]).map(|(_, said)| said);
            assert_eq!(said, Ok(Said::Over(versions)), "{reason}");
        }
        for reason in ["PREINIT", "CARRIER", "ROUTERADVERT", "DELEGATED6", "TEST"] {
            assert_eq!(hear(&[("reason", reason)]).map(|(_, said)| said), Ok(Said::Nothing), "{reason}");
        }
    }

    #[test]
    fn udhcpcs_and_odhcp6cs_environment() {
        let udhcpc = |happened: &str, value| {
            hear(&By::Udhcpc { happened: happened.into() }, &[("interface", "wan0"), ("opt158", value)])
        };
        for happened in ["bound", "renew"] {
            assert_eq!(
                udhcpc(happened, "04c633640104c0000201"),
                offered(Version::V4, "198.51.100.1;192.0.2.1")
            );
        }
        assert_eq!(udhcpc("deconfig", ""), Ok(("wan0".into(), Said::Over(&[Version::V4]))));
        for happened in ["leasefail", "nak", ""] {
            assert_eq!(udhcpc(happened, "04c6336401").map(|(_, said)| said), Ok(Said::Nothing), "{happened}");
        }

        let odhcp6c = |happened: &str, value| {
            let by = By::Odhcp6c { interface: "wan0".into(), happened: happened.into() };
            hear(&by, &[("OPTION_86", value)])
        };
        let value = "20010db8000000000000000000000001";
        for happened in ["bound", "informed", "updated", "rebound"] {
            assert_eq!(odhcp6c(happened, value), offered(Version::V6, "2001:db8::1"), "{happened}");
        }
        for happened in ["started", "stopped", "unbound"] {
            let said = odhcp6c(happened, value).map(|(_, said)| said);
            assert_eq!(said, Ok(Said::Over(&[Version::V6])), "{happened}");
        }
        assert_eq!(odhcp6c("ra-updated", value).map(|(_, said)| said), Ok(Said::Nothing));
    }

    /// Bad input: options of odd length, and whatever else a server may send or a client make of it.
    #[test]
    fn what_is_no_list_of_servers_counts_as_none() {
        let udhcpc = By::Udhcpc { happened: "bound".into() };
        let odhcp6c = By::Odhcp6c { interface: "wan0".into(), happened: "bound".into() };
        let dhcpcd6 = By::Dhcpcd;
        let bad = |by: &By, environment: &[(&str, &str)]| {
            let environment = [&[("interface", "wan0"), ("reason", "BOUND6")], environment].concat();
            let Ok((_, Said::Offered(_, servers, wrong))) = hear(by, &environment) else { panic!("{by:?}") };
            (servers, wrong.len())
        };
        for value in [
            "0",
            "04c633640",
            "05c633640107",
            "00",
            "04c6336401zz",
            "$(reboot)",
            "4:c6:33:64:",
            "4:c6:33:64:100",
            "04-c6-33-64-01",
            "+4c6336401",
            "\u{e9}\u{e9}\u{e9}",
        ] {
            assert_eq!(bad(&udhcpc, &[("opt158", value)]), (vec![], 1), "{value}");
            assert_eq!(bad(&odhcp6c, &[("OPTION_86", value)]), (vec![], 1), "{value}");
            assert_eq!(bad(&dhcpcd6, &[("new_dhcp6_pcp_servers", value)]), (vec![], 1), "{value}");
        }
        assert_eq!(bad(&dhcpcd6, &[("new_dhcp6_pcp_servers", "2001:db8::1 x")]), (vec![], 1));
        assert_eq!(bad(&udhcpc, &[("opt158", "")]), (vec![], 0), "an empty variable is none");
        assert_eq!(
            unreadable("\u{1b}[31m"),
            "a value that is no list of PCP servers counts as none: \u{fffd}[31m"
        );
        assert!(unreadable(&"x".repeat(5000)).len() < 200);
    }

    /// By hand, wrong input is said and changes nothing.
    #[test]
    fn other_clients() {
        let set = |dhcp, servers: &[&str], octets: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            hear(
                &By::Set { interface: "wan0".into(), dhcp, servers: texts(servers), octets: texts(octets) },
                &[],
            )
        };
        assert_eq!(
            set(Dhcp::Dhcpv4, &["192.0.2.1,192.0.2.2", "198.51.100.1"], &[]),
            offered(Version::V4, "192.0.2.1 192.0.2.2;198.51.100.1")
        );
        assert_eq!(set(Dhcp::Dhcpv6, &[], &[]), offered(Version::V6, ""));
        assert_eq!(set(Dhcp::Dhcpv4, &[], &["04:c0:00:02:01"]), offered(Version::V4, "192.0.2.1"));
        let one = "20010db8000000000000000000000001";
        assert_eq!(set(Dhcp::Dhcpv6, &[], &[one, one]), offered(Version::V6, "2001:db8::1;2001:db8::1"));
        assert!(set(Dhcp::Dhcpv4, &["server.example"], &[]).is_err());
        assert!(set(Dhcp::Dhcpv4, &[], &["04c0000201", "04c0000201"]).is_err());
        assert!(set(Dhcp::Dhcpv4, &[], &["05c0000201"]).is_err());
        assert_eq!(
            hear(&By::Clear { interface: "wan0".into(), dhcp: Dhcp::Dhcpv6 }, &[]),
            Ok(("wan0".into(), Said::Over(&[Version::V6])))
        );
    }

    #[test]
    fn only_an_interface_has_a_file() {
        for name in ["", "../wan0", "a b", "an-interface-of-17", "wan\n0"] {
            let said = hear(&By::Dhclient, &[("interface", name), ("reason", "BOUND")]);
            assert!(said.is_err_and(|error| error.contains("name of a network interface")), "{name:?}");
        }
        assert!(hear(&By::Dhclient, &[("interface", "wan0")]).is_err_and(|error| error.contains("$reason")));
    }
}
