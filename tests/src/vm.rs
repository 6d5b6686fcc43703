//! A stock Debian kernel in an emulated machine, driven through `tests/kernel/vm`.
//!
//! A boot takes ten seconds or so: put what belongs together into one job. Tests that boot are `#[ignore]`d, because
//! they need QEMU and a kernel to download; `./tests/run` runs them where it can.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, paths, sparse};

/// Exit status of a machine that died before its job ended.
pub const DIED: i32 = 125;

/// A fresh Debian, as `tests/kernel/root` makes it: the directory of `root.ext4` and `root.tar`.
pub fn fresh_debian() -> Result<PathBuf> {
    debian(&[])
}

/// The same with LVM, md, LUKS, XFS, btrfs, and clients and servers of NBD and iSCSI.
pub fn debian_to_stack() -> Result<PathBuf> {
    debian(&["--stack"])
}

fn debian(options: &[&str]) -> Result<PathBuf> {
    let place = cmd::done(Command::new(paths::repository().join("tests/kernel/root")).args(options))?;
    Ok(PathBuf::from(place.trim()))
}

/// Where a stock kernel is: the directory of its `boot` and `lib/modules`.
pub fn kernel(series: &str) -> Result<PathBuf> {
    let mut vm = Command::new(paths::repository().join("tests/kernel/vm"));
    vm.args(["--kernel", series, "--where"]);
    Ok(PathBuf::from(cmd::done(&mut vm)?.trim()))
}

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    kernel: &'static str,
    disks: Vec<String>,
    root: Vec<String>,
    share: Option<PathBuf>,
    memory: u32,
    seconds: u32,
}

/// How a job ended.
#[derive(Debug)]
pub struct Finished {
    /// The job's exit status, or [`DIED`].
    pub status: i32,
    /// What the job printed, both streams.
    pub output: String,
    /// What the harness said: failed boots, and the console's end if the machine died.
    pub console: String,
}

impl Machine {
    /// A machine with the kernel series `6.12` or `6.1`.
    pub fn new(kernel: &'static str) -> Machine {
        Machine { kernel, disks: Vec::new(), root: Vec::new(), share: None, memory: 2048, seconds: 300 }
    }

    /// Adds a raw image as the next disk: `/dev/vda`, `/dev/vdb`, ...
    pub fn disk(self, image: &Path) -> Machine {
        self.disk_with(image, "")
    }

    /// Makes empty images in `dir`, with names and sizes in MiB, and adds them as the next disks.
    pub fn new_disks(mut self, dir: &Path, disks: &[(&str, u64)]) -> Result<Machine> {
        for (name, mebibytes) in disks {
            let image = dir.join(name);
            sparse::create(&image, mebibytes << 20)?;
            self = self.disk(&image);
        }
        Ok(self)
    }

    /// Adds a raw image that is not changed by what the machine writes.
    pub fn snapshot(self, image: &Path) -> Machine {
        self.disk_with(image, ",snapshot")
    }

    /// Adds a raw image as a disk with logical blocks of 4096 bytes.
    pub fn disk_4k(self, image: &Path) -> Machine {
        self.disk_with(image, ",4k")
    }

    fn disk_with(mut self, image: &Path, options: &str) -> Machine {
        self.disks.push(format!("{}{options}", image.display()));
        self
    }

    /// Boots into a root file system of its own instead of this computer's, with systemd. What is written to it is forgotten.
    pub fn root(mut self, image: &Path) -> Machine {
        self.root = vec!["--root".to_owned(), image.display().to_string()];
        self
    }

    /// The same, but what is written stays, and the machine is shut down in order, not switched off.
    pub fn root_kept(mut self, image: &Path) -> Machine {
        self.root = vec!["--root".to_owned(), format!("{},kept", image.display()), "--in-order".to_owned()];
        self
    }

    /// Boots with another initrd, which with this command line has to lead to the job: see `tests/kernel/vm`. The machine
    /// is shut down in order.
    pub fn boot(mut self, initrd: &Path, line: &str) -> Machine {
        let initrd = initrd.display().to_string();
        self.root = vec!["--boot".to_owned(), initrd, line.to_owned(), "--in-order".to_owned()];
        self
    }

    /// Makes a directory writable in the machine, at `/share`, where the job starts.
    pub fn share(mut self, dir: &Path) -> Machine {
        self.share = Some(dir.to_path_buf());
        self
    }

    /// Memory in MiB instead of 2048.
    pub fn memory(mut self, mebibytes: u32) -> Machine {
        self.memory = mebibytes;
        self
    }

    /// Seconds that the job may take instead of 300.
    pub fn seconds(mut self, seconds: u32) -> Machine {
        self.seconds = seconds;
        self
    }

    /// Boots, runs a bash script as root with `tests/kernel/lib.sh` sourced, and waits for its end.
    pub fn run(&self, script: &str) -> Result<Finished> {
        let here = paths::repository().join("tests/kernel");
        let dir = paths::scratch()?;
        let job = dir.path().join("job");
        // Not every machine sees this computer's files.
        let lib = std::fs::read_to_string(here.join("lib.sh"))?;
        std::fs::write(&job, format!("{lib}\n{script}\n"))?;
        let mut command = Command::new(here.join("vm"));
        command.args(["--kernel", self.kernel]);
        command.args(["--memory", &self.memory.to_string(), "--timeout", &self.seconds.to_string()]);
        for disk in &self.disks {
            command.args(["--disk", disk]);
        }
        command.args(&self.root);
        if let Some(share) = &self.share {
            command.arg("--share").arg(share);
        }
        let output = command.arg(&job).output().context("tests/kernel/vm")?;
        Ok(Finished {
            status: output.status.code().unwrap_or(DIED),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            console: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Like [`Machine::run`], but a job that does not end with success is an error that tells all that was said.
    pub fn succeed(&self, script: &str) -> Result<String> {
        let finished = self.run(script)?;
        if finished.status != 0 {
            let Finished { status, output, console } = finished;
            bail!("the job ended with {status}\n--- output\n{output}\n--- machine\n{console}");
        }
        Ok(finished.output)
    }
}
