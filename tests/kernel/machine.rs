//! The harness itself.

use bcache_tests::paths;
use bcache_tests::vm::{DIED, Machine};

#[test]
#[ignore = "boots a kernel"]
fn a_job_runs_with_its_disks_and_shared_directory() {
    let dir = paths::scratch().unwrap();
    let (kept, forgotten) = (dir.path().join("kept"), dir.path().join("forgotten"));
    bcache_tests::sparse::create(&kept, 1 << 20).unwrap();
    bcache_tests::sparse::create(&forgotten, 1 << 20).unwrap();
    let machine = Machine::new("6.12").disk(&kept).snapshot(&forgotten).share(dir.path());
    let finished = machine
        .run("uname -r; echo data > /dev/vda; echo data > /dev/vdb; sync; echo said > answer; exit 7")
        .unwrap();
    assert_eq!(finished.status, 7, "{finished:?}");
    assert!(finished.output.starts_with("6.12."), "{finished:?}");
    assert!(std::fs::read(&kept).unwrap().starts_with(b"data\n"));
    assert!(std::fs::read(&forgotten).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(std::fs::read_to_string(dir.path().join("answer")).unwrap(), "said\n");
}

#[test]
#[ignore = "boots a kernel"]
fn a_machine_that_is_reset_is_told_from_a_job_that_fails() {
    let finished = Machine::new("6.1").run("uname -r; sync; echo b > /proc/sysrq-trigger; sleep 60").unwrap();
    assert_eq!(finished.status, DIED, "{finished:?}");
    assert!(finished.output.starts_with("6.1."), "{finished:?}");
}
