# Without root an engine serves files over NBD; the kernel's own client makes a block device of it, with a file system.
modprobe nbd nbds_max=1
mkdir -m 777 /tmp/served
socket=/tmp/served/socket
# What nobody is allowed to do, serving must do without.
nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all)
cd /tmp/served
"${nobody[@]}" truncate -s 300M cache
"${nobody[@]}" truncate -s 200M backing
"${nobody[@]}" make-bcache --writeback -C cache -B backing > /dev/null
serving() {
  "${nobody[@]}" bcache serve --nbd $socket --set sequential_cutoff=0 cache backing > served.log 2>&1 & server=$!
  await test -S $socket
  nbd-client -unix $socket /dev/nbd0 -block-size 4096 > /dev/null
}
ended() {
  nbd-client -d /dev/nbd0 > /dev/null
  kill -TERM $server
  wait $server || { cat served.log; return 1; }
}

mkdir -p /mnt/x
serving
mkfs.ext4 -q /dev/nbd0
mount -o discard /dev/nbd0 /mnt/x
write_file /mnt/x/file 20M
touch /tmp/enough
fio_passes --directory=/mnt/x
rm /mnt/x/load*
fstrim /mnt/x
umount /mnt/x
e2fsck -fn /dev/nbd0
ended

# Another server, the same content.
serving
mount /dev/nbd0 /mnt/x
check_files
umount /mnt/x
e2fsck -fn /dev/nbd0
ended
bcache fsck -n cache backing
