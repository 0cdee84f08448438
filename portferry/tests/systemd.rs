//! The units of `packaging/systemd`: systemd understands them, and they are as confined as docs/security.md says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where they say that the program is.
const INSTALLED: &str = "/usr/local/bin/portferry";

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Copies of the units that name the program which was just built, in a directory that goes with this.
struct Copies(PathBuf);

impl Copies {
    fn make(units: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("portferry-units-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("it can be made");
        let copies = Self(directory);
        for unit in units {
            let text = read(&format!("packaging/systemd/{unit}"));
            assert!(text.contains(INSTALLED), "{unit} starts {INSTALLED}");
            let text = text.replace(INSTALLED, env!("CARGO_BIN_EXE_portferry"));
            std::fs::write(copies.0.join(unit), text).expect("the directory is ours");
        }
        copies
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `None` where systemd is not installed.
fn analyze(arguments: &[&str], unit: &Path) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).arg(unit).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED {}: there is no systemd-analyze", unit.display());
            None
        }
        Err(error) => panic!("systemd-analyze: {error}"),
    }
}

/// The exposure in tenths, of a line such as "→ Overall exposure level for portferry.service: 2.6 OK".
fn exposure(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.contains("Overall exposure level"))?;
    let number = line.split_once(".service: ")?.1.split(' ').next()?;
    number.replacen('.', "", 1).parse().ok()
}

/// The row of docs/security.md: `| portferry.service | 2.6 |`.
fn stated(unit: &str) -> u32 {
    let page = read("docs/security.md");
    let begins = format!("| `{unit}` | ");
    let row = page.lines().find_map(|line| line.strip_prefix(&begins));
    let number = row.and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("no row of {unit}"));
    number.replacen('.', "", 1).parse().unwrap_or_else(|error| panic!("{unit}: {number:?}: {error}"))
}

#[test]
fn units_are_understood_and_as_confined_as_is_said() {
    let units = ["portferry.service", "portferry-pcp-server.service"];
    let copies = Copies::make(&units);
    for unit in units {
        let path = copies.0.join(unit);
        // A man page that is not installed here is no fault of the unit, nor is a service that it comes after.
        let Some(output) = analyze(&["verify", "--man=no", "--recursive-errors=no"], &path) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        // What concerns other units of this machine says so.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(unit)).collect();
        assert!(output.status.success() && ours.is_empty(), "{unit}: {said}");
        let output = analyze(&["security", "--offline=true", "--no-pager"], &path).expect("it ran just now");
        let said = String::from_utf8_lossy(&output.stdout);
        let found = exposure(&said).unwrap_or_else(|| panic!("{unit}: {output:?}"));
        assert!(found <= stated(unit), "{unit}: exposure {found} tenths, docs/security.md has less\n{said}");
    }
}

/// The user that the gateway's unit speaks of is the one that is made.
#[test]
fn the_user_is_made() {
    let user = read("packaging/systemd/portferry.sysusers");
    let lines: Vec<&str> = user.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(matches!(lines[..], [line] if line.starts_with("u portferry - ")), "{lines:?}");
    if !Path::new("/usr/bin/systemd-sysusers").exists() {
        return eprintln!("SKIPPED: there is no systemd-sysusers");
    }
    let mut command = Command::new("/usr/bin/systemd-sysusers");
    command.arg("--dry-run").arg(root().join("packaging/systemd/portferry.sysusers"));
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
