// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kills the lab at random moments and looks for what is left: a process, a socket, a half-written entry of the cache.
//!
//! The runs have a cache of their own. In some of them its saved L1 is missing, so that moments fall into its making too.

mod victim;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvmi_lab_control::Lane;
use kvmi_lab_environment::Environment;
use kvmi_lab_machine::process::end_with_us;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, set_child_subreaper, wait,
};

use self::victim::{Process, Victim};

/// The scenario that is run; what it proves does not matter here.
const SCENARIO: &str = "lifecycle::hook_then_unhook";

/// Names the variable by which processes of a run are known. They inherit it.
const MARK: &str = "KVMI_LAB_ENDURE";

/// What the saved L1s are kept as in the cache.
const SNAPSHOTS: &str = "snapshots";

/// One run in so many has to boot L1.
const BOOTING: u32 = 5;

/// How often it is looked whether a process that is to be killed is there by now.
const LOOK: Duration = Duration::from_millis(20);

/// How long processes may take to notice that the lab has ended.
const TO_END: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many.
    pub moments: u32,
    /// Where.
    pub lane: Lane,
    /// Where random moments start.
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Endurance {
    /// How often each program was killed.
    pub killed: BTreeMap<String, u32>,
    /// What was left, one line each, with the moment that left it.
    pub left: Vec<String>,
}

/// Runs the lab again and again and kills one of its processes each time.
///
/// # Errors
///
/// When the lab cannot run even if nobody kills it.
pub fn run(env: &Environment, wanted: Options) -> Result<Endurance> {
    // Whoever loses its parent becomes a child of this process, which can wait for it.
    set_child_subreaper(Some(getpid())).context("become the parent of what the lab leaves behind")?;
    let place = Place::make(env)?;
    let mut random = fastrand::Rng::with_seed(wanted.seed);
    let task = env.progress.task("run the lab undisturbed");
    // The first run may build.
    place.undisturbed(wanted.lane)?;
    let restoring = place.undisturbed(wanted.lane)?;
    place.set_points_aside()?;
    let booting = place.undisturbed(wanted.lane)?;
    task.done();
    let mut endured = Endurance::default();
    for moment in 1..=wanted.moments {
        let boots = moment % BOOTING == 1;
        let whole = if boots { booting } else { restoring };
        let victim = Victim::at(moment);
        let what = format!("moment {moment} of {}", wanted.moments);
        let task = env.progress.task(&what);
        if boots {
            place.forget_points()?;
        } else {
            place.bring_points_back()?;
        }
        let mut lab = place.start(wanted.lane)?;
        let began = Instant::now();
        let mut processes = place.moment(&lab, victim, whole, &mut random)?;
        let killed = (!processes.is_empty()).then(|| processes.swap_remove(random.usize(..processes.len())));
        if let Some(killed) = &killed {
            task.note(format!("kill {}", killed.name));
            *endured.killed.entry(killed.name.clone()).or_default() += 1;
            // It may have ended by itself just now.
            let _ = killed.pid().map(|pid| kill_process(pid, Signal::KILL));
        }
        let name = killed.map_or_else(|| "nothing".to_owned(), |killed| killed.name);
        let what = format!("{what}, {name} killed after {:.1} s", began.elapsed().as_secs_f64());
        let ended = ends_within(lab.id(), TO_END)?;
        if !ended {
            lab.kill().context("end the lab")?;
        }
        lab.wait().context("wait for the lab")?;
        let mut left = left_running()?;
        left.extend(place.left_sockets(lab.id())?);
        if !ended {
            left.push("the lab itself, waiting".to_owned());
        }
        endured.left.extend(left.into_iter().map(|l| format!("{what}: {l}")));
        task.done();
    }
    // Whoever comes next must find all in order, and leaves nothing of those before.
    let task = env.progress.task("run the lab undisturbed again");
    place.undisturbed(wanted.lane)?;
    endured.left.extend(place.left_files()?);
    task.done();
    Ok(endured)
}

/// Where the runs work: a cache and a folder for temporary files of their own.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
    mark: String,
}

impl Place {
    fn make(env: &Environment) -> Result<Self> {
        let folder = env.path("target/endure");
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(format!("remove {}", folder.display()));
            }
            _ => {}
        }
        for name in ["cache", "temporary"] {
            let part = folder.join(name);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let place = Self {
            mark: format!("{}-{}", std::process::id(), folder.display()),
            folder,
        };
        // All but the saved L1s is the lab's own, as far as there is any.
        fs::create_dir_all(env.cache.root()).context("make the cache")?;
        for kind in fs::read_dir(env.cache.root()).context("look into the cache")? {
            let kind = kind?;
            if kind.file_name() != SNAPSHOTS {
                symlink(kind.path(), place.cache().join(kind.file_name())).context("share the cache")?;
            }
        }
        Ok(place)
    }

    fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.join("temporary")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn start(&self, lane: Lane) -> Result<Child> {
        let log = File::create(self.log()).context("write the lab's log")?;
        // This program, even if another one was built in its place meanwhile.
        let mut command = Command::new(format!("/proc/{}/exe", std::process::id()));
        command
            .arg0("xtask")
            .args(["e2e", SCENARIO, "--lane", lane.name(), "--logs"])
            .arg(self.folder.join("runs"))
            .env("KVMI_CACHE", self.cache())
            .env("TMPDIR", self.temporary())
            .env(MARK, &self.mark)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().context("share the lab's log")?)
            .stderr(log);
        end_with_us(&mut command).spawn().context("run the lab")
    }

    /// How long a run takes that nobody disturbs.
    fn undisturbed(&self, lane: Lane) -> Result<Duration> {
        let begin = Instant::now();
        let status = self.start(lane)?.wait().context("wait for the lab")?;
        ensure!(
            status.success(),
            "the lab fails although nobody killed anything ({status}); its output is in {}",
            self.log().display()
        );
        Ok(begin.elapsed())
    }

    /// Waits for a random moment of a run, from when the victim is there until the run would be over; who may be killed then. Nobody,
    /// if the run is over before.
    fn moment(&self, lab: &Child, victim: Victim, whole: Duration, random: &mut fastrand::Rng) -> Result<Vec<Process>> {
        let began = Instant::now();
        let is_there = |processes: &[Process]| processes.iter().any(|p| victim.is(p, lab.id()));
        while !is_there(&self.processes()) {
            if ends_within(lab.id(), LOOK)? {
                return Ok(Vec::new());
            }
        }
        let rest = whole.saturating_sub(began.elapsed());
        if ends_within(lab.id(), rest.mul_f64(random.f64()))? {
            return Ok(Vec::new());
        }
        let mut processes = self.processes();
        // It may have ended meanwhile; someone is killed all the same.
        if is_there(&processes) {
            processes.retain(|p| victim.is(p, lab.id()));
        }
        Ok(processes)
    }

    /// Saved L1s that are whole. What is not is for the lab itself to sweep.
    fn snapshots(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        let whole = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        whole.map(|entry| entry.path()).collect()
    }

    fn aside(&self) -> PathBuf {
        self.folder.join("aside")
    }

    /// Takes the saved L1s out of the cache, for later.
    fn set_points_aside(&self) -> Result<()> {
        move_all(&Self::snapshots(&self.cache().join(SNAPSHOTS)), &self.aside())
    }

    /// Puts back what was set aside, unless it is there.
    fn bring_points_back(&self) -> Result<()> {
        self.forget_points()?;
        move_all(&Self::snapshots(&self.aside()), &self.cache().join(SNAPSHOTS))
    }

    /// Has no saved L1 in the cache. One that was set aside stays there.
    fn forget_points(&self) -> Result<()> {
        let here = Self::snapshots(&self.cache().join(SNAPSHOTS));
        if Self::snapshots(&self.aside()).is_empty() {
            return move_all(&here, &self.aside());
        }
        for point in here {
            fs::remove_dir_all(&point).with_context(|| format!("remove {}", point.display()))?;
        }
        Ok(())
    }

    /// Everything that a run started and that has not ended.
    fn processes(&self) -> Vec<Process> {
        let wanted = format!("{MARK}={}", self.mark);
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| {
                let id = entry.file_name().to_str()?.parse().ok()?;
                let environment = fs::read(entry.path().join("environ")).ok()?;
                let is_ours = environment.split(|&b| b == 0).any(|v| v == wanted.as_bytes());
                is_ours.then(|| Process::named(id, &entry.path()))?
            })
            .collect()
    }

    /// Sockets that have a name although nobody runs who made them.
    fn left_sockets(&self, lab: u32) -> Result<Vec<String>> {
        let table = fs::read_to_string("/proc/net/unix").context("list sockets")?;
        // Named by a path of ours, or by the lab's own number.
        let ours = [self.folder.display().to_string(), format!("@kvmi-lab-{lab}-")];
        let named = table.lines().filter_map(|l| l.split_whitespace().nth(7));
        Ok(named
            .filter(|name| ours.iter().any(|part| name.contains(part)))
            .map(|name| format!("socket {name}"))
            .collect())
    }

    /// Files that a finished run does not leave.
    fn left_files(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for (folder, is_wrong) in [
            (self.temporary(), (|_| true) as fn(&str) -> bool),
            (self.cache().join(SNAPSHOTS), |name| name.starts_with('.')),
        ] {
            for entry in fs::read_dir(&folder).with_context(|| format!("look into {}", folder.display()))? {
                let entry = entry?;
                if is_wrong(&entry.file_name().to_string_lossy()) {
                    left.push(format!("at the end: {}", entry.path().display()));
                }
            }
        }
        Ok(left)
    }
}

fn move_all(entries: &[PathBuf], to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    for entry in entries {
        let place = to.join(entry.file_name().unwrap_or_default());
        fs::rename(entry, &place).with_context(|| format!("move {} to {}", entry.display(), place.display()))?;
    }
    Ok(())
}

/// What still runs when each process of the lab has had its time to end. All of them are children of this one by now; that one has been waited
/// for means that its files and sockets are closed, which is later than that /proc shows nothing of it.
fn left_running() -> Result<Vec<String>> {
    let begin = Instant::now();
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => continue,
            Ok(None) => {}
            Err(Errno::CHILD) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("wait for what the lab started"),
        }
        let children = children()?;
        let rest = TO_END.saturating_sub(begin.elapsed());
        if rest.is_zero() {
            let name = |id: &u32| fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            let text = |id| format!("process {id} ({})", name(id).trim_end());
            return Ok(children.iter().map(text).collect());
        }
        if let Some(&one) = children.first() {
            ends_within(one, rest)?;
        }
    }
}

/// The processes that are children of this one, those that are ending too.
fn children() -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for thread in fs::read_dir("/proc/self/task").context("list the threads of this process")? {
        let list = thread?.path().join("children");
        let ids = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        all.extend(ids.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    Ok(all)
}

/// Waits for a process to end, but not for ever; false when the time was not enough.
fn ends_within(id: u32, at_most: Duration) -> Result<bool> {
    let pid = Pid::from_raw(i32::try_from(id)?).context("process 0")?;
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        // There is none any more.
        return Ok(true);
    };
    let deadline = Instant::now() + at_most;
    loop {
        let rest = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        let mut waited = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        match poll(&mut waited, Some(&rest)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for a process"),
        }
    }
}
