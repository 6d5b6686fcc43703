# A file system on a device of ours, written to while the engine is killed ($1 times) and comes back. Nothing is flushed:
# what a write was acknowledged for must be there all the same, because who wrote it did not see a crash.
kills=$1
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vda /dev/vdb
# Keys that nobody waits for reach the journal this late: what a killed engine must not need is then sure to be missing.
bcache set journal_delay_ms=2000
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 4M

# Blocks that say which write they come from, one at a time, until the last kill.
stamp_rounds() {
  local round of=/mnt/x/stamped
  for ((round = 1; ; round++)); do
    dd if=/dev/zero of=$of bs=1M count=4 conv=fsync status=none
    stamp write $of 8 8192 500 "$round" rand 0
    echo 1 > /proc/sys/vm/drop_caches
    stamp check $of 8 8192 500 "$round" rand 500 > /tmp/stamp.out || { cat /tmp/stamp.out; return 1; }
    [[ ! -e /tmp/enough ]] || { echo "$round rounds of stamps"; return 0; }
  done
}
stamp_rounds & stamps=$!
fio_passes --directory=/mnt/x & passes=$!
for ((kill = 1; kill <= kills; kill++)); do
  sleep 3
  kill_engine
  bcache-register /dev/vdb
done
touch /tmp/enough
wait "$passes"
wait "$stamps"
# While the engine is dead, what it acknowledged is partly in memory only. Nobody else takes the disk for all there is.
bcache set journal_delay_ms=60000
# A commit of the file system, every five seconds as a rule, flushes: everything would be in the journal.
mount -o remount,noatime,commit=600 /mnt/x
# Whoever waits still waits as long as before.
sleep 3
sync
dd if=/dev/urandom of=/mnt/x/late bs=64k count=4 oflag=direct conv=notrunc status=none
for ((i = 0; i < 50; i++)); do
  dd if=/mnt/x/late of=/mnt/x/late bs=64k count=1 skip=1 seek=$((i % 3)) oflag=direct conv=notrunc status=none
done
sha256sum /mnt/x/late > /tmp/late
kill_engine
ls /run/bcache/*.keys
refused 'in the journal yet' bcache-register --engine kernel /dev/vda
content() { bcache export -o - /dev/vda /dev/vdb | sha256sum; }
# Whoever reads the set has those keys, too; a repair makes them part of it, and is undone with them.
refused 'journal-kept (harmless)' bcache fsck -n /dev/vda /dev/vdb
# That takes minutes here; without the emulated machine it is tried each time.
if ((kills > 2)); then
  content > /tmp/content
  for ((i = 0; i < 2; i++)); do
    bcache fsck -y --undo /tmp/undo.$i /dev/vda /dev/vdb || (($? == 1))
    [[ ! -e $(echo /run/bcache/*.keys) && -e $(echo /run/bcache/*.keys.laid) ]]
    bcache fsck -n /dev/vda /dev/vdb
    ((i > 0)) || bcache undo /tmp/undo.0
  done
  content | diff /tmp/content -
fi
bcache-register /dev/vdb
echo 1 > /proc/sys/vm/drop_caches
sha256sum -c --quiet /tmp/late
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0
bcache stop --all
gone '/dev/mapper/bcache*'
gone '/dev/ublkb*'
await no_engine
bcache fsck -n /dev/vda /dev/vdb
no_kernel_complaints
