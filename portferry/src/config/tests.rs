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
    assert!(running.take_over(swapped).unwrap_err().starts_with("wan0 is the WAN interface"));
    assert_eq!(running, parse(GOOD));
    let more = parse(&format!(
        "{}[policy]\nlowest_port = 1\n[igd]\nadd_port_mapping = \"any-then-hold\"\nget_specific = \"local\"\n[state]\nkeep_on_stop = true\n[hooks]\non_change = [\"/bin/true\", \"x\"]\ntimeout = 1\n",
        GOOD.replace("\"br-lan\"", "\"br-lan\", \"br1\"")
    ));
    assert_eq!(running.needs_restart(&more), Vec::<&str>::new());
    running.take_over(more.clone()).unwrap();
    assert_eq!(running, more);
    let mut filtering = parse(&format!("{GOOD}[nat]\nforward_filter = true\n"));
    assert_eq!(
        filtering.needs_restart(&Config { nat: filtering.nat.clone(), ..more.clone() }),
        ["lan.interfaces in [nat]"]
    );
    filtering.take_over(more).unwrap();
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
        "version",
        "friendly_name",
        "add_port_mapping",
        "get_specific",
        "optimistic_delete",
        "lowest_port",
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
