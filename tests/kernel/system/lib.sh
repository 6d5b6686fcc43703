# Sourced by every job about the engine process: /dev/vda is the cache, /dev/vdb the backing device.

# What the engines said, for whoever reads why a job failed.
tell_logs() { tail -n 50 /run/bcache/*.log >&2 2> /dev/null || true; }
trap 'status=$?; ((status == 0)) || tell_logs' EXIT

engine_pid() { pgrep -x -r D,R,S bcache-engine; }

# Kills every engine as a crash would, and waits until it is gone.
kill_engine() {
  pkill -9 -x bcache-engine
  await no_engine
}
# One that has ended and whom nobody has buried yet counts as gone.
no_engine() { ! pgrep -x -r D,R,S bcache-engine > /dev/null; }
# What was stopped stays so, whatever udev makes of devices that were closed.
stays_stopped() {
  udevadm settle --timeout=60
  sleep 1
  no_engine
}

# below NAME TABLE: gives a device another table, under whoever uses it.
below() {
  dmsetup load "$1" --table "$2"
  dmsetup suspend --noflush --nolockfs "$1"
  dmsetup resume "$1"
}
# A device of device-mapper's over each disk, fast and slow, and the tables with which they work.
disks_below() {
  cache_size=$(blockdev --getsz /dev/vda) slow_size=$(blockdev --getsz /dev/vdb)
  fast_works="0 $cache_size linear /dev/vda 0" slow_works="0 $slow_size linear /dev/vdb 0"
  dmsetup create fast --table "$fast_works"
  dmsetup create slow --table "$slow_works"
  dmsetup mknodes
}
# lo N MIB: a loop device in memory.
lo() {
  truncate -s "$2M" "/dev/shm/$1"
  losetup "/dev/loop$1" "/dev/shm/$1"
}

# One file with random content, durable; its checksum goes to a list that check_files reads.
write_file() {
  head -c "$2" /dev/urandom > "$1"
  sync "$1"
  sha256sum "$1" >> /tmp/sums
}
check_files() { sha256sum --quiet -c /tmp/sums; }

# fio_pass SEED WHERE...: writes and reads what fio's options WHERE say once (8 MiB, if not told otherwise; more than one place
# with --name=... before each), and fails when something else is read than was written. Blocks of one size, once over each:
# where writes overlap, fio takes the order in which it asked for the one in which it was answered. Each seed writes something
# else.
fio_pass() {
  fio --name=global --rw=randrw --bs=4k --size=8M --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 \
    --randseed="$1" --output=/tmp/fio.out --name=load "${@:2}" || { cat /tmp/fio.out; return 1; }
}
# fio_passes WHERE...: pass after pass, until there is a file /tmp/enough.
fio_passes() {
  local pass
  for ((pass = 1; ; pass++)); do
    fio_pass "$pass" "$@" || return 1
    [[ ! -e /tmp/enough ]] || { echo "$pass passes of fio"; return 0; }
  done
}

# Registers devices with an engine, and waits until it serves what they make.
start_engine() {
  bcache-register --wait "$@" > /dev/null
  [[ -e /dev/mapper/bcache0 ]]
  serves bcache0
}

# put MIB...: writes random data of its own to each MiB of the device, past the page cache, and keeps what it must hold.
put() {
  local mib
  for mib in "$@"; do
    head -c 1M /dev/urandom > "/tmp/mib$mib"
    dd if="/tmp/mib$mib" of=/dev/mapper/bcache0 bs=64k seek=$((mib * 16)) oflag=direct conv=notrunc status=none || return 1
  done
}
get() { dd if=/dev/mapper/bcache0 bs=64k skip=$(($1 * 16)) count=16 iflag=direct status=none 2> /tmp/said; }
holds() {
  local mib
  for mib in "$@"; do get "$mib" | cmp - "/tmp/mib$mib" || { cat /tmp/said; return 1; }; done
}

# The sum of all samples of a metric.
metric() { bcache metrics | awk -v name="$1" 'index($1, name "{") == 1 {n += $2} END {print n + 0}'; }

# Whether an engine answers for the set $set.
listens() { bcache status --json | grep -q "\"set\":\"$set\""; }
# Whether an engine serves a device of this name.
serves() { bcache status --json | grep -q "\"front\":\"[^\"]*\".*\"name\":\"$1\""; }

# refused TEXT COMMAND...: the command fails, and says why.
refused() {
  local said
  if said=$("${@:2}" 2>&1); then
    echo "not refused: ${*:2}" >&2
    return 1
  fi
  grep -q "$1" <<< "$said" || { echo "refused with other words: $said" >&2; return 1; }
}
