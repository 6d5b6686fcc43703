# The kernel's bcache and ours take turns with a set.
load_bcache
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
mkdir -p /mnt/x
kernels_turn() {
  bcache-register --engine kernel /dev/vda /dev/vdb
  await test -e /dev/bcache0
  await test -e /sys/block/bcache0/bcache/cache
  refused "kernel's bcache has it" bcache-register /dev/vdb
  bcache status | grep -q 'by the kernel'
  use /dev/bcache0 "kernel$1"
  await try_register_gone
}
try_register_gone() { stop_bcache; }
ours() {
  await try_ours
  await test -e /dev/mapper/bcache0
  await serves bcache0
  refused 'served by bcache-engine' bcache-register --engine kernel /dev/vdb
  use /dev/mapper/bcache0 "ours$1"
  bcache stop --all
  await no_engine
}
# The kernel lets go of a stopped device a moment after it says so.
try_ours() { bcache-register /dev/vdb /dev/vda 2> /dev/null; }
use() {
  if [[ ! -e /tmp/sums ]]; then mkfs.ext4 -q "$1"; else e2fsck -fn "$1" > /dev/null; fi
  mount "$1" /mnt/x
  [[ ! -e /tmp/sums ]] || check_files
  write_file "/mnt/x/$2" 3M
  umount /mnt/x
}
for ((turn = 1; turn <= $1; turn++)); do
  kernels_turn "$turn"
  ours "$turn"
done
bcache fsck -n /dev/vda /dev/vdb
no_kernel_complaints
