//! Which of several WAN interfaces is the gateway's: that by which the LAN's traffic leaves (decision 19). Routing is not ours; who
//! watches over the lines (netifd, NetworkManager, mwan3) moves the default route, and mappings follow it.

/// What speaks for an interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Way {
    /// It has a carrier, and an address that is good for more than its link.
    pub usable: bool,
    /// The priority of its IPv4 default route, the lowest wins; `None`: it has none.
    pub route_v4: Option<u32>,
    /// Likewise of its IPv6 default route, which may be the only one (DS-Lite).
    pub route_v6: Option<u32>,
}

/// The place of the interface to use, of those that somebody has named, the most preferred first: the one that has the best
/// default route; where none has one (they may be in tables of their own), the first that is usable; else the `present` one, for
/// a change helps nobody then.
///
/// IPv4 decides before IPv6, whose routes have other priorities; but not where the best IPv4 default route is by an interface that
/// nobody has named, `elsewhere` being its priority: with DS-Lite that is the softwire, which ends behind one of these.
pub fn preferred(ways: &[Way], elsewhere: Option<u32>, present: usize) -> usize {
    let usable = || ways.iter().enumerate().filter(|(_, way)| way.usable);
    let best =
        |route: fn(&Way) -> Option<u32>| usable().filter_map(|(place, way)| Some((route(way)?, place))).min();
    let by_v4 = best(|way| way.route_v4).filter(|(metric, _)| elsewhere.is_none_or(|other| *metric <= other));
    let by_route = by_v4.or_else(|| best(|way| way.route_v6)).map(|(_, place)| place);
    by_route.or_else(|| usable().map(|(place, _)| place).next()).unwrap_or(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: Way = Way { usable: false, route_v4: None, route_v6: None };
    const UP: Way = Way { usable: true, ..DOWN };

    fn v4(metric: u32) -> Way {
        Way { route_v4: Some(metric), ..UP }
    }

    fn v6(metric: u32) -> Way {
        Way { route_v6: Some(metric), ..UP }
    }

    #[test]
    fn mappings_follow_the_default_route() {
        for (ways, place, why) in [
            (vec![], 1, "nothing is known"),
            (vec![DOWN, DOWN], 1, "nothing can be used: a change helps nobody"),
            (vec![v4(100), v4(200)], 0, "the first has the better route"),
            (vec![v4(300), v4(200)], 1, "the second has it now"),
            (vec![v4(0), v4(0)], 0, "of equal ones the one that was named first"),
            (vec![UP, v4(200)], 1, "the first has lost its route"),
            (vec![DOWN, UP], 1, "routes of their own tables: the first that is there"),
            (vec![UP, UP], 0, "likewise, both"),
            (vec![Way { usable: false, ..v4(1) }, v4(200)], 1, "a route by an interface without an address"),
            (vec![v6(1024), v4(200)], 1, "IPv4 decides"),
            (vec![v6(1024), v6(512)], 1, "IPv6 alone"),
            (vec![Way { route_v6: Some(1), ..v4(100) }, Way { route_v6: Some(2), ..v4(50) }], 1, "both"),
        ] {
            assert_eq!(preferred(&ways, None, 1), place, "{why}");
            assert_eq!(preferred(&ways, Some(1 << 31), 1), place, "{why}, and a worse route elsewhere");
        }
    }

    /// DS-Lite's IPv4 default route is by the softwire, a spare line's by itself with a greater metric.
    #[test]
    fn a_softwire_is_nobodys_route() {
        let lines = [v6(1024), v4(5000)];
        assert_eq!(
            preferred(&lines, Some(0), 0),
            0,
            "IPv4 goes through the softwire, which is behind the first"
        );
        assert_eq!(preferred(&lines, None, 0), 1, "it is gone");
        assert_eq!(
            preferred(&[UP, v4(5000)], Some(0), 1),
            0,
            "no IPv6 route in sight: the first that is there"
        );
    }
}
