//! The parent of `overlay run`: starts the child, passes signals on, waits for its end and leaves
//! no process behind.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::UnixStream,
    time::Instant,
};

use super::{
    control::{Etc, FromChild, FromParent},
    signals::{Received, Signals},
    stop::Container,
};

/// How long killed descendants of the command may take to go away.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(5);

/// The network namespace that the child is to be in.
pub(super) enum Namespace {
    /// A new one.
    Fresh,
    /// An existing one.
    Existing(PathBuf),
}

/// An event while the command runs.
enum Event {
    Ended(WaitStatus),
    Signal(Received),
}

/// The child. Dropping it ends it.
pub(super) struct Supervised {
    pid: Pid,
    /// Whether it has a process group of its own, so that keys on the terminal reach only us.
    own_group: bool,
    control: BufStream<UnixStream>,
    signals: Signals,
    ended: Option<WaitStatus>,
}

impl Supervised {
    /// Starts the child and waits until its namespaces are made.
    ///
    /// A child that serves gets a process group of its own. An interrupt from the terminal then
    /// reaches only this process, which drains the child before it stops it. Such a child cannot
    /// read from the terminal, so it gets an empty standard input.
    ///
    /// # Errors
    /// The step that failed; nothing is left behind.
    pub(super) async fn spawn(
        namespace: &Namespace,
        command: &[OsString],
        serves: bool,
    ) -> anyhow::Result<Self> {
        let signals = Signals::take().context("take signals")?;
        // Processes that the command leaves behind become our children, so that we can end them.
        prctl::set_child_subreaper(true).context("adopt orphans")?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut process = Command::new("/proc/self/exe");
        process.arg0("overlay").arg("run-child");
        process.arg("--control").arg(theirs.as_raw_fd().to_string());
        if let Namespace::Existing(path) = namespace {
            process.arg("--netns").arg(path);
        }
        process.arg("--").args(command);
        if serves && io::stdin().is_terminal() {
            process.stdin(Stdio::null());
        }
        let fork = Fork {
            parent: Pid::this(),
            control: theirs.as_raw_fd(),
            own_group: serves,
            mask: signals.mask_before(),
        };
        // SAFETY: `in_child` only makes system calls, which are async-signal-safe.
        unsafe { process.pre_exec(move || fork.in_child()) };
        let child = process.spawn().context("start `overlay run-child`")?;
        drop(theirs);
        let mut supervised = Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            own_group: serves,
            control: BufStream::new(UnixStream::from_std(ours)?),
            signals,
            ended: None,
        };
        match supervised.hear().await? {
            Some(FromChild::Ready) => Ok(supervised),
            Some(FromChild::Failed(failure)) => Err(failure.into()),
            None => bail!("the child ended before its namespaces were made"),
        }
    }

    /// Its process, which becomes the command's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for a signal that asks us to stop, before the command runs.
    pub(super) async fn stop_signal(&mut self) -> io::Result<Signal> {
        loop {
            let Received { signal, .. } = self.signals.next().await?;
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)
            {
                return Ok(signal);
            }
        }
    }

    /// Lets the child become the command.
    ///
    /// # Errors
    /// Why it could not, with the exit status that shells have for it.
    pub(super) async fn start(mut self, etc: &Etc) -> anyhow::Result<Self> {
        let line = serde_json::to_string(&FromParent::Go(etc.clone()))? + "\n";
        let sent = self.control.write_all(line.as_bytes()).await;
        let sent = match sent {
            Ok(()) => self.control.flush().await,
            failed => failed,
        };
        // A child that was killed meanwhile tells by its status.
        if sent.is_ok()
            && let Some(FromChild::Failed(failure)) = self.hear().await?
        {
            return Err(failure.into());
        }
        Ok(self)
    }

    /// Waits for the command's end. SIGTERM is passed on and followed by SIGKILL after the
    /// timeout; other signals are passed on.
    pub(super) async fn run(self, stop_timeout: Duration) -> anyhow::Result<ExitCode> {
        self.until_end(stop_timeout, None).await
    }

    /// As [`Self::run`], but SIGTERM and SIGINT drain the container first.
    pub(super) async fn run_draining(
        mut self,
        stop_timeout: Duration,
        container: &Container,
    ) -> anyhow::Result<ExitCode> {
        loop {
            match self.event().await? {
                Event::Ended(status) => return self.finish(status).await,
                Event::Signal(received) if asks_to_stop(received) => break,
                Event::Signal(received) => self.pass_on(received),
            }
        }
        let drain = container.drain();
        tokio::pin!(drain);
        loop {
            tokio::select! {
                () = &mut drain => break,
                event = self.event() => match event? {
                    Event::Ended(status) => return self.finish(status).await,
                    Event::Signal(received) if asks_to_stop(received) => {
                        eprintln!("overlay: not waiting any longer");
                        break;
                    }
                    Event::Signal(received) => self.pass_on(received),
                },
            }
        }
        self.tell(Signal::SIGTERM);
        self.until_end(stop_timeout, Some(Instant::now() + stop_timeout)).await
    }

    /// Waits for the end, and kills at the deadline.
    async fn until_end(
        mut self,
        stop_timeout: Duration,
        mut deadline: Option<Instant>,
    ) -> anyhow::Result<ExitCode> {
        loop {
            let timeout = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.event() => match event? {
                    Event::Ended(status) => return self.finish(status).await,
                    Event::Signal(received) => {
                        self.pass_on(received);
                        if received.signal == Signal::SIGTERM && deadline.is_none() {
                            deadline = Some(Instant::now() + stop_timeout);
                        }
                    }
                },
                () = timeout => {
                    deadline = None;
                    self.tell(Signal::SIGKILL);
                }
            }
        }
    }

    async fn event(&mut self) -> anyhow::Result<Event> {
        loop {
            if let Some(status) = self.reap()? {
                return Ok(Event::Ended(status));
            }
            let received = self.signals.next().await?;
            if received.signal != Signal::SIGCHLD {
                return Ok(Event::Signal(received));
            }
        }
    }

    /// Takes the status of every child that has ended, adopted ones included.
    fn reap(&mut self) -> Result<Option<WaitStatus>, Errno> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(self.ended),
                Ok(status) if status.pid() == Some(self.pid) => self.ended = Some(status),
                Ok(_) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn tell(&self, signal: Signal) {
        // It fails only if the command has just ended, and the next step waits for that.
        let _ = kill(self.pid, signal);
    }

    /// Passes a signal on, unless the terminal gave it to the command as well.
    fn pass_on(&self, received: Received) {
        if self.own_group || !received.from_terminal {
            self.tell(received.signal);
        }
    }

    /// Ends the processes that the command left behind and returns its exit status.
    async fn finish(mut self, status: WaitStatus) -> anyhow::Result<ExitCode> {
        let give_up = Instant::now() + ORPHANS_TIMEOUT;
        loop {
            self.reap()?;
            let orphans = children()?;
            if orphans.is_empty() {
                break;
            }
            if Instant::now() > give_up {
                eprintln!("overlay: warning: processes of the command do not end: {orphans:?}");
                break;
            }
            for orphan in orphans {
                let _ = kill(orphan, Signal::SIGKILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(match status {
            WaitStatus::Exited(_, code) => ExitCode::from(code.to_le_bytes()[0]),
            WaitStatus::Signaled(_, signal, _) => signalled(signal),
            other => bail!("the command ended in a way that is not known: {other:?}"),
        })
    }

    /// The child's next word; `None` when it says no more.
    async fn hear(&mut self) -> anyhow::Result<Option<FromChild>> {
        let mut line = String::new();
        match self.control.read_line(&mut line).await? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line).context("the child's answer")?)),
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.tell(Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

fn asks_to_stop(received: Received) -> bool {
    matches!(received.signal, Signal::SIGTERM | Signal::SIGINT)
}

/// The exit status that shells have for the end by a signal.
pub(super) fn signalled(signal: Signal) -> ExitCode {
    ExitCode::from((128 + signal as i32).to_le_bytes()[0])
}

/// The child's steps between fork and exec.
#[derive(Clone, Copy)]
struct Fork {
    parent: Pid,
    control: RawFd,
    own_group: bool,
    mask: SigSet,
}

impl Fork {
    /// Only system calls: after a fork nothing else is safe.
    fn in_child(&self) -> io::Result<()> {
        let Self { parent, control, own_group, mask } = *self;
        // The command must not outlive us, even when we are killed. It keeps the setting through
        // exec; a parent that went before it was made is noticed by the comparison.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if Pid::parent() != parent {
            return Err(Errno::ESRCH.into());
        }
        if own_group {
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        }
        // SAFETY: the descriptor is open in the parent and so here; no memory is involved.
        if unsafe { libc::fcntl(control, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
        mask.thread_set_mask()?;
        Ok(())
    }
}

/// The children of this process, from /proc (proc_pid_stat(5): the parent is the field after the
/// state, which follows the name in parentheses).
fn children() -> io::Result<Vec<Pid>> {
    let own = std::process::id().to_string();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while we look is none of ours any more.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(1) == Some(own.as_str()) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}
