//! The engine process under a stock kernel: registering, `/dev/mapper`, crashes, control.
//!
//! Each job is a script in `tests/kernel/system`, with an argument that says how much is done: the short form here, the
//! full one in `long`.

use std::path::Path;

use bcache_tests::paths;
use bcache_tests::vm::Machine;

/// A job, and the machine that it needs.
struct Job {
    script: &'static str,
    argument: u32,
    seconds: u32,
    kernel: &'static str,
    memory: u32,
}

/// The cache device and the backing device, with their lengths in MiB.
pub const DISKS: [(&str, u64); 2] = [("cache", 300), ("backing", 200)];

impl Job {
    fn new(script: &'static str, argument: u32) -> Job {
        Job { script, argument, seconds: 300, kernel: "6.12", memory: 2048 }
    }

    fn seconds(self, seconds: u32) -> Job {
        Job { seconds, ..self }
    }

    /// A kernel without ublk.
    fn without_ublk(self) -> Job {
        Job { kernel: "6.1", ..self }
    }

    fn memory(self, memory: u32) -> Job {
        Job { memory, ..self }
    }

    /// Runs it with a cache and a backing device, and gives what it said.
    fn run(&self) -> String {
        let dir = paths::scratch().unwrap();
        let machine = Machine::new(self.kernel).seconds(self.seconds).memory(self.memory);
        let machine = machine.new_disks(dir.path(), &DISKS).unwrap();
        machine.succeed(&job(self.script, self.argument)).unwrap()
    }
}

/// What runs a script of `tests/kernel/system` with an argument.
pub fn job(script: &str, argument: u32) -> String {
    let programs = paths::program("bcache-engine").unwrap();
    let programs = programs.parent().map(Path::to_path_buf).unwrap_or_default();
    let scripts = paths::repository().join("tests/kernel/system");
    format!(
        "export PATH='{}':$PATH\n. '{}'\nset -- {argument}\n. '{}'\n",
        programs.display(),
        scripts.join("lib.sh").display(),
        scripts.join(script).display(),
    )
}

#[test]
#[ignore = "boots a kernel"]
fn a_killed_engine_comes_back_under_a_mounted_file_system() {
    Job::new("killed.sh", 2).seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn a_running_set_obeys_its_commands_under_a_mounted_file_system() {
    Job::new("control.sh", 2).run();
}

#[test]
#[ignore = "boots a kernel"]
fn the_kernel_and_the_engine_take_turns_with_a_set() {
    Job::new("hand_over.sh", 2).run();
}

#[test]
#[ignore = "boots a kernel"]
fn a_flood_of_dirty_pages_neither_blocks_nor_kills_the_engine() {
    Job::new("flood.sh", 1).memory(512).seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn devices_that_fail_lose_nothing_and_lie_about_nothing() {
    Job::new("faults.sh", 1).run();
}

#[test]
#[ignore = "boots a kernel"]
fn whatever_fails_every_request_ends() {
    Job::new("frozen.sh", 1).seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn who_is_on_the_way_between_two_tables_is_not_lost() {
    Job::new("between.sh", 1).seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn whatever_disk_fails_nothing_hangs_and_nothing_is_stale() {
    println!("{}", Job::new("matrix.sh", 11).seconds(600).run());
}

#[test]
#[ignore = "boots a kernel"]
fn an_engine_killed_in_the_middle_of_a_command_freezes_nothing() {
    Job::new("kills.sh", 12).seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn a_machine_with_devices_under_load_can_sleep() {
    Job::new("sleep.sh", 5).run();
}

#[test]
#[ignore = "boots a kernel"]
fn a_backing_device_goes_alone_only_when_told_so_in_so_many_words() {
    Job::new("alone.sh", 1).run();
}

#[test]
#[ignore = "boots a kernel"]
fn who_comes_from_the_kernels_bcache_is_at_home() {
    Job::new("home.sh", 1).run();
}

#[test]
#[ignore = "boots a kernel"]
fn settings_in_the_configuration_file_last() {
    Job::new("settings.sh", 1).run();
}

#[test]
#[ignore = "boots a kernel"]
fn devices_grow_under_a_mounted_file_system() {
    Job::new("grow.sh", 3).run();
}

#[test]
#[ignore = "boots a kernel"]
fn a_file_system_on_what_is_served_without_root_is_whole() {
    Job::new("serve.sh", 1).run();
}

#[test]
#[ignore = "boots a kernel"]
fn without_ublk_the_nbd_client_of_the_kernel_does() {
    // What was under way at a kill is sent again ten seconds later.
    Job::new("killed.sh", 2).without_ublk().seconds(600).run();
}

#[test]
#[ignore = "boots a kernel"]
fn what_its_author_puts_a_cache_through_harms_no_byte() {
    println!("{}", Job::new("suite.sh", 24).seconds(600).run());
}

mod long {
    use super::Job;

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn an_engine_is_killed_twenty_times_under_load() {
        Job::new("killed.sh", 20).seconds(1200).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn whatever_disk_fails_in_whatever_way() {
        println!("{}", Job::new("matrix.sh", 1).seconds(3600).run());
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn an_engine_is_killed_a_hundred_times_in_the_middle_of_commands() {
        println!("{}", Job::new("kills.sh", 100).seconds(3600).run());
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn what_its_author_puts_a_cache_through_for_long() {
        println!("{}", Job::new("suite.sh", 200).seconds(3600).run());
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn what_its_author_puts_a_cache_through_without_ublk() {
        println!("{}", Job::new("suite.sh", 24).without_ublk().seconds(900).run());
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn a_machine_under_load_sleeps_twenty_times() {
        Job::new("sleep.sh", 20).seconds(900).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn a_running_set_obeys_its_commands_without_ublk() {
        Job::new("control.sh", 2).without_ublk().seconds(600).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn a_device_grows_fifty_times() {
        Job::new("grow.sh", 50).memory(3072).seconds(1500).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn a_device_grows_without_ublk() {
        Job::new("grow.sh", 3).without_ublk().seconds(600).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn floods_of_dirty_pages_come_ten_times() {
        Job::new("flood.sh", 10).memory(512).seconds(900).run();
    }

    #[test]
    #[ignore = "boots a kernel, takes minutes"]
    fn an_engine_is_upgraded_ten_times_under_load() {
        println!("{}", Job::new("control.sh", 10).seconds(600).run());
    }
}
