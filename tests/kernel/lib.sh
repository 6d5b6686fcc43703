# Sourced by every job that runs in the emulated machine: what jobs do with the kernel's bcache.
set -eEuo pipefail
trap 'echo "${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND: $?" >&2' ERR

# Waits up to 30 s for a condition, given as a command.
await() {
  local tick
  for ((tick = 0; tick < 300; tick++)); do
    if "$@"; then return 0; fi
    sleep 0.1
  done
  echo "waited in vain: $*" >&2
  dmesg | tail -n 30 >&2
  # Where systemd runs it knows more.
  journalctl --no-pager --lines=60 >&2 2> /dev/null || true
  return 1
}

load_bcache() {
  modprobe bcache
  await test -e /sys/fs/bcache/register
}

# The kernel lets go of a stopped device a moment after it says so: until then it is busy.
register() {
  local device
  for device in "$@"; do await try_register "$device"; done
}

try_register() { { echo "$1" > /sys/fs/bcache/register; } 2> /dev/null; }

gone() { ! compgen -G "$1" > /dev/null; }

# Stops every bcache device and cache set, cleanly, and waits until they are gone.
stop_bcache() {
  local file
  for file in /sys/block/bcache*/bcache/stop /sys/fs/bcache/*-*/stop; do
    [[ ! -e $file ]] || echo 1 > "$file"
  done
  await gone '/sys/block/bcache*'
  await gone '/sys/fs/bcache/*-*'
}

# Nothing of ours may make the kernel complain.
no_kernel_complaints() {
  # What the kernel says of every new set is not one, nor what it says of a device that it has not let go of yet, first as
  # one of its own, then as anybody's: that is registered again. UUIDs may have "bad" in them. When its module's last
  # set goes it can take its pool of bios away before the last of them has ended, which is between it and itself.
  if dmesg | grep -vE 'invalidating existing data|device already registered|device busy' |
    grep -vE 'BUG bio-[0-9]+ .*__kmem_cache_shutdown|WARNING: .* (__kmem_cache_shutdown|kmem_cache_destroy)\+' |
    grep -E 'BUG|WARNING|Oops|bcache:.*(error|corrupt|\bbad\b|invalid|fail)'
  then
    echo 'the kernel complained' >&2
    return 1
  fi
}
