# Writes $1 stamped blocks with a flush after every 16, while the writes below the engine are logged on /dev/vdc and
# /dev/vdd. Each answered flush is marked in both logs.
count=$1
modprobe dm-log-writes
log() { # NAME DEVICE LOG
  dmsetup create "$1" --table "0 $(blockdev --getsz "$2") log-writes $2 $3"
}
log cache /dev/vda /dev/vdc
log backing /dev/vdb /dev/vdd
dmsetup mknodes
start_engine /dev/mapper/cache /dev/mapper/backing
device=/dev/mapper/bcache0
bcache set --device bcache0 cache_mode=writeback sequential_cutoff=0 writeback_delay=0 writeback_percent=0
bcache set congested_read_threshold_us=0 congested_write_threshold_us=0

flushes_of() { awk '{print $16}' "/sys/block/$1/stat"; }
# The cache's mark comes first: what reaches the backing device in between is data that the cache has, too.
cat > /tmp/mark << 'MARK'
#!/bin/bash
set -e
for name in cache backing; do dmsetup message $name 0 mark "$1"; done
# The second half is written through: then the backing device has to be flushed.
[[ $1 != 320 ]] || bcache set --device bcache0 cache_mode=writethrough
MARK
chmod +x /tmp/mark

# Each flush of the client is one below, at least.
cache=$(flushes_of vda)
stamp write $device 8 16384 "$count" 11 rand 16 -- /tmp/mark
cache=$(($(flushes_of vda) - cache))
echo "$((count / 16)) flushes of the client, $cache of the cache device"
((cache >= count / 16))

backing=$(flushes_of vdb)
stamp write $device 8 16384 64 11 rand 16
backing=$(($(flushes_of vdb) - backing))
echo "4 flushes of the client, $backing of the backing device"
((backing >= 4))

# A cut, not a stop.
kill_engine
dmsetup remove --retry bcache0 || dmsetup remove --force bcache0
for name in cache backing; do dmsetup remove --retry $name; done
