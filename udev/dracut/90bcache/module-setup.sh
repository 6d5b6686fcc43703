#!/bin/bash
# dracut module: what is needed for a root file system on a cached device.

check() {
  require_binaries /usr/sbin/bcache-register /usr/sbin/bcache-engine || return 1
  [[ $hostonly ]] || [[ $mount_needs ]] || return 0
  local device
  # shellcheck disable=SC2154 # dracut sets it
  for device in "${!host_fs_types[@]}"; do
    [[ ${host_fs_types[$device]} == bcache ]] && return 0
    [[ $(cat "/sys/dev/block/$(get_maj_min "$device")/dm/uuid" 2> /dev/null) == BCACHE-* ]] && return 0
  done
  return 255
}

depends() { echo dm; }

installkernel() { instmods dm_mod ublk_drv nbd; }

install() {
  inst_multiple /usr/sbin/bcache-register /usr/sbin/bcache-engine dmsetup sh
  inst_rules 69-bcache.rules
  [[ ! -e /etc/bcache/bcache.conf ]] || inst_simple /etc/bcache/bcache.conf
  # Where systemd runs in the initramfs, it starts engines. udev would end whatever else its rules start.
  if dracut_module_included systemd; then
    inst_multiple systemctl /usr/lib/systemd/system/bcache@.service /usr/lib/systemd/system/bcache.target
  fi
}
