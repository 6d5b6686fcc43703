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
# It knows its parts, which udev has announced once more since.
bcache-register /dev/vda /dev/vdb
! bcache status | grep failed
systemctl --no-pager --failed --plain --no-legend | tee /tmp/failed
[[ ! -s /tmp/failed ]]
if journalctl --no-pager -b -u 'bcache@*' | grep 'Watchdog timeout'; then exit 1; fi
no_kernel_complaints
