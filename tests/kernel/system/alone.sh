# A backing device without its cache, when its user says so; and what the engine may not do at all.
state() { bcache-super-show /dev/vdb | grep -q "dev.data.cache_state.*\[$1\]"; }

make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vda /dev/vdb
bcache set --device bcache0 writeback_running=0 sequential_cutoff=0
put 1
holds 1
refused 'is being served' bcache-register --without-cache --lose-dirty-data /dev/vdb
bcache stop --all
await no_engine

# Alone it waits for its cache. What is only there is not given up by the way.
bcache-register --wait /dev/vdb
bcache status | grep -qi wait
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
put 2
holds 2
cmp -n 1M -i 0:$((8192 + (1 << 20))) /dev/zero /dev/vdb

# With its cache again it has what was written meanwhile, and nothing of what the cache had.
start_engine /dev/vda /dev/vdb
holds 2
get 1 | cmp -n 1M - /dev/zero
bcache stop --all
await no_engine
bcache fsck -n /dev/vda /dev/vdb

# Whoever waits is told what is wrong: here all buckets are gone.
dd if=/dev/zero of=/dev/vda bs=1M seek=1 count=200 conv=fsync status=none
refused 'check the set with bcache fsck' bcache-register --wait /dev/vda
bcache stop --all
await no_engine

# Blocks do not change their size under a mounted file system, neither with the cache nor without it again.
make-bcache --wipe-bcache -w 4k -C /dev/vda > /dev/null
make-bcache --wipe-bcache -w 4k -B /dev/vdb > /dev/null
bcache-register --wait /dev/vda
bcache-register --wait /dev/vdb
await test -e /dev/mapper/bcache0
blocks() { [[ $(blockdev --getss /dev/mapper/bcache0) == "$1" ]]; }
blocks 512
mkfs.ext4 -q -b 4096 /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/alone 1M
refused 'in use with blocks of 512 bytes' bcache attach /dev/vdb
blocks 512
umount /mnt/x
bcache attach /dev/vdb
blocks 4096
mount /dev/mapper/bcache0 /mnt/x
check_files
write_file /mnt/x/cached 1M
refused 'in use with blocks of 4096 bytes' bcache detach bcache0
blocks 4096
umount /mnt/x
# What kpartx makes of partitions is in nobody's way, unless somebody uses it.
partition() {
  dmsetup create bcache0p1 --uuid "part1-$(dmsetup info -c --noheadings -o uuid bcache0)" --table '0 2048 linear /dev/mapper/bcache0 2048'
  dmsetup mknodes
}
kept_by_partition() {
  sleep 1000 < /dev/mapper/bcache0p1 & holder=$!
  refused 'bcache0 is in use' "$@"
  dmsetup info bcache0p1 > /dev/null
  kill $holder
  wait $holder || true
}
partition
kept_by_partition bcache stop
bcache stop
await no_engine
gone '/dev/mapper/bcache*'
start_engine /dev/vda /dev/vdb
bcache detach bcache0
blocks 512
mount /dev/mapper/bcache0 /mnt/x
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0 > /dev/null
partition
kept_by_partition bcache stop bcache0
bcache stop --all
await no_engine
gone '/dev/mapper/bcache*'

# A call that is not on the list ends the process: by SIGSYS.
status=0
bcache-engine --set "$(cat /proc/sys/kernel/random/uuid)" --try-forbidden || status=$?
((status == 128 + 31))
no_kernel_complaints
