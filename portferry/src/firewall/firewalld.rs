//! firewalld with its usual backend, nftables. What this router translates passes there anyway (`ct status dnat accept`, unless
//! StrictForwardPorts forbids it); pinholes of IPv6 are rejected at the end of the chain.
//!
//! Why a rule of our own and none of firewalld's: nothing that can be told to it matches a mark. A rich rule or a policy knows
//! addresses, ports and sets of them, which would have to follow each mapping, one more copy of the table to go wrong; a mark is
//! something that it sets. A set of kind `hash:ip,mark` compares the whole mark, not one bit of it. Its direct rules are of
//! iptables, whose accept does not undo a reject in firewalld's own table. So the rule is put into that table at run time, and a reload,
//! which makes the table anew, is answered by putting it back. Newer ones than Debian 12's may keep their table to themselves
//! (`NftablesTableOwner`, which the kernel enforces): then nobody can, and who wants it has to say no there.

use super::{Ensured, Pass, State, Trouble, look_at, put_in};
use crate::nft::foreign::{Family, Place, Tables};

/// The base chain that ends in a reject.
pub(super) const FORWARD: Place = Place { family: Family::Inet, table: "firewalld", chain: "filter_FORWARD" };

/// See [`super::Foreign::ensure`].
pub(super) async fn ensure(tables: &mut Tables, pass: &Pass, anew: bool) -> Result<Ensured, Trouble> {
    if look_at(tables, FORWARD).await? == State::Closed {
        return Err(Trouble::new(
            "it keeps its table to itself: set NftablesTableOwner=no in /etc/firewalld/firewalld.conf and restart it; until then \
             pinholes of IPv6 stay closed, while mappings of IPv4 pass unless StrictForwardPorts=yes",
        ));
    }
    put_in(tables, FORWARD, pass, anew).await
}
