"""What is measured on this machine itself: NBD, formatting, starting, checking, and how each grows with a set."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from common import ROOT, cold, run, say, seconds

SERVED = ["cache_mode=writeback", "sequential_cutoff=0", "writeback_percent=40", "congested_read_threshold_us=0",
          "congested_write_threshold_us=0"]


def serving(options, socket, *devices, settings=()):
    words = [word for setting in settings for word in ("--set", setting)]
    return [options.bin / "bcache", "serve", "--nbd", socket, *words, *devices]


@contextlib.contextmanager
def server(command, socket):
    """A server that runs until the end, from when its socket takes a connection."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not socket.exists():
            if process.poll() is not None:
                sys.exit(f"{' '.join(map(str, command))}: {process.stderr.read()}")
            time.sleep(0.001)
        yield process
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def nbd(results, options):
    """`bcache serve` beside servers of others, all on files in memory; and the front end alone beside the fastest."""
    size = 64 << 20 if options.smoke else 256 << 20
    with contextlib.ExitStack() as stack:
        dir_ = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        for name, length in {"cache": 1 << 30, "disk": size + 8192, "filter.img": size, "file.img": size, "qemu.img": size}.items():
            with open(dir_ / name, "wb") as file:
                file.truncate(length)
        run([options.bin / "make-bcache", "--bucket", "512k", "-C", dir_ / "cache", "-B", dir_ / "disk"])
        kit = ["nbdkit", "--foreground", "--unix"]
        servers = {
            "ours": serving(options, dir_ / "ours", dir_ / "cache", dir_ / "disk", settings=SERVED),
            "nbdkit cache filter": kit + [dir_ / "filter", "--filter=cache", "file", dir_ / "filter.img"],
            "nbdkit memory": kit + [dir_ / "memory", "memory", str(size)],
            "nbdkit file": kit + [dir_ / "file", "file", dir_ / "file.img"],
            "qemu-nbd": ["qemu-nbd", "--socket", dir_ / "qemu", "--format", "raw", "--persistent", "--shared", "8", "--cache",
                         "writeback", dir_ / "qemu.img"],
            "front end": [options.bin / "examples" / "nbd-ram", dir_ / "front", str(size)],
        }
        sockets = {"ours": "ours", "nbdkit cache filter": "filter", "nbdkit memory": "memory", "nbdkit file": "file",
                   "qemu-nbd": "qemu", "front end": "front"}
        for name, command in servers.items():
            stack.enter_context(server(command, dir_ / sockets[name]))

        def fio(name, *words):
            said = run(["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={dir_ / sockets[name]}",
                        f"--size={size}", "--group_reporting", "--output-format=json", *words])
            job = json.loads(said[said.index("{"):])["jobs"][0]
            return job["read"]["iops"] + job["write"]["iops"]

        for name in servers:
            fio(name, "--rw=write", "--bs=64k", "--iodepth=8")
            fio(name, "--rw=read", "--bs=64k", "--iodepth=8")
        loads = [(rw, "4k", depth, 1) for depth in (1, 8, 32) for rw in ("randread", "randwrite")]
        loads += [(rw, size, depth, 1) for size, depth in (("128k", 8), ("1m", 4)) for rw in ("read", "write")]
        loads += [("randread", "4k", 8, 4), ("randwrite", "4k", 8, 4)]
        for round_ in range(options.pairs):
            for rw, length, depth, clients in loads[::4] if options.smoke else loads:
                name = f"{rw} {length} depth {depth}" + (f" clients {clients}" if clients > 1 else "")
                words = [f"--rw={rw}", f"--bs={length}", f"--iodepth={depth}", f"--numjobs={clients}", "--time_based",
                         f"--runtime={options.seconds}", "--ramp_time=0.3"]
                order = list(servers) if round_ % 2 == 0 else list(servers)[::-1]
                iops = {server: fio(server, *words) for server in order}
                for other in servers:
                    if other not in ("ours", "front end"):
                        results.pair("nbd", name, other, iops["ours"], iops[other], "I/Os a second")
                results.pair("nbd, no cache", name, "nbdkit memory", iops["front end"], iops["nbdkit memory"], "I/Os a second")
            say(f"nbd: round {round_ + 1} of {options.pairs}")


def make(results, options):
    """Formatting sparse devices beside Debian's make-bcache."""
    theirs = shutil.which("make-bcache")
    if not theirs or not os.access("/dev/loop-control", os.W_OK):
        return say("make: left out, bcache-tools or loop devices are missing")
    sizes = {"1 GiB": 1 << 30, "1 TiB": 1 << 40, "100 TiB": 100 << 40}
    for name, size in list(sizes.items())[:1] if options.smoke else sizes.items():
        with contextlib.ExitStack() as stack:
            # ext4 ends at 16 TiB.
            home = "/dev/shm" if size > 8 << 40 else "/var/tmp"
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=home))
            file.truncate(size)
            device = run(["losetup", "--find", "--show", file.name]).strip()
            stack.callback(run, ["losetup", "--detach", device])
            # At most 2^32 buckets, and of a length that the old superblock has room for.
            bucket = "16M" if size > 8 << 40 else "512k"
            for _ in range(options.pairs):
                times = []
                for command in ([options.bin / "make-bcache"], [theirs]):
                    run(["wipefs", "-aq", device])
                    times.append(seconds(command + ["--bucket", bucket, "-C", device]))
                results.times("make", f"a cache of {name}", "make-bcache 1.0.8", *times)


def checksum(results, options):
    """The checksum of metadata beside another implementation of the same CRC, and beside copying the same bytes."""
    if options.smoke:
        return
    for _ in range(options.pairs):
        said = run(["cargo", "bench", "--quiet", "--package", "bcache-format", "--", "--quick"], cwd=ROOT)
        rates = {}
        for name, size, rate, unit in re.findall(r"csum/(\S+)/(\d+)\s+time:.*\n\s+thrpt:\s+\[\S+ \S+ (\S+) (\S+) ", said):
            rates[name, int(size)] = float(rate) * {"MiB/s": 2**20, "GiB/s": 2**30}[unit] / 1e9
        for (name, size), rate in rates.items():
            if name != "ours":
                results.pair("checksum", f"{size:,} bytes", name, rates["ours", size], rate, "GB/s")


COUNTS = [100_000, 1_000_000, 10_000_000]


def cache_check(results, options, dir_, ours, mappings):
    """dm-cache's check of as many mappings, both in memory."""
    xml, thin = dir_ / "xml", dir_ / "thin"
    with open(xml, "w", encoding="ascii") as file:
        file.write(f'<superblock uuid="" block_size="128" nr_cache_blocks="{mappings}" policy="smq" hint_width="4">\n<mappings>\n')
        for i in range(mappings):
            file.write(f'<mapping cache_block="{i}" origin_block="{i * 2}" dirty="{"false" if i % 2 else "true"}"/>\n')
        file.write("</mappings>\n<hints></hints>\n</superblock>\n")
    run(["truncate", "--size", "256M", thin])
    run(["cache_restore", "-q", "-i", xml, "-o", thin])
    for _ in range(options.pairs):
        results.times("fsck", f"{mappings:,} extents, in memory", "cache_check", seconds(ours), seconds(["cache_check", thin]))


def sets(results, options):
    """Checking, starting and looking up in sets of more and more extents; flushing and exporting beside dd."""
    tool, bcache = options.bin / "examples" / "fsck_speed", options.bin / "bcache"
    took = {}
    for count in COUNTS[:1] if options.smoke else COUNTS:
        with tempfile.TemporaryDirectory(dir=options.dir) as dir_:
            dir_ = pathlib.Path(dir_)
            file, backing, socket = dir_ / "cache", dir_ / "cache.backing", dir_ / "socket"
            run([tool, "make", file, str(count)])
            for _ in range(options.pairs):
                took.setdefault(("fsck", count), []).append(seconds([bcache, "fsck", "-n", file, backing]))
                cold(file)
                check = seconds([bcache, "fsck", "-n", file, backing])
                cold(file)
                read = run([tool, "read", file])
                read = float(re.search(r" in ([0-9.]+) s", read).group(1))
                results.pair("fsck", f"{count:,} extents", "reading the same with O_DIRECT", count / check, count / read,
                             "extents a second")
            for _ in range(options.pairs):
                start = time.monotonic()
                with server(serving(options, socket, file, backing, settings=["writeback_running=0"]), socket):
                    took.setdefault(("start", count), []).append(time.monotonic() - start)
            for _ in range(options.pairs):
                said = run([options.bin / "examples" / "large_set", str(count), "--lookups"])
                rate = float(re.search(r"([0-9]+) lookups a second", said).group(1))
                # So that all three are seconds in all.
                took.setdefault(("lookup", count), []).append(count / rate)
                memory = float(re.search(r"([0-9.]+) bytes of memory an extent", said).group(1))
            if count == 1_000_000:
                cache_check(results, options, dir_, [bcache, "fsck", "-n", file, backing], count)
            results.count("process", f"bytes of memory an extent, {count:,} extents", memory)
        say(f"sets: {count:,} extents")
    for (what, count), times in took.items():
        results.count("process", f"{what}: nanoseconds an extent, {count:,} extents",
                      round(statistics.median(times) * 1e9 / count, 1))
        for factor in (10, 100):
            for less, more in zip(took.get((what, count // factor), []), times):
                results.pair("growth", f"{what}, {count // factor:,} to {count:,} extents", "itself", count / more,
                             count / factor / less, "extents a second")


def moving(results, options):
    """`flush` of contiguous dirty data, and `export`, beside dd."""
    tool, bcache, mib = options.bin / "examples" / "fsck_speed", options.bin / "bcache", 64 if options.smoke else 2048
    with tempfile.TemporaryDirectory(dir=options.dir) as dir_:
        dir_ = pathlib.Path(dir_)
        cache, backing, metadata, superblock = (dir_ / name for name in ("cache", "backing", "metadata", "superblock"))
        run([tool, "dirty", dir_, str(mib)])
        # What a flush changes but for the data: the metadata, which is all before it, and the backing device's superblock.
        run(["dd", f"if={cache}", f"of={metadata}", "bs=4M", "count=4", "status=none"])
        run(["dd", f"if={backing}", f"of={superblock}", "bs=64K", "count=1", "status=none"])
        copy = ["dd", f"if={cache}", "bs=4M", "skip=4", f"count={mib // 4}", "status=none", "conv=notrunc,fdatasync"]
        for _ in range(options.pairs):
            cold(cache, backing)
            export = seconds([bcache, "export", "-o", dir_ / "out", cache, backing])
            (dir_ / "out").unlink()
            cold(cache)
            results.times("export", f"{mib} MiB", "dd", export, seconds(copy + [f"of={dir_ / 'copy'}"]))
            (dir_ / "copy").unlink()
            run(["dd", f"if={metadata}", f"of={cache}", "bs=4M", "conv=notrunc", "status=none"])
            run(["dd", f"if={superblock}", f"of={backing}", "bs=64K", "conv=notrunc", "status=none"])
            cold(cache, backing)
            flush = seconds([bcache, "flush", cache, backing])
            for other, words in (("dd", []), ("dd with O_DIRECT", ["iflag=direct", "oflag=direct"])):
                cold(cache, backing)
                results.times("flush", f"{mib} MiB of contiguous dirty data", other, flush, seconds(copy + words + [f"of={backing}"]))


GROUPS = {"nbd": nbd, "checksum": checksum, "make": make, "sets": sets, "moving": moving}
