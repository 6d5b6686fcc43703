# The root file system is on a cached device: initrds led to it.
findmnt -n -o SOURCE / | grep -q '^/dev/mapper/system$'
# The engine that the initramfs started is still there, and the only one, longer than systemd waits to hear from it.
sleep 20
[[ $(pgrep -c -f '^@bcache-engine') == 1 ]]
bcache status
bcache status --json | grep -q '"state":"dirty"'
head -c 20M /dev/urandom > /file
sync
sum=$(sha256sum < /file)
echo 3 > /proc/sys/vm/drop_caches
[[ $(sha256sum < /file) == "$sum" ]]
bcache set sequential_cutoff=1M
[[ $(bcache get sequential_cutoff) == 1048576 ]]
# Its initramfs is gone, but not what it needs of the system.
[[ $(bcache volume create --label extra 8M) == /dev/mapper/extra ]]
bcache volume remove --yes extra
# It knows its parts, which udev has announced once more since.
bcache-register /dev/vda /dev/vdb
! bcache status | grep failed
# It can be replaced, though all programs are on its own device: none is in memory but those that run.
before=$(engine_pid)
sync
echo 3 > /proc/sys/vm/drop_caches
bcache upgrade
[[ $(engine_pid) != "$before" ]]
[[ $(sha256sum < /file) == "$sum" ]]
systemctl --no-pager --failed --plain --no-legend | tee /tmp/failed
[[ ! -s /tmp/failed ]]
if journalctl --no-pager -b -u 'bcache@*' | grep 'Watchdog timeout'; then exit 1; fi
no_kernel_complaints
