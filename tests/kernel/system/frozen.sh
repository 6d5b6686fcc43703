# Whatever fails, every request ends, with data or with an error; what is said of it is so; and what needs no cache goes on.
disks_below
modprobe loop
set=00000000-0000-4000-8000-000000000001
# Starts an engine that does not wait long.
engine() {
  setsid bcache-engine --set $set --answer-within 3 --missing-cache-timeout 3 >> /run/bcache/$set.log 2>&1 < /dev/null &
  await listens
}
uuid_of() { bcache show "$1" | awk '/dev.uuid/ {print $2}'; }
says() { bcache status | grep -q "$1"; }
never_says() { ! says "$1"; }
leads() { dmsetup table bcache0 | grep -Eq "$1"; }
straight=' linear 25[0-9]:[0-9]+ 16$' cached=' linear (259|43):'

mkdir -m 700 /run/bcache
lo 1 64
make-bcache --writeback --cset-uuid $set -C /dev/mapper/fast -B /dev/mapper/slow > /dev/null
make-bcache --writeback --cset-uuid $set -B /dev/loop1 > /dev/null
engine
bcache-register --wait /dev/mapper/fast /dev/mapper/slow /dev/loop1 > /dev/null
await serves bcache1
bcache set writeback_running=0 sequential_cutoff=0
put 1 2
holds 1 2

# The block device below has nothing to be found on, and takes nothing.
front=/dev/$(basename "$(ls -d /sys/block/ublkb* | head -n 1)")
[[ $(head -c 1M "$front" | tr -d '\0' | wc -c) == 0 ]]
if dd if=/dev/zero of="$front" bs=4k count=1 oflag=direct conv=notrunc 2> /dev/null; then exit 1; fi

# The cache is gone, with dirty data in it, and the engine starts again: errors, and no silence.
below fast "0 $cache_size error"
kill_engine
engine
await says 'waits for the cache'
if timeout 20 dd if=/dev/mapper/bcache0 of=/dev/null bs=4k count=1 iflag=direct 2> /tmp/said; then exit 1; fi
grep -q 'Input/output error' /tmp/said
refused 'cache is not there' bcache unregister
await test -e /run/bcache/$set.devices
# It comes back, and with it what was dirty.
below fast "$fast_works"
bcache-register --wait /dev/mapper/fast > /dev/null
await serves bcache1
holds 1 2

# A disk that hangs holds up its own device alone, also where the engine starts again.
dmsetup suspend --noflush --nolockfs slow
kill_engine
engine
await serves bcache1
timeout 20 dd if=/dev/mapper/bcache1 of=/dev/null bs=4k count=1 iflag=direct status=none
refused 'does not answer' bcache upgrade
dmsetup resume slow
await serves bcache0
holds 1 2

# What somebody else suspended stays so, and nobody waits for it but who uses it.
dmsetup suspend bcache0
kill_engine
engine
await serves bcache1
await serves bcache0
[[ $(dmsetup info -c --noheadings -o suspended bcache0) == Suspended ]]
refused 'suspended' bcache stop
timeout 20 dd if=/dev/mapper/bcache1 of=/dev/null bs=4k count=1 iflag=direct status=none
dmsetup resume bcache0
holds 1 2

# A program that cannot run, and one that is missing, do not take the place of one that does.
mkdir -p /opt/other
cp "$(command -v bcache)" /opt/other/
before=$(engine_pid)
refused 'goes on' /opt/other/bcache upgrade
printf '\177ELF broken' > /opt/other/bcache-engine
chmod +x /opt/other/bcache-engine
refused 'goes on' /opt/other/bcache upgrade
[[ $(engine_pid) == "$before" ]]
holds 1 2

# Whoever says nothing, half a line or too much keeps nobody else from asking.
python3 - /run/bcache/$set.sock << 'PYTHON'
import socket, sys
idle = []
for n in range(64):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    if n % 2: s.sendall(b'{"command":')
    idle.append(s)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(60)
try:
    for n in range(1024): s.sendall(bytes(1 << 20))
    raise SystemExit('a gigabyte was taken')
except OSError: pass
PYTHON
await listens

# One set that is in use keeps no other from being stopped, and goes on.
lo 2 96
lo 3 32
make-bcache -b 128k -l other -C /dev/loop2 -B /dev/loop3 > /dev/null
bcache-register --wait /dev/loop2 /dev/loop3 > /dev/null
await serves other
exec 9< /dev/mapper/bcache1
refused 'bcache1 is in use' bcache stop --all
gone /dev/mapper/other
holds 1 2
exec 9<&-
# A copy of a disk is not taken for the disk.
bcache-register --without-cache /dev/loop3 > /dev/null
cp /dev/shm/3 /dev/shm/4
losetup /dev/loop4 /dev/shm/4
refused 'one of the two is a copy' bcache-register /dev/loop4
bcache stop other

# A device that is not there is told with what only the cache has of it, and given up only in so many words.
dd if=/dev/urandom of=/dev/mapper/bcache1 bs=64k count=16 oflag=direct conv=notrunc status=none
bcache stop
await no_engine
engine
bcache-register --wait /dev/mapper/fast /dev/mapper/slow > /dev/null
await serves bcache0
absent=$(uuid_of /dev/loop1)
says "$absent .*not there"
refused "$absent" bcache unregister
refused 'cache alone' bcache forget "$absent"
bcache forget --lose-dirty-data "$absent"
never_says "$absent"
holds 1 2
bcache unregister
await no_engine
leads "$straight"
holds 1 2

# A cache that fails is nothing to a mounted file system that has nothing dirty in it.
engine
bcache-register --wait /dev/mapper/fast > /dev/null
bcache attach /dev/mapper/slow
bcache set cache_mode=writethrough sequential_cutoff=0
leads "$cached"
put 3
holds 3

# A table that the kernel refuses at the last moment: the device is detached, nobody waits for it, and its engine answers until
# the name can lead elsewhere.
dmsetup suspend --noflush --nolockfs fast
bcache detach bcache0 2> /tmp/detached & detaching=$!
is_held() { [[ $(dmsetup info -c --noheadings -o suspended bcache0) == Suspended ]]; }
await is_held
below slow "0 $((slow_size - 4096)) linear /dev/vdb 0"
dmsetup resume fast
if wait $detaching; then exit 1; fi
grep -q 'tries again' /tmp/detached
! is_held
leads "$cached"
holds 1 2 3
put 3
below slow "$slow_works"
await leads "$straight"
holds 1 2 3
bcache attach /dev/mapper/slow
leads "$cached"
holds 1 2 3

# An engine that is stopped in its tracks is told from one that works, and holds up no command.
pkill -STOP -x bcache-engine
refused 'does not answer' timeout 60 bcache set sequential_cutoff=0
refused 'does not answer' timeout 60 bcache stop --all
pkill -CONT -x bcache-engine
# What was asked of it meanwhile, by who has given up, is not done behind their back.
await serves bcache0
sleep 3
serves bcache0
holds 1 2 3
mkfs.ext4 -q -E offset=$((32 << 20)) /dev/mapper/bcache0 100m
mkdir -p /mnt/x
losetup -o $((32 << 20)) /dev/loop5 /dev/mapper/bcache0
mount /dev/loop5 /mnt/x
write_file /mnt/x/before 2M
below fast "0 $cache_size error"
write_file /mnt/x/after 2M
put 3
holds 1 2 3
await leads "$straight"
await says 'goes on without cache'
write_file /mnt/x/alone 2M
grep -q ' /mnt/x ext4 rw' /proc/mounts
bcache show /dev/mapper/slow | grep -q 'cache_state.*\[inconsistent\]'
# It comes back: what was written meanwhile is there, and nothing of what the cache had.
below fast "$fast_works"
bcache-register --wait /dev/mapper/fast > /dev/null
await leads "$cached"
holds 1 2 3
echo 3 > /proc/sys/vm/drop_caches
check_files
umount /mnt/x
losetup -d /dev/loop5
await bcache stop
await no_engine

# A cache that does not come is not waited for by what has nothing dirty in it.
engine
bcache-register /dev/mapper/slow > /dev/null
await test -e /dev/mapper/bcache0
leads "$straight"
holds 1 2 3
bcache show /dev/mapper/slow | grep -q 'cache_state.*\[inconsistent\]'
bcache stop --all
await no_engine
bcache fsck -n /dev/mapper/fast /dev/mapper/slow
no_kernel_complaints
