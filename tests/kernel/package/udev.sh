# Parts appear to udev: the cache first, the backing device first, both at once, $1 times each. systemd starts the engine.
rounds=$1
declare -A bus
for disk in vda vdb; do bus[$disk]=$(basename "$(readlink -f "/sys/block/$disk/device")"); done
driver=/sys/bus/virtio/drivers/virtio_blk
leave() { for disk in "$@"; do echo "${bus[$disk]}" > $driver/unbind; done; }
appear() { for disk in "$@"; do echo "${bus[$disk]}" > $driver/bind; done; }
device=/dev/mapper/label
leads() { [[ $(readlink -f "$1") == "$(readlink -f $device)" ]]; }
# round NAME: the device comes by itself, with its links, is used, and goes.
round() {
  await test -e $device
  await leads /dev/bcache/by-label/label
  await leads "/dev/bcache/by-uuid/$(dmsetup info -c --noheadings -o uuid label | sed s/BCACHE-//)"
  if [[ ! -e /tmp/sums ]]; then
    await serves label
    mkfs.ext4 -q $device
    fs=$(blkid -o value -s UUID $device)
  fi
  await leads "/dev/disk/by-uuid/$fs"
  mount "/dev/disk/by-uuid/$fs" /mnt
  [[ ! -e /tmp/sums ]] || check_files
  write_file "/mnt/$1" 200k
  fio_pass "$RANDOM" --filename=/mnt/fio --size=2M
  echo 3 > /proc/sys/vm/drop_caches
  check_files
  umount /mnt
  e2fsck -fn $device > /dev/null
  if [[ $1 == both1 ]]; then
    lsblk -o NAME,TYPE,FSTYPE,LABEL,SIZE
    blkid /dev/vda /dev/vdb $device
    [[ $(lsblk -dno FSTYPE /dev/vda) == bcache && $(lsblk -dno FSTYPE /dev/vdb) == bcache ]]
    # lsblk knows devices whose UUID begins like ours by that beginning.
    [[ $(lsblk -dno NAME,TYPE,FSTYPE $device) == 'label bcache ext4' ]]
  fi
  bcache stop --all > /dev/null
  await no_engine
  stays_stopped
  [[ ! -e $device ]]
  leave vda vdb
}
# A disk that udev has open while it leaves gets another name when it comes back.
udevadm settle --timeout=120
make-bcache --writeback -l label -C /dev/vda -B /dev/vdb > /dev/null
# udev sees that somebody wrote to them.
for ((n = 1; n <= rounds; n++)); do
  ((n == 1)) || appear vda vdb
  round "both$n"
  appear vda; udevadm settle --timeout=60; appear vdb; round "cache$n"
  appear vdb; udevadm settle --timeout=60; sleep 0.3; [[ ! -e $device ]]; appear vda; round "backing$n"
done
systemctl --no-pager --failed --plain --no-legend | tee /tmp/failed
[[ ! -s /tmp/failed ]]
no_kernel_complaints
