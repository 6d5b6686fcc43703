# The root file system is on a cached device whose cache is not there: straight on the backing device.
[[ $(findmnt -n -o SOURCE /) == /dev/mapper/system ]]
dmsetup table system | grep -q " linear $(cat /sys/class/block/vda/dev) 16"
cut -d' ' -f1 /proc/uptime
head -c 4M /dev/urandom > /file
sync
