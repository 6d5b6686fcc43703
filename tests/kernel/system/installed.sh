# The README's commands have run.
findmnt -n -o SOURCE,FSTYPE /srv/data | grep -q '^/dev/mapper/data *ext4'
head -c 5M /dev/urandom > /srv/data/file
sha256sum /srv/data/file > /root/sums
set=$(bcache status --json | grep -oE '"set":"[^"]*"' | head -n 1 | cut -d'"' -f4)
[[ $(systemctl is-active "bcache@$set") == active ]]
[[ -e /dev/bcache/by-label/data ]]
# Nothing is unmounted, nothing is stopped: the machine is shut down now as its owner would.
no_kernel_complaints
