//! Why no test holds a row, or tests hold it in part only. This list shrinks: who does what a reason says is not there
//! yet takes the reason away, and the test names the row.

/// What a reason says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// It will not come; no test may name the row.
    OutOfScope,
    /// It comes later; no test may name the row before.
    NotYet,
    /// Tests hold what is there; the rest comes later.
    Part,
}

/// A reason, for one row or several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reason {
    pub(super) why: Why,
    /// As comments name them.
    pub(super) rows: &'static str,
    /// What the page says, in Markdown.
    pub(super) text: &'static str,
}

const fn out_of_scope(rows: &'static str, text: &'static str) -> Reason {
    Reason { why: Why::OutOfScope, rows, text }
}

#[allow(dead_code, reason = "at the moment everything is there in part")]
const fn not_yet(rows: &'static str, text: &'static str) -> Reason {
    Reason { why: Why::NotYet, rows, text }
}

const fn part(rows: &'static str, text: &'static str) -> Reason {
    Reason { why: Why::Part, rows, text }
}

/// In the order of the page.
pub(super) const REASONS: &[Reason] = &[
    out_of_scope(
        "R-8",
        "steering a firewall upstream is out of the RFC's own scope ([out-of-scope.md](out-of-scope.md)).",
    ),
    part("D-16", "OpenWrt, on which nothing has been tried."),
    part("decision 5", "UPnP routers upstream."),
    part("decision 20", "UPnP routers upstream."),
    part("decision 25", "without a NAT of its own the router leaves it to the provider."),
    part("decision 24", "the hook for foreign drop policies, and `doctor`."),
    part("decision 29", "`private_listings`."),
];
