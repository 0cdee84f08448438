//! With what settings a seed begins, and which of them change while it storms.

use engine::gateway::{AddPortMapping, Config, GetSpecific, NatMode};
use engine::provider::{Description, PreferFailure, ProviderConfig};
use engine::time::Duration;

use super::{Dice, HOSTS, LONGEST, NAMES, PEERS, Simulation};
use crate::sim::{SecondLine, Setup, World};

/// How long a provider may say that a port is taken; `None`: as long as it is.
const CONFLICTS: [Option<u32>; 6] = [None, None, None, Some(1), Some(30), Some(600)];

/// The world of a seed, before it begins to turn.
pub(super) fn setup(seed: u64, nat: NatMode, dice: &mut Dice) -> Setup {
    let mut setup = Setup { seed, ..Setup::default() };
    setup.config.nat = nat;
    setup.config.external_address_probe = !dice.one_in(12);
    setup.config.list_mappings = dice.one_in(3);
    setup.config.keep_on_stop = dice.one_in(3);
    setup.config.send_descriptions = !dice.one_in(6);
    setup.config.recovery_wait = Duration::from_secs(dice.pick(&[1, 5, 5, 10]));
    vary(&mut setup.config, dice);
    setup.provider.third_party = nat == NatMode::None;
    if nat == NatMode::Own {
        // Without one the provider, of whom there is one here, knows LAN hosts by their own addresses, whatever line they come by.
        setup.second_line = dice.pick(&[SecondLine::None, SecondLine::Equal, SecondLine::Spare]);
    }
    setup.provider.longest = dice.pick(&[120, 300, LONGEST]);
    setup.provider.shortest = 10;
    setup.provider.hold = Duration::from_secs(dice.pick(&[0, 120]));
    setup.provider.quota = dice.pick(&[8, 40, 40]);
    setup.provider.query = dice.one_in(2);
    setup.provider.description =
        dice.pick(&[Description::Ignored, Description::Stored, Description::Stored, Description::Malformed]);
    of_the_server(&mut setup.provider, dice);
    let (loss, jitter, doubled) =
        dice.pick(&[(0.0, 0, 0.0), (0.05, 20, 0.02), (0.2, 60, 0.05), (0.05, 1500, 0.1), (0.4, 3000, 0.2)]);
    setup.link.loss = loss;
    setup.link.jitter = Duration::from_millis(jitter);
    setup.link.doubled = doubled;
    setup
}

/// What an administrator may change at any moment.
fn vary(config: &mut Config, dice: &mut Dice) {
    config.add_port_mapping = dice.pick(&[
        AddPortMapping::PreferFailure,
        AddPortMapping::PreferFailure,
        AddPortMapping::Hold,
        AddPortMapping::AnyThenHold,
    ]);
    config.get_specific = dice.pick(&[GetSpecific::Probe, GetSpecific::Probe, GetSpecific::Local]);
    config.optimistic_delete = dice.one_in(2);
}

/// How the server takes the option that it may leave unsupported, and how long its conflicts last.
pub(super) fn of_the_server(config: &mut ProviderConfig, dice: &mut Dice) {
    config.prefer_failure = match dice.roll(6) {
        0 => PreferFailure::PassedOver,
        1 => PreferFailure::Unsupported,
        _ => PreferFailure::Honoured,
    };
    config.conflict_lifetime = dice.pick(&CONFLICTS);
}

/// Names that control points use; the last one is nobody's.
pub(super) fn name_everybody(world: &mut World) {
    world.names = NAMES.iter().zip(PEERS).map(|(name, addr)| ((*name).to_owned(), vec![addr])).collect();
    world.names.insert("laptop".to_owned(), vec![HOSTS[0]]);
}

impl Simulation {
    /// Somebody edits the configuration.
    pub(super) fn the_settings_change(&mut self) {
        let mut config = self.world.config().clone();
        vary(&mut config, &mut self.dice);
        if self.dice.one_in(4) {
            config.send_descriptions ^= true;
            self.descriptions_switched = true;
        }
        config.keep_on_stop ^= self.dice.one_in(4);
        config.list_mappings ^= self.dice.one_in(4);
        self.tally.count("settings changed");
        let words = format!(
            "* settings: {:?} {:?} optimistic={} keep={} list={} descriptions={}",
            config.add_port_mapping,
            config.get_specific,
            config.optimistic_delete,
            config.keep_on_stop,
            config.list_mappings,
            config.send_descriptions
        );
        self.world.note(words);
        self.world.reconfigure(config);
    }

    /// A name moves, is nobody's any more, or is somebody's again; or the resolver becomes slow.
    pub(super) fn a_name_changes(&mut self) {
        if self.dice.one_in(3) {
            self.world.resolver_takes = Duration::from_millis(self.dice.pick(&[1, 1, 300, 3000, 5000]));
            return;
        }
        let name = self.dice.pick(&NAMES[..2]);
        let addresses = match self.dice.roll(5) {
            0 => Vec::new(),
            1 => PEERS.to_vec(),
            _ => vec![self.dice.pick(&PEERS)],
        };
        self.world.note(format!("* {name} is {addresses:?}"));
        self.world.names.insert(name.to_owned(), addresses);
    }
}
