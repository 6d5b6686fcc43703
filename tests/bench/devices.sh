# Measures block devices beside each other in the emulated machine, all of them on RAM disks: ours, the kernel's bcache,
# dm-writecache, dm-cache, devices whose process does nothing (ours, and rublk's), and the RAM disk itself.
#
# Arguments: programs, rounds, milliseconds of each load, then `load` lines as `rw bs depth fsync`. Says one line a measurement:
# `SYSTEM<TAB>LOAD<TAB>I/Os a second<TAB>microseconds of processor time an I/O`; then what the cache is asked for.
bin=$1 rounds=$2 ms=$3
shift 3
export PATH=$bin:$bin/examples:$PATH
size=64m
modprobe -a dm_mod ublk_drv sd_mod dm_writecache dm_cache dm_cache_smq
modprobe brd rd_nr=11 rd_size=$((192 << 10))
load_bcache

# A set of ours, and of the kernel's: nothing goes past the cache, and nothing is written back.
start_ours() {
  bcache-register --wait "$@" > /dev/null
  bcache set sequential_cutoff=0 writeback_running=0 congested_read_threshold_us=0 congested_write_threshold_us=0
}
start_kernels() {
  local file
  register "$@"
  await test -e /dev/bcache0
  echo 0 > /sys/block/bcache0/bcache/sequential_cutoff
  echo 0 > /sys/block/bcache0/bcache/writeback_running
  for file in /sys/fs/bcache/*-*/congested_*; do echo 0 > "$file"; done
}

declare -A at=([raw]=/dev/ram4)
make-bcache --writeback -b 256k -l ours -C /dev/ram0 -B /dev/ram1 > /dev/null
start_ours /dev/ram0 /dev/ram1
await test -e /dev/mapper/ours
at[ours]=/dev/mapper/ours
make-bcache --writeback -b 256k -C /dev/ram2 -B /dev/ram3 > /dev/null
start_kernels /dev/ram2 /dev/ram3
at[kernel]=/dev/bcache0
sectors=$(blockdev --getsz /dev/ram6)
if dmsetup create writecache --table "0 $sectors writecache s /dev/ram5 /dev/ram6 4096 0"; then
  at[writecache]=/dev/mapper/writecache
fi
if dmsetup create dmcache --table "0 $sectors cache /dev/ram7 /dev/ram8 /dev/ram9 512 1 writeback default 0"; then
  at[dmcache]=/dev/mapper/dmcache
fi
ublk-null $((192 << 20)) > /tmp/null & null=$!
await test -s /tmp/null
dmsetup create empty --table "0 $sectors linear $(< /tmp/null) 0"
at[empty]=/dev/mapper/empty
# The null target of rublk, where that could be built.
rublk=${bin%/*}/tmp/rublk/bin/rublk
if [[ -x $rublk ]]; then
  "$rublk" add null --number 40 --quiet > /dev/null
  await test -b /dev/ublkb40
  dmsetup create rublk --table "0 $sectors linear /dev/ublkb40 0"
  at[rublk]=/dev/mapper/rublk
fi
dmsetup mknodes

fio_on() { fio --name=x --ioengine=libaio --direct=1 --size=$size --filename="$1" --minimal --terse-version=3 "${@:2}"; }
# Nanoseconds that processors were not idle.
busy() { awk '/^cpu /{printf "%.0f", ($2 + $3 + $4 + $7 + $8) * 10000000}' /proc/stat; }

for system in "${!at[@]}"; do fio_on "${at[$system]}" --rw=write --bs=64k --iodepth=8 > /dev/null; done

# What starting and ending fio takes of the processors' time.
before=$(busy)
fio_on /dev/ram4 --rw=read --bs=4k --number_ios=1 > /dev/null
idle=$(($(busy) - before))

measure() {
  local name=$1 rw=$2 bs=$3 depth=$4 fsync=$5 before after said
  before=$(busy)
  said=$(fio_on "${at[$name]}" --rw="$rw" --bs="$bs" --iodepth="$depth" --fsync="$fsync" --time_based --runtime="${ms}ms")
  after=$(busy)
  awk -F ';' -v name="$name" -v load="$rw $bs $depth $fsync" -v busy=$((after - before - idle)) -v ms="$ms" \
    '{iops = $8 + $49; printf "%s\t%s\t%.0f\t%.1f\n", name, load, iops, busy / 1000 / (iops * ms / 1000 + 1)}' <<< "$said"
}

systems=(ours kernel empty rublk raw writecache dmcache)
for ((round = 0; round < rounds; round++)); do
  for load in "$@"; do
    # Every other round in the other order.
    order=("${systems[@]}")
    if ((round % 2)); then order=(dmcache writecache raw rublk empty kernel ours); fi
    for system in "${order[@]}"; do
      if [[ ${at[$system]-} ]]; then measure "$system" $load; fi
    done
  done
done

bcache stop --all > /dev/null
stop_bcache
if [[ -x $rublk ]]; then
  dmsetup remove rublk
  "$rublk" del --number 40 > /dev/null
fi
dmsetup remove empty
kill "$null"
wait "$null" || true

# What a disk with a cache of its own is asked for by 500 writes that nobody flushes.
for system in ours kernel; do
  modprobe -r scsi_debug 2> /dev/null || true
  modprobe scsi_debug delay=0 dev_size_mb=160
  sleep 2
  disk=$(grep -l scsi_debug /sys/block/sd*/device/model | head -n 1 | cut -d / -f 4)
  wipefs -aq /dev/ram10 "/dev/$disk"
  make-bcache --writeback -l asked -C "/dev/$disk" -B /dev/ram10 -b 64k -w 4k > /dev/null
  if [[ $system == ours ]]; then
    start_ours "/dev/$disk" /dev/ram10
    device=/dev/mapper/asked
  else
    start_kernels "/dev/$disk" /dev/ram10
    device=/dev/bcache0
  fi
  sleep 1
  count() { awk -v field="$1" '{print $field}' "/sys/block/$disk/stat"; }
  flushes=$(count 16) writes=$(count 5)
  fio --name=x --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=1 --number_ios=500 --size=40m --filename=$device \
    --output=/dev/null
  printf '%s\tasked\t%d\t%d\n' $system $(($(count 16) - flushes)) $(($(count 5) - writes))
  if [[ $system == ours ]]; then bcache stop --all > /dev/null; else stop_bcache; fi
done
