//! Whose rules they are, and what to type to have a packet pass: a row for each firewall.
//!
//! All packets that are walked are of IPv4, and no command lets more pass than was asked for: a LAN's addresses of IPv6 are
//! everybody's to send to, where nothing filters.

use crate::doctor::walk::Place;
use crate::firewall::Foreign;
use crate::nft::reading::{Family, Ruleset, Step, Verdict};

/// Who made the rules that drop something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Firewall {
    /// OpenWrt's.
    Fw4,
    Firewalld,
    Ufw,
    Docker,
    /// Rules of iptables-nft that nobody of these made.
    Iptables,
    /// Somebody's own table.
    Nftables,
}

impl Firewall {
    /// By the table that drops.
    pub(crate) fn of(rules: &Ruleset, place: &Place) -> Self {
        let (family, name) = place.table.split_once(' ').unwrap_or_default();
        let has = |chain: &str| {
            let of_filter = |own: &crate::nft::reading::Chain| {
                own.table.family == Family::Ip && own.table.name == "filter" && own.name == chain
            };
            rules.chains.iter().any(of_filter)
        };
        match (family, name) {
            ("inet", "fw4") => Firewall::Fw4,
            (_, "firewalld") => Firewall::Firewalld,
            ("ip", "filter") if has("ufw-before-forward") => Firewall::Ufw,
            ("ip", "filter") if place.chain == "FORWARD" && has("DOCKER-USER") => Firewall::Docker,
            ("ip", "filter") if has("FORWARD") || has("INPUT") => Firewall::Iptables,
            _ => Firewall::Nftables,
        }
    }

    /// As one that can be given a rule of ours.
    pub(crate) fn foreign(self) -> Option<Foreign> {
        match self {
            Firewall::Fw4 => Some(Foreign::Fw4),
            Firewall::Firewalld => Some(Foreign::Firewalld),
            Firewall::Ufw => Some(Foreign::Ufw),
            Firewall::Docker | Firewall::Iptables | Firewall::Nftables => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Firewall::Fw4 => "fw4",
            Firewall::Firewalld => "firewalld",
            Firewall::Ufw => "ufw",
            Firewall::Docker => "Docker",
            Firewall::Iptables => "iptables",
            Firewall::Nftables => "nftables",
        }
    }
}

/// What is to pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish<'a> {
    /// What a mapping lets in, translated by this router (`dnat`) or not.
    Forward { wan: &'a str, lan: &'a str, dnat: bool },
    /// The answers of LAN hosts.
    Replies { wan: &'a str, lan: &'a str },
    /// To a port of this router, from the LAN. `shared`: an uplink that firewalld has in the same zone.
    Input { lan: &'a str, protocol: &'a str, port: u16, shared: Option<&'a str> },
    /// Answers of the provider's server.
    Answers { wan: &'a str },
}

/// In words, then commands; what the commands need to last is in the words.
pub(crate) fn remedy(firewall: Firewall, place: &Place, wish: Wish<'_>) -> (String, Vec<String>) {
    match firewall {
        Firewall::Fw4 => fw4(wish),
        Firewall::Firewalld => firewalld(wish),
        Firewall::Ufw => ufw(wish),
        Firewall::Docker | Firewall::Iptables => iptables(firewall, wish),
        Firewall::Nftables => {
            let rule = format!("nft 'insert rule {} {} {}'", place.table, place.chain, matching(wish));
            let words = "let it pass, and put the same line into the file that your rules come from (often /etc/nftables.conf)";
            (words.to_owned(), vec![rule])
        }
    }
}

/// In nftables' own words.
fn matching(wish: Wish<'_>) -> String {
    let what = match wish {
        Wish::Forward { wan, lan, dnat: true } => {
            format!("iifname \"{wan}\" oifname \"{lan}\" ct status dnat")
        }
        Wish::Forward { wan, lan, dnat: false } => format!("iifname \"{wan}\" oifname \"{lan}\""),
        Wish::Replies { wan, lan } => {
            format!("iifname \"{lan}\" oifname \"{wan}\" ct state established,related")
        }
        Wish::Input { lan, protocol, port, .. } => format!("iifname \"{lan}\" {protocol} dport {port}"),
        Wish::Answers { wan } => format!("iifname \"{wan}\" ct state established,related"),
    };
    format!("meta nfproto ipv4 {what} accept")
}

/// Files in these directories are put into the chain that they are named after, at each start of the firewall.
fn fw4(wish: Wish<'_>) -> (String, Vec<String>) {
    let chain = match wish {
        Wish::Forward { .. } | Wish::Replies { .. } => "forward",
        Wish::Input { .. } | Wish::Answers { .. } => "input",
    };
    let directory = format!("/usr/share/nftables.d/chain-pre/{chain}");
    let rule = matching(wish);
    let words = "let fw4 put a rule of yours into its chain; name the file in /etc/sysupgrade.conf, too, that an upgrade keeps it";
    let commands = vec![
        format!("mkdir -p {directory}"),
        format!("echo '{rule}' >> {directory}/portferry.nft"),
        "fw4 reload".to_owned(),
    ];
    (words.to_owned(), commands)
}

fn firewalld(wish: Wish<'_>) -> (String, Vec<String>) {
    let zone = |interface: &str| {
        format!("$(firewall-cmd --get-zone-of-interface={interface} || firewall-cmd --get-default-zone)")
    };
    let reload = "firewall-cmd --reload".to_owned();
    match wish {
        Wish::Input { lan, protocol, port, shared: Some(wan) } => (
            format!(
                "put the LAN into a zone of its own first: {lan} is in the same as {wan}, where the port would be open to the Internet. \
                 These commands make it zone internal, with the services that it had, and let it out as before; see what else you \
                 have opened for it"
            ),
            own_zone(lan, &zone(wan), &format!("{port}/{protocol}")),
        ),
        Wish::Input { lan, protocol, port, shared: None } => (
            format!("open the port in the zone of {lan}"),
            vec![
                format!("firewall-cmd --permanent --zone={} --add-port={port}/{protocol}", zone(lan)),
                reload,
            ],
        ),
        Wish::Forward { dnat: true, .. } => (
            "let translated flows pass, as firewalld does by itself unless StrictForwardPorts says otherwise"
                .to_owned(),
            vec![
                "sed -i 's/^StrictForwardPorts=.*/StrictForwardPorts=no/' /etc/firewalld/firewalld.conf"
                    .to_owned(),
                reload,
            ],
        ),
        Wish::Forward { wan, lan, dnat: false } => (
            format!(
                "let a policy forward from the zone of {wan} to the zone of {lan}, each a zone of its own; what is not mapped stays \
                 outside, at the provider's NAT"
            ),
            policy("portferry", &zone(wan), &zone(lan)),
        ),
        Wish::Replies { wan, lan } => (
            format!("let a policy forward from the zone of {lan} to the zone of {wan}"),
            policy("portferry-out", &zone(lan), &zone(wan)),
        ),
        Wish::Answers { wan } => (
            format!(
                "firewalld lets answers in by itself: see which direct rule or policy stands before, on {wan}"
            ),
            vec!["firewall-cmd --direct --get-all-rules".to_owned()],
        ),
    }
}

/// A policy of firewalld that lets all of IPv4 pass from one zone to another.
fn policy(name: &str, from: &str, to: &str) -> Vec<String> {
    vec![
        format!("firewall-cmd --permanent --new-policy={name}"),
        format!("firewall-cmd --permanent --policy={name} --add-ingress-zone={from}"),
        format!("firewall-cmd --permanent --policy={name} --add-egress-zone={to}"),
        format!(
            "firewall-cmd --permanent --policy={name} --add-rich-rule='rule priority=\"-1\" family=\"ipv4\" accept'"
        ),
        "firewall-cmd --reload".to_owned(),
    ]
}

/// Moves the LAN out of the zone that it has in common with an uplink, and opens a port for it alone. It can be done again, since
/// each port that is closed says so.
fn own_zone(lan: &str, shared: &str, port: &str) -> Vec<String> {
    const POLICY: &str = "portferry-lan";
    let of_policy = |what: &str| format!("firewall-cmd --permanent --policy={POLICY} {what}");
    vec![
        format!("shared={shared}"),
        "for service in $(firewall-cmd --zone=$shared --list-services); do firewall-cmd --permanent --zone=internal --add-service=$service; done"
            .to_owned(),
        "for port in $(firewall-cmd --zone=$shared --list-ports); do firewall-cmd --permanent --zone=internal --add-port=$port; done"
            .to_owned(),
        format!("firewall-cmd --permanent --zone=internal --change-interface={lan}"),
        format!("firewall-cmd --permanent --zone=internal --add-port={port}"),
        format!(
            "firewall-cmd --permanent --info-policy={POLICY} >/dev/null 2>&1 || firewall-cmd --permanent --new-policy={POLICY}"
        ),
        of_policy("--add-ingress-zone=internal"),
        of_policy("--add-egress-zone=$shared"),
        of_policy("--set-target=ACCEPT"),
        "firewall-cmd --reload".to_owned(),
    ]
}

/// The zone of firewalld that an interface is in by its rules; nothing for the default one.
pub(crate) fn zone<'a>(rules: &'a Ruleset, interface: &str) -> Option<&'a str> {
    let chains = rules.chains.iter().filter(|chain| chain.table.name == "firewalld");
    let zones = chains.filter(|chain| chain.name.starts_with("filter_INPUT"));
    let mut name = interface.as_bytes().to_vec();
    name.resize(16, 0);
    let named = |step: &Step| matches!(step, Step::Compare { value, .. } if !value.is_empty() && name.starts_with(value));
    zones.flat_map(|chain| &chain.rules).filter(|rule| rule.iter().any(named)).find_map(|rule| {
        match rule.last() {
            Some(Step::Verdict(Verdict::Goto(to) | Verdict::Jump(to))) => to.strip_prefix("filter_IN_"),
            _ => None,
        }
    })
}

fn ufw(wish: Wish<'_>) -> (String, Vec<String>) {
    // The line after which the file has rules of its own.
    let before = |chain: &str, rule: String| {
        format!("sed -i '/^# End required lines/a -A {chain} {rule}' /etc/ufw/before.rules")
    };
    let reload = "ufw reload".to_owned();
    match wish {
        Wish::Input { lan, protocol, port, .. } => (
            format!("open the port on {lan}"),
            vec![format!("ufw allow in on {lan} to any port {port} proto {protocol}")],
        ),
        Wish::Forward { wan, lan, dnat: true } => (
            "let pass what this router's own NAT sends on, and nothing else".to_owned(),
            vec![
                before(
                    "ufw-before-forward",
                    format!("-i {wan} -o {lan} -m conntrack --ctstate DNAT -j ACCEPT"),
                ),
                reload,
            ],
        ),
        Wish::Forward { wan, lan, dnat: false } => (
            "let pass what the provider's NAT sends on".to_owned(),
            vec![before("ufw-before-forward", format!("-i {wan} -o {lan} -j ACCEPT")), reload],
        ),
        Wish::Replies { wan, lan } => (
            "let the LAN out".to_owned(),
            vec![before("ufw-before-forward", format!("-i {lan} -o {wan} -j ACCEPT")), reload],
        ),
        Wish::Answers { wan } => (
            "let answers in".to_owned(),
            vec![
                before(
                    "ufw-before-input",
                    format!("-i {wan} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"),
                ),
                reload,
            ],
        ),
    }
}

fn iptables(firewall: Firewall, wish: Wish<'_>) -> (String, Vec<String>) {
    let forward = if firewall == Firewall::Docker { "DOCKER-USER" } else { "FORWARD" };
    let rule = match wish {
        Wish::Forward { wan, lan, dnat } => {
            let only = if dnat { " -m conntrack --ctstate DNAT" } else { "" };
            format!("iptables -I {forward} -i {wan} -o {lan}{only} -j ACCEPT")
        }
        Wish::Replies { wan, lan } => {
            format!("iptables -I {forward} -i {lan} -o {wan} -j ACCEPT")
        }
        Wish::Input { lan, protocol, port, .. } => {
            format!("iptables -I INPUT -i {lan} -p {protocol} --dport {port} -j ACCEPT")
        }
        Wish::Answers { wan } => {
            format!("iptables -I INPUT -i {wan} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
        }
    };
    let words = match firewall {
        Firewall::Docker => {
            "let it pass in the chain that Docker keeps for you; a restart of the machine forgets the line, so have a unit repeat it"
        }
        _ => "let it pass, and save the rules as your distribution does (netfilter-persistent save)",
    };
    (words.to_owned(), vec![rule])
}
