//! `[policy]`: who may have which ports.

use serde::Deserialize;

use super::{Count, Port, PortsText, RuleText};

/// `[policy]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Who may have which ports; the first one that fits decides.
    pub rules: Vec<RuleText>,
    /// What becomes of what no rule is about.
    pub default: PolicyDefault,
    /// External and internal ports below this are refused, unless a rule allows them.
    pub lowest_port: Port,
    /// Likewise these.
    pub never: Vec<PortsText>,
    /// Mappings of one host.
    pub mappings_per_host: Count,
    /// Mappings in all.
    pub mappings: Count,
    /// How often one host may want what the provider, or this router's NAT, has to be asked for; in a second, and at once.
    pub exchanges_per_second: Count,
    /// See there.
    pub exchanges_burst: Count,
}

/// `policy.default`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDefault {
    /// It is allowed.
    #[default]
    Allow,
    /// It is refused.
    Deny,
    /// It is allowed to hosts that the owner has said yes to.
    Ask,
}

impl Policy {
    pub(crate) fn engine(&self) -> engine::policy::Policy {
        let rate = |number: &Count| u32::try_from(number.0).unwrap_or(u32::MAX);
        engine::policy::Policy {
            rules: self.rules.iter().map(|rule| rule.0.clone()).collect(),
            default: match self.default {
                PolicyDefault::Allow => engine::policy::ByDefault::Allow,
                PolicyDefault::Deny => engine::policy::ByDefault::Deny,
                PolicyDefault::Ask => engine::policy::ByDefault::Ask,
            },
            lowest_port: self.lowest_port.0,
            never: self.never.iter().map(|ports| ports.0).collect(),
            mappings_per_host: self.mappings_per_host.0,
            mappings: self.mappings.0,
            exchanges: engine::limits::Rate {
                per_second: rate(&self.exchanges_per_second),
                burst: rate(&self.exchanges_burst),
            },
            loopback_lan: false,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let policy = engine::policy::Policy::default();
        let of_rate = |number: u32| Count(usize::try_from(number).unwrap_or(usize::MAX));
        Self {
            rules: Vec::new(),
            default: PolicyDefault::default(),
            lowest_port: Port(policy.lowest_port),
            never: policy.never.into_iter().map(PortsText).collect(),
            mappings_per_host: Count(policy.mappings_per_host),
            mappings: Count(policy.mappings),
            exchanges_per_second: of_rate(policy.exchanges.per_second),
            exchanges_burst: of_rate(policy.exchanges.burst),
        }
    }
}
