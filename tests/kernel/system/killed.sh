# A file system on a device of ours, written to while the engine is killed and comes back.
kills=$1
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
bcache-register /dev/vda /dev/vdb
await test -e /dev/mapper/bcache0
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 4M
fio --name=load --directory=/mnt/x --size=24M --rw=randrw --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 \
  --verify=crc32c --verify_fatal=1 --time_based --runtime=$((5 + 4 * kills)) --output=/tmp/fio.out &
load=$!
for ((kill = 1; kill <= kills; kill++)); do
  sleep 3
  kill_engine
  bcache-register /dev/vdb
done
wait "$load" || { cat /tmp/fio.out; exit 1; }
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0
bcache stop --all
gone '/dev/mapper/bcache*'
gone '/dev/ublkb*'
await no_engine
bcache fsck -n /dev/vda /dev/vdb
no_kernel_complaints
