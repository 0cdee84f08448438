//! `portferry run`: puts the parts together, and takes them apart again.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use engine::device::{DeviceConfig, Devices};
use engine::entropy::Entropy as _;
use engine::gateway::Gateway;
use engine::gateways::Gateways;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::print;
use crate::config::{self, Config, Line};
use crate::control;
use crate::dhcp::Dhcp;
use crate::entropy::KernelEntropy;
use crate::event_loop::{Links, Shell, Signal};
use crate::exit::Failure;
use crate::firewall;
use crate::netlink::Netlink;
use crate::privileged::{self, Kernel};
use crate::state::Identity;

/// The SERVER header of SSDP and HTTP: exactly three tokens (UDA §1.2.2).
pub fn server_header() -> String {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let release = release.split(['-', ' ']).next().unwrap_or_default();
    let release = if release.is_empty() { "5" } else { release };
    format!("Linux/{release} UPnP/1.1 portferry/{}", env!("CARGO_PKG_VERSION"))
}

/// What the descriptions say.
pub fn device(config: &Config, identity: &Identity) -> DeviceConfig {
    DeviceConfig {
        seed: identity.seed,
        token: identity.token,
        boot_id: identity.boot_id,
        friendly_name: config.igd.friendly_name.clone(),
        http_port: config.lan.http_port.0,
        igd_version: config.igd.version.0,
        server: server_header(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Runs the gateway of the file at `path` until it is told to stop: with `sandbox` as two processes, else as one.
pub fn run(path: &Path, sandbox: bool) -> Result<(), Failure> {
    let failed = |error: config::ConfigError| Failure::config(error.to_string());
    let text = config::read(path, config::MAX_LEN).map_err(failed)?;
    let config = Config::parse(path, &text).map_err(failed)?;
    crate::log::start(config.log.level);
    let runtime = runtime()?;
    let result = match sandbox {
        true => runtime.block_on(privileged::supervise(config, text, path)),
        false => runtime.block_on(alone(config, path)),
    };
    // A look-up that the system's resolver has not finished is no reason to stay.
    runtime.shutdown_background();
    result
}

/// Removes what an earlier run with the configuration at `path` has left in the kernel, and prints each thing.
///
/// # Errors
/// A gateway with that configuration runs, or something could not be removed; what is printed is gone all the same.
pub fn clean_up(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::config(error.to_string()))?;
    let socket = &config.control.socket;
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(Failure::unavailable(format!(
            "a portferry listens on {}: stop it first, which leaves nothing behind unless state.keep_on_stop says so",
            socket.display()
        )));
    }
    let mut removed = Vec::new();
    let outcome = runtime()?.block_on(firewall::clean_up(&own_tables(&config), &mut removed));
    for what in &removed {
        print(&format!("removed {what}\n"));
    }
    outcome.map_err(|trouble| {
        let failure = if trouble.is_denied() { Failure::no_permission } else { Failure::system };
        failure(format!("not everything was removed: {trouble}"))
    })?;
    if removed.is_empty() {
        print("nothing to remove\n");
    }
    Ok(())
}

/// Those of all uplinks, also of such as the configuration does not have any more.
fn own_tables(config: &Config) -> Vec<String> {
    let former = Line::directories(config).into_iter().map(|(name, _)| Line::table_of(config, &name));
    let mut tables: Vec<String> = config.lines().into_iter().map(|line| line.table).collect();
    for table in former {
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
}

/// One thread does everything.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system(format!("cannot start: {error}")))
}

/// Without a sandbox.
async fn alone(config: Config, path: &Path) -> Result<(), Failure> {
    tracing::warn!("one process with all of its privileges reads what the network sends (--no-sandbox)");
    let (signals, received) = mpsc::channel(4);
    watch(SignalKind::terminate(), Signal::Stop, &signals)?;
    watch(SignalKind::interrupt(), Signal::Stop, &signals)?;
    watch(SignalKind::hangup(), Signal::Reload, &signals)?;
    privileged::prepare_state(&config, path)?;
    let control = control::listen(&config.control.socket)?;
    let socket = control.fd().try_clone().map_err(|error| Failure::system(error.to_string()))?;
    let kernel = Kernel::here(&config, true);
    gateway(config, path, kernel, received, socket).await
}

/// The gateway itself; `control` is the socket on which it is asked.
pub(crate) async fn gateway(
    config: Config,
    path: &Path,
    kernel: Kernel,
    signals: mpsc::Receiver<Signal>,
    control: OwnedFd,
) -> Result<(), Failure> {
    let netlink = Netlink::open().map_err(|error| Failure::system(format!("no netlink: {error}")))?;
    let (identity, unwritten) = Identity::next_start(&config.state.directory)?;
    if let Some(unwritten) = unwritten {
        tokio::spawn(unwritten.write_once_there_is_room());
    }
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let device = device(&config, &identity);
    let devices = Rc::new(Devices::new(&device));
    let mut gateways = gateways(&config, &device, &devices, identity.nonce_key);
    let dhcp = || Dhcp::new(Box::new(KernelEntropy::new(identity.nonce_key)));
    let shell = Shell::new(config, Some(path.to_owned()), device, Links::Kernel(netlink), signals)
        .with_kernel(kernel)
        .with_state()
        .with_dhcp(dhcp);
    let control = control::Server::start(control, shell.asked())?;
    shell.run(&mut gateways).await?;
    drop(control);
    tracing::info!("stopped");
    Ok(())
}

/// One gateway for each uplink.
fn gateways(config: &Config, device: &DeviceConfig, devices: &Rc<Devices>, nonce_key: [u8; 16]) -> Gateways {
    let mut lines = config.lines().into_iter();
    let gateway = |line: &Line, key| {
        let (config, entropy) = (config.engine(line, device.clone()), Box::new(KernelEntropy::new(key)));
        Gateway::with_devices(config, Rc::clone(devices), entropy)
    };
    let first = lines.next().expect("there is one at least");
    lines.fold(Gateways::new(gateway(&first, nonce_key)), |all, line| {
        // One provider learns nothing of the nonces that another one is told.
        let key = KernelEntropy::new(nonce_key).derive(format!("uplink {}", line.name).as_bytes());
        all.with(line.hosts.clone(), gateway(&line, key))
    })
}

/// Forwards a signal for as long as somebody listens.
pub fn watch(kind: SignalKind, meaning: Signal, signals: &mpsc::Sender<Signal>) -> Result<(), Failure> {
    let mut stream = signal(kind).map_err(|error| Failure::system(format!("no signals: {error}")))?;
    let signals = signals.clone();
    tokio::spawn(
        async move { while stream.recv().await.is_some() && signals.send(meaning).await.is_ok() {} },
    );
    Ok(())
}
