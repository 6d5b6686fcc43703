# What the author of bcache puts a cache through: many devices, one of them a RAID 5, small caches with small journals, volumes
# that the cache has no room for; and while all are written and verified, $1 times one of: a device leaves or comes back, memory
# is taken away, GC runs, a setting gets a value of any size. At the end everything is unregistered under load.
turns=$1
RANDOM=${2:-1}
echo "seed ${2:-1}: suite.sh $turns ${2:-1}"
modprobe -a loop dm-raid
mkdir -m 700 /run/bcache

# Three disks of 24 MiB make a RAID 5 with 48.
for disk in 1 2 3; do lo $disk 25; done
dmsetup create raid --table "0 $((48 << 11)) raid raid5_ls 3 128 region_size 1024 3 - /dev/loop1 - /dev/loop2 - /dev/loop3"
dmsetup mknodes
# Of 544 buckets of 64 KiB four are the journal's.
lo 4 34
lo 5 32
set=00000000-0000-4000-8000-000000000001
tiny=00000000-0000-4000-8000-000000000002
make-bcache --writeback -b 64k --cset-uuid $tiny -C /dev/loop4 -l tiny -B /dev/loop5 > /dev/null
make-bcache --writeback -b 128k --cset-uuid $set -C /dev/vda -l raid5 -B /dev/mapper/raid > /dev/null
declare -A below=([raid5]=/dev/mapper/raid)
for number in {10..23}; do
  lo "$number" 16
  make-bcache --writeback --cset-uuid $set -l "d$number" -B "/dev/loop$number" > /dev/null
  below[d$number]=/dev/loop$number
done
make-bcache --writeback --cset-uuid $set -l large -B /dev/vdb > /dev/null
below[large]=/dev/vdb
names=("${!below[@]}")
bcache-register --wait /dev/vda "${below[@]}" /dev/loop4 /dev/loop5 > /dev/null
for name in "${names[@]}" tiny; do await serves "$name"; done
[[ ${#names[@]} == 16 ]]

mkfs.ext4 -q /dev/mapper/large
mkdir -p /mnt/x
mount /dev/mapper/large /mnt/x
write_file /mnt/x/before 4M

# Every device is written and verified, pass after pass; the large one through its file system.
jobs=(--directory=/mnt/x)
for name in tiny "${names[@]}"; do
  [[ $name == large ]] || jobs+=(--name="$name" --filename="/dev/mapper/$name" --size=4M)
done
fio_passes "${jobs[@]}" & load=$!

is_straight() { ! dmsetup table "$1" | grep -Eq ' linear (259|43):'; }
# Any value: the least, the largest that there is, or one in between.
value() {
  case $((RANDOM % 4)) in
    0) echo 0 ;;
    1) echo 1 ;;
    2) echo 18446744073709551615 ;;
    3) echo $((RANDOM % 100)) ;;
  esac
}
bcache get --set $set --device large | awk '{print $1}' | grep -vE '^(label|size)$' | sort -u > /tmp/settings
mapfile -t settings < /tmp/settings
for ((turn = 1; turn <= turns; turn++)); do
  name=${names[RANDOM % 16]}
  case $((turn % 4)) in
    0) if is_straight "$name"; then bcache attach --set $set "${below[$name]}" > /dev/null; else bcache detach "$name" > /dev/null; fi ;;
    1) for which in $set $tiny; do bcache set --set $which prune_cache=1 trigger_gc=1; done ;;
    # Most of them are read only, or are clamped.
    2) for _ in 1 2 3 4; do bcache set --set $set "${settings[RANDOM % ${#settings[@]}]}=$(value)" &> /dev/null || true; done ;;
    3) bcache set --set $tiny cache_mode="$(shuf -n1 -e writeback writethrough writearound none)" copy_gc_enabled=$((turn / 4 % 2)) btree_cache_bytes=1 ;;
  esac
  kill -0 $load
  sleep 0.5
done

# A volume that the cache has no room for says so, and has room again for what takes the place of what was given up.
bcache set --set $set io_error_limit=8 congested_read_threshold_us=0 congested_write_threshold_us=0
bcache volume create --set $set -l full 400M > /dev/null 2>&1
full() { ! timeout 120 dd if=/dev/urandom of=/dev/mapper/full bs=1M oflag=direct status=none 2> /tmp/said; }
full
# The kernel's NBD client makes one error of all.
if [[ -e /dev/ublk-control ]]; then grep -q 'No space left' /tmp/said; else grep -q 'Input/output error' /tmp/said; fi
kill -0 $load
blkdiscard /dev/mapper/full
head -c 1M /dev/urandom > /tmp/mib
room() { timeout 60 dd if=/tmp/mib of=/dev/mapper/full bs=64k oflag=direct status=none; }
await room
cmp -n 1048576 /tmp/mib /dev/mapper/full
bcache volume remove --yes full

# Everything goes on without its cache, under load.
bcache unregister $set
if listens; then exit 1; fi
for name in "${names[@]}"; do is_straight "$name"; done
kill -0 $load
touch /tmp/enough
wait $load
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/large
for name in "${names[@]}"; do bcache stop "$name"; done
bcache stop $tiny
await no_engine
bcache fsck -n /dev/loop4 /dev/loop5
bcache fsck -n /dev/vda

# Nothing is begun on a disk that takes no writes.
sum=$(sha256sum < /dev/shm/4)
losetup -d /dev/loop4
losetup -r /dev/loop4 /dev/shm/4
status=0
bcache fsck -y /dev/loop4 /dev/loop5 > /tmp/said 2>&1 || status=$?
[[ $status == 8 ]]
grep -q '/dev/loop4: read-only' /tmp/said
[[ $(sha256sum < /dev/shm/4) == "$sum" ]]
no_kernel_complaints
