# Everything that can be asked of a running set, while a file system on it is in use: settings, upgrades ($1 times),
# detaching, attaching, volumes, unregistering; and what is refused.
upgrades=$1
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vdb /dev/vda
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 4M
fio_passes --directory=/mnt/x &
load=$!

bcache status
bcache status --json | python3 -c 'import json,sys; s=json.loads(sys.stdin.readline()); assert s["devices"][0]["backing"]=="/dev/vdb", s'
bcache metrics | grep -q '^bcache_device_cache_hits_total{.*device="bcache0"} [0-9]'
[[ $(bcache get --device bcache0 cache_mode) == writeback ]]
bcache set --device /dev/vdb cache_mode=writethrough sequential_cutoff=1M
[[ $(bcache get --device bcache0 sequential_cutoff) == 1048576 ]]
bcache show /dev/vdb | grep -q '\[writethrough\]\|writethrough'
refused 'no setting' bcache set nothing=1
bcache set cache_mode=writeback

longest=0
for ((upgrade = 1; upgrade <= upgrades; upgrade++)); do
  before=$(engine_pid)
  [[ $(bcache upgrade) =~ waited\ for\ ([0-9]+)\ ms ]]
  ((BASH_REMATCH[1] <= longest)) || longest=${BASH_REMATCH[1]}
  [[ $(engine_pid) != "$before" ]]
  sleep 1
done
echo "$upgrades upgrades, the longest stall $longest ms"

# In use: nothing may stop it.
refused 'in use' bcache stop
await serves bcache0

# Without cache the engine has no part in it: it is stopped, and the file system goes on.
bcache detach bcache0
dmsetup table bcache0 | grep -q ' linear 254:16 16$'
pkill -STOP -x bcache-engine
write_file /mnt/x/alone 2M
kill -0 "$load"
pkill -CONT -x bcache-engine
bcache attach /dev/vdb
dmsetup table bcache0 | grep -Eq ' linear (259|43):'
write_file /mnt/x/attached 2M
touch /tmp/enough
wait "$load"
check_files

# A volume of which not all can be kept is made, and told; so is a value that is out of bounds.
[[ $(bcache volume create --label large 900G 2> note) == /dev/mapper/large ]]
grep -q 'larger than its cache' note
bcache volume remove --yes large
[[ -z $(bcache volume create --label small 1M 2>&1 > /dev/null) ]]
bcache volume remove --yes small
bcache set writeback_percent=90 2>&1 | grep -q 'out of bounds, it is 40 now'
bcache set writeback_percent=10

# A volume in the cache alone.
[[ $(bcache volume create --label flash 32M) == /dev/mapper/flash ]]
mkfs.ext4 -q /dev/mapper/flash
mkdir -p /mnt/flash
mount /dev/mapper/flash /mnt/flash
write_file /mnt/flash/file 1M
refused 'flash' bcache volume remove --yes flash
umount /mnt/flash
check_files 2> /dev/null && exit 1
sed -i '/flash/d' /tmp/sums
refused 'say --yes' bcache volume remove flash
bcache volume remove --yes flash
gone /dev/mapper/flash

# Neither other users nor what is not JSON get anywhere.
socket=$(ls /run/bcache/*.sock)
[[ $(stat -c '%a %u' /run/bcache "$socket" | tr '\n' ' ') == '700 0 600 0 ' ]]
refused 'ermission denied' setpriv --reuid 65534 --clear-groups ls /run/bcache
refused 'ermission denied' setpriv --reuid 65534 --clear-groups bcache stop
python3 - "$socket" << 'PYTHON'
import socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'{"command":"nonsense"}\n\xff\xfe\n')
f = s.makefile('rb')
for _ in range(2):
    assert b'"error"' in f.readline()
PYTHON

# The set ends for good; the file system stays mounted.
bcache unregister
await no_engine
dmsetup table bcache0 | grep -q ' linear 254:16 16$'
write_file /mnt/x/after 1M
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0
bcache status
bcache stop bcache0
gone '/dev/mapper/bcache*'
bcache fsck -n /dev/vda
no_kernel_complaints
