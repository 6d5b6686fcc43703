# Devices grow under a mounted file system, $1 times: with a cache, with the engine killed in between, and without a cache.
steps=$1
modprobe loop
mkdir -p /mnt/x
truncate -s 64M /dev/shm/disk
losetup /dev/loop0 /dev/shm/disk
make-bcache -b 64k --writeback -C /dev/vda -B /dev/loop0 > /dev/null
start_engine /dev/vda /dev/loop0
mkfs.ext4 -q -b 4096 /dev/mapper/bcache0
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 4M
fio_passes --directory=/mnt/x &
load=$!
size() { blockdev --getsize64 /dev/mapper/bcache0; }
# longer MIB: the backing device gets so much longer.
longer() {
  truncate -s "$((($(stat -c %s /dev/shm/disk) >> 20) + $1))M" /dev/shm/disk
  losetup -c /dev/loop0
}
bytes=$(size)
for ((step = 1; step <= steps; step++)); do
  longer 4
  bytes=$((bytes + (4 << 20)))
  if ((step % 2)); then
    bcache resize bcache0
  else
    # As udev does when it sees the change.
    bcache-register --quiet --unless-stopped /dev/loop0
  fi
  await eval '(($(size) == bytes))'
  resize2fs /dev/mapper/bcache0 2> /dev/null
  write_file "/mnt/x/step$step" 1M
  if ((step % 3 == 0)); then
    kill_engine
    bcache-register --wait /dev/vda /dev/loop0 > /dev/null
  fi
done
(($(size) == bytes))
kill -0 "$load"

# Without its cache, too.
bcache detach bcache0 > /dev/null
longer 4
bytes=$((bytes + (4 << 20)))
bcache resize bcache0
(($(size) == bytes))
resize2fs /dev/mapper/bcache0 2> /dev/null
bcache attach /dev/loop0 > /dev/null
(($(size) == bytes))
touch /tmp/enough
wait "$load"
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0 > /dev/null
# Shorter than it was: told, and it stays as long as it is.
longer -4
refused 'and was' bcache resize bcache0
(($(size) == bytes))
longer 4
bcache resize bcache0
# Nothing is left of the shorter ones.
(($(ls /sys/class/block | grep -Ec '^ublkb|^nbd[0-9]+$') >= 1))
[[ ! -d /sys/class/ublk-char || $(ls /sys/class/ublk-char | wc -l) == 1 ]]
bcache stop --all > /dev/null

# The cache grows while the set is stopped, and Linux takes it, dirty data and all.
truncate -s 64M /dev/shm/fast
losetup /dev/loop2 /dev/shm/fast
wipefs -qa /dev/vdb
make-bcache -b 64k --writeback -C /dev/loop2 -B /dev/vdb > /dev/null
start_engine /dev/loop2 /dev/vdb
bcache set writeback_running=0 sequential_cutoff=0
mkfs.ext4 -q /dev/mapper/bcache0
mount /dev/mapper/bcache0 /mnt/x
: > /tmp/sums
write_file /mnt/x/dirty 20M
umount /mnt/x
refused 'in use' bcache resize --offline /dev/loop2
bcache stop > /dev/null
refused 'has become longer' bcache resize --offline /dev/loop2
truncate -s 96M /dev/shm/fast
losetup -c /dev/loop2
bcache resize --offline /dev/loop2 | grep -q 'has 1536 buckets, and had 1024'
bcache fsck -n /dev/loop2 /dev/vdb
load_bcache
bcache-register --engine kernel /dev/loop2 /dev/vdb
await test -e /sys/block/bcache0/bcache/cache
[[ $(cat /sys/block/bcache0/bcache/cache/cache0/nbuckets) == 1536 ]]
mount /dev/bcache0 /mnt/x
check_files
write_file /mnt/x/linux 30M
umount /mnt/x
stop_bcache
sleep 1
await bcache-register --wait /dev/loop2 /dev/vdb > /dev/null
mount /dev/mapper/bcache0 /mnt/x
check_files
umount /mnt/x
bcache stop --all > /dev/null
no_kernel_complaints
