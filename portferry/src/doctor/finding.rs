//! What doctor says: findings, each with a stable id. It knows nothing of how one comes about.

use serde::Serialize;

/// How bad it is; the worst is the greatest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// Worth to know.
    Note,
    /// It could not be looked at, for the reason that the finding tells.
    Skipped,
    /// It may be what is wrong, or will be.
    Warning,
    /// Nothing, or not everything, can work like this.
    Fault,
}

/// What the checks are grouped by when they are shown, in this order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Section {
    Gateway,
    Lan,
    Wan,
    Provider,
    Nats,
    Firewall,
    Multicast,
    ControlPoints,
    Mappings,
}

impl Section {
    /// Its heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Section::Gateway => "Gateway",
            Section::Lan => "LAN",
            Section::Wan => "WAN",
            Section::Provider => "The provider's NAT",
            Section::Nats => "NATs on the way",
            Section::Firewall => "Firewall",
            Section::Multicast => "Searches of applications (multicast)",
            Section::ControlPoints => "What applications are told",
            Section::Mappings => "Mappings",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// One of [`super::ids::ALL`].
    pub(crate) id: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) section: Section,
    /// The interface that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<String>,
    /// What was seen, or why it was not looked at.
    pub(crate) seen: String,
    /// What to do, for whom runs the router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) todo: Option<String>,
    /// The same as commands of a shell, where it can be said so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) commands: Vec<String>,
    /// What of it a program may want to know.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub(crate) data: serde_json::Map<String, serde_json::Value>,
}

impl Finding {
    /// A finding of this id; its section and verdict are those of the registry.
    ///
    /// # Panics
    /// If there is no such id, which a test of each judge would show.
    pub(crate) fn new(id: &'static str, seen: impl Into<String>) -> Self {
        let known = super::ids::ALL.iter().find(|known| known.id == id);
        let known = known.expect("every finding's id is in the registry");
        Self {
            id,
            verdict: known.verdict,
            section: known.section,
            interface: None,
            seen: seen.into(),
            todo: None,
            commands: Vec::new(),
            data: serde_json::Map::new(),
        }
    }

    /// About this interface.
    pub(crate) fn at(mut self, interface: &str) -> Self {
        self.interface = Some(interface.to_owned());
        self
    }

    /// What to do.
    pub(crate) fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = Some(todo.into());
        self
    }

    /// A line for a shell.
    pub(crate) fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    /// A value for programs.
    pub(crate) fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// portferry's version.
    pub(crate) version: &'static str,
    /// The configuration that was looked at.
    pub(crate) configuration: String,
    /// The worst of all verdicts.
    pub(crate) verdict: Verdict,
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    /// In the order in which it is shown.
    pub(crate) fn new(configuration: String, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.section);
        let bad =
            findings.iter().map(|finding| finding.verdict).filter(|verdict| *verdict != Verdict::Skipped);
        let verdict = bad.max().unwrap_or(Verdict::Good);
        Self { version: env!("CARGO_PKG_VERSION"), configuration, verdict, findings }
    }

    /// How many have this verdict.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }
}
