//! The state directory: full, read-only, damaged.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use engine::entropy::{Entropy as _, SeededEntropy};
use lab::netns::{Host, Network, Process};
use lab::provider::QuickProvider;
use lab::wait::eventually;

use crate::common::{CASCADED, Small, TCP, Told, interworking_subject, reaches, ready, say};
use crate::{
    LONG, PCP_SERVER, add, adds_soon, caller, lines_with, ports, runs, start, state_directory, took,
};

/// The first start of all on a full file system: a gateway that can map nothing is there, and becomes a whole one.
#[test]
fn the_first_start_is_on_a_full_file_system() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let small = Small::mount(state_directory(&network));
    small.fill(true);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    assert_eq!(add(&mut caller, 7001), Told::Refused(501));
    assert_eq!(lines_with(&daemon.log(), "the state cannot be written in"), 1, "{}", daemon.log());
    small.fill(false);
    let began = Instant::now();
    adds_soon(&mut caller, 7001);
    took("full at the first start", began);
    let identity = state_directory(&network).join("identity.json");
    eventually("the identity, too", LONG, || identity.is_file().then_some(()));
    took("full at the first start, its identity", began);
    drop(daemon); // by SIGKILL
    let before = fs::read_to_string(&identity).expect("it is JSON");
    let mut daemon = start(&subject, &network);
    ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(ports(&network).into_iter().flatten().collect::<Vec<_>>(), [7001]);
    let seed = |text: &str| text.split_once("\"token\"").expect("it is written in this order").0.to_owned();
    assert_eq!(seed(&fs::read_to_string(&identity).expect("it is JSON")), seed(&before));
}

/// A file system that the kernel has made read-only after an error while the daemon ran, and one that is so at the start.
#[test]
fn a_file_system_that_goes_read_only() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let Some(disk) = Disk::mount(&network) else {
        return crate::common::skipped("there is no loop device, or no mkfs.ext4");
    };
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut first = caller(&control_point);
    let _listener = crate::common::listener(&network, Host::Lan1, TCP, 7001);
    assert_eq!(add(&mut first, 7001), Told::done());
    disk.remount("abort");
    assert_eq!(add(&mut first, 7002), Told::Refused(501), "{}", daemon.log());
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    assert_eq!(lines_with(&daemon.log(), "the state cannot be written"), 1, "{}", daemon.log());
    assert_eq!(daemon.ended(), None);
    drop(daemon); // by SIGKILL

    // The next start finds it as the kernel left it.
    let before = fs::read_to_string(network.directory().join("portferry.log")).expect("it has one");
    let mut daemon = start(&subject, &network);
    runs(&mut daemon, &before);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut second = caller(&control_point);
    assert_eq!(ports(&network).into_iter().flatten().collect::<Vec<_>>(), [7001]);
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    assert_eq!(add(&mut second, 7002), Told::Refused(501));
    drop(daemon);

    // And one that can be written again later.
    let disk = disk.another();
    disk.remount("ro");
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut third = caller(&control_point);
    reaches(&network, TCP, 7001, &Host::Lan1.to_string());
    assert_eq!(add(&mut third, 7002), Told::Refused(501));
    disk.remount_for(&daemon, "rw");
    let began = Instant::now();
    adds_soon(&mut third, 7002);
    took("read-only at the start", began);
    drop(daemon);
    let mut daemon = start(&subject, &network);
    ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(ports(&network).into_iter().flatten().collect::<Vec<_>>(), [7001, 7002]);
}

/// A file system of its own, in a file, where the state is.
struct Disk {
    at: PathBuf,
    directory: PathBuf,
    number: usize,
}

impl Disk {
    fn mount(network: &Network) -> Option<Self> {
        let (at, directory) = (state_directory(network), network.directory().to_owned());
        fs::create_dir_all(&at).expect("the directory is ours");
        Self { at, directory, number: 0 }.mounted()
    }

    fn mounted(self) -> Option<Self> {
        let image = self.directory.join(format!("disk-{}.image", self.number));
        fs::File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("the directory is ours");
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).output();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&self.at);
        let done = |output: std::io::Result<Output>| output.is_ok_and(|output| output.status.success());
        (done(made) && done(mount.output())).then_some(self)
    }

    /// Another one in its place, with the same files, which are whose they were.
    fn another(self) -> Self {
        let owner = fs::metadata(&self.at).expect("it is there").uid();
        let files =
            [IDENTITY, JOURNAL].map(|name| (name, fs::read(self.at.join(name)).expect("it can be read")));
        let (at, directory, number) = (self.at.clone(), self.directory.clone(), self.number + 1);
        drop(self);
        let disk = Self { at, directory, number }.mounted().expect("the first one could be");
        for (name, octets) in files {
            fs::write(disk.at.join(name), octets).expect("it is new");
            chown(disk.at.join(name), Some(owner), None).expect("it is new");
        }
        chown(&disk.at, Some(owner), None).expect("it is new");
        disk
    }

    fn remount(&self, how: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.at);
        let output = mount.output().expect("it runs");
        assert!(output.status.success(), "{how}: {output:?}");
    }

    /// As a process sees it, which has mounts of its own.
    fn remount_for(&self, process: &Process, how: &str) {
        let mut mount = Command::new("nsenter");
        mount.args([
            "--mount",
            "--target",
            &process.id().to_string(),
            "mount",
            "-o",
            &format!("remount,{how}"),
        ]);
        let output = mount.arg(&self.at).output().expect("it runs");
        assert!(output.status.success(), "{how}: {output:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

const IDENTITY: &str = "identity.json";
const JOURNAL: &str = "mappings.journal";

/// What somebody finds instead of a file.
#[derive(Clone, Debug)]
enum Damage {
    Empty,
    /// After so many parts of ten thousand.
    CutAfter(usize),
    Random,
    Directory,
    Unreadable,
    DanglingLink,
    LinkToZeros,
    Pipe,
    /// 100 MB, in one line or many.
    Huge(bool),
    Newer,
}

impl Damage {
    const ALL: [Self; 16] = [
        Self::Empty,
        Self::CutAfter(1),
        Self::CutAfter(1000),
        Self::CutAfter(3333),
        Self::CutAfter(5000),
        Self::CutAfter(9000),
        Self::CutAfter(9950),
        Self::Random,
        Self::Directory,
        Self::Unreadable,
        Self::DanglingLink,
        Self::LinkToZeros,
        Self::Pipe,
        Self::Huge(false),
        Self::Huge(true),
        Self::Newer,
    ];

    fn inflict(&self, path: &Path) {
        let whole = fs::read(path).unwrap_or_default();
        let mut dice = SeededEntropy::new(7);
        let mut random = |len: usize| {
            let mut octets = vec![0; len];
            dice.fill(&mut octets);
            octets
        };
        let remove = || drop(fs::remove_file(path));
        match self {
            Self::Empty => fs::write(path, ""),
            Self::CutAfter(part) => fs::write(path, &whole[..whole.len() * part / 10_000]),
            Self::Random => fs::write(path, random(5000)),
            Self::Directory => {
                remove();
                fs::create_dir(path).and_then(|()| fs::write(path.join("something"), "in it"))
            }
            Self::Unreadable => fs::write(path, &whole)
                .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o0))),
            Self::DanglingLink => {
                remove();
                symlink("/nonexistent/of portferry's lab", path)
            }
            Self::LinkToZeros => {
                remove();
                symlink("/dev/zero", path)
            }
            Self::Pipe => {
                remove();
                assert!(Command::new("mkfifo").arg(path).status().expect("it runs").success());
                Ok(())
            }
            Self::Huge(lines) => (|| {
                let mut file = fs::File::create(path)?;
                let mut some = random(1 << 20);
                for octet in &mut some {
                    // Else one in 256 is the end of a line.
                    *octet = if *octet == b'\n' { b'x' } else { *octet };
                }
                if *lines {
                    some.chunks_mut(100).for_each(|line| line[0] = b'\n');
                }
                (0..100).try_for_each(|_| file.write_all(&some))
            })(),
            Self::Newer if path.ends_with(IDENTITY) => {
                let text = String::from_utf8_lossy(&whole).into_owned();
                fs::write(path, text.replacen('{', "{\"version\":99,\"more\":{\"than\":\"we know\"},", 1))
            }
            // Whole lines of a version that knows more.
            Self::Newer => {
                let line = "3d6e2a2d {\"from_the_future\":{\"answer\":42}}\n";
                fs::write(path, [line.as_bytes(), &whole].concat())
            }
        }
        .expect("the directory is ours");
    }

    /// Whether it can be seen that something is wrong, or is; a file that was cut between two lines is none, nor is one that a power
    /// cut has torn.
    fn is_seen(&self, name: &str) -> bool {
        match self {
            Self::Unreadable | Self::DanglingLink => false, // root may read everything; nothing is nothing
            Self::Empty | Self::CutAfter(_) => name == IDENTITY,
            Self::Newer => name == JOURNAL,
            _ => true,
        }
    }

    /// Whether what was in the file is still known.
    fn keeps(&self) -> bool {
        matches!(self, Self::Unreadable | Self::Newer)
    }
}

/// Whatever is wrong with a file of the state directory, the daemon starts, says once what is lost, and keeps what it could not
/// read; damage of one file costs nothing of another.
#[test]
fn damaged_files_are_set_aside_and_the_daemon_starts() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let directory = state_directory(&network);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = start(&subject, &network);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let mut caller = caller(&control_point);
    let mapped = [7001, 7002, 7003];
    for port in mapped {
        assert_eq!(add(&mut caller, port), Told::done());
    }
    drop(daemon); // by SIGKILL
    let good = [IDENTITY, JOURNAL].map(|name| (name, fs::read(directory.join(name)).expect("it is there")));
    let seed = || {
        let text = fs::read_to_string(directory.join(IDENTITY)).expect("it is there, and text");
        text.split_once("\"boot_id\"").expect("it is written in this order").0.to_owned()
    };
    let log = || fs::read_to_string(network.directory().join("portferry.log")).expect("it has one");
    let mut slowest = (std::time::Duration::ZERO, String::new());

    for name in [IDENTITY, JOURNAL, "identity.json.new", "mappings.journal.new"] {
        for damage in Damage::ALL {
            let what = format!("{name}: {damage:?}");
            fs::remove_dir_all(&directory).expect("the directory is ours");
            fs::create_dir(&directory).expect("the directory is ours");
            for (name, octets) in &good {
                fs::write(directory.join(name), octets).expect("the directory is ours");
            }
            let before_seed = seed();
            damage.inflict(&directory.join(name));
            let before = log();

            let began = Instant::now();
            let mut daemon = start(&subject, &network);
            runs(&mut daemon, &before);
            let took = began.elapsed();
            if took > slowest.0 {
                slowest = (took, what.clone());
            }
            let now = ports(&network).expect("it runs");
            let said = log()[before.len()..].to_owned();
            let is_its_own = [IDENTITY, JOURNAL].contains(&name);
            if name != JOURNAL || damage.keeps() {
                assert_eq!(now.iter().copied().collect::<Vec<_>>(), mapped, "{what}\n{said}");
            }
            if name != IDENTITY || damage.keeps() {
                assert_eq!(seed(), before_seed, "{what}\n{said}");
            }
            let kept = directory.join(format!("{name}.damaged-1"));
            if is_its_own {
                assert_eq!(fs::symlink_metadata(&kept).is_ok(), damage.is_seen(name), "{what}\n{said}");
                let lines = lines_with(&said, &format!("{name} is damaged"));
                assert_eq!(lines, usize::from(damage.is_seen(name)), "{what}\n{said}");
            } else if matches!(damage, Damage::Directory) {
                assert!(kept.is_dir(), "{what}\n{said}");
            }
            // A second start has nothing to complain of.
            drop(daemon);
            let before = log();
            let mut daemon = start(&subject, &network);
            runs(&mut daemon, &before);
            let said = log()[before.len()..].to_owned();
            // That a machine has no user of ours is another matter.
            let of_ours = lines_with(&said, "WARN") - lines_with(&said, "there is no user portferry");
            assert_eq!(of_ours, 0, "{what}\n{said}");
            assert_eq!(ports(&network), Some(now), "{what}");
            // What it stores is private, whatever was there.
            for name in [IDENTITY, JOURNAL] {
                let file = fs::metadata(directory.join(name)).expect("it is there");
                assert_eq!((file.is_file(), file.permissions().mode() & 0o777), (true, 0o600), "{what}");
            }
        }
    }
    say(&format!("damaged files: running after {:.2?} at most ({})", slowest.0, slowest.1));
}
