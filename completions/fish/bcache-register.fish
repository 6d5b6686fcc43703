complete -c bcache-register -l engine -d 'Who serves the set' -r -f -a "user\t'bcache-engine, one process a set'
kernel\t'The kernel\'s bcache'"
complete -c bcache-register -l without-cache -d 'Run a backing device alone from now on: what the cache has of it is never used again'
complete -c bcache-register -l lose-dirty-data -d 'With --without-cache: even if the newest data is in the cache, which is lost for good'
complete -c bcache-register -l unless-stopped -d 'Do nothing if somebody stopped the set. For udev rules: a device that is closed after a write looks changed to udev'
complete -c bcache-register -s w -l wait -d 'Wait until the devices are in use, or wait for others, or cannot be used'
complete -c bcache-register -s q -l quiet -d 'Print nothing when all is well'
complete -c bcache-register -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache-register -s V -l version -d 'Print version'
