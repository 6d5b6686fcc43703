"""Goes through the cells of {cache, backing device} x {fault} x {what becomes of the engine} x {clean, dirty}.

In each a set has two backing devices: `data`, whose disk or whose cache fails, and `other`, which shares the cache. A judge
reads both once a second with O_DIRECT from their names, each read in a thread of its own. A cell fails when a read takes
longer than the bound while no disk below hangs, when one gives anything but what a write to that block was acknowledged for
last (or one that failed since had), when a device that needs nothing of the failed disk does not answer, and when all is not
there again after the disk came back.

matrix.py STEP [CELL]...: every STEP-th cell, or those that contain one of the words.
"""
import mmap, os, random, subprocess, sys, threading, time, traceback

BOUND = 3 + 12          # seconds: --answer-within, and what an emulated machine under load may add
AT_ONCE = 5             # cells that run beside each other
BLOCKS = 24             # that are looked at, of each device
SIZE = {"cache": 72, "data": 20, "other": 20}  # MiB

WHO = ["cache", "backing"]
FAULTS = ["eio", "gone", "hangs", "read-only", "back", "clone"]
EVENTS = ["runs", "killed", "upgrade", "stop", "reboot"]
STATES = ["clean", "dirty"]

def sh(*command, timeout=90, check=True):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stdout.strip()}")
    return done

def content(block, generation):
    return random.Random(block * 1000003 + generation).randbytes(64) * 64

class Io:
    """One request, which may never come back: whoever waits for it does so for a while."""
    def __init__(self, path, block, write=None):
        self.start, self.end, self.data, self.error = time.monotonic(), None, None, None
        self.path, self.block, self.write = path, block, write
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def run(self):
        try:
            descriptor = os.open(self.path, (os.O_RDONLY if self.write is None else os.O_WRONLY) | os.O_DIRECT)
            try:
                page = mmap.mmap(-1, 4096)
                at = self.block * 65536
                if self.write is None:
                    if os.preadv(descriptor, [page], at) != 4096: raise OSError(5, "short")
                    self.data = bytes(page)
                else:
                    page[:] = self.write
                    if os.pwritev(descriptor, [page], at) != 4096: raise OSError(5, "short")
            finally:
                os.close(descriptor)
        except OSError as error:
            self.error = error.errno
        self.end = time.monotonic()
    def wait(self, seconds):
        self.thread.join(seconds)
        return self.end is not None
    def took(self):
        return (self.end or time.monotonic()) - self.start

class Device:
    def __init__(self, cell, kind, name):
        self.cell, self.kind, self.name, self.path = cell, kind, name, f"/dev/mapper/{name}"
        self.allowed = [{0} for _ in range(BLOCKS)]  # generations that each block may have; 0: nothing was written
        self.durable = [{0} for _ in range(BLOCKS)]  # what they may have after a power cut, too
        self.writes = []
        self.generation, self.answers, self.waiting = 0, [], []
        self.watched, self.turn, self.last = False, 0, None
    def write(self, block, patience=60):
        self.generation += 1
        generation = self.generation
        # Acknowledged or not, it may be there as soon as it is asked for.
        self.allowed[block] = self.allowed[block] | {generation}
        self.durable[block] = self.durable[block] | {generation}
        io = Io(self.path, block, content(block, generation))
        self.writes = [(at, g, write) for at, g, write in self.writes if write.end is None] + [(block, generation, io)]
        if not io.wait(patience): return None
        # What is under way yet may come after it.
        if io.error is None: self.allowed[block] = {generation} | {g for at, g, write in self.writes if at == block and write.end is None}
        return io.error is None
    def flush(self):
        descriptor = os.open(self.path, os.O_RDWR)
        try: os.fsync(descriptor)
        finally: os.close(descriptor)
        self.durable = [set(generations) for generations in self.allowed]
    def judge(self, io):
        if io.error is not None:
            return "absent" if io.error in (2, 6, 19) else f"error {io.error}"
        zero = bytes(4096)
        if any(io.data == (content(io.block, g) if g else zero) for g in self.allowed[io.block] | io.before): return "data"
        found = [g for g in range(self.generation + 1) if io.data == (content(io.block, g) if g else zero)]
        self.cell.bad(f"{self.name}: block {io.block} has {found}, and none of the generations {sorted(self.allowed[io.block] | io.before)}")
        return "WRONG"
    def look(self):
        """Once a second: begins a read, and takes what came of those before."""
        if os.path.exists(self.path):
            self.turn += 1
            io = Io(self.path, self.turn % BLOCKS)
            io.before = set(self.allowed[io.block])
            self.waiting.append(io)
        for io in list(self.waiting):
            if io.end is not None:
                self.waiting.remove(io)
                self.last = self.judge(io)
                self.answers.append(self.last)
                if io.took() > BOUND and not self.cell.may_hang(self, io.start):
                    self.cell.bad(f"{self.name}: a read took {io.took():.0f} s")
            elif io.took() > BOUND and not self.cell.may_hang(self, io.start) and not getattr(io, "told", False):
                io.told = True
                self.cell.bad(f"{self.name}: a read of block {io.block} hangs; {self.cell.picture(self.name)}")
    def all(self):
        """What reading every block gives."""
        ios = [Io(self.path, block) for block in range(BLOCKS)]
        said = set()
        for io in ios:
            io.before = set(self.allowed[io.block])
            said.add(self.judge(io) if io.wait(BOUND) else "hangs")
        return said

class Cell:
    def __init__(self, number, who, fault, event, state):
        self.number, self.who, self.fault, self.event, self.state = number, who, fault, event, state
        self.name = f"{who} {fault}, {event}, {state}"
        self.faults, self.hanging, self.healed, self.over = [], False, 0, False
        self.set = f"00000000-0000-4000-8000-{number:012x}"
        self.part = {part: f"p{number}{part}" for part in SIZE}
        self.devices = {kind: Device(self, kind, f"m{number}{kind}") for kind in ("data", "other")}
    def bad(self, what):
        self.faults.append(what)
    def may_hang(self, device, since=None):
        hangs = self.hanging or since is not None and since < self.healed
        return hangs and (self.who == "cache" or device.kind == "data")
    def picture(self, name):
        table = sh("dmsetup", "table", name, check=False).stdout.strip()
        info = sh("dmsetup", "info", "-c", "--noheadings", name, check=False).stdout.strip()
        return f"[{table}] [{info}] engine {self.engine()}"
    def engine(self):
        try:
            pid = int(open(f"/run/bcache/{self.set}.pid").read())
            return pid if f"{self.set}" in open(f"/proc/{pid}/cmdline").read() and "State:\tZ" not in open(f"/proc/{pid}/status").read() else None
        except (OSError, ValueError):
            return None
    def path(self, part):
        return f"/dev/mapper/{self.part[part]}"
    def register(self, *parts, wait=False):
        for part in parts:
            path = self.path(part)
            if not os.path.exists(path): continue
            if self.hanging and part == self.failed():
                # Whoever looks at a disk that hangs hangs with it.
                subprocess.Popen(["bcache-register", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            else:
                sh("bcache-register", *(["--wait"] if wait else []), path, check=wait, timeout=120)
    def loop(self, part):
        file = f"/dev/shm/{self.part[part]}"
        with open(file, "wb") as made: made.truncate(SIZE[part.removesuffix("-copy")] << 20)
        return sh("losetup", "-f", "--show", file).stdout.strip()
    def table(self, part, table, *options):
        """Another table for a part, under whoever uses it."""
        name = self.part[part]
        sh("dmsetup", "reload", *options, name, "--table", table)
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", name)
        sh("dmsetup", "resume", name)
    def works(self, part):
        return f"0 {SIZE[part] * 2048} linear {self.loops[part]} 0"
    def make(self):
        self.loops = {}
        for part in SIZE:
            with lock: self.loops[part] = self.loop(part)
            sh("dmsetup", "create", self.part[part], "--table", self.works(part))
        sh("dmsetup", "mknodes")
        mode = ["--writeback"] if self.state == "dirty" else []
        sh("make-bcache", "-b", "128k", *mode, "--cset-uuid", self.set, "-C", self.path("cache"))
        for kind in self.devices:
            sh("make-bcache", *mode, "--cset-uuid", self.set, "-l", self.devices[kind].name, "-B", self.path(kind))
        self.register("cache", "data", "other", wait=True)
        sh("bcache", "set", "--set", self.set, "sequential_cutoff=0", "congested_read_threshold_us=0", "congested_write_threshold_us=0")
        if self.state == "dirty":
            sh("bcache", "set", "--set", self.set, "writeback_running=0")
        for device in self.devices.values():
            for block in range(BLOCKS - 4):
                if not device.write(block): raise RuntimeError(f"{device.name}: the first write fails")
            device.flush()
            device.watched = True
    def failed(self):
        return "cache" if self.who == "cache" else "data"
    def fail(self):
        part, size = self.failed(), SIZE[self.failed()] * 2048
        if self.fault == "clone":
            # What it is a copy of is complete: nobody writes meanwhile. Pages that udev read through the disk itself may be old.
            with lock: copy = self.loop(part + "-copy") if (self.part.setdefault(part + "-copy", f"p{self.number}copy")) else None
            self.loops[part + "-copy"] = copy
            sh("dd", f"if={self.loops[part]}", f"of={copy}", "bs=1M", "iflag=direct", "conv=fsync", "status=none")
        if self.fault == "hangs":
            self.hanging = True
            sh("dmsetup", "suspend", "--noflush", "--nolockfs", self.part[part])
        elif self.fault == "read-only":
            self.table(part, f"0 {size} flakey {self.loops[part]} 0 0 3600 1 error_writes", "--readonly")
        else:
            self.table(part, f"0 {size} error")
            if self.fault == "gone":
                # Whoever has it has it for good, and nobody else finds it.
                os.rename(self.path(part), self.path(part) + ".gone")
    def traffic(self, seconds):
        end, block = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for device in self.devices.values():
                if os.path.exists(device.path): device.write(block % BLOCKS, 1)
            block += 5
            time.sleep(0.3)
    def kill(self):
        pid = self.engine()
        if pid:
            os.kill(pid, 9)
            end = time.monotonic() + 30
            while self.engine() and time.monotonic() < end: time.sleep(0.05)
    def become(self):
        parts = ["cache", "data", "other"]
        if self.fault == "gone":
            parts.remove(self.failed())
        if self.event == "killed":
            self.kill()
            self.register(*parts)
        elif self.event == "upgrade":
            sh("bcache", "upgrade", self.set, check=False, timeout=240)
        elif self.event == "stop":
            for device in self.devices.values(): device.watched = False
            time.sleep(1)
            done = sh("bcache", "stop", self.set, check=False, timeout=120)
            names = [device.path for device in self.devices.values() if os.path.exists(device.path)]
            # A device that runs without its cache is nobody's, and stays.
            for device in self.devices.values():
                if not os.path.exists(device.path): continue
                if sh("bcache", "stop", device.name, check=False).returncode and done.returncode == 0 and not self.hanging:
                    self.bad(f"stopped, it says, and there is {device.path}: {done.stdout.strip()}")
            for device in self.devices.values(): device.watched = True
            self.register(*parts)
        elif self.event == "reboot":
            for device in self.devices.values(): device.watched = False
            # What is under way has to end before names can go: unlike a machine that reboots, this one keeps its kernel.
            if self.hanging: sh("dmsetup", "resume", self.part[self.failed()])
            time.sleep(1)
            self.kill()
            for device in self.devices.values():
                sh("dmsetup", "remove", "--retry", device.name, check=False, timeout=60)
                device.allowed = [a | b for a, b in zip(device.allowed, device.durable)]
            # A node that is left leads to whoever gets the number next.
            sh("dmsetup", "mknodes", check=False)
            if self.hanging: sh("dmsetup", "suspend", "--noflush", "--nolockfs", self.part[self.failed()])
            for file in os.listdir("/run/bcache"):
                if file.startswith(self.set): os.unlink(f"/run/bcache/{file}")
            for device in self.devices.values(): device.watched = True
            self.register(*parts)
    def heal(self):
        part = self.failed()
        if self.fault == "hangs":
            sh("dmsetup", "resume", self.part[part])
            self.hanging, self.healed = False, time.monotonic()
        elif self.fault == "clone":
            # The disk is replaced by its copy, under a name of its own first, then for good.
            name = self.part[part + "-copy"]
            size = SIZE[part] * 2048
            sh("dmsetup", "create", name, "--table", f"0 {size} linear {self.loops[part + '-copy']} 0")
            sh("dmsetup", "mknodes", name)
            sh("bcache-register", f"/dev/mapper/{name}", check=False)
            time.sleep(3)
            self.table(part, self.works(part))
        else:
            self.table(part, self.works(part))
            if self.fault == "gone" and os.path.exists(self.path(part) + ".gone"): os.rename(self.path(part) + ".gone", self.path(part))
        sh("dmsetup", "mknodes", self.part[part])
        self.register("cache", "data", "other")
    def watch(self):
        while not self.over:
            for device in self.devices.values():
                if device.watched:
                    try: device.look()
                    except Exception: self.bad(traceback.format_exc())
            time.sleep(1)
    def run(self):
        self.make()
        watcher = threading.Thread(target=self.watch, daemon=True)
        watcher.start()
        self.fail()
        self.traffic(2)
        if self.fault in ("back", ):
            self.heal(); time.sleep(2)
        self.become()
        self.traffic(2)
        time.sleep(8)
        told = {kind: device.last for kind, device in self.devices.items()}
        # Who needs nothing of what failed answers: the other device of a set whose backing device failed, and all that is clean
        # where the cache did.
        unaffected = ["other"] if self.who == "backing" else ["data", "other"] if self.state == "clean" else []
        # An engine that can read what a new one could not open is not replaced by that.
        if (self.who, self.fault, self.event) == ("backing", "read-only", "upgrade"): unaffected = ["data", "other"]
        if self.fault != "hangs" or self.who == "backing":
            for kind in unaffected:
                if self.devices[kind].last != "data": self.bad(f"{kind} says {self.devices[kind].last}; {self.picture(self.devices[kind].name)}")
        self.heal()
        self.whole()
        self.over = True
        watcher.join(30)
        return told
    def whole(self):
        """Everything is there again, within a minute."""
        end, said = time.monotonic() + 60, {}
        while time.monotonic() < end:
            said = {kind: device.all() if os.path.exists(device.path) else {"absent"} for kind, device in self.devices.items()}
            if all(answer == {"data"} for answer in said.values()): return
            # What failed too often is tried again in so many words; a set that failed is started anew.
            sh("bcache", "set", "--set", self.set, "clear_stats=1", check=False)
            self.register("cache", "data", "other")
            if '"failure":"' in sh("bcache", "status", "--json", check=False).stdout: sh("bcache", "upgrade", self.set, check=False, timeout=240)
            time.sleep(1)
        self.bad(f"not whole again: {said}; {[self.picture(device.name) for device in self.devices.values()]}")
    def clear(self):
        self.over = True
        for name in self.part.values():
            sh("dmsetup", "resume", name, check=False)
        self.hanging = False
        for device in self.devices.values(): device.watched = False
        if self.fault == "gone" and os.path.exists(self.path(self.failed()) + ".gone"): os.rename(self.path(self.failed()) + ".gone", self.path(self.failed()))
        if self.faults: self.register("cache", "data", "other")
        time.sleep(1)
        done = sh("bcache", "stop", self.set, check=False, timeout=120)
        if self.engine() and not self.faults: self.bad(f"does not stop: {done.stdout.strip()}")
        self.kill()
        for device in self.devices.values():
            sh("bcache", "stop", device.name, check=False)
            sh("dmsetup", "remove", "--retry", device.name, check=False)
        if not self.faults and self.fault != "clone":
            # A device that ran alone and never met its cache again is not of the set any more.
            paths = [self.path(part) for part in SIZE if os.path.exists(self.path(part))]
            done = sh("bcache", "fsck", "-n", *paths, check=False)
            # Of a set that has failed, memory may have keys that no entry has.
            kept = "journal-kept" in done.stdout and "1 finding, harmless" in done.stdout
            if done.returncode and not kept: self.bad(f"fsck: {done.stdout.strip()}")
        for name in self.part.values(): sh("dmsetup", "remove", "--retry", name, check=False)
        for part, loop in self.loops.items():
            sh("losetup", "-d", loop, check=False)
            os.unlink(f"/dev/shm/{self.part[part]}")

lock, shown = threading.Lock(), threading.Lock()

def main():
    cells = [(who, fault, event, state) for who in WHO for fault in FAULTS for event in EVENTS for state in STATES]
    cells = [Cell(number + 1, *cell) for number, cell in enumerate(cells)]
    words, step = sys.argv[2:], int(sys.argv[1])
    # Of a few, faults and events are all there: the numbers of both have no divisor in common with an odd step.
    cells = [cell for cell in cells if any(word in cell.name for word in words)] if words else cells[::step]
    start = time.monotonic()
    failed = go(cells, AT_ONCE)
    # Several beside each other in an emulated machine may take longer than they should: whoever was late has another try for
    # itself. Wrong content is never excused.
    late = [cell for cell in failed if not any(" has [" in fault for fault in cell.faults)]
    wrong = [cell for cell in failed if cell not in late]
    if late: failed = wrong + go([Cell(cell.number, cell.who, cell.fault, cell.event, cell.state) for cell in late], 1)
    print(f"{len(cells) - len(failed)} of {len(cells)} cells in {time.monotonic() - start:.0f} s, {len(late)} of them tried again")
    sys.stdout.flush()
    os._exit(1 if failed else 0)

def go(cells, beside):
    """Goes through cells, so many beside each other. Those that failed."""
    todo, failed = list(reversed(cells)), []
    def work():
        while True:
            with shown:
                if not todo: return
                cell = todo.pop()
            start, told = time.monotonic(), None
            try: told = cell.run()
            except Exception: cell.bad(traceback.format_exc())
            try: cell.clear()
            except Exception: cell.bad(traceback.format_exc())
            with shown:
                print(f"{'ok  ' if not cell.faults else 'BAD '} {cell.name}: {told} ({time.monotonic() - start:.0f} s)", flush=True)
                for fault in cell.faults[:6]: print("      " + fault, flush=True)
                if cell.faults:
                    failed.append(cell)
                    try: print("".join("      | " + line for line in open(f"/run/bcache/{cell.set}.log").readlines()[-12:]), flush=True)
                    except OSError: pass
    workers = [threading.Thread(target=work) for _ in range(beside)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    return failed

main()
