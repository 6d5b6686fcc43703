# Parts appear to udev: the cache first, the backing device first, both at once, $1 times each.
rounds=$1
install_rules
make-bcache --writeback -l label -C /dev/vda -B /dev/vdb > /dev/null
declare -A bus
for disk in vda vdb; do bus[$disk]=$(basename "$(readlink -f "/sys/block/$disk/device")"); done
driver=/sys/bus/virtio/drivers/virtio_blk
leave() { for disk in "$@"; do echo "${bus[$disk]}" > $driver/unbind; done; }
appear() { for disk in "$@"; do echo "${bus[$disk]}" > $driver/bind; done; }
leave vda vdb
/lib/systemd/systemd-udevd --daemon
device=/dev/mapper/label
round() {
  await test -e $device
  await serves label
  settle
  # Links by what is on it, and by who it is.
  if [[ -e /tmp/sums ]]; then await test -e "/dev/disk/by-uuid/$fs"; fi
  await test -e "/dev/bcache/by-uuid/$(dmsetup info -c --noheadings -o uuid label | sed s/BCACHE-//)"
  [[ $(readlink -f /dev/bcache/by-label/label) == "$(readlink -f $device)" ]]
  if [[ ! -e /tmp/sums ]]; then
    mkfs.ext4 -q $device
    fs=$(blkid -o value -s UUID $device)
  fi
  mount $device /mnt/x
  [[ ! -e /tmp/sums ]] || check_files
  write_file "/mnt/x/$1" 200k
  umount /mnt/x
  e2fsck -fn $device > /dev/null
  if [[ $1 == both1 ]]; then
    lsblk -o NAME,TYPE,FSTYPE,LABEL,SIZE
    blkid /dev/vda /dev/vdb $device
  fi
  bcache stop --all > /dev/null
  await no_engine
  settle
  leave vda vdb
}
mkdir -p /mnt/x
for ((n = 1; n <= rounds; n++)); do
  appear vda; settle; appear vdb; round "cache$n"
  appear vdb; settle; sleep 0.3; [[ $n == 1 ]] || [[ ! -e $device ]]; appear vda; round "backing$n"
  appear vda vdb; round "both$n"
done
no_kernel_complaints
