# Between two tables, two processes or two disks: who is on the way is missed by nobody, and nobody undoes what another does.
modprobe -a loop dm-delay
disks_below
# late DISK SIZE READS WRITES: a table whose reads and writes take so many milliseconds.
late() { echo "0 $2 delay $1 0 $3 $1 0 $4"; }
set=00000000-0000-4000-8000-000000000001
engine() {
  setsid bcache-engine --set $set --answer-within 20 --missing-cache-timeout 3 >> /run/bcache/$set.log 2>&1 < /dev/null &
  await listens
}
logged() { grep -q "$1" /run/bcache/$set.log; }
leads() { dmsetup table bcache0 | grep -Eq "$1"; }
straight=' linear 25[0-9]:[0-9]+ 16$' cached=' linear (259|43):'
is_held() { [[ $(dmsetup info -c --noheadings -o suspended bcache0) == Suspended ]]; }
is_free() { ! is_held; }

mkdir -m 700 /run/bcache
make-bcache -b 128k --cset-uuid $set -C /dev/mapper/fast -B /dev/mapper/slow > /dev/null
uuid=$(bcache show /dev/mapper/slow | awk '/dev.uuid/ {print $2}')
engine
bcache-register --wait /dev/mapper/fast /dev/mapper/slow > /dev/null
await serves bcache0
bcache set sequential_cutoff=0 congested_read_threshold_us=0 congested_write_threshold_us=0
put 1 2
holds 1 2

# Somebody drops the new table while the device is being detached: it is not taken for the one in force.
detach_until_held() {
  dmsetup suspend --noflush --nolockfs fast
  bcache detach bcache0 2> /tmp/detached & detaching=$!
  await is_held
}
detach_until_held
dmsetup clear bcache0
dmsetup resume fast
if wait $detaching; then exit 1; fi
grep -q 'tries again' /tmp/detached
holds 1 2
await leads "$straight"
holds 1 2
bcache attach /dev/mapper/slow
leads "$cached"

# Who registers a device that is being detached lets nobody go who is held back.
detach_until_held
timeout 20 bcache-register /dev/mapper/slow > /dev/null 2>&1 || true
is_held
dmsetup resume fast
wait $detaching
await leads "$straight"
holds 1 2

# Killed at that moment, it is attached or detached afterwards, and answers.
bcache attach /dev/mapper/slow
bcache set sequential_cutoff=0
detach_until_held
kill_engine
dmsetup resume fast
wait $detaching || true
engine
await is_free
bcache-register --wait /dev/mapper/fast /dev/mapper/slow > /dev/null 2>&1 || true
holds 1 2
leads "$straight" || bcache detach bcache0
leads "$straight"

# What a process that is gone held back, of whatever set, an engine that starts lets go; what an administrator did, not.
bcache stop
await no_engine
dmsetup suspend --noflush --nolockfs bcache0
engine
sleep 2
is_held
kill_engine
touch /run/bcache/$uuid.held
engine
await is_free
[[ ! -e /run/bcache/$uuid.held ]]
bcache-register --wait /dev/mapper/fast > /dev/null
holds 1 2

# A device whose name cannot lead elsewhere yet is answered from its disk alone, which nobody else can have, and is attached again:
# what is on its way to the disk is not overtaken by a read that keeps the older data.
bcache attach /dev/mapper/slow
bcache set sequential_cutoff=0
detach_until_held
below slow "0 $((slow_size - 4096)) linear /dev/vdb 0"
dmsetup resume fast
if wait $detaching; then exit 1; fi
bcache status | grep -q '/dev/mapper/bcache0  answered from /dev/mapper/slow alone'
claimed() { ! python3 -c 'import os; os.open("/dev/mapper/slow", os.O_RDONLY | os.O_EXCL)' 2> /dev/null; }
await claimed
put 9
holds 9
below slow "$(late /dev/vdb "$slow_size" 0 3000)"
put 9 & writing=$!
timeout 60 bcache attach /dev/mapper/slow
get 9 > /dev/null
wait $writing
below slow "$slow_works"
leads "$cached"
holds 1 2 9
get 9 > /dev/null
holds 1 2 9

# The cache fails, and while the name is on its way to the disk somebody wants to stop the set.
sleep 1000 < /dev/mapper/bcache0 & holder=$!
below slow "$(late /dev/vdb "$slow_size" 3000 0)"
below fast "0 $cache_size error"
# What is cached has to be forgotten first.
put 1
await logged 'the cache failed'
refused 'in use\|takes long' bcache stop
below slow "$slow_works"
holds 1 2 9
await leads "$straight"
holds 1 2 9
kill $holder

# A set that is being stopped is not served again by an upgrade.
below fast "$fast_works"
bcache-register --wait /dev/mapper/fast > /dev/null
await leads "$cached"
holds 1 2 9
put 3 4
below fast "$(late /dev/vda "$cache_size" 0 2000)"
bcache stop & stopping=$!
await gone /dev/mapper/bcache0
refused 'stopped' bcache upgrade
wait $stopping
below fast "$fast_works"
stays_stopped
bcache fsck -n /dev/mapper/fast /dev/mapper/slow

# What nobody uses any more keeps nobody from an upgrade.
engine
bcache-register --wait /dev/mapper/fast /dev/mapper/slow > /dev/null
await serves bcache0
echo /dev/was-here-once >> /run/bcache/$set.parts
bcache upgrade
holds 1 2 3 4 9

# Partitions on a volume go with it, unless somebody uses them.
bcache volume create -l vol 8M
dmsetup create volp1 --uuid "part1-$(dmsetup info -c --noheadings -o uuid vol)" --table '0 2048 linear /dev/mapper/vol 2048'
dmsetup mknodes
sleep 1000 < /dev/mapper/volp1 & holder=$!
refused vol bcache volume remove --yes vol
dmsetup info volp1 > /dev/null
kill $holder
wait $holder || true
bcache volume remove --yes vol
gone '/dev/mapper/vol*'

# A volume becomes larger under a file system on it, and smaller when nobody uses it; what was cut off does not come back.
bcache volume create -l vol 8M
mkfs.ext4 -q /dev/mapper/vol
mkdir -p /mnt/vol
mount /dev/mapper/vol /mnt/vol
write_file /mnt/vol/file 1M
bcache set --device vol size=16M
[[ $(blockdev --getsize64 /dev/mapper/vol) == $((16 << 20)) ]]
resize2fs /dev/mapper/vol 2> /dev/null
write_file /mnt/vol/more 8M
refused 'in use' bcache set --device vol size=8M
kill_engine
engine
bcache-register --wait /dev/mapper/fast /dev/mapper/slow > /dev/null
echo 3 > /proc/sys/vm/drop_caches
check_files
[[ $(blockdev --getsize64 /dev/mapper/vol) == $((16 << 20)) ]]
umount /mnt/vol
e2fsck -fn /dev/mapper/vol > /dev/null
rm /tmp/sums
bcache set --device vol size=4M
[[ $(blockdev --getsize64 /dev/mapper/vol) == $((4 << 20)) ]]
bcache set --device vol size=8M
[[ $(dd if=/dev/mapper/vol bs=1M skip=4 iflag=direct status=none | tr -d '\0' | wc -c) == 0 ]]
refused 'at least one block' bcache set --device vol size=0
refused 'size of its backing device' bcache set --device bcache0 size=8M
bcache volume remove --yes vol

# A copy of a disk is not attached in the place of the disk, which a name leads to; one that was plugged in anew is.
bcache detach bcache0
lo 1 200
dd if=/dev/vdb of=/dev/loop1 bs=1M status=none
refused 'one of the two is a copy' bcache attach /dev/loop1
holds 1 2 3 4 9
bcache attach /dev/mapper/slow
refused 'already\|copy' bcache attach /dev/loop1
holds 1 2 3 4 9
bcache stop
await no_engine
bcache fsck -n /dev/mapper/fast /dev/mapper/slow
no_kernel_complaints
