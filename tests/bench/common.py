"""What every group of measurements uses: running programs, and pairs of what was measured."""

import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The least ratio that is wanted, by group, load, and what it is measured against.
GOALS = {
    ("nbd", "randread 4k depth 1", "nbdkit cache filter"): 1.2,
    ("nbd", "randwrite 4k depth 1", "nbdkit cache filter"): 1.3,
    ("nbd", "read 128k depth 8", "nbdkit cache filter"): 1.0,
    ("nbd", "write 128k depth 8", "nbdkit cache filter"): 1.2,
    ("nbd", "randread 4k depth 32", "nbdkit cache filter"): 2.7,
    ("nbd", "randwrite 4k depth 32", "nbdkit cache filter"): 3.6,
    ("6.12", "randwrite 4k depth 16", "kernel"): 1.0,
    ("6.12", "randwrite 4k depth 64", "kernel"): 1.0,
    ("newest", "randwrite 4k depth 1", "empty"): 0.7,
    ("newest", "randwrite 4k depth 16", "empty"): 0.9,
    ("newest", "randwrite 4k depth 64", "empty"): 1.0,
    ("newest", "randwrite 4k depth 1 fsync 1", "empty"): 0.75,
    ("newest", "randread 4k depth 1", "empty"): 0.9,
    ("newest", "randread 4k depth 16", "empty"): 1.2,
    ("newest", "randread 4k depth 64", "empty"): 1.2,
    ("newest", "randread 256k depth 8", "kernel"): 1.0,
    ("newest", "randwrite 256k depth 8", "kernel"): 1.2,
}
for extents in ("1,000,000", "10,000,000"):
    # Twice as fast is half the time.
    GOALS["6.12", f"start with {extents} extents", "kernel"] = 2.0
for what in ("start", "fsck", "lookup"):
    # Time for each extent of a set a hundred times as large: one and a tenth at most.
    GOALS["growth", f"{what}, 100,000 to 10,000,000 extents", "itself"] = 1 / 1.1

# Counts that are to be no more than this.
MOST = {"flushes of the cache for 500 writes": 10, "writes to the cache for 500 writes": 560}


def run(command, **options):
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def seconds(command):
    start = time.monotonic()
    run(command)
    return time.monotonic() - start


def say(what):
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def cold(*files):
    """Nothing of these files is in memory."""
    for file in files:
        run(["dd", f"of={file}", "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"])


class Results:
    """Pairs by group, load and what ours was measured against, more being better; and counts."""

    def __init__(self):
        self.pairs, self.counts, self.units = {}, [], {}

    def pair(self, group, load, other, ours, theirs, unit):
        self.pairs.setdefault((group, load, other), []).append((ours, theirs))
        self.units[group, load] = unit

    def times(self, group, load, other, ours, theirs):
        """Seconds, which become how many times a second."""
        self.pair(group, load, other, 1 / ours, 1 / theirs, "a second")

    def count(self, group, what, value):
        self.counts.append((group, what, value))

    def rows(self):
        for (group, load, other), pairs in self.pairs.items():
            ratios = [ours / theirs for ours, theirs in pairs if theirs]
            if not ratios:
                continue
            goal, median = GOALS.get((group, load, other)), statistics.median(ratios)
            yield {
                "group": group, "load": load, "other": other, "unit": self.units[group, load], "pairs": pairs,
                "ours": statistics.median(ours for ours, _ in pairs),
                "theirs": statistics.median(theirs for _, theirs in pairs),
                "ratio": median, "least": min(ratios), "most": max(ratios),
                "goal": goal, "met": None if goal is None else median >= goal,
            }
