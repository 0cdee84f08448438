//! The nftables tables of all uplinks, and what is in them: who wants a change says which uplink's, and it becomes rules in the kernel.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use engine::nat::NatFailure;
use tokio::time::{Instant, sleep_until};

use super::message::NatChange;
use crate::config::{Config, Line, NatMode};
use crate::exit::Failure;
use crate::nft::pinholes::{Change as PinholeChange, PinholeRule, Pinholes, PinholesConfig};
use crate::nft::watch::{Guard, Say};
use crate::nft::{Change, MAX_CHANGES, Nat1Rule, Nft, TableConfig, port_is_free};

/// What there is of one uplink.
struct Uplink {
    line: Line,
    /// Which of its ways is in use.
    way: usize,
    /// That interface's IPv4 addresses, while it is up.
    addresses: Vec<Ipv4Addr>,
    nft: Option<Nft>,
    /// Not where the kernel refused it.
    pinholes: Option<Pinholes>,
}

/// See the module's description. An uplink is known by its place among the configuration's lines.
pub(crate) struct Tables {
    config: Config,
    uplinks: Vec<Uplink>,
    /// What hears when others change them.
    guard: Guard,
}

/// What is to be done with the tables though nobody asks for it.
pub(crate) enum Due {
    /// Another program may have changed one; its name, if it is known.
    Restore(Option<String>),
    /// Flows are to be ended that changes have left.
    EndFlows,
}

impl Tables {
    /// Nothing is open yet.
    pub(crate) fn new(config: &Config) -> Self {
        let uplink = |line| Uplink { line, way: 0, addresses: Vec::new(), nft: None, pinholes: None };
        let uplinks = config.lines().into_iter().map(uplink).collect();
        Self { config: config.clone(), uplinks, guard: Guard::default() }
    }

    /// What the tables are made from.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Settings were read again; how many uplinks there are, and their interfaces, is as it was.
    pub(crate) fn configure(&mut self, config: &Config) {
        self.config = config.clone();
        for (uplink, line) in self.uplinks.iter_mut().zip(config.lines()) {
            uplink.line = line;
        }
    }

    /// Makes the tables, at the start. Without the filter nothing depends on that of the pinholes but pinholes themselves.
    ///
    /// # Errors
    /// A table that is needed cannot be made.
    pub(crate) async fn open(&mut self) -> Result<(), Failure> {
        // Before them, that nothing goes by.
        self.guard = Guard::new(self.uplinks.iter().map(|uplink| uplink.line.table.as_str())).await;
        for uplink in &mut self.uplinks {
            // First, so that what an older version's table of the NAT has filtered is never open.
            if let Some(table) = pinholes_config(&self.config, uplink) {
                let filter = table.filter;
                match Pinholes::open(table).await {
                    Ok(pinholes) => uplink.pinholes = Some(pinholes),
                    Err(error) if filter && has_ipv6() => return Err(failure(&error)),
                    Err(error) => tracing::warn!(
                        "no IPv6 pinholes by {}: {error} ([lan] ipv6_pinholes = false: nobody is offered any)",
                        uplink.interface()
                    ),
                }
            }
            if uplink.line.nat == NatMode::Nftables {
                let table = nat_config(&self.config, uplink);
                uplink.nft = Some(Nft::open(table).await.map_err(|error| failure(&error))?);
            }
        }
        // Nor is there anything of an uplink that has no NAT of ours any more, or no pinholes.
        for uplink in &self.uplinks {
            let table = &uplink.line.table;
            let nat = if uplink.nft.is_some() { Ok(()) } else { Nft::remove(table).await };
            let pinholes = if uplink.pinholes.is_some() { Ok(()) } else { Pinholes::remove(table).await };
            for error in [nat, pinholes].into_iter().filter_map(Result::err) {
                tracing::debug!("nftables table {table}: {error}");
            }
        }
        Ok(())
    }

    /// Removes the tables of an uplink that the configuration does not have any more.
    pub(crate) async fn forget(&self, name: &str) {
        let table = Line::table_of(&self.config, name);
        for removed in [Nft::remove(&table).await, Pinholes::remove(&table).await] {
            if let Err(error) = removed {
                tracing::debug!("nftables table {table}: {error}");
            }
        }
    }

    /// When the way to the Internet is by another interface, so is the way in; by its addresses LAN hosts come back to each
    /// other, and by the interfaces that are the LAN's, which may be others now. True if it is as it should be.
    pub(crate) async fn follow(&mut self, place: usize, way: usize, addresses: Vec<Ipv4Addr>) -> bool {
        let Some(uplink) = self.uplinks.get_mut(place) else { return true };
        (uplink.way, uplink.addresses) = (way, addresses);
        let pinholes = follow_pinholes(&self.config, uplink).await;
        let nat = follow_nat(&self.config, uplink).await;
        pinholes && nat
    }

    /// Changes an uplink's NAT.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    pub(crate) async fn change_nat(&mut self, place: usize, change: NatChange) -> Result<(), NatFailure> {
        if let NatChange::Reserve { protocol, port, addr } = change {
            let free = port_is_free(protocol, addr, port);
            return if free { Ok(()) } else { Err(NatFailure::PortInUse) };
        }
        let none = || NatFailure::Kernel("there is no NAT table".to_owned());
        let uplink = self.uplinks.get_mut(place).ok_or_else(none)?;
        let nft = uplink.nft.as_mut().ok_or_else(none)?;
        let change = match change {
            NatChange::Reserve { .. } => return Ok(()), // answered above
            NatChange::Install(rule) => Change::Add(rule),
            NatChange::Replace { old, new } => {
                if nft.holds(&old) {
                    Change::Replace { old, new }
                } else {
                    Change::Add(new)
                }
            }
            NatChange::Move { protocol, port, outermost } => match nft.at(protocol, port).next() {
                Some(rule) => Change::Add(Nat1Rule { outermost, ..rule }),
                None => return Ok(()),
            },
            // It is not there, as it should be.
            NatChange::Remove(rule) if !nft.holds(&rule) => return Ok(()),
            NatChange::Remove(rule) => Change::Remove(rule),
        };
        let mut result = nft.change(&[change]).await;
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            (_, result) = make_all_anew(uplink).await;
            if let (Ok(()), Some(nft)) = (&result, &mut uplink.nft) {
                result = nft.change(&[change]).await;
            }
        }
        // At once, but where changes follow upon each other.
        if let Some(nft) = &mut uplink.nft
            && nft.flows_due().is_some_and(|at| at <= Instant::now())
        {
            nft.end_flows().await;
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
    }

    /// By which port of the WAN's addresses a flow leaves; where the kernel does not tell, it is as if there were none.
    pub(crate) async fn find_flow(
        &mut self,
        place: usize,
        protocol: u8,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Option<u16> {
        let nft = self.uplinks.get_mut(place)?.nft.as_mut()?;
        // What is about to end is not there any more.
        nft.end_flows().await;
        let found = nft.leaves_by(protocol, internal, remote).await;
        found.unwrap_or_else(|error| {
            tracing::debug!("by which port a flow leaves: {error}");
            None
        })
    }

    /// Opens a pinhole, or closes it; one that is so already stays.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    pub(crate) async fn change_pinhole(
        &mut self,
        place: usize,
        open: bool,
        rule: PinholeRule,
    ) -> Result<(), NatFailure> {
        let none = || NatFailure::Kernel("there is no table for IPv6 pinholes".to_owned());
        let uplink = self.uplinks.get_mut(place).ok_or_else(none)?;
        let pinholes = uplink.pinholes.as_mut().ok_or_else(none)?;
        if pinholes.holds(&rule) == open {
            return Ok(());
        }
        let change = if open { PinholeChange::Open(rule) } else { PinholeChange::Close(rule) };
        let mut result = pinholes.apply(&[change]).await;
        if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            (result, _) = make_all_anew(uplink).await;
            if let (Ok(()), Some(pinholes)) = (&result, &mut uplink.pinholes) {
                result = pinholes.apply(&[change]).await;
            }
        }
        result.map_err(|error| NatFailure::Kernel(error.to_string()))
    }

    /// How many packets a pinhole has let in, as far as the answer has room for.
    pub(crate) async fn pinhole_packets(&mut self, place: usize, rule: PinholeRule) -> Option<u32> {
        let uplink = self.uplinks.get_mut(place)?;
        let mut counted = uplink.pinholes.as_mut()?.packets(&rule).await;
        let held = uplink.pinholes.as_ref()?.holds(&rule);
        if held && counted.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            make_all_anew(uplink).await.0.ok()?;
            counted = uplink.pinholes.as_mut()?.packets(&rule).await;
        }
        match counted {
            Ok(packets) => Some(u32::try_from(packets).unwrap_or(u32::MAX)),
            Err(error) => {
                tracing::debug!("{error}");
                None
            }
        }
    }

    /// The NAT of an uplink, if it has one.
    pub(crate) fn nat(&self, place: usize) -> Option<&Nft> {
        self.uplinks.get(place)?.nft.as_ref()
    }

    /// Resolves when there is something to do for [`Tables::attend`]. Cancel-safe.
    pub(crate) async fn due(&mut self) -> Due {
        let flows = self.uplinks.iter().filter_map(|uplink| uplink.nft.as_ref()?.flows_due()).min();
        let flows = async {
            match flows {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            by = self.guard.touched() => Due::Restore(by),
            () = flows => Due::EndFlows,
        }
    }

    /// Does what is due.
    pub(crate) async fn attend(&mut self, due: Due) {
        match due {
            Due::Restore(by) => self.restore(by).await,
            Due::EndFlows => {
                let now = Instant::now();
                let due = |nft: &&mut Nft| nft.flows_due().is_some_and(|at| at <= now);
                for nft in self.uplinks.iter_mut().filter_map(|uplink| uplink.nft.as_mut()).filter(due) {
                    nft.end_flows().await;
                }
            }
        }
    }

    /// Ends all flows that changes have left: nobody comes for them later.
    pub(crate) async fn end_flows(&mut self) {
        for nft in self.uplinks.iter_mut().filter_map(|uplink| uplink.nft.as_mut()) {
            nft.end_flows().await;
        }
    }

    /// Has the tables be as they were; `by` is the name of the program that has changed one, if it is known.
    async fn restore(&mut self, by: Option<String>) {
        let mut restored = Vec::new();
        for uplink in &mut self.uplinks {
            let table = uplink.line.table.clone();
            // The filter of one is no reason to leave the other away.
            let pinholes = match &mut uplink.pinholes {
                Some(pinholes) => (format!("ip6 {table}"), pinholes.restore().await),
                None => (String::new(), Ok(false)),
            };
            let nat = match &mut uplink.nft {
                Some(nft) => (format!("inet {table}"), nft.restore().await),
                None => (String::new(), Ok(false)),
            };
            for (table, outcome) in [pinholes, nat] {
                match outcome {
                    Ok(true) => restored.push(table),
                    Ok(false) => {}
                    Err(error) if self.guard.failed() => tracing::warn!(
                        "nftables: {table}: changed by another program, and cannot be made anew: {error}; trying again"
                    ),
                    Err(error) => tracing::debug!("nftables: {table}: {error}"),
                }
            }
        }
        if restored.is_empty() {
            return;
        }
        let by = by.map_or("another program".to_owned(), |name| {
            format!("another program ({})", name.escape_default())
        });
        let tables = restored.join(", ");
        match self.guard.restored() {
            Say::Restored => tracing::warn!("nftables: {tables}: changed by {by}, made anew"),
            Say::LastWord => tracing::warn!(
                "nftables: {tables}: changed by {by}, again and again: made anew every ten seconds at most, and not said any more until nobody has changed it for a minute"
            ),
            Say::Nothing => tracing::debug!("nftables: {tables}: changed by {by}, made anew"),
        }
    }

    /// How many pinholes an uplink's firewall has.
    pub(crate) fn pinholes(&self, place: usize) -> usize {
        let uplink = self.uplinks.get(place);
        uplink.and_then(|uplink| uplink.pinholes.as_ref()).map_or(0, Pinholes::len)
    }

    /// The interface that an uplink uses.
    pub(crate) fn interface(&self, place: usize) -> Option<&str> {
        self.uplinks.get(place).map(Uplink::interface)
    }

    /// Removes them all.
    pub(crate) async fn close(&mut self) {
        for uplink in &mut self.uplinks {
            if let Some(nft) = &mut uplink.nft
                && let Err(error) = nft.clear().await
            {
                tracing::warn!("the table of this router's NAT could not be deleted: {error}");
            }
            if let Some(pinholes) = &mut uplink.pinholes
                && let Err(error) = pinholes.clear().await
            {
                tracing::warn!("the table of IPv6 pinholes could not be deleted: {error}");
            }
        }
    }
}

impl Uplink {
    /// The interface in use.
    fn interface(&self) -> &str {
        let way = self.line.ways.get(self.way).or(self.line.ways.first());
        &way.expect("there is one at least").interface
    }
}

async fn follow_nat(config: &Config, uplink: &mut Uplink) -> bool {
    let table = nat_config(config, uplink);
    let Some(nft) = &mut uplink.nft else { return true };
    if *nft.config() == table {
        return true;
    }
    let readdressed = TableConfig { wan_addresses: table.wan_addresses.clone(), ..nft.config().clone() };
    // The addresses alone are two sets.
    if readdressed == table && nft.readdress(table.wan_addresses.clone()).await.is_ok() {
        return true;
    }
    let made = make_anew(nft, table).await;
    if let Err(error) = &made {
        tracing::warn!(
            "the table of this router's NAT could not be made for {}: {error}; trying again",
            uplink.interface()
        );
    }
    made.is_ok()
}

async fn follow_pinholes(config: &Config, uplink: &mut Uplink) -> bool {
    let table = pinholes_config(config, uplink);
    let (Some(pinholes), Some(table)) = (&mut uplink.pinholes, table) else { return true };
    if *pinholes.config() == table {
        return true;
    }
    let made = pinholes.reconfigure(table).await;
    if let Err(error) = &made {
        tracing::warn!("the table of IPv6 pinholes could not be made anew: {error}; trying again");
    }
    made.is_ok()
}

fn nat_config(config: &Config, uplink: &Uplink) -> TableConfig {
    let others = uplink.line.ways.iter().map(|way| &way.interface);
    TableConfig {
        name: uplink.line.table.clone(),
        wan_interface: uplink.interface().to_owned(),
        spare_interfaces: others.filter(|other| *other != uplink.interface()).cloned().collect(),
        wan_addresses: uplink.addresses.clone(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        forward_filter: config.nat.forward_filter,
        masquerade: config.nat.masquerade,
        hairpin: config.nat.hairpin,
        mark: Some(config.mark()).filter(|mark| *mark != 0),
    }
}

/// What an uplink's table of pinholes is to be like, if it is to have one. Which of its interfaces is in use makes no difference.
fn pinholes_config(config: &Config, uplink: &Uplink) -> Option<PinholesConfig> {
    let filter = uplink.line.nat == NatMode::Nftables && config.nat.forward_filter;
    (filter || config.lan.ipv6_pinholes).then(|| PinholesConfig {
        name: uplink.line.table.clone(),
        wan_interfaces: uplink.line.ways.iter().map(|way| way.interface.clone()).collect(),
        lan_interfaces: config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect(),
        filter,
        mark: Some(config.mark()).filter(|mark| *mark != 0),
    })
}

/// Where the kernel has no IPv6, there is nothing to filter.
fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn failure(error: &std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::no_permission(
            "changing nftables needs root or CAP_NET_ADMIN; run as root, or set wan.nat = \"none\" if this router has no NAT",
        ),
        _ => Failure::system(format!("cannot set up nftables: {error}")),
    }
}

/// Somebody flushed the whole ruleset, as a restarted firewall does. Whether the table of the pinholes is there again, and whether
/// that of the NAT is: one's failure is no reason to leave the other away.
async fn make_all_anew(uplink: &mut Uplink) -> (std::io::Result<()>, std::io::Result<()>) {
    let pinholes = match &mut uplink.pinholes {
        Some(pinholes) => pinholes.reconfigure(pinholes.config().clone()).await,
        None => Ok(()),
    };
    let nat = match &mut uplink.nft {
        Some(nft) => make_anew(nft, nft.config().clone()).await,
        None => Ok(()),
    };
    let table = &uplink.line.table;
    match pinholes.as_ref().and(nat.as_ref()) {
        Ok(()) => tracing::warn!("nftables table {table} was gone (nft flush ruleset?); made anew"),
        Err(error) => tracing::warn!(
            "nftables table {table} was gone (nft flush ruleset?) and could not be made anew: {error}"
        ),
    }
    (pinholes, nat)
}

/// Makes the table anew, with everything that was in it.
async fn make_anew(nft: &mut Nft, table: TableConfig) -> std::io::Result<()> {
    let rules: Vec<Change> = nft.rules().map(Change::Add).collect();
    let mut new = Nft::open(table).await?;
    for some in rules.chunks(MAX_CHANGES) {
        new.change(some).await?;
    }
    nft.end_flows().await;
    new.end_flows().await;
    // Not before: should it fail half way, what belongs into it is still known.
    *nft = new;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::config::{Interface, Interfaces};
    use crate::scratch::in_namespace;

    fn nft(command: &str) -> String {
        let output = Command::new("nft").arg(command).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn tables(more: &str) -> Tables {
        let text = format!("[wan]\ninterface = \"wan0\"\n{more}[lan]\ninterfaces = [\"lan0\"]\n");
        let config = Config::parse(Path::new("test"), &text).unwrap();
        Tables::new(&config)
    }

    /// What somebody has flushed is made anew by whichever change comes next, or who asks, both tables with all that was in them.
    #[test]
    fn both_tables_are_made_anew() {
        in_namespace("privileged::tables::tests::both_tables_are_made_anew", async || {
            let mut tables = tables("[nat]\nforward_filter = true\nmark = 0x10\n");
            tables.open().await.unwrap();
            let rule = |port| PinholeRule {
                protocol: 6,
                internal: "2001:db8::2".parse().unwrap(),
                internal_port: port,
                remote: None,
                remote_port: None,
            };
            let install = |port| {
                let internal = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), port);
                let (protocol, external_port) = (6, port);
                NatChange::Install(Nat1Rule {
                    protocol,
                    external_port,
                    internal,
                    remote_peer: None,
                    outermost: None,
                })
            };
            let listed = || (nft("list table inet portferry"), nft("list table ip6 portferry"));
            tables.change_nat(0, install(81)).await.unwrap();
            for _ in 0..2 {
                tables.change_pinhole(0, true, rule(80)).await.unwrap();
            }
            nft("flush ruleset");
            tables.change_pinhole(0, true, rule(81)).await.unwrap();
            let (nat, pinholes) = listed();
            assert!(nat.contains("tcp . 81 : 10.0.0.2 . 81") && nat.contains("drop"), "{nat}");
            for wanted in ["tcp . 2001:db8::2 . 80", "tcp . 2001:db8::2 . 81", "drop", "mark | 0x00000010"] {
                assert!(pinholes.contains(wanted), "{wanted} in {pinholes}");
            }
            nft("flush ruleset");
            tables.change_nat(0, install(82)).await.unwrap();
            let (nat, pinholes) = listed();
            assert!(nat.contains("tcp . 81 :") && nat.contains("tcp . 82 :"), "{nat}");
            assert!(pinholes.contains("2001:db8::2 . 80") && pinholes.contains("drop"), "{pinholes}");
            nft("flush ruleset");
            assert_eq!(tables.pinhole_packets(0, rule(80)).await, Some(0));
            assert_eq!(tables.pinhole_packets(0, rule(9)).await, None);
            tables.change_pinhole(0, false, rule(80)).await.unwrap();
            tables.change_pinhole(0, false, rule(80)).await.unwrap();
            let (_, pinholes) = listed();
            assert!(!pinholes.contains("2001:db8::2 . 80") && pinholes.contains("2001:db8::2 . 81"));

            // The LAN has another interface.
            let mut config = tables.config().clone();
            config.lan.interfaces = Interfaces(vec![Interface("lan7".into())]);
            tables.configure(&config);
            assert!(tables.follow(0, 0, Vec::new()).await);
            let (_, pinholes) = listed();
            assert!(pinholes.contains("lan7") && pinholes.contains("2001:db8::2 . 81"), "{pinholes}");
            tables.close().await;
            assert_eq!(nft("list ruleset"), "");
        });
    }

    /// Not where nobody wants it; with the filter also where nobody is to open any.
    #[test]
    fn which_uplinks_have_a_table() {
        for (more, wanted) in [
            ("", Some(false)),
            ("nat = \"none\"\n", Some(false)),
            ("nat = \"none\"\n[nat]\nforward_filter = true\n", Some(false)),
            ("[nat]\nforward_filter = true\n", Some(true)),
        ] {
            for offered in [true, false] {
                let text = format!(
                    "[wan]\ninterface = \"wan0\"\n{more}[lan]\ninterfaces = [\"lan0\"]\nipv6_pinholes = {offered}\n"
                );
                let config = Config::parse(Path::new("test"), &text).unwrap();
                let tables = Tables::new(&config);
                let filter = pinholes_config(&config, &tables.uplinks[0]).map(|table| table.filter);
                let wanted = wanted.filter(|filter| offered || *filter);
                assert_eq!(filter, wanted, "{text}");
            }
        }
    }
}
