complete -c bcache-fsck -l undo -d 'Keep what the repair overwrites in this file, which must not exist yet. Otherwise one is made in /var/log' -r -F
complete -c bcache-fsck -s C -d 'Write progress to this file descriptor: number of the pass, how much is done, of how much, device. With 0 it is the bar that a terminal has anyway' -r
complete -c bcache-fsck -l explain -d 'Say what a finding means and what repair does; `all` for all of them' -r
complete -c bcache-fsck -s n -d 'Check only: nothing is opened for writing'
complete -c bcache-fsck -s p -s a -d 'Repair what can be repaired without losing anything: no sector of any device reads otherwise than before'
complete -c bcache-fsck -s y -d 'Repair all that can be repaired; what is lost by it is told'
complete -c bcache-fsck -s f -d 'Accepted for fsck(8) and ignored: a set is always checked in full'
complete -c bcache-fsck -l dry-run -d 'With -p or -y: list the writes of the repair and do none of them'
complete -c bcache-fsck -l json -d 'One JSON object a line: each finding, each device of the set that was not named, a summary, each write of a dry run, the undo file of a repair'
complete -c bcache-fsck -l data -d 'Read all cached data as well, and compare clean data with the backing device'
complete -c bcache-fsck -s h -l help -d 'Print help'
complete -c bcache-fsck -s V -l version -d 'Print version'
