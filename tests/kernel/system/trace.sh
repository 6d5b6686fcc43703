# Plays traces on the kernel's bcache and on ours, on equal sets, and says what each made of them. The settings come in
# the variable traces, one row each: trace, replacement policy, cache mode, sequential cutoff.
load_bcache
counters=(cache_hits cache_misses cache_bypass_hits cache_bypass_misses bypassed)
# The cache is as large as the trace wants it: all of the disk, or too small.
make_set() { # TRACE POLICY
  local sectors bucket
  case $1 in
    streams) sectors=$(blockdev --getsz /dev/vda) bucket=64k ;;
    evictions) sectors=65536 bucket=8k ;;
  esac
  dmsetup remove --retry cache 2> /dev/null || true
  blkdiscard -f /dev/vda 2> /dev/null
  blkdiscard -f /dev/vdb 2> /dev/null
  dmsetup create cache --table "0 $sectors linear /dev/vda 0"
  dmsetup mknodes
  make-bcache --cache-replacement-policy "$2" -b $bucket -C /dev/mapper/cache -B /dev/vdb > /dev/null
}
content() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1; }

by_kernel() { # TRACE MODE CUTOFF
  local at=/sys/block/bcache0/bcache name
  register /dev/mapper/cache /dev/vdb
  readable() { head -c 4096 /dev/bcache0 > /dev/null 2>&1; }
  await readable
  echo 0 > $at/writeback_running
  echo "$2" > $at/cache_mode
  echo "$3" > $at/sequential_cutoff
  for name in read write; do echo 0 > "$at/cache/congested_${name}_threshold_us"; done
  echo 1 > $at/clear_stats
  trace "$1" /dev/bcache0
  # The kernel adds up what it counted every 300/22 seconds.
  sleep 15
  for name in "${counters[@]}"; do printf ' %s' "$(cat $at/stats_total/$name)"; done
  echo " $(content /dev/bcache0)"
  stop_bcache
}

by_engine() { # TRACE MODE CUTOFF
  local device=/dev/mapper/bcache0 name
  start_engine /dev/mapper/cache /dev/vdb
  bcache set --device bcache0 writeback_running=0 "cache_mode=$2" "sequential_cutoff=$3"
  bcache set congested_read_threshold_us=0 congested_write_threshold_us=0
  bcache set --device bcache0 clear_stats=1
  trace "$1" $device
  for name in "${counters[@]}"; do printf ' %s' "$(bcache get --device bcache0 stats_total/$name)"; done
  echo " $(content $device)"
  bcache stop --all > /dev/null
  await no_engine
}

while read -r trace policy mode cutoff; do
  make_set "$trace" "$policy"
  printf 'kernel %s %s %s %s' "$trace" "$policy" "$mode" "$cutoff"
  by_kernel "$trace" "$mode" "$cutoff"
  make_set "$trace" "$policy"
  printf 'engine %s %s %s %s' "$trace" "$policy" "$mode" "$cutoff"
  by_engine "$trace" "$mode" "$cutoff"
done <<< "$traces"
no_kernel_complaints
