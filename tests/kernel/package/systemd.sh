# The engine as a service: it says how it is, comes back when it is killed or hangs, and ends when it is told.
# What udev looks at when the machine starts is in use.
udevadm settle --timeout=120
make-bcache --writeback -l label -C /dev/vda -B /dev/vdb > /dev/null
await test -e /dev/mapper/label
await serves label
unit=$(systemctl list-units --plain --no-legend 'bcache@*' | awk '{print $1}')
property() { systemctl show --value -p "$1" "$unit"; }
[[ $(property ActiveState) == active && $(property Type) == notify && $(property WatchdogUSec) == 15s ]]
await eval '[[ $(property StatusText) == "serves label" ]]'
[[ $(property MainPID) == "$(engine_pid)" ]]
# Whoever is ordered behind the target finds devices.
[[ $(systemctl is-active bcache.target) == active ]]
# What the unit forbids holds for the process.
pid=$(engine_pid)
[[ $(property RestrictNamespaces) == mnt && $(property ProtectHome) == yes ]]
[[ $(readlink /proc/$pid/ns/mnt) != $(readlink /proc/self/ns/mnt) ]]
# Prometheus asks over HTTP.
systemctl start bcache-metrics.socket
exec 3<> /dev/tcp/127.0.0.1/9926
printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n' >&3
cat <&3 > /tmp/figures
exec 3>&-
grep $'^HTTP/1.1 200 OK\r$' /tmp/figures
# The body is as long as its head says.
body=$(sed $'1,/^\r$/d' /tmp/figures | wc -c)
grep "^Content-Length: $body"$'\r$' /tmp/figures
grep '^bcache_device_bytes{.*device="label"}' /tmp/figures
grep '^bcache_device_request_duration_seconds_count{.*operation="read"} [1-9]' /tmp/figures
grep '^node_bcache_cache_misses_total{.*backing_device="bdev0"}' /tmp/figures
mkfs.ext4 -q /dev/mapper/label
mount /dev/mapper/label /mnt
write_file /mnt/before 3M

# Killed: systemd starts another, nobody else has to do anything.
writing() {
  local n
  for ((n = 1; ; n++)); do
    write_file "/mnt/file$((n % 5))" 300k 2> /dev/null
    sed -i "/file$((n % 5))$/{\$!d}" /tmp/sums
    [[ ! -e /tmp/enough ]] || return 0
  done
}
writing & load=$!
for ((n = 1; n <= $1; n++)); do
  before=$(engine_pid)
  kill -9 "$before"
  await eval 'after=$(property MainPID); [[ $after != 0 && $after != $before ]]'
  await serves label
  sleep 1
done
[[ $(property NRestarts) == "$1" ]]
# Hung: the watchdog ends it, and systemd starts another.
before=$(engine_pid)
kill -STOP "$before"
await eval '[[ $(property MainPID) != "$before" ]]'
await serves label
journalctl --no-pager -u "$unit" | grep -q 'Watchdog timeout'
touch /tmp/enough
wait "$load"
echo 3 > /proc/sys/vm/drop_caches
check_files

# In use, the package stays, and with it what starts the engine again.
if dpkg --remove ubcache 2> /tmp/said; then exit 1; fi
grep 'sets are in use' /tmp/said
[[ -x /usr/sbin/bcache-engine && -e /dev/mapper/label ]]

# In use, a stop leaves the device waiting, but not for long: udev sees the parts closed, and the next process begins.
before=$(engine_pid)
systemctl stop "$unit"
write_file /mnt/meanwhile 1M
await serves label
[[ $(engine_pid) != "$before" ]]
check_files
umount /mnt
e2fsck -fn /dev/mapper/label
# Not in use, it ends with its devices.
systemctl stop "$unit"
await gone '/dev/mapper/label'
await gone '/dev/ublkb*'
stays_stopped
[[ $(property ActiveState) == inactive ]]
bcache fsck -n /dev/vda /dev/vdb

# Stopping the target stops engines.
bcache-register /dev/vda /dev/vdb
await serves label
systemctl stop bcache.target
await gone '/dev/mapper/label'
stays_stopped
# Not in use, the package goes with what it serves.
bcache-register /dev/vda /dev/vdb
await serves label
dpkg --remove ubcache
[[ ! -e /dev/mapper/label && ! -e /usr/sbin/bcache-engine ]]
no_kernel_complaints
