# Settings in /etc/bcache/bcache.conf: at the start, on reload, kept by bcache set, and what is wrong with them.
conf=/etc/bcache/bcache.conf
made=$(make-bcache --writeback -l films -C /dev/vda -B /dev/vdb)
set=$(awk '/^Set UUID/ {print $3; exit}' <<< "$made")
device=$(awk '/^UUID/ {uuid = $2} END {print uuid}' <<< "$made")
got() { [[ $(bcache get --device "$device" "$1") == "$2" ]]; }
mkdir -p /etc/bcache
cat > $conf <<CONF
[device.films] # by its label
sequential_cutoff = "8M"
nothing = 3
[device."$device"]
writeback_percent = 25
cache_mode = "writearound"
[set."*"]
journal_delay_ms = 50
CONF
start() { bcache-register --wait /dev/vda /dev/vdb > /dev/null; }
start
got sequential_cutoff 8388608
got writeback_percent 25
got cache_mode writearound
[[ $(bcache get --device "$device" label) == films ]]
[[ $(bcache get journal_delay_ms) == 50 ]]
bcache status | grep -F "$conf: line 3, column 1: there is no setting \"nothing\""
refused 'line 3, column 1' bcache reload
refused 'line 3, column 1' bcache set --persistent --device films writeback_delay=3
got writeback_delay 30

# Put right, by hand and by command; the comment stays.
sed -i /nothing/d $conf
bcache set --persistent --device films writeback_delay=3
bcache set --persistent gc_always_rewrite=1
grep -q '# by its label' $conf
sed -i 's/percent = 25/percent = 35/' $conf
got writeback_percent 25
bcache reload
got writeback_percent 35
[[ -z $(bcache status | grep "$conf") ]]

# They survive a stop, a crash and an upgrade; what was not kept does not.
bcache set --device films writeback_rate_minimum=99
check() {
  got writeback_delay 3 && got writeback_percent 35 && got cache_mode writearound && got writeback_rate_minimum "$1" &&
    [[ $(bcache get gc_always_rewrite) == 1 ]]
}
check 99
bcache stop > /dev/null
start
check 8
kill_engine
start
check 8
bcache upgrade > /dev/null
check 8

# A file that makes no sense changes nothing and stops nobody.
echo '[device' >> $conf
refused 'column' bcache reload
check 8
bcache stop > /dev/null
start
got writeback_percent 10
bcache status | grep -F "$conf: line "
sed -i '$d' $conf
bcache reload
check 8

# Moved away by a detach, it has them when it comes back.
bcache detach films > /dev/null
bcache attach /dev/vdb > /dev/null
check 8
bcache stop > /dev/null
grep -q "^\[set\.$set\]" $conf
no_kernel_complaints
