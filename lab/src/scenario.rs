//! Scenario files: what control points, the provider and time do, and what is expected of the gateway, in lines that a
//! protocol person can read and write. The language is described in `lab/scenarios/README.md`.
//!
//! A scenario runs in a [`World`]: virtual time, no socket, and the same run for the same seed.

mod expect;
mod gena;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::gateway::{AddPortMapping, Config, GetSpecific, NatMode, RequestId};
use engine::provider::{Description, PreferFailure, ProviderConfig};
use engine::time::{Duration, Instant};
use wire::pcp::ResultCode;
use wire::services::Service;
use wire::ssdp::Target;

use crate::sim::{Server, Setup, World};
use words::{Fields, duration, plain, port, range, seconds};

/// What the world does on its own before the first line that is no setting.
const SETTLING: Duration = Duration::from_secs(1);
/// How much later than its patience the gateway may answer.
const GRACE: Duration = Duration::from_secs(1);

/// Why a scenario failed.
#[derive(Debug)]
pub struct Failure {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The line itself.
    pub text: String,
    /// What was expected; "a directive" when the line cannot be understood.
    pub expected: String,
    /// What there was instead.
    pub got: String,
    /// The seed of the run.
    pub seed: u64,
    /// What happened until then.
    pub trace: Vec<(Instant, String)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, text, expected, got, seed, .. } = self;
        writeln!(f, "{file}:{line}: {text}")?;
        writeln!(
            f,
            "  expected: {expected}\n  got:      {got}\n  seed:     {seed}\n  what happened until then:"
        )?;
        for (at, line) in &self.trace {
            let ms = at.as_millis();
            writeln!(f, "  {:>10}.{:03} s  {line}", ms / 1000, ms % 1000)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Why a line failed.
enum Fault {
    /// It makes no sense.
    Meaning(String),
    /// It makes sense and is not so.
    Unmet { expected: String, got: String },
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Meaning(why)
    }
}

fn unmet<T>(expected: impl Into<String>, got: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Unmet { expected: expected.into(), got: got.into() })
}

/// Runs a scenario; `file` is its name in a failure.
///
/// # Errors
/// The first line that cannot be understood or whose expectation is not met.
pub fn run(file: &str, text: &str, seed: u64) -> Result<(), Box<Failure>> {
    let mut runner = Runner {
        setup: Setup { seed, ..Setup::default() },
        world: None,
        hosts: BTreeMap::new(),
        open: BTreeMap::new(),
        searches: BTreeMap::new(),
        subscribers: BTreeMap::new(),
        window: Window::default(),
        line: String::new(),
    };
    let mut last = (1, "");
    for (index, line) in text.lines().enumerate() {
        last = (index + 1, line.trim());
        if let Err(fault) = runner.line(line) {
            return Err(runner.failure(file, last, fault));
        }
    }
    runner.end().map_err(|fault| runner.failure(file, last, fault))
}

/// What the expectations about the uplink look at: everything since the last line that made something happen.
#[derive(Default)]
struct Window {
    begin: Instant,
    sent: usize,
    notices: usize,
    /// Datagrams that an expectation has claimed, by their index.
    claimed: BTreeSet<usize>,
}

struct Search {
    from: SocketAddrV4,
    /// How many datagrams the world had heard by then.
    before: usize,
    until: Instant,
}

struct Runner {
    setup: Setup,
    world: Option<World>,
    hosts: BTreeMap<String, Ipv4Addr>,
    /// Requests whose answer no line has asked for yet.
    open: BTreeMap<String, VecDeque<RequestId>>,
    searches: BTreeMap<String, Search>,
    subscribers: BTreeMap<String, gena::Subscriber>,
    window: Window,
    /// The line that is being run.
    line: String,
}

impl Runner {
    fn failure(&self, file: &str, (line, text): (usize, &str), fault: Fault) -> Box<Failure> {
        let (expected, got) = match fault {
            Fault::Meaning(why) => ("a directive".to_owned(), why),
            Fault::Unmet { expected, got } => (expected, got),
        };
        let trace = self.world.as_ref().map_or(Vec::new(), |world| world.trace().to_vec());
        let (file, text) = (file.to_owned(), text.to_owned());
        Box::new(Failure { file, line, text, expected, got, seed: self.setup.seed, trace })
    }

    /// The world; the first call makes it and lets it settle.
    fn world(&mut self) -> &mut World {
        let (setup, line) = (&self.setup, &self.line);
        self.world.get_or_insert_with(|| {
            let mut world = World::new(setup.clone());
            world.run(SETTLING);
            world.note(line);
            world
        })
    }

    /// Something is made to happen: expectations about the uplink look at what follows.
    fn act(&mut self) -> &mut World {
        let world = self.world();
        let window = Window {
            begin: world.now(),
            sent: world.sent().len(),
            notices: world.notices().len(),
            claimed: BTreeSet::new(),
        };
        self.window = window;
        self.world()
    }

    fn line(&mut self, line: &str) -> Result<(), Fault> {
        let words = words::split(line)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words.is_empty() {
            return Ok(());
        }
        self.line = format!("* {}", line.trim());
        if let Some(world) = &mut self.world {
            world.note(&self.line);
        }
        self.directive(&words)?;
        match self.world.as_ref().and_then(|world| world.violations().first()) {
            Some(violation) => unmet("nothing that must never happen", violation.clone()),
            None => Ok(()),
        }
    }

    fn directive(&mut self, words: &[&str]) -> Result<(), Fault> {
        match *words {
            ["gateway", "stops"] => self.act().stop(),
            ["gateway", "starts"] => {
                let world = self.act();
                if !world.is_stopped() {
                    return unmet("it has stopped", "it runs");
                }
                world.exit();
                world.start();
            }
            ["gateway", "loses", "its", "state"] => {
                let world = self.act();
                world.kill();
                world.lose_disk();
                world.start();
            }
            ["gateway", "crashes"] => {
                self.act().kill();
                self.world().start();
            }
            ["gateway", ref settings @ ..] => self.gateway(settings)?,
            ["provider", "silent"] => self.set_server(Server::Silent),
            ["provider", "answers"] => self.set_server(Server::Serves),
            ["provider", "speaks", "NAT-PMP"] => self.set_server(Server::NatPmpOnly),
            ["provider", "refuses", "with", code] => {
                let code = words::result_code(code)?;
                self.set_server(Server::Refuses(code, ResultCode::recommended_lifetime(code)));
            }
            ["provider", "refuses", "with", code, "for", time] => {
                let server = Server::Refuses(words::result_code(code)?, seconds(time)?);
                self.set_server(server);
            }
            ["provider", "loses", "state"] => self.act().lose_state(true),
            ["provider", "loses", "state", "quietly"] => self.act().lose_state(false),
            ["provider", ref settings @ ..] => self.provider(settings)?,
            ["stranger", "takes", what] => self.stranger_takes(what, u32::MAX)?,
            ["stranger", "takes", what, "for", time] => self.stranger_takes(what, seconds(time)?)?,
            ["stranger", "frees", what] => {
                let (protocol, number) = port(what)?;
                if !self.act().vacate(protocol, number) {
                    return unmet("the stranger has this port", "it has not");
                }
            }
            ["link", ref settings @ ..] => self.link(settings)?,
            ["router", verb @ ("uses" | "frees"), what] => {
                let what = port(what)?;
                let ports = match &mut self.world {
                    Some(world) => &mut world.nat.ports_in_use,
                    None => &mut self.setup.ports_in_use,
                };
                if verb == "uses" {
                    ports.insert(what)
                } else {
                    ports.remove(&what)
                };
            }
            ["nat", "fails", why] => self.act().nat.broken = Some(why.to_owned()),
            ["nat", "takes", time] => {
                let time = duration(time)?;
                self.act().nat.takes = time;
            }
            ["nat", "works"] => self.act().nat.broken = None,
            ["name", name, ref addresses @ ..] => {
                let mut all = Vec::new();
                for addr in addresses {
                    all.push(self.address(addr)?);
                }
                self.names(name, all);
            }
            ["resolver", "takes", time] => {
                let time = duration(time)?;
                self.setup.resolver_takes = time;
                if let Some(world) = &mut self.world {
                    world.resolver_takes = time;
                }
            }
            ["host", name, addr] => {
                self.hosts.insert(name.to_owned(), plain(addr)?);
            }
            ["wan", "down"] => self.act().wan_down(),
            ["wan", "up", addr] => {
                let addr = plain(addr)?;
                self.act().wan_up(addr);
            }
            ["after", span] => {
                let span = duration(span)?;
                self.act().run(span);
            }
            ["at", span] => {
                let until = Instant::default() + duration(span)?;
                if self.act().now() > until {
                    return Err(Fault::Meaning("that is past already".to_owned()));
                }
                self.act().run_until(until);
            }
            ["expect", ref what @ ..] => self.expect(what)?,
            [host, ref what @ ..] if host.ends_with(':') => {
                let name = &host[..host.len() - 1];
                let addr = *self.hosts.get(name).ok_or_else(|| format!("there is no host {name}"))?;
                self.host(name, addr, what)?;
            }
            _ => return Err(Fault::Meaning("there is no such directive".to_owned())),
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.open.iter().find(|(_, open)| !open.is_empty()) {
            Some((host, _)) => unmet(format!("a line about the answer to each request of {host}"), "the end"),
            None => self.all_heard(),
        }
    }

    fn gateway(&mut self, settings: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(settings);
        let mut config = self.world.as_ref().map_or(&self.setup.config, World::config).clone();
        let before: Config = config.clone();
        match fields.value("nat") {
            Some("own") => config.nat = NatMode::Own,
            // Without a NAT in the router the provider has to take its word for the LAN hosts.
            Some("none") => {
                config.nat = NatMode::None;
                self.setup.provider.third_party = true;
            }
            Some(other) => return Err(Fault::Meaning(format!("nat: {other} is neither own nor none"))),
            None => {}
        }
        choice(
            &mut fields,
            "add-port-mapping",
            &mut config.add_port_mapping,
            &[
                ("prefer-failure", AddPortMapping::PreferFailure),
                ("hold", AddPortMapping::Hold),
                ("any-then-hold", AddPortMapping::AnyThenHold),
            ],
        )?;
        choice(
            &mut fields,
            "get-specific",
            &mut config.get_specific,
            &[("probe", GetSpecific::Probe), ("local", GetSpecific::Local)],
        )?;
        for (key, setting) in [
            ("probe", &mut config.external_address_probe),
            ("optimistic-delete", &mut config.optimistic_delete),
            ("list-mappings", &mut config.list_mappings),
            ("keep-on-stop", &mut config.keep_on_stop),
            ("descriptions", &mut config.send_descriptions),
        ] {
            fields.parsed(key, words::switch)?.into_iter().for_each(|value| *setting = value);
        }
        let policy = &mut config.policy;
        fields.parsed("answer-within", duration)?.into_iter().for_each(|value| config.answer_within = value);
        fields.parsed("recovery-wait", duration)?.into_iter().for_each(|value| config.recovery_wait = value);
        fields.parsed("per-host", plain)?.into_iter().for_each(|value| policy.mappings_per_host = value);
        fields.parsed("mappings", plain)?.into_iter().for_each(|value| policy.mappings = value);
        fields.parsed("lowest-port", plain)?.into_iter().for_each(|value| policy.lowest_port = value);
        fields.finish()?;
        if self.world.is_none() {
            self.setup.config = config;
        } else if config.nat == before.nat {
            self.act().reconfigure(config);
        } else {
            return Err(Fault::Meaning("nat: can only be set at the beginning".to_owned()));
        }
        Ok(())
    }

    fn provider(&mut self, settings: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(settings);
        if self.world.is_some() {
            self.act();
        }
        let config: &mut ProviderConfig = match &mut self.world {
            Some(world) => world.provider.config_mut(),
            None => &mut self.setup.provider,
        };
        choice(
            &mut fields,
            "prefer-failure",
            &mut config.prefer_failure,
            &[
                ("honoured", PreferFailure::Honoured),
                ("passed-over", PreferFailure::PassedOver),
                ("unsupported", PreferFailure::Unsupported),
            ],
        )?;
        choice(
            &mut fields,
            "description",
            &mut config.description,
            &[
                ("ignored", Description::Ignored),
                ("stored", Description::Stored),
                ("malformed", Description::Malformed),
            ],
        )?;
        if let Some(text) = fields.value("conflict-lifetime") {
            config.conflict_lifetime = if text == "left" { None } else { Some(seconds(text)?) };
        }
        fields.parsed("query", words::switch)?.into_iter().for_each(|value| config.query = value);
        fields.parsed("external", plain)?.into_iter().for_each(|value| config.external = value);
        if let Some(lifetimes) = fields.parsed("lifetime", |text| range(text, seconds))? {
            (config.shortest, config.longest) = lifetimes.into_inner();
        }
        fields.parsed("hold", duration)?.into_iter().for_each(|value| config.hold = value);
        fields.parsed("quota", plain)?.into_iter().for_each(|value| config.quota = value);
        fields.parsed("third-party", words::switch)?.into_iter().for_each(|value| config.third_party = value);
        Ok(fields.finish()?)
    }

    /// The resolver says so from now on.
    fn names(&mut self, name: &str, addresses: Vec<Ipv4Addr>) {
        let names = match &mut self.world {
            Some(world) => &mut world.names,
            None => &mut self.setup.names,
        };
        names.insert(name.to_owned(), addresses);
    }

    fn link(&mut self, settings: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(settings);
        let link = match &mut self.world {
            Some(world) => &mut world.link,
            None => &mut self.setup.link,
        };
        fields.parsed("loss", plain)?.into_iter().for_each(|value| link.loss = value);
        fields.parsed("delay", duration)?.into_iter().for_each(|value| link.delay = value);
        fields.parsed("jitter", duration)?.into_iter().for_each(|value| link.jitter = value);
        fields.parsed("lose-next", plain)?.into_iter().for_each(|value| link.lose_next = value);
        Ok(fields.finish()?)
    }

    fn set_server(&mut self, server: Server) {
        if self.world.is_none() {
            self.setup.server = server;
        } else {
            self.act().server = server;
        }
    }

    fn stranger_takes(&mut self, what: &str, lifetime: u32) -> Result<(), Fault> {
        let (protocol, number) = port(what)?;
        if self.act().occupy(protocol, number, lifetime) {
            Ok(())
        } else {
            unmet("the stranger can have this port", "it cannot")
        }
    }

    /// A line of a LAN host: a request, a search, or what came of the last one.
    fn host(&mut self, name: &str, addr: Ipv4Addr, what: &[&str]) -> Result<(), Fault> {
        if let Some(done) = self.subscriber(name, what) {
            return done;
        }
        match *what {
            ["ok", ref values @ ..] => self.answered(name, Ok(values)),
            ["error", code, ref values @ ..] => {
                let code = plain(code)?;
                self.answered(name, Err((code, values)))
            }
            ["waits"] => {
                let open = self.open.get(name).is_some_and(|open| !open.is_empty());
                let (world, ids) = (self.world.as_mut(), &self.open);
                let answered = world
                    .zip(ids.get(name).and_then(VecDeque::front))
                    .and_then(|(world, &id)| world.run_until_reply(id, world.now()));
                match answered {
                    None if open => Ok(()),
                    None => unmet(format!("{name} waits for an answer"), "it has asked nothing"),
                    Some(reply) => unmet(format!("{name} waits"), format!("{:?}", reply.answer)),
                }
            }
            ["searches", target, ref settings @ ..] => {
                let mut fields = Fields::new(settings);
                let mx = fields.parsed("mx", plain)?.unwrap_or(2);
                fields.finish()?;
                let from = SocketAddrV4::new(addr, 40_000);
                let world = self.act();
                let before = world.heard().len();
                world.search(from, &Target::parse(target), mx);
                let until = world.now() + Duration::from_secs(mx.into());
                self.searches.insert(name.to_owned(), Search { from, before, until });
                Ok(())
            }
            ["finds", count, ref place @ ..] => self.finds(name, plain(count)?, place),
            [action, ref args @ ..] => self.request(name, addr, action, args),
            [] => Err(Fault::Meaning("what does it do?".to_owned())),
        }
    }

    fn request(&mut self, name: &str, addr: Ipv4Addr, action: &str, args: &[&str]) -> Result<(), Fault> {
        let (action, version) =
            action.split_once(':').ok_or_else(|| format!("{action} is not like AddPortMapping:1"))?;
        let version = plain(version)?;
        let (service, known) = Service::ALL
            .into_iter()
            .find_map(|service| Some((service, service.action(action)?)))
            .ok_or_else(|| format!("there is no action {action}"))?;
        let mut given = BTreeMap::new();
        for (key, value) in Fields::new(args).rest() {
            given.extend(words::arguments(key, value)?);
        }
        let mut arguments = Vec::new();
        for input in known.inputs {
            let usual = match input.name {
                "NewRemoteHost" | "NewPortMappingDescription" => String::new(),
                "NewEnabled" => "1".to_owned(),
                "NewLeaseDuration" | "NewManage" | "NewNumberOfPorts" => "0".to_owned(),
                "NewInternalClient" => addr.to_string(),
                "NewProtocol" => "TCP".to_owned(),
                other => given.get(other).cloned().ok_or_else(|| format!("{other} is missing"))?,
            };
            let value = given.remove(input.name).unwrap_or(usual);
            let is_host = matches!(input.name, "NewInternalClient" | "NewRemoteHost");
            let host = self.hosts.get(&value).filter(|_| is_host);
            arguments.push((input.name, host.map_or(value, Ipv4Addr::to_string)));
        }
        if let Some((key, _)) = given.first_key_value() {
            return Err(Fault::Meaning(format!("{action} has no argument {key}")));
        }
        let arguments: Vec<(&str, &str)> =
            arguments.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let id = self.act().call(addr, service, version, action, &arguments);
        self.open.entry(name.to_owned()).or_default().push_back(id);
        Ok(())
    }

    /// The oldest open request of a host is answered so, within the gateway's patience.
    fn answered(&mut self, name: &str, expected: Result<&[&str], (u16, &[&str])>) -> Result<(), Fault> {
        let id = self
            .open
            .get_mut(name)
            .and_then(VecDeque::pop_front)
            .ok_or_else(|| format!("{name} has asked nothing that is not answered yet"))?;
        let words = expected.unwrap_or_else(|(_, words)| words);
        let mut fields = Fields::new(words);
        let after = fields.parsed("after", |text| range(text, duration))?;
        let listing = fields.value("listing");
        let values = fields.rest();
        fields.finish()?;
        let world = self.world();
        let limit = world.now() + world.config().answer_within + GRACE;
        let shown = match expected {
            Ok(_) => "ok".to_owned(),
            Err((code, _)) => format!("error {code}"),
        };
        let Some(reply) = world.run_until_reply(id, limit) else {
            return unmet(shown, "no answer");
        };
        let elapsed = reply.at - reply.asked_at;
        let answer = match (&reply.answer, expected) {
            (Ok(answer), Ok(_)) => answer,
            (Err(code), Err((expected, _))) if *code == expected => &wire::soap::Answer::default(),
            (got, _) => {
                let got = match got {
                    Ok(_) => "ok".to_owned(),
                    Err(code) => format!("error {code}"),
                };
                return unmet(shown, format!("{got} after {elapsed:?}"));
            }
        };
        if let Some(after) = after.filter(|after| !after.contains(&elapsed)) {
            return unmet(format!("{shown} after {after:?}"), format!("after {elapsed:?}"));
        }
        if let Some(expected) = listing {
            let text = answer.value("NewPortListing").unwrap_or_default();
            let entries = wire::listing::decode(text).map_err(|_| format!("no listing: {text}"))?;
            let got: Vec<String> =
                entries.iter().map(|entry| format!("{}/{}", entry.external_port, entry.protocol)).collect();
            if got.join(",") != expected {
                return unmet(format!("listing={expected}"), got.join(","));
            }
        }
        let answer = answer.clone();
        for (key, value) in values {
            for (argument, value) in words::arguments(key, value)? {
                let value = self.hosts.get(&value).map_or(value, Ipv4Addr::to_string);
                match answer.value(&argument) {
                    Some(got) if words::fits(&value, got) => {}
                    got => return unmet(format!("{argument}={value:?}"), format!("{got:?}")),
                }
            }
        }
        Ok(())
    }

    /// A search finds so many services and devices, all described at one path, before its MX is over.
    fn finds(&mut self, name: &str, count: usize, place: &[&str]) -> Result<(), Fault> {
        let search = self.searches.remove(name).ok_or_else(|| format!("{name} searches for nothing"))?;
        let world = self.world();
        let until = search.until.max(world.now());
        world.run_until(until);
        let mut locations: Vec<String> = Vec::new();
        for heard in &world.heard()[search.before..] {
            if let (wire::ssdp::Message::Response(response), true) =
                (&heard.message, heard.to == search.from.into())
            {
                locations.push(response.location.clone());
            }
        }
        if locations.len() != count {
            return unmet(format!("{count} answers"), format!("{} answers", locations.len()));
        }
        match *place {
            [] => Ok(()),
            ["at", path] => match locations.iter().find(|location| !location.ends_with(path)) {
                Some(other) => unmet(format!("all at {path}"), other.clone()),
                None => Ok(()),
            },
            _ => Err(Fault::Meaning("after the count comes nothing, or: at PATH".to_owned())),
        }
    }

    /// A host by its name, `router`, or an address.
    fn address(&self, text: &str) -> Result<Ipv4Addr, String> {
        words::address(text, |name| match name {
            "router" => self.world.as_ref().and_then(World::wan_address),
            name => self.hosts.get(name).copied(),
        })
    }

    /// `HOST:PORT`.
    fn endpoint(&self, text: &str) -> Result<SocketAddrV4, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("{text} is not like app:8080"))?;
        Ok(SocketAddrV4::new(self.address(host)?, plain(port)?))
    }
}

/// `key=word`, where each word is one of the choices.
fn choice<T: Copy>(
    fields: &mut Fields<'_>,
    key: &str,
    setting: &mut T,
    choices: &[(&str, T)],
) -> Result<(), Fault> {
    let Some(word) = fields.value(key) else { return Ok(()) };
    match choices.iter().find(|(known, _)| *known == word) {
        Some((_, choice)) => *setting = *choice,
        None => {
            let known: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
            return Err(Fault::Meaning(format!("{key}: {word} is none of {}", known.join(", "))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
