# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_bcache_global_optspecs
    string join \n h/help V/version
end

function __fish_bcache_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_bcache_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_bcache_using_subcommand
    set -l cmd (__fish_bcache_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c bcache -n "__fish_bcache_needs_command" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_needs_command" -s V -l version -d 'Print version'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "attach" -d 'Attach a backing device to a running set; it may be mounted'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "detach" -d 'Write everything dirty of a device back and let it run without cache; it may be mounted'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "get" -d 'Print settings of a running set and its devices, and what can be read of them by the kernel\'s sysfs names'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "make" -d 'Format a cache device, backing devices, or both at once'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "metrics" -d 'Print figures of all running sets as Prometheus reads them'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "set" -d 'Change a setting of a running set or of its devices, at once'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "set-cachemode" -d 'Change how a backing device is cached, as bcache set cache_mode=MODE does'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "set-label" -d 'Change the label of a cached device, which is its name in /dev/mapper as soon as nobody uses it, if it makes one'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "status" -d 'Show sets, caches and devices: states, dirty data, hit ratios; those of the kernel\'s bcache, too'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "unregister" -d 'Stop a set for good: everything dirty is written back, its devices go on without cache, its process ends'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "upgrade" -d 'Replace a set\'s engine by the one that is installed now, while its devices are in use'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "forget" -d 'Let a set forget a backing device that will never come back'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "volume" -d 'Make and remove flash-only volumes: devices that are in the cache alone'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "show" -d 'List the devices of bcache on this machine, or print superblocks'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "show-super" -d 'List the devices of bcache on this machine, or print superblocks'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "backup" -d 'Keep the superblocks of devices in a file, for `bcache restore`'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "doctor" -d 'Say in plain words what state each device is in, how much is dirty, and what to do next'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "dump" -d 'Print a structure of a device as it stands there, also on damaged devices'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "export" -d 'Write out what a reader of a cached device or flash-only volume would see right now'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "flush" -d 'Write all dirty data to the backing devices, which are clean and complete afterwards'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "fsck" -d 'Check and repair a cache set: superblocks, journal, prio sets, uuid table, btree, extents, buckets, backing devices'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "image" -d 'Save the metadata of a device to a small file, for a bug report'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "map" -d 'Say where a sector of a cached device or flash-only volume lives: which key, bucket, clean or dirty'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "register" -d 'Make devices known: a set starts when its cache is there, a device appears when it can be served'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "reload" -d 'Apply what /etc/bcache/bcache.conf says to all sets that are served'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "resize" -d 'Let a cached device be as long as its backing device is now; it may be mounted'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "restore" -d 'Bring a lost superblock back from a file that `bcache backup` made, or all metadata from one of `bcache image`'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "salvage" -d 'Save the dirty data of a damaged cache'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "serve" -d 'Serve a cache set to NBD clients on a Unix socket, in the foreground, until a signal'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "stop" -d 'Stop a set: remove its devices, make all data durable, end its process'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "tree" -d 'Show the caches that are in use, and below each the devices that it caches'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "undo" -d 'Put back, byte for byte, what a repair overwrote'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "version" -d 'Print which bcache-tools these commands are like, and the version of this program'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c bcache -n "__fish_bcache_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand attach" -l set -d 'The set\'s UUID; not needed where only one is served' -r
complete -c bcache -n "__fish_bcache_using_subcommand attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand get" -l set -d 'The set\'s UUID; not needed where only one is served' -r
complete -c bcache -n "__fish_bcache_using_subcommand get" -l device -d 'One device only, by name, label, UUID or backing device' -r
complete -c bcache -n "__fish_bcache_using_subcommand get" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand make" -s b -l bucket -d 'Bucket size; the erase block of an SSD or a multiple. Sizes take k, M, G, T in powers of 1024' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -s w -l block -d 'Block size; the default is the largest logical block of the devices' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -s o -l data-offset -d 'Where the data of backing devices starts, in sectors of 512 bytes; the default is 16, or the first stripe of a disk that tells its optimal I/O size' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -l cset-uuid -d 'UUID of the cache set, to make backing devices for a set that exists' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -l cache-replacement-policy -d 'How the cache chooses buckets for reuse: lru, fifo or random' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -s l -l label -d 'Label of the backing device, at most 32 bytes; its name in /dev/mapper where it makes one' -r
complete -c bcache -n "__fish_bcache_using_subcommand make" -s C -l cache -d 'Format the devices that follow as caches'
complete -c bcache -n "__fish_bcache_using_subcommand make" -s B -l bdev -d 'Format the devices that follow as backing devices'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l writeback -d 'Start backing devices in writeback mode instead of writethrough'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l discard -d 'Discard buckets on the cache device before they are reused'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l wipe-bcache -d 'Overwrite a bcache superblock'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l force -d 'Overwrite whatever is on the devices'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l dry-run -d 'Decide everything and print it, but write nothing'
complete -c bcache -n "__fish_bcache_using_subcommand make" -l json -d 'Print one JSON object a line for each device, as `bcache show --json` does'
complete -c bcache -n "__fish_bcache_using_subcommand make" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand metrics" -l http -d 'Answer one HTTP request, which is read from standard input: for bcache-metrics.socket of systemd'
complete -c bcache -n "__fish_bcache_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand set" -l set -d 'The set\'s UUID; not needed where only one is served' -r
complete -c bcache -n "__fish_bcache_using_subcommand set" -l device -d 'One device, by name, label, UUID or backing device; otherwise all of the set' -r
complete -c bcache -n "__fish_bcache_using_subcommand set" -l persistent -d 'Also from the next start on: written into /etc/bcache/bcache.conf'
complete -c bcache -n "__fish_bcache_using_subcommand set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand set-cachemode" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand set-label" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand status" -l watch -d 'Again every so many seconds, until interrupted' -r
complete -c bcache -n "__fish_bcache_using_subcommand status" -l json -d 'One JSON object a line for each set instead'
complete -c bcache -n "__fish_bcache_using_subcommand status" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand unregister" -l lose-dirty-data -d 'Even if the newest data of a device that is not there is in the cache: it stays there, and nobody waits for it'
complete -c bcache -n "__fish_bcache_using_subcommand unregister" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand forget" -l set -d 'The set\'s UUID; not needed where only one is served' -r
complete -c bcache -n "__fish_bcache_using_subcommand forget" -l lose-dirty-data -d 'Even if its newest data is in the cache, which is lost for good'
complete -c bcache -n "__fish_bcache_using_subcommand forget" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and not __fish_seen_subcommand_from create remove help" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and not __fish_seen_subcommand_from create remove help" -f -a "create" -d 'Make a volume'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and not __fish_seen_subcommand_from create remove help" -f -a "remove" -d 'Remove a volume and everything in it'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and not __fish_seen_subcommand_from create remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from create" -l set -d 'The set\'s UUID; not needed where only one is served' -r
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from create" -s l -l label -d 'Label, which is its name, too' -r
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from remove" -l yes -d 'Needed, because the data is gone afterwards'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "create" -d 'Make a volume'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a volume and everything in it'
complete -c bcache -n "__fish_bcache_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand show" -s d -l device -d 'Print the superblock of one device in the lines of bcache-tools 1.1' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand show" -s f -l force -d 'Print what the superblock says even if its checksum is wrong'
complete -c bcache -n "__fish_bcache_using_subcommand show" -l json -d 'Print one JSON object a line for each device instead'
complete -c bcache -n "__fish_bcache_using_subcommand show" -s m -l more -d 'With UUIDs and sets in the table'
complete -c bcache -n "__fish_bcache_using_subcommand show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand show-super" -s d -l device -d 'Print the superblock of one device in the lines of bcache-tools 1.1' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand show-super" -s f -l force -d 'Print what the superblock says even if its checksum is wrong'
complete -c bcache -n "__fish_bcache_using_subcommand show-super" -l json -d 'Print one JSON object a line for each device instead'
complete -c bcache -n "__fish_bcache_using_subcommand show-super" -s m -l more -d 'With UUIDs and sets in the table'
complete -c bcache -n "__fish_bcache_using_subcommand show-super" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand backup" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "super" -d 'The superblock of a cache or backing device'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "journal" -d 'Journal buckets and their entries, with sequence numbers'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "btree" -d 'Btree nodes with their ranges and bsets, parents before children'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "extents" -d 'Extents as a reader sees them: journal replayed, newest wins'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "uuids" -d 'The table of backing devices and flash-only volumes'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "prios" -d 'Priority and generation of buckets'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and not __fish_seen_subcommand_from super journal btree extents uuids prios help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from super" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from super" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from journal" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from journal" -s k -l keys -d 'Print the keys of each entry as well'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from journal" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from btree" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from btree" -s k -l keys -d 'Print the keys of each node as well'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from btree" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from extents" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from extents" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from uuids" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from uuids" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from prios" -l json -d 'One JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from prios" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "super" -d 'The superblock of a cache or backing device'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "journal" -d 'Journal buckets and their entries, with sequence numbers'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "btree" -d 'Btree nodes with their ranges and bsets, parents before children'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "extents" -d 'Extents as a reader sees them: journal replayed, newest wins'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "uuids" -d 'The table of backing devices and flash-only volumes'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "prios" -d 'Priority and generation of buckets'
complete -c bcache -n "__fish_bcache_using_subcommand dump; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand export" -s o -l output -d 'Write to this file, sparse where the content is zeros; `-` is standard output' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand export" -l of -d 'Which content: a backing device\'s path, UUID or label, or the N-th flash-only volume as `volume:N`, from 0' -r
complete -c bcache -n "__fish_bcache_using_subcommand export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand flush" -l dry-run -d 'Say what would be written and write nothing'
complete -c bcache -n "__fish_bcache_using_subcommand flush" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -l undo -d 'Keep what the repair overwrites in this file, which must not exist yet. Otherwise one is made in /var/log' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s C -d 'Write progress to this file descriptor: number of the pass, how much is done, of how much, device. With 0 it is the bar that a terminal has anyway' -r
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -l explain -d 'Say what a finding means and what repair does; `all` for all of them' -r
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s n -d 'Check only: nothing is opened for writing'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s p -s a -d 'Repair what can be repaired without losing anything: no sector of any device reads otherwise than before'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s y -d 'Repair all that can be repaired; what is lost by it is told'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s f -d 'Accepted for fsck(8) and ignored: a set is always checked in full'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -l dry-run -d 'With -p or -y: list the writes of the repair and do none of them'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -l json -d 'One JSON object a line: each finding, each device of the set that was not named, a summary, each write of a dry run, the undo file of a repair'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -l data -d 'Read all cached data as well, and compare clean data with the backing device'
complete -c bcache -n "__fish_bcache_using_subcommand fsck" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand image" -s o -l output -d 'The file to write; `-` is standard output' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand image" -l restore -d 'Make a sparse image of a metadata image'
complete -c bcache -n "__fish_bcache_using_subcommand image" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand map" -l of -d 'Which device the sector is of: a backing device\'s path, UUID or label, or `volume:N`' -r
complete -c bcache -n "__fish_bcache_using_subcommand map" -l json -d 'One JSON object'
complete -c bcache -n "__fish_bcache_using_subcommand map" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand register" -l engine -d 'Who serves the set' -r -f -a "user\t'bcache-engine, one process a set'
kernel\t'The kernel\'s bcache'"
complete -c bcache -n "__fish_bcache_using_subcommand register" -l without-cache -d 'Run a backing device alone from now on: what the cache has of it is never used again'
complete -c bcache -n "__fish_bcache_using_subcommand register" -l lose-dirty-data -d 'With --without-cache: even if the newest data is in the cache, which is lost for good'
complete -c bcache -n "__fish_bcache_using_subcommand register" -l unless-stopped -d 'Do nothing if somebody stopped the set. For udev rules: a device that is closed after a write looks changed to udev'
complete -c bcache -n "__fish_bcache_using_subcommand register" -s w -l wait -d 'Wait until the devices are in use, or wait for others, or cannot be used'
complete -c bcache -n "__fish_bcache_using_subcommand register" -s q -l quiet -d 'Print nothing when all is well'
complete -c bcache -n "__fish_bcache_using_subcommand register" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand reload" -l check -d 'Only say what is wrong in a file' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand resize" -l offline -d 'Give the cache device of a set that is stopped all the buckets that it has room for now'
complete -c bcache -n "__fish_bcache_using_subcommand resize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand restore" -l uuid -d 'Which superblock of the backup, when several devices have the same size' -r
complete -c bcache -n "__fish_bcache_using_subcommand restore" -l force -d 'Even if the device carries the signature of something else, as another disk of the same size would'
complete -c bcache -n "__fish_bcache_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -s o -l output -d 'Write an image: the backing device\'s content with the dirty data on top; `-` is standard output, and what is told goes to standard error then' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -l to -d 'Write the dirty data to this backing device itself' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -l slot -d 'Take the extents of this slot, when the uuid table is gone too and several could be meant' -r
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -l of -d 'A flash-only volume, as `volume:N`, from 0' -r
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -l doubtful -d 'Write doubtful data as well'
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -l json -d 'Report one JSON object a line'
complete -c bcache -n "__fish_bcache_using_subcommand salvage" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l nbd -d 'Listen on this Unix socket' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l set -d 'Change a setting, by its name in the kernel\'s sysfs; can be repeated' -r
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l stats-json -d 'Write statistics to this file at the end' -r -F
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l backing-delay -d 'Make each read and write of the backing devices take this many milliseconds longer, for trying things out' -r
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l read-only -d 'Write nothing at all to any device; the journal is replayed in memory'
complete -c bcache -n "__fish_bcache_using_subcommand serve" -l attach -d 'Attach backing devices that belong to no set, or to another and are whole without it, and are served without cache otherwise'
complete -c bcache -n "__fish_bcache_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand stop" -l all -d 'All sets that are served, and all devices without cache'
complete -c bcache -n "__fish_bcache_using_subcommand stop" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand tree" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand undo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache -n "__fish_bcache_using_subcommand version" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand completions" -s h -l help -d 'Print help'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "attach" -d 'Attach a backing device to a running set; it may be mounted'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "detach" -d 'Write everything dirty of a device back and let it run without cache; it may be mounted'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "get" -d 'Print settings of a running set and its devices, and what can be read of them by the kernel\'s sysfs names'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "make" -d 'Format a cache device, backing devices, or both at once'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "metrics" -d 'Print figures of all running sets as Prometheus reads them'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "set" -d 'Change a setting of a running set or of its devices, at once'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "set-cachemode" -d 'Change how a backing device is cached, as bcache set cache_mode=MODE does'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "set-label" -d 'Change the label of a cached device, which is its name in /dev/mapper as soon as nobody uses it, if it makes one'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "status" -d 'Show sets, caches and devices: states, dirty data, hit ratios; those of the kernel\'s bcache, too'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "unregister" -d 'Stop a set for good: everything dirty is written back, its devices go on without cache, its process ends'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "upgrade" -d 'Replace a set\'s engine by the one that is installed now, while its devices are in use'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "forget" -d 'Let a set forget a backing device that will never come back'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "volume" -d 'Make and remove flash-only volumes: devices that are in the cache alone'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "show" -d 'List the devices of bcache on this machine, or print superblocks'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "backup" -d 'Keep the superblocks of devices in a file, for `bcache restore`'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "doctor" -d 'Say in plain words what state each device is in, how much is dirty, and what to do next'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "dump" -d 'Print a structure of a device as it stands there, also on damaged devices'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "export" -d 'Write out what a reader of a cached device or flash-only volume would see right now'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "flush" -d 'Write all dirty data to the backing devices, which are clean and complete afterwards'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "fsck" -d 'Check and repair a cache set: superblocks, journal, prio sets, uuid table, btree, extents, buckets, backing devices'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "image" -d 'Save the metadata of a device to a small file, for a bug report'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "map" -d 'Say where a sector of a cached device or flash-only volume lives: which key, bucket, clean or dirty'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "register" -d 'Make devices known: a set starts when its cache is there, a device appears when it can be served'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "reload" -d 'Apply what /etc/bcache/bcache.conf says to all sets that are served'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "resize" -d 'Let a cached device be as long as its backing device is now; it may be mounted'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "restore" -d 'Bring a lost superblock back from a file that `bcache backup` made, or all metadata from one of `bcache image`'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "salvage" -d 'Save the dirty data of a damaged cache'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "serve" -d 'Serve a cache set to NBD clients on a Unix socket, in the foreground, until a signal'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "stop" -d 'Stop a set: remove its devices, make all data durable, end its process'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "tree" -d 'Show the caches that are in use, and below each the devices that it caches'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "undo" -d 'Put back, byte for byte, what a repair overwrote'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "version" -d 'Print which bcache-tools these commands are like, and the version of this program'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "completions" -d 'Print a completion script for a shell'
complete -c bcache -n "__fish_bcache_using_subcommand help; and not __fish_seen_subcommand_from attach detach get make metrics set set-cachemode set-label status unregister upgrade forget volume show backup doctor dump export flush fsck image map register reload resize restore salvage serve stop tree undo version completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "create" -d 'Make a volume'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "remove" -d 'Remove a volume and everything in it'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "super" -d 'The superblock of a cache or backing device'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "journal" -d 'Journal buckets and their entries, with sequence numbers'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "btree" -d 'Btree nodes with their ranges and bsets, parents before children'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "extents" -d 'Extents as a reader sees them: journal replayed, newest wins'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "uuids" -d 'The table of backing devices and flash-only volumes'
complete -c bcache -n "__fish_bcache_using_subcommand help; and __fish_seen_subcommand_from dump" -f -a "prios" -d 'Priority and generation of buckets'
