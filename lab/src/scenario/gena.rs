//! The lines of hosts that subscribe to state variables.

use engine::time::Duration;
use wire::description::Uuid;
use wire::services::{Face, Service};

use super::words::{self, Fields, duration, plain, range};
use super::{Fault, Runner, unmet};
use crate::sim::{Callback, Told};

/// How long a host waits for an event that it is to hear.
const PATIENCE: Duration = Duration::from_secs(5);

/// The subscriptions of one host.
#[derive(Default)]
pub(super) struct Subscriber {
    /// In the order in which they were made.
    sids: Vec<Uuid>,
    /// How many of all events have had their line.
    claimed: usize,
    callback: Option<Callback>,
}

impl Runner {
    /// A line of a host about its subscriptions; `None` when it is about something else.
    pub(super) fn subscriber(&mut self, name: &str, what: &[&str]) -> Option<Result<(), Fault>> {
        Some(match *what {
            ["subscribes", service, ref settings @ ..] => self.subscribes(name, service, settings),
            ["renews", ref settings @ ..] => self.renews(name, settings),
            ["unsubscribes", ref settings @ ..] => self.unsubscribes(name, settings),
            ["callback", ref how @ ..] => self.calls_back(name, how),
            ["hears", "nothing"] => self.hears_nothing(name),
            ["hears", ref values @ ..] => self.hears(name, values),
            _ => return None,
        })
    }

    fn subscribes(&mut self, name: &str, service: &str, settings: &[&str]) -> Result<(), Fault> {
        let of = kind(service)?;
        let mut fields = Fields::new(settings);
        let timeout = fields.parsed("timeout", words::seconds)?.unwrap_or(1800);
        let granted = fields.parsed("granted", duration)?;
        let error = fields.parsed("error", plain)?;
        fields.finish()?;
        let host = self.hosts[name];
        let callback = self.subscribers.entry(name.to_owned()).or_default().callback;
        let world = self.act();
        let now = world.now();
        let answer = world.subscribe(host, of, timeout, callback.unwrap_or(Callback::Works));
        if let Ok(sid) = answer {
            let ends = world.subscription(sid).map(|found| found.ends - now);
            self.subscribers.entry(name.to_owned()).or_default().sids.push(sid);
            if granted.is_some() && granted != ends {
                return unmet(format!("{granted:?}"), format!("{ends:?}"));
            }
        }
        answered(error, answer.map(drop))
    }

    fn renews(&mut self, name: &str, settings: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(settings);
        let timeout = fields.parsed("timeout", words::seconds)?.unwrap_or(1800);
        let error = fields.parsed("error", plain)?;
        fields.finish()?;
        let sid = self.sid(name)?;
        answered(error, self.act().renew(sid, timeout))
    }

    fn unsubscribes(&mut self, name: &str, settings: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(settings);
        let error = fields.parsed("error", plain)?;
        fields.finish()?;
        let sid = self.sid(name)?;
        answered(error, self.act().unsubscribe(sid))
    }

    /// The subscription that a host made last.
    fn sid(&self, name: &str) -> Result<Uuid, Fault> {
        let last = self.subscribers.get(name).and_then(|subscriber| subscriber.sids.last());
        last.copied().ok_or_else(|| Fault::Meaning(format!("{name} has not subscribed")))
    }

    fn calls_back(&mut self, name: &str, how: &[&str]) -> Result<(), Fault> {
        let callback = match *how {
            ["works"] => Callback::Works,
            ["fails"] => Callback::Fails,
            ["forgets"] => Callback::Forgets,
            ["takes", time] => Callback::Takes(duration(time)?),
            _ => return Err(Fault::Meaning("callback: works, fails, forgets or takes TIME".to_owned())),
        };
        let subscriber = self.subscribers.entry(name.to_owned()).or_default();
        subscriber.callback = Some(callback);
        for sid in subscriber.sids.clone() {
            self.world().set_callback(sid, callback);
        }
        Ok(())
    }

    /// Everything that a host was told, in the order in which it came.
    fn told(&self, name: &str) -> Vec<&Told> {
        let sids = self.subscribers.get(name).map_or(&[][..], |subscriber| &subscriber.sids);
        let found = sids.iter().filter_map(|&sid| self.world.as_ref()?.subscription(sid));
        let mut told: Vec<&Told> = found.flat_map(|subscription| &subscription.told).collect();
        told.sort_by_key(|told| told.at);
        told
    }

    fn hears(&mut self, name: &str, values: &[&str]) -> Result<(), Fault> {
        let mut fields = Fields::new(values);
        let seq: Option<u32> = fields.parsed("seq", plain)?;
        let after = fields.parsed("after", |text| range(text, duration))?;
        let expected = fields.rest();
        fields.finish()?;
        self.sid(name)?;
        let claimed = self.subscribers[name].claimed;
        let limit = self.world().now() + PATIENCE;
        while self.told(name).len() <= claimed {
            let world = self.world();
            match world.next_due().filter(|&next| next <= limit) {
                Some(next) => world.run_until(next.max(world.now())),
                None => return unmet(format!("{name} hears {}", values.join(" ")), "it hears nothing"),
            }
        }
        let told = self.told(name)[claimed].clone();
        self.subscribers.get_mut(name).expect("it has subscribed").claimed += 1;
        let names = |of: Vec<&str>| {
            let mut names = of;
            names.sort_unstable();
            names.join(" ")
        };
        let wanted = names(expected.iter().map(|(variable, _)| *variable).collect());
        let got = names(told.values.iter().map(|(variable, _)| variable.as_str()).collect());
        let value = |name: &str| told.values.iter().find(|(variable, _)| variable == name);
        let fits = expected
            .iter()
            .all(|(variable, expected)| value(variable).is_some_and(|(_, got)| words::fits(expected, got)));
        if wanted != got || !fits {
            return unmet(format!("{name} hears {}", values.join(" ")), shown(&told));
        }
        if let Some(seq) = seq.filter(|&seq| seq != told.seq) {
            return unmet(format!("seq={seq}"), shown(&told));
        }
        let elapsed = told.at - self.window.begin;
        match after.filter(|after| !after.contains(&elapsed)) {
            Some(after) => unmet(format!("after {after:?}"), format!("after {elapsed:?}")),
            None => Ok(()),
        }
    }

    fn hears_nothing(&mut self, name: &str) -> Result<(), Fault> {
        self.sid(name)?;
        match self.unheard(name) {
            None => Ok(()),
            Some(told) => unmet(format!("{name} hears nothing"), told),
        }
    }

    /// An event that no line was about.
    fn unheard(&self, name: &str) -> Option<String> {
        let claimed = self.subscribers.get(name)?.claimed;
        self.told(name).get(claimed).map(|told| shown(told))
    }

    /// Every event that a host heard has had its line.
    pub(super) fn all_heard(&self) -> Result<(), Fault> {
        let mut names = self.subscribers.keys();
        match names.find_map(|name| Some((name, self.unheard(name)?))) {
            None => Ok(()),
            Some((name, told)) => unmet(format!("a line about each event of {name}"), told),
        }
    }
}

/// `WANIPConnection:2` is that service of the root device that has it in this version.
fn kind(text: &str) -> Result<(Face, Service), Fault> {
    let (name, version) =
        text.split_once(':').ok_or_else(|| format!("{text} is not like WANIPConnection:2"))?;
    let version: u8 = plain(version)?;
    let service = Service::ALL.into_iter().find(|service| service.type_name() == name);
    let service = service.ok_or_else(|| format!("there is no service {name}"))?;
    let face = Face::ALL.into_iter().find(|&face| service.version(face) == version);
    Ok((face.ok_or_else(|| format!("{name} has no version {version}"))?, service))
}

/// The HTTP status of a refusal is the expected one, or there is neither.
fn answered(expected: Option<u16>, got: Result<(), u16>) -> Result<(), Fault> {
    let words = |error: Option<u16>| error.map_or("success".to_owned(), |status| format!("error={status}"));
    let got = got.err();
    if expected == got { Ok(()) } else { unmet(words(expected), words(got)) }
}

fn shown(told: &Told) -> String {
    let values: Vec<String> = told.values.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("event {}: {}", told.seq, values.join(" "))
}
