//! The bytes that `make-bcache` writes, compared with those of Debian's.

mod debian {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use bcache_tests::cmd::{Said, run};
    use bcache_tests::{paths, sparse};

    const SET: &str = "cdc6ac30-0d1f-4c0c-a0f9-7a8f1a0b1c2d";

    /// The first 16 KiB of a device without the random UUID and the checksum that covers it.
    fn start(device: &Path) -> Vec<u8> {
        let mut bytes = vec![0; 16384];
        File::open(device).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes[4096..4104].fill(0);
        bytes[4096 + 0x28..4096 + 0x38].fill(0);
        bytes
    }

    fn made(program: &Path, dir: &Path, args: &str) -> (Said, Vec<Vec<u8>>) {
        for (name, len) in [("cache", 600 << 20), ("backing", 300 << 20), ("more", 64 << 20)] {
            sparse::create(&dir.join(name), len).unwrap();
            // Old bytes around the superblock show what is cleared and what is left alone.
            let device = File::options().write(true).open(dir.join(name)).unwrap();
            device.write_all_at(&[0xa5; 16384], 0).unwrap();
        }
        let mut said = run(Command::new(program).args(args.split_whitespace()).current_dir(dir)).unwrap();
        // Each device has its own random UUID.
        said.stdout =
            said.stdout.lines().filter(|line| !line.starts_with("UUID")).collect::<Vec<_>>().join("\n");
        (said, ["cache", "backing", "more"].map(|name| start(&dir.join(name))).to_vec())
    }

    #[test]
    #[ignore = "needs Debian's bcache-tools"]
    fn every_option_writes_and_prints_the_same() {
        let ours = paths::program("make-bcache").unwrap();
        let dir = paths::scratch().unwrap();
        for options in [
            "",
            "--writeback",
            "--discard",
            "-b 4k",
            "-b 8k",
            "-b 64k",
            "--bucket=1M",
            "-w 512",
            "-w 1k",
            "-w 2k",
            "--block 4k",
            "-o 24",
            "-w 512 -o 17",
            "--data-offset 2048",
            "--data_offset 16",
            "--cache-replacement-policy lru",
            "--cache_replacement_policy fifo",
            "--cache_replacement_policy=random",
            "--wipe-bcache",
            "--writeback --discard -w 4k -b 16k -o 8192 --cache_replacement_policy random",
        ] {
            for devices in
                ["-C cache -B backing more", "-B backing -C cache", "-B more backing", "--cache cache"]
            {
                let args = format!("--cset-uuid {SET} {options} {devices}");
                let expected = made(Path::new("/usr/sbin/make-bcache"), dir.path(), &args);
                assert_eq!(expected.0.code, 0, "{args}: {:?}", expected.0);
                let (said, bytes) = made(&ours, dir.path(), &args);
                assert_eq!(said, expected.0, "{args}");
                for (index, (ours, theirs)) in bytes.iter().zip(&expected.1).enumerate() {
                    let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
                    assert_eq!(first, None, "{args}: device {index} differs at this byte");
                }
            }
        }
    }
}
