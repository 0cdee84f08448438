//! OpenWrt's firewall 4: one table of nftables that its program writes. A reload flushes it and our rule with it; between
//! two reloads nobody minds a rule more.

use crate::nft::foreign::{Family, Place};

/// The base chain that ends in a reject. Its first rules let known flows pass; who comes by a zone goes to that zone's chain.
pub(super) const FORWARD: Place = Place { family: Family::Inet, table: "fw4", chain: "forward" };
