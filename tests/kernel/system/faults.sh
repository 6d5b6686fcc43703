# Devices that fail below the cache and below the backing device while they are in use.
modprobe dm-flakey
disks_below
# failing DISK SIZE WHAT: a table whose reads or writes fail, each of them.
failing() { echo "0 $2 flakey $1 0 0 3600 1 error_$3"; }

make-bcache -C /dev/mapper/fast -B /dev/mapper/slow > /dev/null
device=/dev/mapper/bcache0
serve() {
  start_engine /dev/mapper/fast /dev/mapper/slow
  # Errors have no limit here, and a slow machine is no reason to bypass the cache.
  bcache set io_error_limit=0 congested_read_threshold_us=0 congested_write_threshold_us=0
  bcache set --device bcache0 io_error_limit=0 sequential_cutoff=0 writeback_percent=0 writeback_delay=0
}
serve

# Reading it is an error, and not some other data.
fails_to_read() { ! get "$1" > /tmp/got && grep -q 'Input/output error' /tmp/said && ! [[ -s /tmp/got ]]; }
dirty_bytes() { metric bcache_device_dirty_bytes; }
is_clean() { (($(dirty_bytes) == 0)); }
more_than() { (($(metric "$1") > $2)); }
busy() {
  rm -f /tmp/enough
  fio_passes --filename=$device --offset=100M & load=$!
}
idle() {
  touch /tmp/enough
  wait "$load"
}

# The cache cannot be read: what is clean comes from the backing device, and is counted.
put 1 2 3
busy
below fast "$(failing /dev/vda "$cache_size" reads)"
holds 1 2 3
await more_than bcache_set_cache_read_errors_total 2
idle
below fast "$fast_works"
holds 1 2 3

# The cache cannot be read: what is dirty is an error of exactly that range, until it can.
bcache set --device bcache0 cache_mode=writeback writeback_running=0
put 2
below fast "$(failing /dev/vda "$cache_size" reads)"
holds 1 3
fails_to_read 2
below fast "$fast_works"
holds 1 2 3

# The backing device cannot be written: what is dirty stays in the cache and is written back when it can.
before=$(metric bcache_device_backing_write_errors_total)
below slow "$(failing /dev/vdb "$slow_size" writes)"
busy
bcache set --device bcache0 writeback_running=1
put 4
await more_than bcache_device_backing_write_errors_total "$before"
holds 1 2 3 4
(($(dirty_bytes) > 0))
idle
below slow "$slow_works"
await is_clean
holds 1 2 3 4
cmp -n 1M -i $((8192 + (4 << 20))):0 /dev/vdb /tmp/mib4

# The backing device is gone: the cache goes on with what it has.
# The first dirty data needs it all the same, to say there that there is some.
bcache set --device bcache0 writeback_running=0
put 5
below slow "0 $slow_size error"
put 6
holds 4 5 6
fails_to_read 90
below slow "$slow_works"
holds 4 5 6
get 90 | cmp -n 1048576 - /dev/zero

# The cache is gone, with dirty data in it: nothing is written any more, what is dirty is an error, and what is below is
# served only where nothing dirty hides it.
# A flush of the backing device may have failed, which the first of these tells.
sync $device 2> /dev/null || sync $device
below fast "0 $cache_size error"
if put 1 2> /dev/null; then exit 1; fi
holds 3 4
fails_to_read 5
# Data that cannot be written is an error; a key that cannot be is the end of all writing.
if blkdiscard -o 2M -l 1M $device 2> /dev/null; then exit 1; fi
(($(metric bcache_set_failed) == 1))
holds 3 4
fails_to_read 5
bcache status
bcache stop --all && exit 1
await no_engine
below fast "$fast_works"

# With the cache back everything is there.
serve
# What failed was not acknowledged, and may hold the old or the new.
holds 3 4 5 6
bcache stop --all
await no_engine
bcache fsck -n /dev/mapper/fast /dev/mapper/slow
