# The machine goes to sleep, as far as its processes are frozen, $1 times, with fio on a device of ours: what udev/system-sleep
# does keeps anybody from waiting for an engine that is frozen.
mkdir -p /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null || true
mkdir -p /sys/fs/cgroup/{load,rest}
echo $$ > /sys/fs/cgroup/rest/cgroup.procs
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vda /dev/vdb
# A thread of the kernel fills tables of inodes all the while.
mkfs.ext4 -q -g 256 -i 1024 -E lazy_itable_init=1 /dev/mapper/bcache0
where='/mnt/a x'
mkdir -p "$where"
mount -o init_itable=2 /dev/mapper/bcache0 "$where"
write_file "$where/before" 2M
loaded() {
  echo $BASHPID > /sys/fs/cgroup/load/cgroup.procs
  fio_passes --directory="$where" --numjobs=2 --fsync=32
}
loaded & load=$!
sleep 3
echo freezer > /sys/power/pm_test
echo 1 > /sys/module/suspend/parameters/pm_test_delay 2> /dev/null || true
hook() { sh "$(dirname "${BASH_SOURCE[0]}")/../../../udev/system-sleep" "$1"; }
for ((n = 1; n <= $1; n++)); do
  hook pre
  echo freeze > /sys/power/state || { dmesg | tail -n 40; hook post; exit 1; }
  hook post
  pgrep ext4lazyinit > /tmp/lazy || [[ $n != 1 ]]
  [[ $(cat /sys/fs/cgroup/load/cgroup.freeze) == 0 ]]
  sleep 0.5
  kill -0 $load
done
touch /tmp/enough
wait $load
check_files
# Where nobody has a device there is nothing to do, and what is unknown is told.
umount /dev/mapper/bcache0
bcache stop --all
hook pre
[[ $(cat /sys/fs/cgroup/load/cgroup.freeze) == 0 ]]
if hook other 2> /dev/null; then exit 1; fi
no_kernel_complaints
