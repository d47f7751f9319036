//! Runs a command inside a place of a world, as a child of the world's process 1 in all but parentage: it
//! dies with the world, and with the process that asked for it.
//!
//! The first stage joins the user and pid namespaces and passes signals on; the second joins the rest and
//! becomes the command.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::IsTerminal as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    LabError,
    keeper::{bind_resolver, fresh_sys},
    state::{Files, KeeperId},
};

/// What to run and where.
#[derive(Clone, Debug)]
pub struct Enter {
    /// The world's folder.
    pub dir: PathBuf,
    /// The place.
    pub at: String,
    /// Where the command's process id is written, as the caller's namespace sees it.
    pub pid_file: Option<PathBuf>,
    /// Command line.
    pub argv: Vec<OsString>,
}

const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// First stage: returns the command's exit code.
///
/// # Errors
/// When the world is gone or a namespace cannot be joined.
pub fn enter_main(enter: &Enter) -> Result<i32, LabError> {
    let files = Files::at(&enter.dir);
    let keeper = files.read_keeper()?;
    if !keeper.alive() {
        return Err(LabError::NoSuchWorld(format!("the world in {} is gone", enter.dir.display())));
    }
    // Before the pid namespace changes, this path means what it says.
    let exe = std::env::current_exe().map_err(LabError::file("find", Path::new("/proc/self/exe")))?;
    join_user(keeper)?;
    join(keeper, "pid", CloneFlags::CLONE_NEWPID)?;
    let mut set = SigSet::from_iter(PASSED_ON);
    set.add(Signal::SIGCHLD);
    set.thread_block().map_err(LabError::system("blocking signals"))?;
    let mut command = Command::new(exe);
    command.arg("__run").arg(&enter.dir).arg(&enter.at).arg(keeper.pid.to_string()).arg("--");
    let child = (command.args(&enter.argv).spawn()).map_err(LabError::file("run", Path::new("lab")))?;
    let pid = i32::try_from(child.id()).unwrap_or(0);
    if let Some(path) = &enter.pid_file {
        let new = path.with_extension("new");
        let written = fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path));
        written.map_err(LabError::file("write", path))?;
    }
    let terminal = std::io::stdin().is_terminal();
    for standard in [0, 1] {
        // The command's alone: whoever reads its output sees the end when the command closes it.
        let _not_open = nix::unistd::close(standard);
    }
    wait_for(Pid::from_raw(pid), &set, terminal)
}

fn wait_for(child: Pid, set: &SigSet, terminal: bool) -> Result<i32, LabError> {
    loop {
        match set.wait() {
            Ok(Signal::SIGCHLD) => match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) => {}
                Err(e) => return Err(LabError::system("waiting for the command")(e)),
            },
            // A terminal sends these to the whole group; the command has its own copy.
            Ok(Signal::SIGINT | Signal::SIGQUIT) if terminal => {}
            Ok(signal) => {
                // The child may be gone already; its SIGCHLD is pending then.
                let _gone = kill(child, signal);
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(LabError::system("waiting for signals")(e)),
        }
    }
}

fn namespace(pid: i32, kind: &str) -> Result<File, LabError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
    File::open(&path).map_err(LabError::file("open", &path))
}

fn join(keeper: KeeperId, kind: &str, flag: CloneFlags) -> Result<(), LabError> {
    setns(namespace(keeper.pid, kind)?, flag)
        .map_err(LabError::system(format!("joining the world's {kind} namespace")))
}

/// Joins the world's user namespace when it has one of its own.
fn join_user(keeper: KeeperId) -> Result<(), LabError> {
    let inode = |f: File| f.metadata().map(|m| m.ino()).ok();
    let own = File::open("/proc/self/ns/user").ok().and_then(inode);
    let theirs = namespace(keeper.pid, "user").ok().and_then(inode);
    if own.is_some() && own == theirs {
        return Ok(());
    }
    join(keeper, "user", CloneFlags::CLONE_NEWUSER)
}

/// Second stage: becomes the command; returns only when that fails.
///
/// # Errors
/// Always, if at all.
pub fn run_main(dir: &Path, at: &str, keeper: i32, argv: &[OsString]) -> Result<i32, LabError> {
    set_pdeathsig(Signal::SIGKILL).map_err(LabError::system("binding to the first stage"))?;
    let files = Files::at(dir);
    let here = std::env::current_dir().ok();
    let mounts = namespace(keeper, "mnt")?;
    for (kind, flag) in [("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)] {
        setns(namespace(keeper, kind)?, flag)
            .map_err(LabError::system(format!("joining the world's {kind} namespace")))?;
    }
    setns(mounts, CloneFlags::CLONE_NEWNS).map_err(LabError::system("joining the world's mounts"))?;
    let path = files.namespaces().join(at);
    let net = File::open(&path).map_err(LabError::file("open", &path))?;
    setns(net, CloneFlags::CLONE_NEWNET).map_err(LabError::system(format!("joining {at}")))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .map_err(LabError::system("making mounts of its own"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(LabError::system("making mounts private"))?;
    bind_resolver(&files, at)?;
    fresh_sys();
    // A host name is a convenience; a read-only /proc/sys takes it away.
    let _convenience = fs::write("/proc/sys/kernel/hostname", at);
    if let Some(here) = here {
        // The folder may not exist among the world's mounts; the root does then.
        let _root_then = std::env::set_current_dir(here);
    }
    let mut all = SigSet::from_iter(PASSED_ON);
    all.add(Signal::SIGCHLD);
    all.thread_unblock().map_err(LabError::system("unblocking signals"))?;
    let Some((program, args)) = argv.split_first() else {
        return Err(LabError::Process("no command given".to_owned()));
    };
    let error = Command::new(program).args(args).exec();
    Err(LabError::file("run", Path::new(program))(error))
}
