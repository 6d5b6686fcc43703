# The root file system is on a cached device whose cache is not there.
[[ $(findmnt -n -o SOURCE /) == /dev/mapper/system ]]
dmsetup table system | grep -q ' linear 254:0 '
cut -d' ' -f1 /proc/uptime
head -c 4M /dev/urandom > /file
sync
