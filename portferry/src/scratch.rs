//! Where tests write, and what they write goes with them; and namespaces and processes of their own.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// A directory of one test; it and what is in it goes at the end, also when the test fails.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    /// An empty one. `name` is the test's alone.
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portferry-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `body` while this process may not read `path`, whoever it is; `None` where root cannot give up his rights.
pub(crate) fn unreadable<T>(path: &Path, body: impl FnOnce() -> T) -> Option<T> {
    let before = std::fs::metadata(path).unwrap().permissions();
    std::fs::set_permissions(path, Permissions::from_mode(0o0)).unwrap();
    let has = capabilities(None).unwrap();
    // Of this thread alone.
    let given_up = set_capabilities(None, CapabilitySets { effective: CapabilitySet::empty(), ..has });
    let outcome = given_up.is_ok().then(body);
    set_capabilities(None, has).unwrap();
    std::fs::set_permissions(path, before).unwrap();
    outcome
}

/// A process that is started again for one test has it.
const INSIDE: &str = "PF_INSIDE";

/// A network namespace, gone when this is.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

/// Runs the test called `name` in a network namespace of its own; says so where that cannot be.
pub(crate) fn in_namespace(name: &str, body: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return crate::run::runtime().unwrap().block_on(body());
    }
    // More than one test of a process may have one.
    let last = name.rsplit(':').next().unwrap_or_default();
    let namespace = Namespace(format!("pfs-{}-{last}", std::process::id()));
    let made = Command::new("ip").args(["netns", "add", &namespace.0]).output();
    if !made.is_ok_and(|output| output.status.success()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root and iproute2");
        return;
    }
    again(
        Command::new("ip").args(["netns", "exec", &namespace.0]).arg(std::env::current_exe().unwrap()),
        name,
    );
}

/// Runs the test called `name` in a process of its own, which it may do anything to.
pub(crate) fn in_process(name: &str, body: impl FnOnce()) {
    match std::env::var_os(INSIDE) {
        Some(_) => body(),
        None => again(&mut Command::new(std::env::current_exe().unwrap()), name),
    }
}

fn again(command: &mut Command, name: &str) {
    let command = command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    assert!(command.status().unwrap().success(), "failed inside, see above");
}
