//! A sandbox: what a process gives up for ever before it reads the first octet that came from the network.
//!
//! The network process:
//! * Capabilities: none, also none that a program it ran could get (`no_new_privs`).
//! * Files (Landlock): it may write beneath its state directory and read what hooks of DHCP clients have left; it sees no other.
//! * TCP: it neither binds nor connects (Landlock); the privileged process opens what it needs.
//! * System calls (seccomp): a list, by which it makes no socket but one that reads interfaces (rtnetlink), connects none, sends by
//!   none but the socket's own interface, runs no program, starts no thread or process. What is not on it fails with EPERM. It sees no
//!   addresses: a link-local one of IPv6 names an interface, and is sent to there.
//!
//! `portferry pcp-server` is one process, and changes the firewall itself: it keeps the capabilities that this needs and may make sockets; in
//! all else it is the same.
//!
//! What a kernel does not have is left away, and said.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior, set_parent_process_death_signal,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_name, set_no_new_privs,
};

/// What a process needs.
pub(crate) struct Needs<'a> {
    /// Directories beneath which it writes.
    pub(crate) writes: &'a [&'a Path],
    /// Files and directories that it reads.
    pub(crate) reads: &'a [&'a Path],
    /// Sockets of its own.
    pub(crate) sockets: bool,
}

/// How far the kernel went along.
#[derive(Debug)]
pub(crate) struct Sandbox {
    files: Result<RulesetStatus, String>,
    calls: Result<(), String>,
}

impl Sandbox {
    /// Whether everything that this program asks for is there.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.files, Ok(RulesetStatus::FullyEnforced)) && self.calls.is_ok()
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.files {
            Ok(RulesetStatus::FullyEnforced) => write!(f, "no files but its own (Landlock)")?,
            Ok(RulesetStatus::PartiallyEnforced) => {
                write!(f, "no files but its own (this kernel's Landlock lacks a part)")?;
            }
            Ok(RulesetStatus::NotEnforced) => write!(f, "any file that its user may open (no Landlock)")?,
            Err(error) => write!(f, "any file that its user may open (Landlock: {error})")?,
        }
        match &self.calls {
            Ok(()) => write!(f, ", no system calls but a list (seccomp)"),
            Err(error) => write!(f, ", any system call (seccomp: {error})"),
        }
    }
}

/// If the process that started this one ends, so does this one; and it starts none.
///
/// # Errors
/// What the system says.
pub(super) fn die_with_parent() -> std::io::Result<()> {
    // What the list of system calls says better, where there is one.
    let _ = setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: Some(0) });
    // Started by what that one runs already, this one is called after the kernel's word for it.
    set_name(c"portferry")?;
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Gives all capabilities up but these, as far as it has them, and whatever could bring one back.
///
/// # Errors
/// What the system says.
pub(crate) fn keep_capabilities(kept: CapabilitySet) -> std::io::Result<()> {
    // Nobody of the same user reads its memory, or writes to it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_no_new_privs(true)?;
    // As many as this kernel has; without the right to, there is no need to either.
    for capability in (!kept).iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    // A kernel of before 4.3 has none.
    let _ = clear_ambient_capability_set();
    let kept = capabilities(None)?.permitted & kept;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Goes into the sandbox; there is no way out. This process has one thread.
pub(crate) fn enter(needs: &Needs<'_>) -> Sandbox {
    let files = restrict_files(needs).map_err(|error| error.to_string());
    Sandbox { files, calls: restrict_calls(needs.sockets) }
}

fn restrict_files(needs: &Needs<'_>) -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V6;
    let own = AccessFs::from_read(abi) & !AccessFs::Execute
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        // To give them another name: those that it could not make itself have no system call.
        | AccessFs::MakeSym
        | AccessFs::MakeFifo
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    if !needs.sockets {
        ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    }
    let ruleset = ruleset
        .create()?
        .add_rules(path_beneath_rules(needs.writes, own))?
        .add_rules(path_beneath_rules(needs.reads, AccessFs::ReadFile | AccessFs::ReadDir))?;
    Ok(ruleset.restrict_self()?.ruleset)
}

/// Where the filter can be made: those that its library knows.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn restrict_calls(sockets: bool) -> Result<(), String> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule,
    };

    // The same on all of these processors (asm-generic/ioctls.h); of another type in each C library.
    const FIONBIO: u64 = 0x5421;
    const FIOCLEX: u64 = 0x5451;

    let make = || -> Result<BpfProgram, seccompiler::BackendError> {
        let is = |argument, value: i32| {
            let value = u64::from(value.unsigned_abs());
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        };
        let rtnetlink = SeccompRule::new(vec![is(0, libc::AF_NETLINK)?, is(2, libc::NETLINK_ROUTE)?])?;
        let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> =
            CALLS.iter().map(|&call| (call, Vec::new())).collect();
        if sockets {
            let calls = [
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_listen,
                libc::SYS_sendto,
                libc::SYS_sendmsg,
                libc::SYS_sendmmsg,
                libc::SYS_recvmmsg,
            ];
            rules.extend(calls.map(|call| (call, Vec::new())));
        } else {
            rules.insert(libc::SYS_socket, vec![rtnetlink]);
            // With this flag a TCP socket is connected by what it sends first, whoever forbids `connect`.
            let fast_open = u64::from(libc::MSG_FASTOPEN.unsigned_abs());
            let without = SeccompCmpOp::MaskedEq(fast_open);
            let plain = SeccompCondition::new(3, SeccompCmpArgLen::Dword, without, 0)?;
            // Not `sendmsg`: what may come along with a datagram (IP_PKTINFO) leads it out by another interface than the socket's.
            rules.insert(libc::SYS_sendto, vec![SeccompRule::new(vec![plain])?]);
        }
        // Of what a terminal or a device can be told nothing; how a descriptor waits, and whether a program inherits it.
        let settings = [FIONBIO, FIOCLEX].map(|request| {
            let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
            SeccompRule::new(vec![condition])
        });
        rules.insert(libc::SYS_ioctl, settings.into_iter().collect::<Result<_, _>>()?);
        // Itself it may end, as a panic does.
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, own)?])?]);
        let arch = std::env::consts::ARCH.try_into()?;
        let otherwise = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?.try_into()
    };
    let filter = make().map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn restrict_calls(_sockets: bool) -> Result<(), String> {
    Err("there is no list for this processor".to_owned())
}

/// What it may call, beside `socket` for rtnetlink: memory, time, waiting, the descriptors that it has, its files, its end.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const CALLS: &[libc::c_long] = &[
    // Descriptors that are open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fchmod,
    // Sockets that are open.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    // Its files; which those are is Landlock's matter.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_readlinkat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // Itself.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // What older C libraries and processors call the same.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    // The same; its library has no name for it.
    #[cfg(target_arch = "aarch64")]
    38,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const CALLS: &[u8] = &[];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{IoSlice, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::process::{Pid, getppid, kill_process};
    use socket2::{Domain, MsgHdr, Protocol, SockRef, Socket, Type};

    use super::*;
    use crate::scratch::{Directory, in_process};

    /// What somebody would try who has taken over the network process, and what it needs to do all the same.
    #[test]
    fn what_a_hostile_network_process_can_do() {
        in_process("privileged::sandbox::tests::what_a_hostile_network_process_can_do", || {
            let scratch = Directory::new("sandbox");
            let (state, offers) = (scratch.0.join("state"), scratch.0.join("run"));
            let outside = scratch.0.join("outside");
            for directory in [&state, &offers] {
                fs::create_dir(directory).unwrap();
            }
            fs::write(&outside, "secret").unwrap();
            fs::write(offers.join("dhcp4-wan0"), "192.0.2.1").unwrap();
            std::os::unix::fs::symlink(&outside, state.join("link")).unwrap();
            // What it has open before stays: the privileged process has opened it.
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let other = UdpSocket::bind("127.0.0.1:0").unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            let mut connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut local, _peer) = UnixStream::pair().unwrap();
            let parent = getppid().unwrap();

            die_with_parent().unwrap();
            keep_capabilities(CapabilitySet::empty()).unwrap();
            let needs = Needs { writes: &[&state], reads: &[&offers], sockets: false };
            let sandbox = enter(&needs);
            if !sandbox.is_whole() {
                // A kernel without one of both: nothing to prove.
                eprintln!("SKIPPED: {sandbox}");
                return;
            }

            let tries: [(&str, &dyn Fn() -> std::io::Result<()>); 27] = [
                ("read a file of the system", &|| fs::read("/etc/passwd").map(drop)),
                ("read a file of its user", &|| fs::read(&outside).map(drop)),
                ("read one by a link", &|| fs::read(state.join("link")).map(drop)),
                ("list a directory", &|| fs::read_dir("/").map(drop)),
                ("write elsewhere", &|| fs::write(scratch.0.join("new"), "x")),
                ("write where hooks write", &|| fs::write(offers.join("dhcp4-wan0"), "x")),
                ("move a file out", &|| fs::rename(state.join("link"), scratch.0.join("new"))),
                ("make a link to a file", &|| std::os::unix::fs::symlink(&outside, state.join("another"))),
                ("read another's memory", &|| {
                    fs::read(format!("/proc/{}/mem", parent.as_raw_nonzero())).map(drop)
                }),
                ("run a program", &|| Command::new("/bin/true").spawn().map(drop)),
                ("start a thread", &|| std::thread::Builder::new().spawn(|| ()).map(drop)),
                ("call somebody by TCP", &|| TcpStream::connect(("198.51.100.1", 80)).map(drop)),
                ("call this machine by TCP", &|| TcpStream::connect(listener.local_addr()?).map(drop)),
                ("listen", &|| TcpListener::bind("127.0.0.1:0").map(drop)),
                ("make a socket for UDP", &|| UdpSocket::bind("0.0.0.0:0").map(drop)),
                ("lead one that it has elsewhere", &|| udp.connect(("198.51.100.1", 53))),
                ("connect by sending", &|| {
                    let to = SocketAddr::from(([198, 51, 100, 1], 80)).into();
                    tcp.send_to_with_flags(b"x", &to, libc::MSG_FASTOPEN).map(drop)
                }),
                ("send by another interface", &|| {
                    // A cmsghdr, and in_pktinfo of the interface 1 (ip(7)).
                    let numbers =
                        [libc::IPPROTO_IP, libc::IP_PKTINFO, 1, 0, 0].map(i32::to_ne_bytes).concat();
                    let header = (size_of::<usize>() + numbers.len()).to_ne_bytes();
                    let along = [&header[..], &numbers, &[0; 4]].concat();
                    let to = other.local_addr()?.into();
                    let buffers = [IoSlice::new(b"x")];
                    let message = MsgHdr::new().with_addr(&to).with_buffers(&buffers).with_control(&along);
                    SockRef::from(&udp).sendmsg(&message, 0).map(drop)
                }),
                ("make a pair of sockets", &|| UnixStream::pair().map(drop)),
                ("type into a terminal", &|| {
                    Ok(rustix::termios::tcflush(&udp, rustix::termios::QueueSelector::IFlush)?)
                }),
                ("make a raw socket", &|| {
                    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).map(drop)
                }),
                ("make a packet socket", &|| {
                    Ok(socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop)?)
                }),
                ("change the firewall", &|| {
                    let netfilter = rustix::net::netlink::NETFILTER;
                    Ok(socket(AddressFamily::NETLINK, SocketType::RAW, Some(netfilter)).map(drop)?)
                }),
                ("call a program of this machine", &|| {
                    UnixStream::connect("/run/dbus/system_bus_socket").map(drop)
                }),
                ("end another process", &|| Ok(kill_process(parent, Signal::TERM)?)),
                ("end them all", &|| Ok(kill_process(Pid::from_raw(1).unwrap(), Signal::TERM)?)),
                ("become root again", &|| {
                    let all = CapabilitySet::NET_ADMIN;
                    let sets = CapabilitySets { effective: all, permitted: all, inheritable: all };
                    Ok(set_capabilities(None, sets)?)
                }),
            ];
            for (what, attempt) in tries {
                let error = attempt().expect_err(what);
                let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EXDEV));
                assert!(refused, "{what}: {error}");
            }
            // And what it is there for.
            fs::write(state.join("journal.new"), "x").unwrap();
            fs::rename(state.join("journal.new"), state.join("journal")).unwrap();
            fs::File::open(state.join("journal")).unwrap().sync_all().unwrap();
            // What makes no sense is kept aside, also where it is no file.
            fs::hard_link(state.join("journal"), state.join("journal.damaged-1")).unwrap();
            fs::rename(state.join("link"), state.join("link.damaged-1")).unwrap();
            fs::create_dir(state.join("uplink-wan1")).unwrap();
            fs::remove_dir_all(state.join("uplink-wan1")).unwrap();
            assert_eq!(fs::read_to_string(offers.join("dhcp4-wan0")).unwrap(), "192.0.2.1");
            udp.send_to(b"datagram", other.local_addr().unwrap()).unwrap();
            assert_eq!(other.recv(&mut [0; 16]).unwrap(), 8);
            let parts = [IoSlice::new(b"an "), IoSlice::new(b"answer")];
            assert_eq!(connected.write_vectored(&parts).unwrap(), 9);
            assert_eq!(local.write_vectored(&parts).unwrap(), 9);
            let _clock = std::time::Instant::now();
            let _random: [u8; 4] = {
                let mut octets = [0; 4];
                getrandom::fill(&mut octets).unwrap();
                octets
            };
            socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap(); // rtnetlink is the first
            assert!(udp.local_addr().unwrap().ip() == Ipv4Addr::LOCALHOST);
        });
    }
}
