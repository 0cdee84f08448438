//! `[hooks] on_change`, and the programs of `packaging/hooks` with the applications that they are for. What is said in
//! docs/hooks.md of how a torrent client comes by the provider's port is done here: by real ones, up to a connection from the
//! Internet. Needs root, see [`lab::netns`], but for the last test; where a torrent client is missing, its test says so.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use common::{
    CASCADED, ControlPoint, NAT, SECOND, TCP, interworking_subject, ready, redirected_port, skipped,
};
use lab::netns::{self, EXTERNAL, Host, LAN1, Network};
use lab::provider::{Options, Provider};
use lab::subject::listed;
use lab::wait::eventually;
use serde_json::{Value, json};

/// A program that only root can write, in the laboratory's directory.
fn program(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).expect("the directory is ours");
    for (path, mode) in [(path.as_path(), 0o755), (directory, 0o755)] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    }
    path
}

/// One of `packaging/hooks`, where it may be run from.
fn shipped(directory: &Path, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/hooks").join(name);
    program(directory, name, &fs::read_to_string(path).expect("it is in the repository"))
}

/// User and password in a file that nobody else reads.
fn credentials(directory: &Path, user: &str, password: &str) -> PathBuf {
    let path = directory.join(format!("{user}-{password}"));
    fs::write(&path, format!("{user}\n{password}\n")).expect("the directory is ours");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("it is ours");
    path
}

/// `[hooks]` with this program.
fn hooks(argv: &[&str]) -> String {
    format!("[hooks]\non_change = {}\n", json!(argv))
}

/// Whether a program can be run; says so if not.
fn there_is(program: &str) -> bool {
    let there =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        skipped(&format!("{program} is missing"));
    }
    there
}

// ── What a program is told ─────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_program_is_told_what_control_points_do() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let file = network.directory().join("told");
    let text = format!("#!/bin/sh\ncat >> '{}'\n", file.display());
    let program = program(network.directory(), "hook", &text);
    let mut daemon = subject.start(&network, NAT, &hooks(&[&program.display().to_string()]));
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    control_point.adds(8080, 8080, "TCP", 3600);
    control_point.deletes(8080, "TCP");
    control_point.adds(9090, 9091, "UDP", 0);
    assert!(daemon.terminate(20 * SECOND).success());

    // What was to be told at the stop is told before the daemon ends.
    let told: Vec<Value> = fs::read_to_string(&file)
        .expect("the program has run")
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let said: Vec<&str> =
        told.iter().map(|line| line["event"].as_str().expect("every line has one")).collect();
    assert_eq!(said, ["start", "external", "began", "ended", "began", "ended"], "{told:#?}");
    assert_eq!(told[1]["external_address"], json!(EXTERNAL));
    let of = |line: usize, keys: [&str; 5]| keys.map(|key| told[line][key].clone());
    let places = ["protocol", "external_address", "external_port", "internal_address", "internal_port"];
    assert_eq!(of(2, places), [json!("TCP"), json!(EXTERNAL), json!(8080), json!(LAN1), json!(8080)]);
    assert_eq!(of(3, places), of(2, places));
    assert_eq!(of(4, places), [json!("UDP"), json!(EXTERNAL), json!(9091), json!(LAN1), json!(9090)]);
    assert_eq!((&told[3]["cause"], &told[5]["cause"]), (&json!("deleted"), &json!("stopping")));
    assert_eq!(told[2]["id"], told[3]["id"]);
    assert_ne!(told[2]["id"], told[4]["id"]);
    assert_eq!((&told[2]["made_by"], &told[4]["remote_host"]), (&json!("upnp"), &Value::Null));
    assert!(told[2]["lease_left"].as_u64().is_some_and(|left| (3590..=3600).contains(&left)), "{}", told[2]);
    assert!(told.iter().all(|line| line["version"] == 1), "{told:#?}");
}

// ── Torrent clients ────────────────────────────────────────────────────────────────────────────────────────────────

/// Whether somebody on the Internet is let in, up to the program that listens.
fn connects(network: &Network, port: u16) -> bool {
    const CONNECT: &str = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)";
    let mut command = network.command(Host::Internet, "python3");
    command.args(["-c", CONNECT, &EXTERNAL.to_string(), &port.to_string()]).stderr(Stdio::null());
    command.status().expect("it runs").success()
}

/// The port that both a mapping and its application have.
fn settled(network: &Network, without: u16) -> Option<u16> {
    let mappings = listed(network)?;
    let of_lan1 = mappings.iter().find(|mapping| {
        let ports = (mapping.external.port(), mapping.internal.port());
        *mapping.internal.ip() == LAN1 && mapping.protocol == TCP && ports.0 == ports.1 && ports.0 != without
    })?;
    Some(of_lan1.external.port()).filter(|&port| connects(network, port))
}

/// A program of `packaging/hooks` on the router, by hand.
fn by_hand(mut command: Command, change: &Value) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 can be run");
    writeln!(child.stdin.take().expect("piped above"), "{change}").expect("it reads");
    child.wait_with_output().expect("a child can be waited for")
}

/// A mapping of the first LAN host, as a program is told.
fn began(port: u16) -> Value {
    json!({
        "version": 1, "event": "began", "time": 1, "id": 1, "protocol": "TCP", "external_address": EXTERNAL,
        "external_port": port, "internal_address": LAN1, "internal_port": 51413, "remote_host": null,
        "description": "torrent", "lease_left": null, "made_by": "upnp",
    })
}

/// The other LAN host has the port that the torrent client would like to have.
fn taken_by_another(network: &Network, control_point: &ControlPoint<'_>, port: u16) {
    let other = ControlPoint { network, host: Host::Lan2, location: control_point.location.clone() };
    other.adds(port, port, "TCP", 3600);
}

/// docs/hooks.md, "The port that is listened on follows": somebody has asked for any port for the torrent machine; Transmission
/// hears which one it is, listens there, and asks for it by itself.
#[test]
fn transmission_comes_by_the_port_that_the_provider_picks() {
    const WANTED: u16 = 51413;
    let Some(subject) = interworking_subject() else { return };
    if !there_is("transmission-daemon") {
        return;
    }
    let network = Network::new(CASCADED);
    let directory = network.directory();
    let _provider = Provider::start(&network, Options::default());
    let home = directory.join("transmission");
    fs::create_dir(&home).expect("the directory is ours");
    let settings = json!({
        "rpc-authentication-required": true, "rpc-username": "u", "rpc-password": "p:1", "rpc-whitelist-enabled": false,
        "peer-port": WANTED, "port-forwarding-enabled": true, "dht-enabled": false, "lpd-enabled": false,
        "download-dir": home,
    });
    fs::write(home.join("settings.json"), settings.to_string()).expect("the directory is ours");

    let url = format!("http://{LAN1}:9091/transmission/rpc");
    let hook = shipped(directory, "portferry-transmission").display().to_string();
    let secret = credentials(directory, "u", "p:1").display().to_string();
    let internal = LAN1.to_string();
    let argv = [&hook, "--url", &url, "--credentials", &secret, "--internal", &internal];
    let mut daemon = subject.start(&network, NAT, &hooks(&argv));
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    taken_by_another(&network, &control_point, WANTED);

    let home = home.display().to_string();
    let _transmission = network.spawn(Host::Lan1, "transmission", "transmission-daemon", ["-f", "-g", &home]);
    eventually("Transmission listens", 20 * SECOND, || {
        let mut command = network.command(Host::Router, &hook);
        command.args(&argv[1..]);
        by_hand(command, &began(WANTED)).status.success().then_some(())
    });
    let answer = control_point.add("-n", WANTED, WANTED, "TCP", 3600);
    let picked = redirected_port(&answer, "TCP").expect("a port");
    assert_ne!(picked, WANTED, "{answer}");
    // The timer comes again.
    let again = |port| redirected_port(&control_point.add("-n", port, port, "TCP", 3600), "TCP");
    let port = eventually("a connection from the Internet", 30 * SECOND, || settled(&network, WANTED));
    assert_eq!(port, picked);
    assert_eq!(again(picked), Some(picked), "it is the same that the client has");
    assert_eq!(settled(&network, WANTED), Some(picked));

    let wrong = credentials(directory, "u", "wrong").display().to_string();
    let mut command = network.command(Host::Router, &hook);
    command.args(["--url", &url, "--credentials", &wrong, "--internal", &internal]);
    let output = by_hand(command, &began(1025));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("are user and password right?"), "{said}");
    assert_eq!(settled(&network, WANTED), Some(picked), "and nothing has changed");
}

/// Likewise; qBittorrent's library tries other ports by itself when the one that it wants is taken, so nobody else has to ask.
#[test]
fn qbittorrent_comes_by_the_port_that_it_was_given() {
    const WANTED: u16 = 51413;
    let Some(subject) = interworking_subject() else { return };
    if !there_is("qbittorrent-nox") {
        return;
    }
    let network = Network::new(CASCADED);
    let directory = network.directory();
    let _provider = Provider::start(&network, Options::default());
    let home = directory.join("qbittorrent");
    fs::create_dir_all(home.join("qBittorrent/config")).expect("the directory is ours");
    let settings = format!(
        "[LegalNotice]\nAccepted=true\n[BitTorrent]\nSession\\Port={WANTED}\nSession\\DHTEnabled=false\n\
         Session\\LSDEnabled=false\n[Network]\nPortForwardingEnabled=true\n[Preferences]\nWebUI\\Address=*\n\
         WebUI\\Port=8080\nWebUI\\UseUPnP=false\nWebUI\\LocalHostAuth=true\n"
    );
    fs::write(home.join("qBittorrent/config/qBittorrent.conf"), settings).expect("the directory is ours");

    let url = format!("http://{LAN1}:8080");
    let hook = shipped(directory, "portferry-qbittorrent").display().to_string();
    // Those that this version begins with.
    let secret = credentials(directory, "admin", "adminadmin").display().to_string();
    let internal = LAN1.to_string();
    let argv = [&hook, "--url", &url, "--credentials", &secret, "--internal", &internal];
    let mut daemon = subject.start(&network, NAT, &hooks(&argv));
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    taken_by_another(&network, &control_point, WANTED);

    let mut command = network.command(Host::Lan1, "qbittorrent-nox");
    let log = fs::File::create(directory.join("qbittorrent.log")).expect("the directory is ours");
    let both = log.try_clone().expect("a file can be shared");
    command.arg(format!("--profile={}", home.display())).env("HOME", &home).stdout(log).stderr(both);
    let _qbittorrent = Killed(command.spawn().expect("ip netns exec can be run"));
    let by_hand_with = |secret: &str, more: &[&str], port| {
        let mut command = network.command(Host::Router, &hook);
        command.args(["--url", &url, "--credentials", secret, "--internal", &internal]).args(more);
        by_hand(command, &began(port))
    };
    eventually("qBittorrent listens", 20 * SECOND, || {
        by_hand_with(&secret, &[], WANTED).status.success().then_some(())
    });
    daemon.signal("HUP"); // what it was given before its Web UI listened, nobody could tell it
    let port = eventually("a connection from the Internet", 30 * SECOND, || settled(&network, WANTED));

    let failed = |output: Output, wanted: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(wanted), "{said}");
    };
    let wrong = credentials(directory, "admin", "wrong").display().to_string();
    failed(by_hand_with(&wrong, &[], 1025), "does not know this user and password");
    fs::set_permissions(&wrong, PermissionsExt::from_mode(0o644)).expect("it is ours");
    failed(by_hand_with(&wrong, &[], 1025), "can be read by others");
    // Debian's is older than 5.1.
    let output = by_hand_with(&secret, &["--set", "announce_port"], 1025);
    if !output.status.success() {
        failed(output, "this qBittorrent has no announce_port");
    }
    assert_eq!(settled(&network, WANTED), Some(port), "and nothing has changed");
}

/// A process that ends with the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ── A qBittorrent that Debian does not have ────────────────────────────────────────────────────────────────────────

/// What qBittorrent 5.2 demands of who uses its Web API, and what it keeps.
#[derive(Debug, Default)]
struct WebApi {
    port: u16,
    preferences: BTreeMap<String, Value>,
    refused: Vec<String>,
}

impl WebApi {
    /// A status and headers, and a body.
    fn answer(&mut self, request: &str, headers: &BTreeMap<String, String>, body: &str) -> (String, String) {
        let own = format!("127.0.0.1:{}", self.port);
        let cookie = format!("QBT_SID_{}=secret", self.port);
        let header = |name: &str| headers.get(name).map(String::as_str);
        let from_own_page = header("referer").is_some_and(|url| url.starts_with(&format!("http://{own}/")));
        if header("host") != Some(&own) || !from_own_page {
            self.refused.push(request.to_owned());
            return ("401 Unauthorized".to_owned(), String::new());
        }
        let form: BTreeMap<&str, String> = body
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name, decoded(value)))
            .collect();
        if request == "POST /api/v2/auth/login HTTP/1.1" {
            let known = form.get("username").map(String::as_str) == Some("admin")
                && form.get("password").map(String::as_str) == Some("a&b=ü+");
            return if known {
                (
                    format!("204 No Content\r\nSet-Cookie: {cookie}; HttpOnly; SameSite=Strict; path=/"),
                    String::new(),
                )
            } else {
                ("401 Unauthorized".to_owned(), "Fails.".to_owned())
            };
        }
        if header("cookie") != Some(&cookie) {
            return ("403 Forbidden".to_owned(), String::new());
        }
        match request {
            "GET /api/v2/app/preferences HTTP/1.1" => {
                ("200 OK".to_owned(), json!(self.preferences).to_string())
            }
            "POST /api/v2/app/setPreferences HTTP/1.1" => {
                let new: BTreeMap<String, Value> = serde_json::from_str(&form["json"]).expect("JSON");
                self.preferences.extend(new);
                ("200 OK".to_owned(), String::new())
            }
            other => {
                self.refused.push(other.to_owned());
                ("404 Not Found".to_owned(), String::new())
            }
        }
    }
}

/// A value of a form.
fn decoded(value: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = value.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.expect("two digits")));
                u8::from_str_radix(&String::from_iter(digits), 16).expect("hexadecimal")
            }
            other => other,
        });
    }
    String::from_utf8(octets).expect("UTF-8")
}

/// Answers one request.
fn serve(stream: TcpStream, api: &Mutex<WebApi>) {
    let mut reader = BufReader::new(&stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a request");
        line.trim_end().to_owned()
    };
    let request = line();
    let headers: BTreeMap<String, String> =
        std::iter::from_fn(|| Some(line()).filter(|line| !line.is_empty()))
            .filter_map(|line| {
                line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            })
            .collect();
    let len = headers.get("content-length").map_or(0, |len| len.parse().expect("a number"));
    let mut body = vec![0; len];
    reader.read_exact(&mut body).expect("the body");
    let body = String::from_utf8(body).expect("UTF-8");
    let (head, answer) = api.lock().expect("nobody panics").answer(&request, &headers, &body);
    let len = answer.len();
    write!(&stream, "HTTP/1.1 {head}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{answer}")
        .expect("it listens");
}

/// `--set announce_port` needs qBittorrent 5.1; its session cookie and its answer to a login are those of 5.2.
#[test]
fn the_announced_port_of_a_newer_qbittorrent() {
    if !there_is("python3") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().expect("it is bound").port();
    let preferences =
        [("listen_port", 51413), ("announce_port", 0)].map(|(name, port)| (name.to_owned(), json!(port)));
    let api = Arc::new(Mutex::new(WebApi { port, preferences: preferences.into(), refused: Vec::new() }));
    let served = api.clone();
    std::thread::spawn(move || {
        listener.incoming().for_each(|stream| serve(stream.expect("a connection"), &served));
    });

    let directory = std::env::temp_dir().join(format!("pf-hooks-{}", std::process::id()));
    fs::create_dir(&directory).expect("it is ours");
    let _removed = Removed(directory.clone());
    let hook = shipped(&directory, "portferry-qbittorrent");
    let right = credentials(&directory, "admin", "a&b=ü+");
    let url = format!("http://127.0.0.1:{port}/");
    let run = |secret: &Path, change: &Value| {
        let mut command = Command::new("python3");
        command.arg(&hook).args(["--url", &url, "--internal", &LAN1.to_string()]);
        command.args(["--description", "tor", "--set", "announce_port", "--credentials"]).arg(secret);
        by_hand(command, change)
    };
    let announced = || api.lock().expect("nobody panics").preferences["announce_port"].clone();
    let with = |key: &str, value: Value| {
        let mut change = began(40007);
        change[key] = value;
        change
    };
    // What is not for it leaves it as it is, and asks nobody.
    let wrong = credentials(&directory, "admin", "wrong");
    for change in [
        json!({"version": 1, "event": "start", "time": 1}),
        json!({"version": 1, "event": "external", "time": 1, "external_address": null, "previous_external_address": null}),
        with("event", json!("ended")),
        with("internal_address", json!("192.168.77.99")),
        with("protocol", json!("UDP")),
        with("made_by", json!("pcp")),
        with("description", json!("a tor")),
    ] {
        let output = run(&wrong, &change);
        assert!(output.status.success() && output.stdout.is_empty(), "{change}: {}", netns::text(&output));
    }
    assert_eq!(announced(), json!(0));
    let output = run(&wrong, &began(40007));
    assert!(!output.status.success(), "{}", netns::text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("are user and password right?"), "{output:?}");
    for (event, port) in [("began", 40007), ("present", 40008), ("moved", 40009), ("changed", 40010)] {
        let mut change = began(port);
        change["event"] = json!(event);
        let output = run(&right, &change);
        assert!(output.status.success(), "{}", netns::text(&output));
        assert_eq!(announced(), json!(port));
        assert_eq!(netns::text(&output).trim(), format!("announce_port is {port} now"));
    }
    let other = run(&right, &with("internal_port", json!(80)));
    assert!(other.status.success() && other.stdout.is_empty(), "another program's: {}", netns::text(&other));
    let again = run(&right, &began(40010));
    assert!(again.status.success() && again.stdout.is_empty(), "it has that port: {}", netns::text(&again));
    let api = api.lock().expect("nobody panics");
    assert_eq!(api.preferences["listen_port"], json!(51413));
    assert_eq!(api.refused, Vec::<String>::new());
}

/// A directory that goes with the test.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
