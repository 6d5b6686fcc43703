//! Real clients: libnbd's tools, QEMU's, and fio, all of Debian.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use bcache_engine::env::{Backend, Runtime};
use bcache_engine::net::Listener;
use bcache_tests::cmd::run;
use bcache_tests::nbd::uri;
use bcache_tools::frontend::nbd::{ExportTable, Limits, Server};
use bcache_tools::frontend::ram::RamVolume;

/// A server on a thread of its own, ended when dropped.
struct Served {
    dir: tempfile::TempDir,
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn new(backend: Backend, bytes: u64) -> Served {
        let dir = tempfile::tempdir().expect("a directory");
        let (stop, stopped) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let socket = dir.path().join("socket");
        let thread = std::thread::spawn(move || {
            let runtime = Runtime::with_backend(backend).expect("a runtime");
            let env = runtime.env();
            runtime.block_on(async {
                let listener = Listener::bind(&env, &socket).expect("a listener");
                let exports = ExportTable::new(vec![Rc::new(RamVolume::new("ram", bytes))]);
                let server = Server::new(&env, Rc::new(exports), Limits::default());
                let listening = server.clone();
                env.spawn(async move { listening.listen(&listener).await }).detach();
                ready.send(()).expect("someone waits");
                env.offload(move || stopped.recv()).await.ok();
                server.stop().await;
            });
        });
        is_ready.recv().expect("a server");
        Served { dir, stop, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn uri(&self) -> String {
        uri(&self.socket())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.send(()).ok();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the server panicked");
        }
    }
}

/// Runs a client to its end; what it said on standard output.
fn client(program: &str, args: &[&str]) -> String {
    let said = run(Command::new(program).args(args)).expect(program);
    assert_eq!(said.code, 0, "{program} {args:?}:\n{}\n{}", said.stdout, said.stderr);
    said.stdout
}

const BACKENDS: [Backend; 2] = [Backend::Auto, Backend::Threads];

#[test]
#[ignore = "needs libnbd-bin"]
fn nbdinfo_sees_what_is_offered() {
    for backend in BACKENDS {
        let served = Served::new(backend, 64 << 20);
        let info: serde_json::Value =
            serde_json::from_str(&client("nbdinfo", &["--json", &served.uri()])).unwrap();
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!((&export["export-size"], &export["export-name"]), (&(64 << 20).into(), &"ram".into()));
        for able in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df"] {
            assert_eq!(export[able], true, "{able}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["block_size_minimum"], 512);
    }
}

#[test]
#[ignore = "needs libnbd-bin"]
fn nbdcopy_gets_back_what_it_put_in() {
    for backend in BACKENDS {
        let served = Served::new(backend, 32 << 20);
        let (from, to) = (served.dir.path().join("from"), served.dir.path().join("to"));
        let bytes: Vec<u8> = (0..32u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(&from, &bytes).unwrap();
        client("nbdcopy", &[from.to_str().unwrap(), &served.uri()]);
        client("nbdcopy", &[&served.uri(), to.to_str().unwrap()]);
        assert!(std::fs::read(&to).unwrap() == bytes);
    }
}

#[test]
#[ignore = "needs qemu-utils"]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    for backend in BACKENDS {
        let served = Served::new(backend, 16 << 20);
        let steps = [
            "write -P 7 0 1M",
            "read -P 7 0 1M",
            "write -z 4k 64k",
            "read -P 0 4k 64k",
            "read -P 7 68k 32k",
            "discard 0 64k",
            "flush",
            "write -f -P 3 512 512",
            "read -P 3 512 512",
            "aio_write -P 9 1M 4M",
            "aio_flush",
            "read -P 9 1M 4M",
        ];
        let mut args = vec!["-f", "raw"];
        args.extend(steps.iter().flat_map(|step| ["-c", step]));
        let uri = served.uri();
        args.push(&uri);
        let said = client("qemu-io", &args);
        assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    }
}

/// Arguments of fio that write and read mixed sizes at depth 32, and verify. One pass: when blocks are written twice,
/// fio's own bookkeeping reports false errors.
pub fn fio_verify(uri: &str, size: &str, seed: u64) -> Vec<String> {
    let fixed = "--name=verify --ioengine=nbd --rw=randrw --bsrange=4k-1m --blockalign=4k --iodepth=32 --verify=crc32c \
        --verify_fatal=1 --verify_state_save=0";
    let mut args: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    args.extend([uri.to_owned(), format!("--size={size}"), format!("--randseed={seed}")]);
    args
}

#[test]
#[ignore = "needs fio"]
fn fio_verifies_mixed_sizes_at_depth_32() {
    for backend in BACKENDS {
        let served = Served::new(backend, 64 << 20);
        let uri = format!("--uri={}", served.uri());
        let args = fio_verify(&uri, "64M", 1);
        let said = client("fio", &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.contains("err= 0"), "{said}");
    }
}
