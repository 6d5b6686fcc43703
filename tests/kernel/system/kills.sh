# $1 times the engine, or the command, is killed at some moment of an attach, a detach, an upgrade, a stop or the making of a
# volume, under fio and a mounted file system: the command is done or undone, nothing hangs, nothing is lost.
kills=$1
RANDOM=${2:-1}
set=00000000-0000-4000-8000-000000000001
mkdir -m 700 /run/bcache
truncate -s 64M /dev/shm/other
modprobe loop
losetup /dev/loop1 /dev/shm/other
make-bcache --writeback --cset-uuid $set -C /dev/vda -B /dev/vdb > /dev/null
make-bcache --writeback --cset-uuid $set -l other -B /dev/loop1 > /dev/null
parts=(/dev/vda /dev/vdb /dev/loop1)
start_engine "${parts[@]}"
mkfs.ext4 -q /dev/mapper/bcache0
mkdir -p /mnt/x
mount /dev/mapper/bcache0 /mnt/x
write_file /mnt/x/before 4M
fio_passes --directory=/mnt/x & load=$!

# Reads from the name once a second, and says how long the longest took.
cat > /tmp/judge.py << 'PYTHON'
import mmap, os, sys, threading, time
longest, under_way = 0, []
def read(at):
    start = time.monotonic()
    under_way.append(start)
    try:
        f = os.open("/dev/mapper/bcache0", os.O_RDONLY | os.O_DIRECT)
        try: os.preadv(f, [mmap.mmap(-1, 4096)], at)
        finally: os.close(f)
    except OSError as error: print(f"at {at}: {error}", flush=True)
    under_way.remove(start)
    global longest
    longest = max(longest, time.monotonic() - start)
turn = 0
while not os.path.exists("/tmp/judged"):
    turn += 1
    threading.Thread(target=read, args=(turn * 7 % 160 << 20,), daemon=True).start()
    time.sleep(1)
    late = [start for start in under_way if time.monotonic() - start > float(sys.argv[1])]
    if late:
        print(f"a read hangs for {time.monotonic() - min(late):.0f} s", flush=True)
        os.system("dmsetup table; dmsetup info -c; bcache status; ps -eo pid,stat,wchan:30,args | grep -E '[b]cache'")
        os._exit(1)
print(f"{turn} reads, the longest took {longest:.1f} s")
PYTHON
python3 /tmp/judge.py 60 > /tmp/judge.out 2>&1 & judge=$!

straight() { dmsetup table "$1" | grep -Eq " linear $2 "; }
there() { dd if=/dev/mapper/bcache0 of=/dev/null bs=4k count=1 iflag=direct status=none; }
all_there() {
  bcache-register "${parts[@]}" > /dev/null 2>&1 || true
  [[ -e /dev/mapper/other ]] && dd if=/dev/mapper/other of=/dev/null bs=4k count=1 iflag=direct status=none && there
}
# One of the two devices is attached or detached, whichever it is not.
turn_round() {
  local number
  number=$(lsblk -dno MAJ:MIN "$2" | tr -d ' ')
  if straight "$1" "$number"; then bcache attach "$2"; else bcache detach "$1"; fi
}
declare -A count
for ((kill = 1; kill <= kills; kill++)); do
  case $((RANDOM % 6)) in
    0) what='turn bcache0 round'; turn_round bcache0 /dev/vdb > /tmp/said 2>&1 & ;;
    1) what='turn other round'; turn_round other /dev/loop1 > /tmp/said 2>&1 & ;;
    2) what=upgrade; bcache upgrade > /tmp/said 2>&1 & ;;
    3) what=stop; bcache stop $set > /tmp/said 2>&1 & ;;
    4) what='make a volume'; bcache volume create -l "v$kill" 4M > /tmp/said 2>&1 & ;;
    5) what='register'; bcache-register --wait "${parts[@]}" > /tmp/said 2>&1 & ;;
  esac
  command=$!
  sleep "0.$(printf %02d $((RANDOM % 100)))"
  victim=engine
  if ((RANDOM % 4 == 0)); then
    victim=command
    pkill -9 -P $command || true
    kill -9 $command 2> /dev/null || true
  else
    pkill -9 -x bcache-engine || true
  fi
  for ((tick = 0; tick < 1200; tick++)); do kill -0 $command 2> /dev/null || break; sleep 0.1; done
  if kill -0 $command 2> /dev/null; then echo "$what does not end: $(cat /tmp/said)"; exit 1; fi
  wait $command 2> /dev/null || true
  count[$what]=$((${count[$what]:-0} + 1))
  await all_there || { echo "after a kill of the $victim in $what: $(cat /tmp/said)"; cat /tmp/judge.out; bcache status; dmsetup table; exit 1; }
  # A volume is there or not.
  for volume in /dev/mapper/v*; do
    [[ ! -e $volume ]] || bcache volume remove --yes "${volume##*/}" > /dev/null 2>&1 || true
  done
  kill -0 $load && kill -0 $judge || { cat /tmp/judge.out; exit 1; }
done
for what in "${!count[@]}"; do echo "${count[$what]} times: $what"; done
touch /tmp/enough
wait $load
touch /tmp/judged
wait $judge || { cat /tmp/judge.out; exit 1; }
cat /tmp/judge.out
# No read was an error.
if grep -q '^at ' /tmp/judge.out; then exit 1; fi
check_files
umount /mnt/x
e2fsck -fn /dev/mapper/bcache0
await bcache stop --all
gone '/dev/mapper/bcache*'
await no_engine
bcache fsck -n "${parts[@]}"
no_kernel_complaints
