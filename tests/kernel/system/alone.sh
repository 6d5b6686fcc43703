# A backing device without its cache, when its user says so; and what the engine may not do at all.
write() { # FILE MIB: random data of a MiB
  head -c 1M /dev/urandom > "$1"
  dd if="$1" of=/dev/mapper/bcache0 bs=64k seek=$(($2 * 16)) oflag=direct conv=notrunc,fsync status=none
}
holds() { dd if=/dev/mapper/bcache0 bs=64k skip=$(($2 * 16)) count=16 iflag=direct status=none | cmp - "$1"; }
state() { bcache-super-show /dev/vdb | grep -q "dev.data.cache_state.*\[$1\]"; }

make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
bcache-register /dev/vda /dev/vdb
await test -e /dev/mapper/bcache0
await serves bcache0
bcache set --device bcache0 writeback_running=0 sequential_cutoff=0
write /tmp/old 1
refused 'is being served' bcache-register --without-cache --lose-dirty-data /dev/vdb
bcache stop --all
await no_engine

# Alone it waits for its cache. What is only there is not given up by the way.
bcache-register /dev/vdb
await eval 'bcache status | grep -qi wait'
[[ ! -e /dev/mapper/bcache0 ]]
bcache stop --all
await no_engine
refused 'lose-dirty-data' bcache-register --without-cache /dev/vdb
[[ ! -e /dev/mapper/bcache0 ]]
state dirty

bcache-register --without-cache --lose-dirty-data /dev/vdb
await test -e /dev/mapper/bcache0
state inconsistent
dmsetup table bcache0 | grep -q ' linear 254:16 16$'
write /tmp/new 2
cmp -n 1M -i 0:$((8192 + (1 << 20))) /dev/zero /dev/vdb

# With its cache again it has what was written meanwhile, and nothing of what the cache had.
bcache-register /dev/vda
bcache-register /dev/vdb
await serves bcache0
holds /tmp/new 2
dd if=/dev/mapper/bcache0 bs=64k skip=16 count=16 iflag=direct status=none | cmp -n 1M - /dev/zero
bcache stop --all
await no_engine
bcache fsck -n /dev/vda /dev/vdb

# A call that is not on the list ends the process: by SIGSYS.
status=0
bcache-engine --set "$(cat /proc/sys/kernel/random/uuid)" --try-forbidden || status=$?
((status == 128 + 31))
no_kernel_complaints
