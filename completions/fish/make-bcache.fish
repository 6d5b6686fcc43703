complete -c make-bcache -s b -l bucket -d 'Bucket size; the erase block of an SSD or a multiple. Sizes take k, M, G, T in powers of 1024' -r
complete -c make-bcache -s w -l block -d 'Block size; the default is the largest logical block of the devices' -r
complete -c make-bcache -s o -l data-offset -d 'Where the data of backing devices starts, in sectors of 512 bytes; the default is 16, or the first stripe of a disk that tells its optimal I/O size' -r
complete -c make-bcache -l cset-uuid -d 'UUID of the cache set, to make backing devices for a set that exists' -r
complete -c make-bcache -l cache-replacement-policy -d 'How the cache chooses buckets for reuse: lru, fifo or random' -r
complete -c make-bcache -s l -l label -d 'Label of the backing device, at most 32 bytes; its name in /dev/mapper where it makes one' -r
complete -c make-bcache -s C -l cache -d 'Format the devices that follow as caches'
complete -c make-bcache -s B -l bdev -d 'Format the devices that follow as backing devices'
complete -c make-bcache -l writeback -d 'Start backing devices in writeback mode instead of writethrough'
complete -c make-bcache -l discard -d 'Discard buckets on the cache device before they are reused'
complete -c make-bcache -l wipe-bcache -d 'Overwrite a bcache superblock'
complete -c make-bcache -l force -d 'Overwrite whatever is on the devices'
complete -c make-bcache -l dry-run -d 'Decide everything and print it, but write nothing'
complete -c make-bcache -l json -d 'Print one JSON object a line for each device, as `bcache show --json` does'
complete -c make-bcache -s h -l help -d 'Print help (see more with \'--help\')'
complete -c make-bcache -s V -l version -d 'Print version'
