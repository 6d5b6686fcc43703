# The machine has started again. The file system is in /etc/fstab, and nobody has called anything.
await findmnt -n /srv/data
sha256sum --quiet -c /root/sums
await systemctl is-active 'bcache@*'
bcache status
systemctl --no-pager --failed --plain --no-legend | tee /tmp/failed
[[ ! -s /tmp/failed ]]
# The journal of the start before: the file system was unmounted while its device was still served.
dmesg | grep 'EXT4-fs (dm-0)'
if dmesg | grep 'EXT4-fs (dm-0): recovery'; then exit 1; fi
no_kernel_complaints
