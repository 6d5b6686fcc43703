# A machine with little memory is flooded with dirty pages, $1 times: whoever has to write them out must get through.
floods=$1
make-bcache --writeback -C /dev/vda -B /dev/vdb > /dev/null
start_engine /dev/vda /dev/vdb
engine=$(engine_pid)
[[ $(cat "/proc/$engine/oom_score_adj") == -1000 ]]
(($(awk '/^VmLck/ {print $2}' "/proc/$engine/status") > 1000))
# Two capabilities (to administer devices, and to open nodes that belong to others), no new ones, and a filter of system calls.
[[ $(awk '/^CapPrm|^CapEff|^CapBnd/ {print $2}' "/proc/$engine/status" | sort -u) == 0000000000200002 ]]
[[ $(awk '/^NoNewPrivs|^Seccomp:/ {print $2}' "/proc/$engine/status" | tr '\n' ' ') == '1 2 ' ]]
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 2M
echo 90 > /proc/sys/vm/dirty_ratio
echo 80 > /proc/sys/vm/dirty_background_ratio
for ((flood = 1; flood <= floods; flood++)); do
  dd if=/dev/zero of=/mnt/x/flood bs=1M count=130 status=none
  # Memory that is not for files is wanted, too.
  head -c 150M /dev/zero | tail -c 1 > /dev/null
  sync
  rm /mnt/x/flood
done
[[ $(engine_pid) == "$engine" ]]
echo 3 > /proc/sys/vm/drop_caches
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0
bcache stop --all
if dmesg | grep -E 'Killed process|blocked for more than'; then exit 1; fi
no_kernel_complaints
