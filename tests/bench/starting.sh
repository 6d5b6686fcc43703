# How long it takes from registering the devices of a set to its block device, ours and the kernel's in turns: the bare disks
# /dev/vda and /dev/vdb. Arguments: programs, rounds. Says `SYSTEM<TAB>seconds` each time.
bin=$1 rounds=$2
export PATH=$bin:$PATH
modprobe -a dm_mod ublk_drv
load_bcache
clean_page_cache() { echo 3 > /proc/sys/vm/drop_caches; }
since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.3f\n", b - a}'; }
for ((round = 0; round < rounds; round++)); do
  clean_page_cache
  start=$EPOCHREALTIME
  bcache-register --wait /dev/vda /dev/vdb > /dev/null
  [[ $(echo /dev/mapper/bcache*) != *'*' ]]
  printf 'ours\t%s\n' "$(since "$start")"
  bcache stop --all > /dev/null
  clean_page_cache
  start=$EPOCHREALTIME
  register /dev/vda /dev/vdb
  await test -e /dev/bcache0
  printf 'kernel\t%s\n' "$(since "$start")"
  stop_bcache
done
