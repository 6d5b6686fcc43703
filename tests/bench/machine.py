"""What is measured in the emulated machine: whole block devices, and starting beside the kernel's bcache."""

import pathlib
import statistics
import subprocess
import tempfile

from common import ROOT, run, say
from native import COUNTS

LOADS = [(rw, "4k", depth, 0) for rw in ("randread", "randwrite") for depth in (1, 16, 64)]
LOADS += [("randwrite", "4k", 1, 1), ("randwrite", "4k", 16, 8), ("randread", "256k", 8, 0), ("randwrite", "256k", 8, 0)]


def job(options, script, kernel, seconds, *arguments, vm=()):
    """Lines that a script of this directory says in the machine, each as its words."""
    with tempfile.TemporaryDirectory() as dir_:
        file = pathlib.Path(dir_) / "job"
        file.write_text(f". {ROOT}/tests/kernel/lib.sh\n. {ROOT}/tests/bench/{script}\n")
        said = run([ROOT / "tests/kernel/vm", "--kernel", kernel, "--memory", "3072", "--timeout", str(int(seconds)), *vm, file,
                    options.bin, *arguments])
    return [line.split("\t") for line in said.splitlines() if "\t" in line]


def load_name(words):
    rw, size, depth, fsync = words.split()
    return f"{rw} {size} depth {depth}" + (f" fsync {fsync}" if fsync != "0" else "")


def rublk(options):
    """Builds rublk, which needs clang's library, where it can be."""
    root = options.bin.parent / "tmp" / "rublk"
    if not options.smoke and not (root / "bin" / "rublk").exists():
        say("building rublk")
        made = subprocess.run(["cargo", "install", "--quiet", "--locked", "--root", root, "rublk"], cwd="/", check=False)
        if made.returncode:
            say("rublk cannot be built: left out")


def devices(results, options):
    """Ours beside the kernel's caches, an empty device and the RAM disk below."""
    rublk(options)
    for kernel in options.kernel:
        loads = LOADS[1:2] if options.smoke else LOADS
        words = [" ".join(map(str, load)) for load in loads]
        limit = 300 + options.pairs * len(loads) * 8 * (options.seconds + 4)
        found = {}
        for system, load, first, second in job(options, "devices.sh", kernel, limit, str(options.pairs), f"{options.seconds * 1000:.0f}", *words):
            if load == "asked":
                results.count(f"{kernel}, {system}", "flushes of the cache for 500 writes", int(first))
                results.count(f"{kernel}, {system}", "writes to the cache for 500 writes", int(second))
            else:
                found.setdefault(load_name(load), {}).setdefault(system, []).append((float(first), float(second)))
        for name, systems in found.items():
            for other, theirs in systems.items():
                for (ours, _), (iops, _) in zip(systems["ours"], theirs):
                    if other != "ours":
                        results.pair(kernel, name, other, ours, iops, "I/Os a second")
            for system, all_ in systems.items():
                micros = statistics.median(micros for _, micros in all_)
                results.count(f"{kernel}, {system}", f"{name}: microseconds of processor time an I/O", micros)
        say(f"devices: {kernel} done")


def instructions(results, options):
    """The same where the machine's clock counts instructions: emulation does not distort that."""
    loads = LOADS[1:2] if options.smoke else LOADS
    words = [" ".join(map(str, load)) for load in loads]
    limit = 600 + len(loads) * 8 * 60
    found = {}
    for system, load, _, micros in job(options, "devices.sh", "6.12", limit, "1", "300", *words, vm=["--cpus", "1", "--count-instructions"]):
        if load != "asked":
            results.count(f"instructions, {system}", f"{load_name(load)}: instructions an I/O", round(float(micros) * 1000))
            found.setdefault(load_name(load), {})[system] = float(micros)
    for name, systems in found.items():
        for other, micros in systems.items():
            if other != "ours":
                results.pair("instructions", name, other, 1000 / systems["ours"], 1000 / micros, "I/Os a million instructions")


def starting(results, options):
    """From a registration to the device, beside the kernel's."""
    for count in COUNTS[:1] if options.smoke else COUNTS:
        with tempfile.TemporaryDirectory(dir=options.dir) as dir_:
            cache = pathlib.Path(dir_) / "cache"
            run([options.bin / "examples" / "fsck_speed", "make", cache, str(count)])
            vm = ["--disk", f"{cache},snapshot", "--disk", f"{cache}.backing,snapshot"]
            times = {"ours": [], "kernel": []}
            for system, took in job(options, "starting.sh", "6.12", 300 + options.pairs * 120, str(options.pairs), vm=vm):
                times[system].append(float(took))
        for ours, theirs in zip(times["ours"], times["kernel"]):
            results.times("6.12", f"start with {count:,} extents", "kernel", ours, theirs)
        say(f"starting: {count:,} extents")


GROUPS = {"devices": devices, "instructions": instructions, "starting": starting}
