//! A running world as its owner sees it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use super::{
    Kind, LabError, PlaceInfo, Proc, Spec,
    keeper::check_devices,
    mapping::{self, PortMapping},
    process::Output,
    state::{self, Files},
    tools,
};
use crate::bins;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How a world is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The world lives on when its owner goes; `lab down` ends it.
    pub detached: bool,
    /// A user namespace even for root: what an unprivileged user gets.
    pub unprivileged: bool,
}

/// A running world; gone when dropped, unless it was started detached.
#[derive(Debug)]
pub struct World {
    files: Files,
    lab: PathBuf,
    spec: Spec,
    places: BTreeMap<String, PlaceInfo>,
    keeper: Option<Child>,
    owned: bool,
    started: AtomicU32,
}

impl World {
    /// Brings a world up that ends with this handle.
    ///
    /// # Errors
    /// When the description is not valid, a tool is missing, or the kernel refuses.
    pub fn up(spec: &Spec) -> Result<Self, LabError> {
        Self::up_with(spec, Options::default())
    }

    /// Brings a world up.
    ///
    /// # Errors
    /// As [`World::up`].
    pub fn up_with(spec: &Spec, options: Options) -> Result<Self, LabError> {
        spec.check()?;
        let maps = spec.sites.values().any(|s| s.nat.port_mapping != PortMapping::Off);
        tools::ensure(if maps { &[mapping::TOOL] } else { &[] })?;
        state::janitor();
        let name = if options.detached {
            spec.name.clone()
        } else {
            format!("{}-{}-{}", spec.name, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
        };
        let files = Files::at(&state::root().join(&name));
        if files.alive() {
            return Err(LabError::Up(format!("a world called {name} is up already")));
        }
        files.create(spec)?;
        let result = Self::start(&files, spec, options);
        if result.is_err() {
            files.remove();
        }
        result
    }

    fn start(files: &Files, spec: &Spec, options: Options) -> Result<Self, LabError> {
        let lab = bins::find("lab").map_err(LabError::Up)?;
        let log_path = files.logs().join("keeper.log");
        let log = File::create(&log_path).map_err(LabError::file("create", &log_path))?;
        let mut command = Command::new(&lab);
        command.arg("__keep").arg(&files.dir);
        if options.unprivileged || !nix::unistd::geteuid().is_root() {
            command.arg("--user");
        }
        if options.detached {
            command.arg("--detached").stdin(Stdio::null());
        } else {
            command.stdin(Stdio::piped());
        }
        let mut keeper =
            (command.stdout(Stdio::piped()).stderr(log).spawn()).map_err(LabError::file("run", &lab))?;
        let mut line = String::new();
        if let Some(out) = keeper.stdout.take() {
            // An unreadable pipe is an empty answer, which is reported below.
            let _empty = BufReader::new(out).read_line(&mut line);
        }
        if line.trim() != "ready" {
            let _gone = keeper.kill();
            let _reaped = keeper.wait();
            let why = fs::read_to_string(&log_path).unwrap_or_default();
            return Err(LabError::Up(why.trim().to_owned()));
        }
        let places = files.read_places()?;
        Ok(Self {
            files: files.clone(),
            lab,
            spec: spec.clone(),
            places,
            keeper: Some(keeper),
            owned: !options.detached,
            started: AtomicU32::new(0),
        })
    }

    /// A world that someone else started.
    ///
    /// # Errors
    /// When it is gone.
    pub fn attach(files: &Files) -> Result<Self, LabError> {
        if !files.alive() {
            return Err(LabError::NoSuchWorld(format!("the world in {} is gone", files.dir.display())));
        }
        Ok(Self {
            files: files.clone(),
            lab: bins::find("lab").map_err(LabError::Up)?,
            spec: files.read_spec()?,
            places: files.read_places()?,
            keeper: None,
            owned: false,
            started: AtomicU32::new(0),
        })
    }

    /// The world's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// A folder of the world for files of its processes; removed with the world.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, LabError> {
        let path = self.files.dir.join("data").join(name);
        fs::create_dir_all(&path).map_err(LabError::file("create", &path))?;
        Ok(path)
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Every place, by name.
    #[must_use]
    pub fn places(&self) -> &BTreeMap<String, PlaceInfo> {
        &self.places
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// A node, pod, or site (its router) by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn place(&self, name: &str) -> Result<Place<'_>, LabError> {
        let info = self.places.get(name).ok_or_else(|| LabError::NoSuchPlace {
            name: name.to_owned(),
            known: self.places.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        Ok(Place { world: self, info })
    }

    /// A node by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<Place<'_>, LabError> {
        self.of_kind(name, Kind::Node)
    }

    /// A pod by name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pod(&self, name: &str) -> Result<Place<'_>, LabError> {
        self.of_kind(name, Kind::Pod)
    }

    fn of_kind(&self, name: &str, kind: Kind) -> Result<Place<'_>, LabError> {
        let place = self.place(name)?;
        if place.info.kind == kind {
            return Ok(place);
        }
        let known = self.places.values().filter(|p| p.kind == kind).map(|p| p.name.clone());
        Err(LabError::NoSuchPlace { name: name.to_owned(), known: known.collect::<Vec<_>>().join(", ") })
    }

    /// Checks that no place has a device that could lead out of the world.
    ///
    /// # Errors
    /// Names the first device that could.
    pub fn check_closed(&self) -> Result<(), LabError> {
        for (name, info) in &self.places {
            check_devices(info, &self.run_in(name, "ip", &["-d", "-j", "link", "show"], "")?)?;
        }
        Ok(())
    }

    /// Runs a system tool in a place.
    pub(crate) fn run_in(
        &self,
        at: &str,
        tool: &str,
        args: &[&str],
        input: &str,
    ) -> Result<String, LabError> {
        let program = tools::path(tool).unwrap_or_else(|| tool.to_owned());
        let mut command = self.enter(at, None);
        command.arg(program).args(args);
        tools::feed(at, &mut command, &format!("{tool} {}", args.join(" ")), input)
    }

    /// The command that runs what is appended to it in a place.
    pub(crate) fn enter(&self, at: &str, pid_file: Option<&Path>) -> Command {
        let mut command = Command::new(&self.lab);
        command.arg("__enter").arg(&self.files.dir).arg(at);
        if let Some(path) = pid_file {
            command.arg("--pid-file").arg(path);
        }
        command.arg("--");
        command
    }

    /// Ends the world: every process, every namespace, the folder.
    pub fn down(mut self) {
        self.end();
        self.owned = false;
    }

    fn end(&mut self) {
        let id = self.files.read_keeper().ok();
        if let Some(id) = id.filter(|k| k.alive()) {
            // Process 1 of the world: the kernel ends the rest.
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id.pid), nix::sys::signal::SIGKILL);
        }
        if let Some(mut keeper) = self.keeper.take() {
            let _reaped = keeper.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while id.is_some_and(state::KeeperId::alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.files.remove();
    }

    /// What every process of a failed test said last, for the test's output.
    fn print_logs(&self) {
        let Ok(entries) = fs::read_dir(self.files.logs()) else { return };
        for entry in entries.flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", entry.file_name().to_string_lossy());
            for line in lines.iter().skip(lines.len().saturating_sub(40)) {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        self.end();
    }
}

/// A node, pod or router of a running world.
#[derive(Clone, Copy, Debug)]
pub struct Place<'w> {
    world: &'w World,
    info: &'w PlaceInfo,
}

impl<'w> Place<'w> {
    /// Everything known of it.
    #[must_use]
    pub fn info(&self) -> &'w PlaceInfo {
        self.info
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self.info.address6 {
            Some(address) if self.info.address.is_unspecified() => address.into(),
            _ => self.info.address.into(),
        }
    }

    /// Its IPv6 address, where there is IPv6.
    #[must_use]
    pub fn address6(&self) -> Option<IpAddr> {
        self.info.address6.map(IpAddr::from)
    }

    /// Its address as the public side sees it.
    #[must_use]
    pub fn public_address(&self) -> IpAddr {
        if self.info.public_address.is_unspecified() {
            self.address()
        } else {
            self.info.public_address.into()
        }
    }

    /// Starts a process here; its output goes to a log of the world.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: &Command) -> Result<Proc, LabError> {
        let number = self.world.started.fetch_add(1, Ordering::Relaxed);
        let base = format!("{}-{}-{name}-{number}", self.info.name, std::process::id());
        let files = &self.world.files;
        let pid_file = files.run().join(format!("{base}.pid"));
        let log = files.logs().join(format!("{base}.log"));
        let out = File::create(&log).map_err(LabError::file("create", &log))?;
        let err = out.try_clone().map_err(LabError::file("share", &log))?;
        let mut wrapped = self.wrap(command, Some(&pid_file));
        wrapped.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = wrapped.spawn().map_err(LabError::file("run", &self.world.lab))?;
        Ok(Proc { name: format!("{} on {}", name, self.info.name), child: Some(child), pid_file, log })
    }

    /// The same command, to be run here with whatever standard streams the caller sets.
    #[must_use]
    pub fn wrap(&self, command: &Command, pid_file: Option<&Path>) -> Command {
        let mut wrapped = self.world.enter(&self.info.name, pid_file);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped
    }

    /// Runs a command here to its end, at most 30 seconds.
    ///
    /// # Errors
    /// When it cannot be started or takes longer.
    pub fn exec<S: Into<OsString> + Clone>(&self, argv: &[S]) -> Result<Output, LabError> {
        self.exec_within(argv, Duration::from_secs(30))
    }

    /// Runs a command here to its end, at most `limit`.
    ///
    /// # Errors
    /// When it cannot be started or takes longer.
    pub fn exec_within<S: Into<OsString> + Clone>(
        &self,
        argv: &[S],
        limit: Duration,
    ) -> Result<Output, LabError> {
        let mut args = argv.iter().map(|a| a.clone().into());
        let Some(program) = args.next() else {
            return Err(LabError::Process("no command given".to_owned()));
        };
        let number = self.world.started.fetch_add(1, Ordering::Relaxed);
        let base = format!("exec-{}-{number}", std::process::id());
        let path = |kind: &str| self.world.files.run().join(format!("{base}.{kind}"));
        let create = |p: &Path| File::create(p).map_err(LabError::file("create", p));
        let mut wrapped = self.wrap(Command::new(&program).args(args), None);
        wrapped.stdin(Stdio::null()).stdout(create(&path("out"))?).stderr(create(&path("err"))?);
        let child = wrapped.spawn().map_err(LabError::file("run", &self.world.lab))?;
        let name = format!("{} on {}", program.to_string_lossy(), self.info.name);
        let mut process = Proc { name, child: Some(child), pid_file: path("pid"), log: path("err") };
        let status = process.wait(limit);
        process.kill();
        let read = |kind: &str| fs::read(path(kind)).map(|b| String::from_utf8_lossy(&b).into_owned());
        let (stdout, stderr) = (read("out").unwrap_or_default(), read("err").unwrap_or_default());
        for kind in ["out", "err"] {
            // The folder goes with the world anyway.
            let _later = fs::remove_file(path(kind));
        }
        match status {
            Some(status) => Ok(Output { code: status.code().unwrap_or(-1), stdout, stderr }),
            None => Err(LabError::Process(format!("{} took longer than {limit:?}:\n{stderr}", process.name))),
        }
    }

    /// Ends every process here at once, as a power cut would. Returns how many.
    #[must_use]
    pub fn kill_all(&self) -> usize {
        let mut killed = 0;
        let Ok(entries) = fs::read_dir("/proc") else { return 0 };
        let want = format!("net:[{}]", self.info.inode);
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let here = fs::read_link(format!("/proc/{pid}/ns/net"));
            if here.is_ok_and(|l| l.to_string_lossy() == want) {
                let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                killed += usize::from(gone.is_ok());
            }
        }
        killed
    }
}
