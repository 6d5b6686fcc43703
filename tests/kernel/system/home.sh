# What somebody who comes from bcache-tools, or whose disks are not plain ones, finds: refusals before anything is written,
# sizes and limits as under Linux's own bcache, the commands of bcache-tools 1.1, settings that last.
load_bcache
modprobe -a sd_mod loop
modprobe null_blk nr_devices=0
mkdir -p /mnt/x
nothing_written() { cmp -n 1M "$1" /dev/zero; }

# Read-only, in the kernel's eyes or the driver's, is told before the other devices are written.
blockdev --setro /dev/vdb
refused '/dev/vdb is read-only' make-bcache -C /dev/vda -B /dev/vdb
blockdev --setrw /dev/vdb
nothing_written /dev/vda
nothing_written /dev/vdb
zoned=/sys/kernel/config/nullb/zoned
mount -t configfs none /sys/kernel/config 2> /dev/null || true
mkdir $zoned
for setting in size=64 blocksize=4096 zoned=1 zone_size=4 memory_backed=1 power=1; do
  echo "${setting#*=}" > "$zoned/${setting%=*}"
done
zoned=/dev/zoned
refused 'host-managed zoned' make-bcache -C /dev/vda -B "$zoned"
nothing_written /dev/vda

# A disk with stripes of 1 MiB: data begins where one does, and requests are best as long as one.
modprobe scsi_debug delay=0 dev_size_mb=160 sector_size=512 physblk_exp=3 opt_blks=2048
await compgen -G '/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/sd*' > /dev/null
sd=/dev/$(basename /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/sd*)
make-bcache -b 64k -w 4k -C /dev/vda -B "$sd" | grep -P '^data_offset:\t\t2048$'
limits() { (cd "/sys/block/$(basename "$(readlink -f "$1")")" && grep . size queue/{read_ahead_kb,{optimal,minimum}_io_size,{logical,physical}_block_size,discard_granularity}); }
bcache-register --engine kernel /dev/vda "$sd"
await test -b /dev/bcache0
limits /dev/bcache0 > /tmp/kernel
stop_bcache
bcache-register --wait /dev/vda "$sd" > /dev/null
limits /dev/mapper/bcache0 > /tmp/ours
diff /tmp/kernel /tmp/ours
bcache stop > /dev/null
wipefs -qa "$sd"

# A disk that is three sectors longer than whole blocks has one size, with a cache and without.
truncate -s $(((100 << 20) + 3 * 512)) /dev/shm/odd
losetup /dev/loop0 /dev/shm/odd
wipefs -qa /dev/vda
make-bcache -b 64k -w 4k --writeback -C /dev/vda -B /dev/loop0 > /dev/null
bcache-register --wait /dev/vda /dev/loop0 > /dev/null
attached=$(blockdev --getsize64 /dev/mapper/bcache0)
bcache detach bcache0 > /dev/null
[[ $(blockdev --getsize64 /dev/mapper/bcache0) == "$attached" ]]
bcache stop --all > /dev/null
losetup -d /dev/loop0

# The commands of bcache-tools 1.1, by a guide's own lines.
wipefs -qa /dev/vda /dev/vdb
bcache make -C /dev/vda > /dev/null
bcache register /dev/vda > /dev/null
bcache make -B /dev/vdb > /dev/null
bcache register /dev/vdb > /dev/null
await test -e /dev/mapper/bcache0
bcache show | grep -P '^/dev/vdb\t1 \(data\)\tno cache\(running\)\tbcache0 +\tAlone$'
bcache show | grep -P '^/dev/vda\t[03] \(cache\)\tactive +\tN/A +\tN/A$'
bcache attach /dev/vda /dev/vdb > /dev/null
bcache set-cachemode /dev/vdb writeback
[[ $(bcache get --device bcache0 cache_mode) == writeback ]]
refused 'one of writethrough' bcache set-cachemode /dev/vdb fast
bcache show | grep -P '^/dev/vdb\t1 \(data\)\tclean\(running\) *\tbcache0 +\t/dev/vda$'
[[ $(bcache show -m | awk '$1 == "/dev/vdb" {print $NF}') == "$(bcache show -d /dev/vda | awk '$1 == "cset.uuid" {print $2}')" ]]
[[ $(bcache tree) == $'.\n/dev/vda\n└─/dev/vdb bcache0' ]]
bcache version | grep -q '^bcache-tools 1\.1'
[[ $(bcache get --device bcache0 cache_mode label | sort) == $'bcache0 cache_mode=writeback\nbcache0 label=' ]]

# A label is the name at once where nobody uses the device, and else from the next start on.
bcache set-label /dev/vdb films
[[ -e /dev/mapper/films && ! -e /dev/mapper/bcache0 ]]
mkfs.ext4 -q /dev/mapper/films
mount /dev/mapper/films /mnt/x
write_file /mnt/x/file 1M
bcache set-label /dev/vdb books
[[ -e /dev/mapper/films && ! -e /dev/mapper/books ]]
kill_engine
bcache-register --wait /dev/vda /dev/vdb > /dev/null
check_files
umount /mnt/x
bcache stop > /dev/null
bcache-register --wait /dev/vda /dev/vdb > /dev/null
[[ -e /dev/mapper/books ]]

# Letting one go, as a cache or as a backing device.
bcache unregister /dev/vdb > /dev/null
await no_engine
bcache-register --wait /dev/vda /dev/vdb > /dev/null
bcache detach /dev/vdb > /dev/null
bcache unregister /dev/vda > /dev/null
await no_engine
bcache show | grep -P '^/dev/vdb\t1 \(data\)\tno cache\(running\)'
bcache unregister /dev/vdb > /dev/null
[[ ! -e /dev/mapper/books ]]
[[ -z $(ls /run/bcache/*.pid /run/bcache/*.sock 2> /dev/null) ]]
no_kernel_complaints
