//! `portferry dhcp-servers` as a hook of a DHCP client calls it: what it leaves, and how it ends. No gateway runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portferry-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten();
        let mut names: Vec<_> = entries
            .map(|e| e.expect("it can be read").file_name().into_string().expect("it is ours"))
            .collect();
        names.sort();
        names
    }

    fn servers(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join(file)).expect("it was written");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn call(directory: &Path, line: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portferry"));
    command.env_clear().envs(environment.iter().copied());
    command.arg("dhcp-servers").args(line.split(' ')).arg("--socket").arg(directory.join("control.sock"));
    command.output().expect("it runs")
}

#[test]
fn a_lease_begins_and_ends() {
    let directory = Directory::new("dhcp-servers");
    let bound =
        [("reason", "BOUND"), ("interface", "wan0"), ("new_pcp_server", "8:c0:0:2:1:c0:0:2:2:4:c6:33:64:1")];
    let output = call(&directory.0, "dhclient", &bound);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(directory.servers("dhcp4-wan0"), ["192.0.2.1 192.0.2.2", "198.51.100.1"]);
    let set = call(&directory.0, "set wan0 dhcpv6 2001:db8::1", &[]);
    assert!(set.status.success(), "{set:?}");
    assert_eq!(directory.files(), ["dhcp4-wan0", "dhcp6-wan0"]);
    let over = call(&directory.0, "dhclient", &[("reason", "EXPIRE"), ("interface", "wan0")]);
    assert!(over.status.success(), "{over:?}");
    assert_eq!(directory.files(), ["dhcp6-wan0"]);
    let gone = call(&directory.0, "dhcpcd", &[("reason", "NOCARRIER"), ("interface", "wan0")]);
    assert!(gone.status.success(), "{gone:?}");
    assert_eq!(directory.files(), [""; 0]);
}

#[test]
fn what_cannot_be_read_is_said_and_disturbs_no_client() {
    let directory = Directory::new("dhcp-servers-odd");
    let odd = [("interface", "wan0"), ("opt158", "05c000020107")];
    let output = call(&directory.0, "udhcpc bound", &odd);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("DHCPv4 on wan0: a value that is no list"), "{said}");
    assert_eq!(directory.servers("dhcp4-wan0"), [""; 0], "a hook has spoken, and no server is offered");
}

#[test]
fn exit_codes() {
    let directory = Directory::new("dhcp-servers-codes");
    let code = |line, environment: &[(&str, &str)]| call(&directory.0, line, environment).status.code();
    assert_eq!(code("dhclient", &[("reason", "BOUND")]), Some(64), "no interface");
    assert_eq!(code("udhcpc bound", &[("interface", "../../etc/cron.d/x")]), Some(64));
    assert_eq!(code("set wan0 dhcpv4 server.example", &[]), Some(64));
    assert_eq!(code("set wan0 dhcpv5", &[]), Some(64));
    assert_eq!(code("dhclient", &[("reason", "PREINIT"), ("interface", "wan0")]), Some(0));
    assert!(directory.files().is_empty());
    std::fs::write(&directory.0, b"a file is in the way").unwrap();
    assert_eq!(code("set wan0 dhcpv4 192.0.2.1", &[]), Some(73));
    std::fs::remove_file(&directory.0).unwrap();
}
