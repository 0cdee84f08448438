use engine::prefix::{Prefix, ThirdParty};

use super::*;

const GOOD: &str = "[lan]\ninterfaces = [\"br-lan\"]\n[wan]\ninterface = \"wan0\"\n";

fn refused(text: &str) -> String {
    Config::parse(Path::new("pf.toml"), text).expect_err("it should be refused").to_string()
}

#[test]
fn two_interfaces_are_enough() {
    let config = Config::parse(Path::new("pf.toml"), GOOD).unwrap();
    assert_eq!(config.wan.nat, NatMode::Nftables);
    assert_eq!(config.lan.http_port, Port(5431));
    assert_eq!(config.uplink, Uplink::default());
}

/// What is longer than a message of the two processes would leave the one that asks without an answer.
#[test]
fn a_file_is_bounded() {
    let directory = crate::scratch::Directory::new("config-bounded");
    let path = directory.0.join("pf.toml");
    let of = |len: usize| format!("{GOOD}{}", "#".repeat(len - GOOD.len()));
    std::fs::write(&path, of(MAX_LEN)).unwrap();
    assert!(Config::load(&path).is_ok());
    std::fs::write(&path, of(MAX_LEN + 1)).unwrap();
    let refused = Config::load(&path).unwrap_err().to_string();
    assert!(refused.ends_with("pf.toml: expected 65536 octets at most, got more"), "{refused}");
    // Nobody waits for the end of what has none.
    assert!(Config::load(Path::new("/dev/zero")).is_err());
}

#[test]
fn errors_name_file_line_key_and_what_was_expected() {
    for (text, wanted) in [
        (
            "[lan]\ninterfaces = []\n",
            "pf.toml, line 2, lan.interfaces: expected at least one network interface",
        ),
        (
            "[lan]\ninterfaces = [\"br0\", \"br1\", \"br0\"]\n",
            "pf.toml, line 2, lan.interfaces: expected each network interface once, got \"br0\" twice",
        ),
        (
            "[lan]\ninterfaces = [\"br-lan\"]\nhttp_port = 70000\n",
            "pf.toml, line 3, lan.http_port: expected a port number from 1 to 65535, got 70000",
        ),
        (
            "[lan]\ninterfaces = [\"br0\"]\nthird_party = [\"192.168.1.5\"]\n",
            "pf.toml, line 3, lan.third_party: expected who for whom such as \"10.8.0.2 for 192.168.1.0/24\", got \"192.168.1.5\"",
        ),
        (
            "[lan]\ninterfaces = [\"a/b\"]\n",
            "pf.toml, line 2, lan.interfaces: expected the name of a network interface, got \"a/b\"",
        ),
        (
            "[lan]\ninterfaces = [\"br0\"]\n[wan]\ninterface = \"br0\"\n",
            "pf.toml, line 4, wan.interface: expected another interface than those of [lan], got \"br0\"",
        ),
    ] {
        assert_eq!(refused(text), wanted);
    }
    let with = |more: &str| refused(&format!("{GOOD}{more}"));
    for (more, wanted) in [
        (
            "nat = \"iptables\"\n",
            "pf.toml, line 5, wan.nat: unknown variant `iptables`, expected `nftables` or `none`",
        ),
        (
            "[uplink]\nservers = [\"example.net\"]\n",
            "pf.toml, line 6, uplink.servers: expected the address of a PCP server such as \"192.0.2.1\", got \"example.net\"",
        ),
        (
            "[uplink]\nanswer_within = 0\n",
            "pf.toml, line 6, uplink.answer_within: expected seconds from 0.1 to 600, got 0",
        ),
        (
            "[uplink]\nfirewall_servers = [\"192.0.2.1\"]\n",
            "pf.toml, line 6, uplink.firewall_servers: expected IPv6 addresses, got \"192.0.2.1\": it is a firewall of IPv6",
        ),
        (
            "[uplink]\nservers = [\"2001:db8::1\"]\n",
            "pf.toml, line 6, uplink.servers: expected IPv4 addresses, got \"2001:db8::1\": a server that is asked in IPv6 (DS-Lite) maps to LAN hosts, which needs wan.nat = \"none\"",
        ),
        (
            "nat = \"none\"\n[uplink]\nwhen_unreachable = \"local\"\n",
            "pf.toml, line 7, uplink.when_unreachable: expected \"refuse\": a router without a NAT of its own (wan.nat = \"none\") has nothing to give",
        ),
        (
            "[hooks]\non_change = [\"hook.sh\"]\n",
            "pf.toml, line 6, hooks.on_change: expected the full path of a program, then its arguments, got \"hook.sh\"",
        ),
        (
            "[hooks]\ntimeout = 3600\n",
            "pf.toml, line 6, hooks.timeout: expected seconds from 0.1 to 600, got 3600",
        ),
        (
            "[nat]\nmark = 0x30000000\n",
            "pf.toml, line 6, nat.mark: expected one bit of 32 such as 0x20000000, or 0, got 0x30000000",
        ),
        (
            "[firewall]\nintegrate = \"pf\"\n",
            "pf.toml, line 6, firewall.integrate: unknown variant `pf`, expected one of `none`, `auto`, `fw4`, `firewalld`, `ufw`",
        ),
        (
            "[policy]\nrules = [\"allow 80 192.168.1.10 80 \\\"^game\\\"\"]\n",
            "pf.toml, line 6, policy.rules: expected a rule such as \"allow 1024-65535 192.168.1.0/24 1024-65535\", got \"allow 80 192.168.1.10 80 \\\"^game\\\"\": a regular expression for descriptions is not taken: the description is the application's own word, and whoever wants to get past the rule says what it wants to read",
        ),
        (
            "[policy]\nrules = [\"allow 80\"]\n",
            "pf.toml, line 6, policy.rules: expected a rule such as \"allow 1024-65535 192.168.1.0/24 1024-65535\", got \"allow 80\": a word is missing: external ports, address, or internal ports",
        ),
        (
            "[policy]\nnever = [\"137-135\"]\n",
            "pf.toml, line 6, policy.never: expected a port or ports such as \"137-139\", got \"137-135\"",
        ),
        (
            "[policy]\ndefault = \"no\"\n",
            "pf.toml, line 6, policy.default: unknown variant `no`, expected one of `allow`, `deny`, `ask`",
        ),
        ("[igd]\nversion = 3\n", "pf.toml, line 6, igd.version: expected \"auto\", 1 or 2, got 3"),
    ] {
        assert_eq!(with(more), wanted);
    }
    let unknown = with("netmask = 3\n");
    assert!(
        unknown.starts_with("pf.toml, line 5, wan.netmask: unknown field `netmask`, expected"),
        "{unknown}"
    );
    let section = with("[lna]\n");
    assert!(section.starts_with("pf.toml, line 5, [lna]: unknown field `lna`"), "{section}");
    let syntax = with("x = \n");
    assert!(syntax.starts_with("pf.toml, line 5, wan.x: "), "{syntax}");
    let missing = refused("[lan]\ninterfaces = [\"br-lan\"]\n");
    assert!(missing.contains("missing field `wan`"), "{missing}");
}

#[test]
fn a_reload_never_serves_control_points_on_the_wan() {
    let parse = |text: &str| Config::parse(Path::new("pf.toml"), text).unwrap();
    let mut running = parse(GOOD);
    let swapped = parse("[lan]\ninterfaces = [\"wan0\"]\n[wan]\ninterface = \"br-lan\"\n");
    assert!(running.take_over(swapped).unwrap_err().starts_with("wan0 is a WAN interface"));
    assert_eq!(running, parse(GOOD));
    let more = parse(&format!(
        "{}[policy]\nlowest_port = 1\n[igd]\nadd_port_mapping = \"any-then-hold\"\nget_specific = \"local\"\n[state]\nkeep_on_stop = true\n[hooks]\non_change = [\"/bin/true\", \"x\"]\ntimeout = 1\n",
        GOOD.replace("\"br-lan\"", "\"br-lan\", \"br1\"")
    ));
    assert_eq!(running.needs_restart(&more), Vec::<&str>::new());
    running.take_over(more.clone()).unwrap();
    assert_eq!(running, more);
    let without = parse(&GOOD.replace("[wan]", "ipv6_pinholes = false\n[wan]"));
    assert_eq!(parse(GOOD).needs_restart(&without), ["lan.ipv6_pinholes"]);
    let mut straight = parse(&format!("{GOOD}[nat]\nhairpin = false\n[firewall]\nintegrate = \"ufw\"\n"));
    assert_eq!(straight.needs_restart(&more), ["[nat]", "[firewall]"]);
    straight.take_over(more).unwrap();
    assert!(!straight.nat.hairpin, "it is a matter of the next start");
}

#[test]
fn servers_are_addresses_with_or_without_port() {
    let text = format!(
        "{GOOD}nat = \"none\"\n[uplink]\nservers = [\"192.0.2.1\", \"192.0.2.1:5352\", \"2001:db8::1\"]\n"
    );
    let config = Config::parse(Path::new("pf.toml"), &text).unwrap();
    let servers: Vec<String> = config.uplink.servers.iter().map(|s| s.0.to_string()).collect();
    assert_eq!(servers, ["192.0.2.1:5351", "192.0.2.1:5352", "[2001:db8::1]:5351"]);
}

fn with_extras(extras: &str) -> Config {
    Config::parse(Path::new("pf.toml"), &format!("{GOOD}[uplink]\nservers = [\"100.64.0.1\"]\n{extras}"))
        .unwrap()
}

/// One without hosts is a spare for the usual interface, one with hosts an uplink of its own.
#[test]
fn further_uplinks() {
    let config = with_extras(
        "[[uplink.extra]]\ninterface = \"wwan0\"\n\
         [[uplink.extra]]\ninterface = \"wg0.1\"\nservers = [\"10.8.0.1\"]\nhosts = [\"192.168.1.20\", \"192.168.1.64/26\"]\nnat = \"none\"\n",
    );
    let way = |interface: &str, servers: &[&str]| WanWay {
        interface: interface.to_owned(),
        servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
    };
    let usual = Line {
        name: "wan0".into(),
        ways: vec![way("wan0", &["100.64.0.1:5351"]), way("wwan0", &[])],
        hosts: Vec::new(),
        nat: NatMode::Nftables,
        table: "portferry".into(),
        directory: "/var/lib/portferry".into(),
    };
    let vpn = Line {
        name: "wg0.1".into(),
        ways: vec![way("wg0.1", &["10.8.0.1:5351"])],
        hosts: ["192.168.1.20", "192.168.1.64/26"].map(|hosts| hosts.parse().unwrap()).to_vec(),
        nat: NatMode::None,
        table: "portferry-wg0_2e1".into(),
        directory: "/var/lib/portferry/uplink-wg0.1".into(),
    };
    assert_eq!(config.lines(), [usual, vpn]);
    assert_eq!(with_extras("").lines().len(), 1);
    // Not the PCP server's, whatever an interface is called.
    for (name, table) in [("provider", "portferry-_70rovider"), ("provider1", "portferry-provider1")] {
        assert_eq!(Line::table_of(&config, name), table);
    }
}

#[test]
fn further_uplinks_that_make_no_sense() {
    for (extras, wanted) in [
        ("", "line 9, uplink.extra.interface: expected each interface once, got \"wan0\" twice"),
        (
            "interface = \"br-lan\"\n",
            "line 9, uplink.extra.interface: expected another interface than those of [lan], got \"br-lan\"",
        ),
        (
            "interface = \"wan1\"\nhosts = [\"10.0.0.1/33\"]\n",
            "line 10, uplink.extra.hosts: expected an IPv4 address or prefix such as \"192.168.1.64/26\", got \"10.0.0.1/33\"",
        ),
        (
            "interface = \"wan1\"\nhosts = [\"fd00::/8\"]\n",
            "line 10, uplink.extra.hosts: expected an IPv4 address or prefix such as \"192.168.1.64/26\", got \"fd00::/8\"",
        ),
        (
            "interface = \"wan1\"\nnat = \"none\"\n",
            "line 10, uplink.extra.nat: expected that of [wan]: without hosts of its own it takes the place of wan.interface",
        ),
        (
            "interface = \"wan1\"\nhosts = [\"192.168.1.9\", \"192.168.1.20\"]\n",
            "line 10, uplink.extra.hosts: expected the hosts of one uplink, got 192.168.1.20 twice",
        ),
        (
            "interface = \"wan1\"\nservers = [\"2001:db8::1\"]\n",
            "line 10, uplink.extra.servers: expected IPv4 addresses, got \"2001:db8::1\": a server that is asked in IPv6 (DS-Lite) maps to LAN hosts, which needs wan.nat = \"none\"",
        ),
    ] {
        let first = "[[uplink.extra]]\ninterface = \"wg0\"\nhosts = [\"192.168.1.20\"]\n";
        let second =
            if extras.is_empty() { "[[uplink.extra]]\ninterface = \"wan0\"\n" } else { "[[uplink.extra]]\n" };
        let message = refused(&format!("{GOOD}{first}{second}{extras}"));
        assert_eq!(message, format!("pf.toml, {wanted}"));
    }
    let ways = |name: &str| format!("{GOOD}[[uplink.extra]]\ninterface = \"{name}\"\n");
    assert!(refused(&ways("..")).contains("expected the name of a network interface"));
}

/// Who may ask for whom is read as `portferry pcp-server` reads it, and counts at once.
#[test]
fn third_parties_at_a_reload() {
    let mut running = Config::parse(Path::new("pf.toml"), GOOD).unwrap();
    let lines = "third_party = [\"192.168.1.5 for 192.168.1.0/24\", \"2001:db8:1::5 for 2001:db8:1::/64 10.0.0.7\"]\n";
    let text = GOOD.replace("[wan]", &format!("{lines}[wan]"));
    let new = Config::parse(Path::new("pf.toml"), &text).unwrap();
    assert_eq!(running.needs_restart(&new), Vec::<&str>::new());
    running.take_over(new).unwrap();
    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let rules: Vec<ThirdParty> = running.lan.third_party.iter().map(|rule| rule.0.clone()).collect();
    let of = |client, internal: &[&str]| {
        let internal = internal.iter().copied().map(prefix).collect();
        ThirdParty { client: prefix(client), internal }
    };
    assert_eq!(
        rules,
        [of("192.168.1.5", &["192.168.1.0/24"]), of("2001:db8:1::5", &["2001:db8:1::/64", "10.0.0.7"])]
    );
}

/// Whose they are, and their servers, count at once; which there are, from the next start.
#[test]
fn further_uplinks_at_a_reload() {
    let vpn = |more: &str| with_extras(&format!("[[uplink.extra]]\ninterface = \"wg0\"\n{more}"));
    let mut running = vpn("hosts = [\"192.168.1.20\"]\n");
    let other = vpn("hosts = [\"192.168.1.21\"]\nservers = [\"10.8.0.1\"]\n");
    assert_eq!(running.needs_restart(&other), Vec::<&str>::new());
    running.take_over(other.clone()).unwrap();
    assert_eq!(running, other);
    for new in [vpn(""), with_extras(""), vpn("hosts = [\"192.168.1.21\"]\nnat = \"none\"\n")] {
        assert_eq!(running.needs_restart(&new), ["[[uplink.extra]]"]);
        running.take_over(new).unwrap();
        assert_eq!(running.uplink.extra, other.uplink.extra);
    }
    let lan = Config {
        lan: Lan { interfaces: Interfaces(vec![Interface("wg0".into())]), ..running.lan.clone() },
        ..running.clone()
    };
    assert!(running.take_over(lan).unwrap_err().starts_with("wg0 is a WAN interface"));
}

/// The example file names every key there is, with its default.
#[test]
fn the_example_file_is_complete_and_holds_the_defaults() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/portferry.example.toml"));
    let text = std::fs::read_to_string(path).unwrap();
    let as_printed = Config::parse(path, &text).unwrap();
    let minimal = Config::parse(Path::new("pf.toml"), GOOD).unwrap();
    assert_eq!(as_printed.wan, minimal.wan);
    assert_eq!(as_printed.lan, minimal.lan);
    // Every key is there, commented out with its default or set: uncommenting all changes nothing.
    let all: String = text
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let uncommented = Config::parse(path, &all).unwrap();
    assert_eq!(uncommented, minimal);
    for key in [
        "interfaces",
        "http_port",
        "third_party",
        "ipv6_pinholes",
        "interface",
        "nat",
        "servers",
        "answer_within",
        "service_wait",
        "recovery_wait",
        "igd",
        "external_address_probe",
        "when_unreachable",
        "send_descriptions",
        "list_mappings",
        "table",
        "masquerade",
        "forward_filter",
        "hairpin",
        "mark",
        "integrate",
        "version",
        "friendly_name",
        "add_port_mapping",
        "get_specific",
        "optimistic_delete",
        "rules",
        "default",
        "lowest_port",
        "never",
        "exchanges_per_second",
        "exchanges_burst",
        "mappings_per_host",
        "mappings",
        "directory",
        "keep_on_stop",
        "socket",
        "on_change",
        "timeout",
        "level",
    ] {
        assert!(all.lines().any(|line| line.split('=').next().is_some_and(|k| k.trim() == key)), "{key}");
    }
}

/// What an owner may not have meant is no error.
#[test]
fn a_rule_that_opens_more_than_it_names() {
    let with = |rule: &str| {
        let text = format!("{GOOD}[policy]\nrules = [\"{rule}\"]\n");
        Config::parse(Path::new("pf.toml"), &text).unwrap().warnings()
    };
    assert_eq!(with("allow 6000-6100 192.168.1.0/24 6000-6100"), Vec::<String>::new());
    let warnings = with("allow 1024-65535 192.168.1.0/24 1024-65535");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("the rule \"allow 1024-65535 192.168.1.0/24 1024-65535\" allows"));
    assert!(warnings[0].contains(" 3389, "), "{warnings:?}");
}
