//! The registry of findings: every id with its verdict, as `docs/doctor.md` explains them. An id never changes its meaning.

use super::finding::{Section, Verdict};

/// An id, and what it always means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) id: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) section: Section,
}

const fn known(section: Section, verdict: Verdict, id: &'static str) -> Known {
    Known { id, verdict, section }
}

/// All of them.
pub(crate) const ALL: &[Known] = {
    use Section::{ControlPoints, Firewall, Gateway, Lan, Mappings, Multicast, Nats, Provider, Wan};
    use Verdict::{Fault, Good, Note, Skipped, Warning};
    &[
        known(Gateway, Good, "configuration-good"),
        known(Gateway, Fault, "configuration-bad"),
        known(Gateway, Good, "gateway-running"),
        known(Gateway, Fault, "gateway-not-running"),
        known(Gateway, Fault, "gateway-unanswering"),
        known(Gateway, Skipped, "gateway-not-asked"),
        known(Gateway, Note, "gateway-other-version"),
        known(Gateway, Warning, "gateway-other-configuration"),
        known(Gateway, Fault, "store-error"),
        known(Lan, Good, "forwarding-on"),
        known(Lan, Fault, "forwarding-off"),
        known(Lan, Good, "lan-interface"),
        known(Lan, Fault, "lan-interface-missing"),
        known(Lan, Fault, "lan-interface-down"),
        known(Lan, Fault, "lan-address-none"),
        known(Lan, Fault, "lan-wan-overlap"),
        known(Wan, Good, "wan-address-public"),
        known(Wan, Note, "wan-address-private"),
        known(Wan, Note, "wan-address-shared"),
        known(Wan, Note, "wan-ds-lite"),
        known(Wan, Fault, "wan-address-link-local"),
        known(Wan, Warning, "wan-address-reserved"),
        known(Wan, Fault, "wan-address-none"),
        known(Wan, Fault, "wan-interface-missing"),
        known(Wan, Fault, "wan-interface-down"),
        known(Wan, Good, "default-route"),
        known(Wan, Warning, "default-route-elsewhere"),
        known(Wan, Fault, "default-route-none"),
        known(Wan, Note, "default-route-spare"),
        known(Wan, Note, "spare-down"),
        known(Wan, Good, "bound-host"),
        known(Wan, Fault, "bound-host-elsewhere"),
        known(Provider, Good, "server-answers"),
        known(Provider, Note, "server-slow"),
        known(Provider, Note, "server-silent"),
        known(Provider, Note, "server-closed"),
        known(Provider, Warning, "server-configured-silent"),
        known(Provider, Good, "isp-router-upnp"),
        known(Provider, Warning, "isp-router-disconnected"),
        known(Provider, Note, "uplink-none-needed"),
        known(Provider, Fault, "uplink-none"),
        known(Provider, Good, "gateway-uplink-answering"),
        known(Provider, Note, "gateway-uplink-unknown"),
        known(Provider, Fault, "gateway-uplink-silent"),
        known(Provider, Good, "probe-granted"),
        known(Provider, Note, "probe-left"),
        known(Provider, Fault, "probe-refused"),
        known(Provider, Warning, "probe-failed"),
        known(Provider, Skipped, "probe-skipped"),
        known(Provider, Fault, "third-party-refused"),
        known(Provider, Note, "prefer-failure-honoured"),
        known(Provider, Note, "prefer-failure-ignored"),
        known(Nats, Good, "nats"),
        known(Nats, Fault, "nat-above"),
        known(Nats, Good, "own-nat"),
        known(Nats, Fault, "own-nat-missing"),
        known(Nats, Good, "masquerade"),
        known(Nats, Warning, "masquerade-none"),
        known(Nats, Warning, "masquerade-unexpected"),
        known(Firewall, Good, "firewall-rule"),
        known(Firewall, Fault, "firewall-rule-missing"),
        known(Firewall, Warning, "firewall-rule-closed"),
        known(Firewall, Good, "firewall-forward"),
        known(Firewall, Fault, "firewall-forward-drops"),
        known(Firewall, Warning, "firewall-forward-unclear"),
        known(Firewall, Warning, "firewall-forward-sources"),
        known(Firewall, Fault, "firewall-replies-drop"),
        known(Firewall, Good, "firewall-input"),
        known(Firewall, Fault, "firewall-search-drops"),
        known(Firewall, Fault, "firewall-http-drops"),
        known(Firewall, Note, "firewall-pcp-drops"),
        known(Firewall, Fault, "firewall-uplink-drops"),
        known(Firewall, Warning, "firewall-input-unclear"),
        known(Firewall, Note, "firewall-announcements-drop"),
        known(Firewall, Warning, "firewall-legacy"),
        known(Firewall, Skipped, "firewall-unread"),
        known(Multicast, Good, "ssdp-port"),
        known(Multicast, Fault, "ssdp-port-not-ours"),
        known(Multicast, Warning, "ssdp-port-shared"),
        known(Multicast, Fault, "http-port-taken"),
        known(Multicast, Good, "ssdp-group"),
        known(Multicast, Fault, "ssdp-group-missing"),
        known(Multicast, Fault, "lan-multicast-off"),
        known(Multicast, Note, "bridge-snooping"),
        known(Multicast, Warning, "bridge-snooping-unqueried"),
        known(Multicast, Good, "searches-heard"),
        known(Multicast, Note, "searches-none"),
        known(Multicast, Fault, "search-lost"),
        known(Multicast, Warning, "other-gateway"),
        known(ControlPoints, Good, "control-point"),
        known(ControlPoints, Fault, "control-point-http-silent"),
        known(ControlPoints, Fault, "control-point-disconnected"),
        known(ControlPoints, Warning, "control-point-address-refused"),
        known(ControlPoints, Skipped, "control-point-skipped"),
        known(Mappings, Good, "mappings"),
        known(Mappings, Warning, "mapping-client-refuses"),
        known(Mappings, Warning, "mapping-client-silent"),
        known(Mappings, Warning, "mapping-degraded"),
        known(Mappings, Fault, "mapping-nat-missing"),
        known(Mappings, Skipped, "mappings-skipped"),
    ]
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/doctor.md");

    const LAB: [&str; 3] = [
        include_str!("../../../lab/tests/foreign_firewalls.rs"),
        include_str!("../../../lab/tests/doctor/main.rs"),
        include_str!("../../../lab/tests/doctor/firewalls.rs"),
    ];

    /// Every fault and every warning is produced in the laboratory.
    #[test]
    fn the_lab_produces_every_fault() {
        let bad = ALL.iter().filter(|known| matches!(known.verdict, Verdict::Warning | Verdict::Fault));
        let named = |id: &str| LAB.iter().any(|tests| tests.contains(&format!("\"{id}\"")));
        let missing: Vec<&str> = bad.map(|known| known.id).filter(|id| !named(id)).collect();
        assert_eq!(missing, [""; 0]);
    }

    /// Every id has a row of docs/doctor.md with its verdict, and the reverse.
    #[test]
    fn the_page_has_every_id() {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let verdict = |rest: &str| rest.split(" |").next().unwrap_or_default().to_owned();
        let page: BTreeSet<(String, String)> =
            rows.map(|(id, rest)| (id.to_owned(), verdict(rest))).collect();
        let word = |known: &Known| serde_json::to_string(&known.verdict).unwrap().replace('"', "");
        let ours: BTreeSet<(String, String)> =
            ALL.iter().map(|known| (known.id.to_owned(), word(known))).collect();
        assert_eq!(page, ours);
        assert_eq!(ours.len(), ALL.len(), "no id twice");
    }
}
