# Sourced by every job about the engine process: /dev/vda is the cache, /dev/vdb the backing device.

# What the engines said, for whoever reads why a job failed.
tell_logs() { tail -n 50 /run/bcache/*.log 2> /dev/null >&2 || true; }
trap 'status=$?; ((status == 0)) || tell_logs' EXIT

# Runs udevd as a machine that has booted does, and lets it look at what is there.
start_udevd() {
  /lib/systemd/systemd-udevd --daemon
  udevadm trigger --action=add --subsystem-match=block
  udevadm settle
}

engine_pid() { pgrep -x bcache-engine; }

# Kills every engine as a crash would, and waits until it is gone.
kill_engine() {
  pkill -9 -x bcache-engine
  await no_engine
}
no_engine() { ! pgrep -x bcache-engine > /dev/null; }

# One file with random content, durable; its checksum goes to a list that check_files reads.
write_file() {
  head -c "$2" /dev/urandom > "$1"
  sync "$1"
  sha256sum "$1" >> /tmp/sums
}
check_files() { sha256sum --quiet -c /tmp/sums; }
