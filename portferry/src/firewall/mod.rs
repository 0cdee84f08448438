//! `[firewall] integrate`: where a packet filter of somebody else's drops what is forwarded, its own table is the only place in which
//! that can be undone. Ours marks what belongs to a mapping or a pinhole (`Config::mark`), and one static rule in the other's
//! chain accepts what has the mark, of both families. The rule is put there before the first mapping, put back when the other
//! program has loaded its rules anew, and taken out at a stop; one that a killed life has left is replaced.
//!
//! The engine knows nothing of it, and no failure here ends the daemon: it is a warning that says what to do, and is tried again. Nothing
//! of the other's configuration is ever changed.

mod firewalld;
mod fw4;
mod iptables;
mod keeper;
mod ufw;

use std::fmt;
use std::io::{self, ErrorKind};

pub(crate) use keeper::Keeper;

use crate::config::{Config, Integrate};
use crate::nft::foreign::{Family, Place, Tables};

/// A packet filter of somebody else's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Foreign {
    Fw4,
    Firewalld,
    Ufw,
}

/// What its rules have of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// It is not running: there is no place for a rule.
    Absent,
    /// It is running, and the rule is not there.
    Missing,
    /// The same, and nobody but itself may change its rules.
    Closed,
    There,
}

/// What [`Foreign::ensure`] has found or done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ensured {
    Absent,
    /// The rule was there.
    There,
    /// It was put there.
    Put,
}

/// What the rule is to let pass.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Pass {
    /// One bit of the packet's mark.
    pub(crate) mark: u32,
    /// By which it comes: those towards the Internet, and the LAN's, whose hosts reach each other's mappings.
    pub(crate) interfaces: Vec<String>,
}

/// Why it could not be done, and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Trouble {
    what: String,
    denied: bool,
}

impl Trouble {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), denied: false }
    }

    /// With a word before on what it is about.
    fn about(self, what: &str) -> Self {
        Self { what: format!("{what}: {}", self.what), ..self }
    }

    /// Whether a privilege is missing.
    pub(crate) fn is_denied(&self) -> bool {
        self.denied
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::PermissionDenied => {
                Self { what: "changing rules needs root or CAP_NET_ADMIN".to_owned(), denied: true }
            }
            _ => Self::new(error.to_string()),
        }
    }
}

impl Pass {
    /// What the configuration makes of it.
    pub(crate) fn of(config: &Config) -> Self {
        let lines = config.lines();
        let wans = lines.iter().flat_map(|line| &line.ways).map(|way| way.interface.clone());
        let lans = config.lan.interfaces.0.iter().map(|lan| lan.0.clone());
        let mut interfaces: Vec<String> = wans.chain(lans).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        Self { mark: config.mark(), interfaces }
    }
}

impl Foreign {
    /// All that we know.
    pub(crate) const ALL: [Self; 3] = [Self::Fw4, Self::Firewalld, Self::Ufw];

    /// Those that the configuration wants to be given a rule, if they run.
    pub(crate) fn wanted(integrate: Integrate) -> &'static [Self] {
        match integrate {
            Integrate::None => &[],
            Integrate::Auto => &Self::ALL,
            Integrate::Fw4 => &[Self::Fw4],
            Integrate::Firewalld => &[Self::Firewalld],
            Integrate::Ufw => &[Self::Ufw],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fw4 => "fw4",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
        }
    }

    /// Where its rule is, or would be, in words.
    pub(crate) fn place(self) -> String {
        match self {
            Self::Fw4 => fw4::FORWARD.to_string(),
            Self::Firewalld => firewalld::FORWARD.to_string(),
            Self::Ufw => ufw::place(),
        }
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// It cannot be seen.
    pub(crate) async fn look(self, tables: &mut Tables) -> Result<State, Trouble> {
        match self {
            Self::Fw4 => look_at(tables, fw4::FORWARD).await,
            Self::Firewalld => look_at(tables, firewalld::FORWARD).await,
            Self::Ufw => ufw::look(tables).await,
        }
    }

    /// Has the rule be there, once. `anew`: whatever is there is replaced, for it may be of an earlier life.
    ///
    /// # Errors
    /// Why it could not be, and what to do. It may be another time.
    pub(crate) async fn ensure(
        self,
        tables: &mut Tables,
        pass: &Pass,
        anew: bool,
    ) -> Result<Ensured, Trouble> {
        match self {
            Self::Fw4 => put_in(tables, fw4::FORWARD, pass, anew).await,
            Self::Firewalld => firewalld::ensure(tables, pass, anew).await,
            Self::Ufw => ufw::ensure(tables, pass, anew).await,
        }
    }

    /// Takes out what is ours, of whatever life; where that was, in words.
    ///
    /// # Errors
    /// Why it could not be.
    pub(crate) async fn remove(self, tables: &mut Tables) -> Result<Vec<String>, Trouble> {
        match self {
            Self::Fw4 => take_from(tables, fw4::FORWARD).await,
            Self::Firewalld => take_from(tables, firewalld::FORWARD).await,
            Self::Ufw => ufw::remove(tables).await,
        }
    }
}

/// [`Foreign::look`] in a table of nftables.
async fn look_at(tables: &mut Tables, place: Place) -> Result<State, Trouble> {
    Ok(match tables.look(place).await? {
        None => State::Absent,
        Some(seen) if !seen.rules.is_empty() => State::There,
        Some(seen) if seen.owned => State::Closed,
        Some(_) => State::Missing,
    })
}

/// [`Foreign::ensure`] in a table of nftables.
async fn put_in(tables: &mut Tables, place: Place, pass: &Pass, anew: bool) -> Result<Ensured, Trouble> {
    let mut again = true;
    loop {
        let Some(seen) = tables.look(place).await? else { return Ok(Ensured::Absent) };
        if seen.rules.len() == 1 && !anew {
            return Ok(Ensured::There);
        }
        match tables.put(place, &seen, pass.mark, &pass.interfaces).await {
            // It was loaded anew since the look.
            Err(error) if again && error.kind() == ErrorKind::NotFound => again = false,
            put => return Ok(put.map(|()| Ensured::Put)?),
        }
    }
}

/// [`Foreign::remove`] from a table of nftables.
async fn take_from(tables: &mut Tables, place: Place) -> Result<Vec<String>, Trouble> {
    let seen = tables.look(place).await?.unwrap_or_default();
    tables.take(place, &seen).await?;
    Ok(seen.rules.iter().map(|_| place.to_string()).collect())
}

/// What `portferry run --cleanup` removes, each in words; stops at the first that it cannot.
///
/// # Errors
/// What was not removed, and why.
pub(crate) async fn clean_up(own: &[String], removed: &mut Vec<String>) -> Result<(), Trouble> {
    let mut tables = Tables::default();
    for name in own {
        for family in [Family::Inet, Family::Ip6] {
            let table = format!("table {} {name}", family.name());
            let deleted = tables.delete_table(family, name).await;
            if deleted.map_err(|error| Trouble::from(error).about(&table))? {
                removed.push(table);
            }
        }
    }
    for foreign in Foreign::ALL {
        let taken = foreign.remove(&mut tables).await;
        let taken = taken.map_err(|trouble| trouble.about(foreign.name()))?;
        removed.extend(
            taken.into_iter().map(|place| format!("{}'s rule for mappings in {place}", foreign.name())),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_configuration_makes() {
        let of = |more: &str| {
            let text =
                format!("[lan]\ninterfaces = [\"br-lan\", \"guest\"]\n[wan]\ninterface = \"wan0\"\n{more}");
            Config::parse(std::path::Path::new("x"), &text).unwrap()
        };
        let none = of("");
        assert_eq!((none.mark(), Foreign::wanted(none.firewall.integrate)), (0, [].as_slice()));
        let auto = of("[firewall]\nintegrate = \"auto\"\n[[uplink.extra]]\ninterface = \"wwan0\"\n");
        assert_eq!(
            Pass::of(&auto),
            Pass {
                mark: 0x2000_0000,
                interfaces: ["br-lan", "guest", "wan0", "wwan0"].map(str::to_owned).to_vec()
            }
        );
        assert_eq!(Foreign::wanted(auto.firewall.integrate), Foreign::ALL);
        let own = of("[nat]\nmark = 0x10\n[firewall]\nintegrate = \"ufw\"\n");
        assert_eq!((own.mark(), Foreign::wanted(own.firewall.integrate)), (16, [Foreign::Ufw].as_slice()));
    }
}
