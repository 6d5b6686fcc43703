# What people put on a cached device, and below one, in a Debian with udev and systemd: one device shows the data, everybody
# finds it by itself, and Linux's own bcache and ours take it from each other. /dev/vda is the cache, /dev/vdb and /dev/vdc are
# backing devices, /dev/vdd is for whatever is below one.
trap 'status=$?; ((status == 0)) || journalctl --no-pager -b -u "bcache@*" -u systemd-udevd | tail -n 40' EXIT
one=/dev/mapper/one two=/dev/mapper/two
mkdir -p /mnt/x
# udev answers late where the machine is slow.
settle() { udevadm settle --timeout=120 || udevadm settle --timeout=120; }
step() { echo "== $* ($SECONDS s)"; }
# found DEVICE: blkid, lsblk and links say one device, and it is this one.
found() {
  local uuid
  settle
  uuid=$(blkid -o value -s UUID "$1")
  [[ $(blkid -U "$uuid") == "$1" ]]
  [[ $(readlink -f "/dev/disk/by-uuid/$uuid") == "$(readlink -f "$1")" ]]
  [[ $(lsblk -nro UUID,KNAME | sort -u | grep -c "^$uuid ") == 1 ]]
}
# used DEVICE FSCK...: a file system is mounted by its UUID, written to, checked, and what it holds is there again.
used() {
  local uuid
  found "$1"
  uuid=$(blkid -o value -s UUID "$1")
  mount UUID="$uuid" /mnt/x
  [[ $(findmnt -no SOURCE /mnt/x) == "$1" ]]
  rm -f /tmp/sums
  write_file /mnt/x/file 3M
  fio_pass 1 --filename=/mnt/x/fio --size=2M
  umount /mnt/x
  "${@:2}" > /tmp/said 2>&1 || { cat /tmp/said; return 1; }
  again "$uuid"
}
again() {
  echo 3 > /proc/sys/vm/drop_caches
  mount UUID="$1" /mnt/x
  check_files
  umount /mnt/x
}
forget() { settle; wipefs -qa "$@"; settle; }
# Takes the set away from whoever has it; the kernel's bcache takes it, or ours.
stop_all() {
  settle
  bcache stop --all > /dev/null
  await no_engine
}
with_kernel() {
  load_bcache
  bcache-register --engine kernel /dev/vda /dev/vdb /dev/vdc > /dev/null
  await test -b /dev/bcache1
  settle
}
with_ours() {
  settle
  stop_bcache
  bcache-register --wait /dev/vda /dev/vdb /dev/vdc > /dev/null
  settle
}
settle
make-bcache --writeback -l one -C /dev/vda -B /dev/vdb > /dev/null
await test -e $one
# It is there without its cache, too.
await serves one
make-bcache --writeback -l two -B /dev/vdc > /dev/null
settle
bcache attach "$(bcache show --json /dev/vda | grep -o '"set_uuid":"[^"]*"' | cut -d '"' -f 4)" /dev/vdc
await test -e $two
settle
lsblk

step 'file systems'
mkfs.xfs -q -f $one
used $one xfs_repair -n $one
mkfs.xfs -q -f -s size=4096 $one
used $one xfs_repair -n $one
mkfs.ext4 -q -F -b 1024 $one
used $one e2fsck -fn $one
forget $one
mkfs.btrfs -q -f -d raid1 -m raid1 $one $two
settle
uuid=$(blkid -o value -s UUID $one)
mount UUID="$uuid" /mnt/x
btrfs filesystem show /mnt/x | tee /tmp/said
[[ $(grep -c 'path /dev/mapper/\(one\|two\)$' /tmp/said) == 2 ]]
rm -f /tmp/sums
write_file /mnt/x/file 3M
umount /mnt/x
btrfs check $one > /tmp/said 2>&1
again "$uuid"
forget $one $two

step 'partitions, by UUID and PARTUUID, and swap'
sfdisk -q $one << 'TABLE'
label: gpt
size=64M, name=first
size=64M, name=second, type=swap
TABLE
settle
await test -e ${one}1
await test -e ${one}2
mkfs.ext4 -q ${one}1
used ${one}1 e2fsck -fn ${one}1
part=$(blkid -o value -s PARTUUID ${one}1)
[[ $part ]]
mount PARTUUID="$part" /mnt/x
check_files
umount /mnt/x
[[ $(readlink -f /dev/disk/by-partlabel/first) == "$(readlink -f ${one}1)" ]]
mkswap -q ${one}2
settle
swapon UUID="$(blkid -o value -s UUID ${one}2)"
swapoff -a
stop_all
gone "${one}[0-9]*"
bcache-register --wait /dev/vda /dev/vdb /dev/vdc > /dev/null
settle
await test -e ${one}1
used ${one}1 e2fsck -fn ${one}1
sfdisk -q --delete $one
settle
await gone "${one}[0-9]*"
forget $one

step 'LVM'
lvm() { command lvm "$@" > /tmp/said 2>&1 || { cat /tmp/said; return 1; }; cat /tmp/said; ! grep -iE 'duplicate|warning' /tmp/said; }
lvm pvcreate -y $one
lvm vgcreate vg $one
lvm lvcreate -y -n lv -L 100M vg
mkfs.ext4 -q /dev/vg/lv
settle
mount /dev/vg/lv /mnt/x
rm -f /tmp/sums
write_file /mnt/x/file 3M
lvm lvcreate -y -s -n snap -L 30M vg/lv
write_file /mnt/x/later 1M
lvm lvremove -y vg/snap
lvm vgextend vg $two
lvm lvextend -y -L +300M -r vg/lv
write_file /mnt/x/grown 1M
check_files
umount /mnt/x
# LVM chooses among the names of a device.
pv_names() { pvs --noheadings -o pv_name | xargs readlink -f | sort | xargs; }
[[ $(pv_names) == "$(readlink -f $one $two | sort | xargs)" ]]
lvm vgchange -an vg
stop_all
with_kernel
lvm vgchange -ay vg
mount /dev/vg/lv /mnt/x
check_files
write_file /mnt/x/by_kernel 1M
umount /mnt/x
lvm vgchange -an vg
with_ours
lvm vgchange -ay vg
mount /dev/vg/lv /mnt/x
check_files
umount /mnt/x
e2fsck -fn /dev/vg/lv > /dev/null
lvm vgremove -y -f vg
lvm pvremove $one $two
# One that Linux's bcache made.
stop_all
with_kernel
lvm vgcreate vg /dev/bcache0
lvm lvcreate -y -n lv -L 50M vg
lvm vgchange -an vg
with_ours
lvm vgchange -ay vg
[[ $(pv_names) == /dev/dm-[0-9]* && $(pv_names) != *' '* ]]
lvm vgremove -y -f vg
lvm pvremove "$(pv_names)"

step 'LUKS over it'
fast=(--batch-mode --key-file=/tmp/key)
echo secret > /tmp/key
cryptsetup "${fast[@]}" luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $one
found $one
cryptsetup "${fast[@]}" open UUID="$(blkid -o value -s UUID $one)" crypt
mkfs.ext4 -q /dev/mapper/crypt
used /dev/mapper/crypt e2fsck -fn /dev/mapper/crypt
settle
cryptsetup close crypt
forget $one

step 'md over it'
mdadm --quiet --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 $one $two
mkfs.ext4 -q /dev/md0
used /dev/md0 e2fsck -fn /dev/md0
mdadm --wait /dev/md0 || true
settle
mdadm --quiet --stop /dev/md0
mdadm --examine --scan | tee /tmp/said
[[ $(wc -l < /tmp/said) == 1 ]]
mdadm --quiet --assemble --scan
uuid=$(blkid -o value -s UUID /dev/md/* /dev/md1[0-9]* /dev/md0 2> /dev/null | head -n 1)
settle
again "$uuid"
mdadm --quiet --stop --scan
settle
mdadm --quiet --zero-superblock $one $two
stop_all

step 'md and LUKS below it'
lvm vgcreate low /dev/vdd
lvm lvcreate -y -n a -L 100M low
lvm lvcreate -y -n b -L 100M low
mdadm --quiet --create /dev/md5 --run --level=1 --raid-devices=2 --metadata=1.2 /dev/low/a /dev/low/b
cryptsetup "${fast[@]}" luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/md5
cryptsetup "${fast[@]}" open /dev/md5 lower
wipefs -qa /dev/vda /dev/vdb /dev/vdc
make-bcache --writeback -l low -C /dev/vda -B /dev/mapper/lower > /dev/null
await test -e /dev/mapper/low
mkfs.ext4 -q /dev/mapper/low
used /dev/mapper/low e2fsck -fn /dev/mapper/low
stop_all
# Everything from the bottom: the device comes when what is below it has.
settle
cryptsetup close lower
mdadm --quiet --stop /dev/md5
lvm vgchange -an low
lvm vgchange -ay low
settle
[[ -e /dev/md5 || -e /dev/md127 ]] || mdadm --quiet --assemble /dev/md5 /dev/low/a /dev/low/b
cryptsetup "${fast[@]}" open "$(mdadm --detail --scan | awk '{print $2}' | xargs readlink -f)" lower
bcache-register --wait /dev/vda /dev/mapper/lower > /dev/null
settle
[[ -e /dev/mapper/low ]]
again "$(blkid -o value -s UUID /dev/mapper/low)"
stop_all
systemctl --no-pager --failed --plain --no-legend | tee /tmp/failed
[[ ! -s /tmp/failed ]]
no_kernel_complaints
step 'done'
