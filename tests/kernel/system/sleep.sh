# The machine goes to sleep, as far as its processes are frozen, $1 times, with fio on a device of ours: what udev/system-sleep
# does keeps anybody from waiting for an engine that is frozen.
mkdir -p /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null || true
mkdir -p /sys/fs/cgroup/{load,rest}
echo $$ > /sys/fs/cgroup/rest/cgroup.procs
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vda /dev/vdb
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 2M
loaded() {
  echo $BASHPID > /sys/fs/cgroup/load/cgroup.procs
  fio_passes --directory=/mnt/x --numjobs=2 --fsync=32
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
  [[ $(cat /sys/fs/cgroup/load/cgroup.freeze) == 0 ]]
  sleep 0.5
  kill -0 $load
done
touch /tmp/enough
wait $load
check_files
# Where nobody has a device there is nothing to do, and what is unknown is told.
umount /mnt/x
bcache stop --all
hook pre
[[ $(cat /sys/fs/cgroup/load/cgroup.freeze) == 0 ]]
if hook other 2> /dev/null; then exit 1; fi
no_kernel_complaints
