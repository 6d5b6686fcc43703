complete -c bcache-super-show -s f -l force -d 'Print what the superblock says even if its checksum is wrong'
complete -c bcache-super-show -l json -d 'Print one JSON object a line for each device instead'
complete -c bcache-super-show -s h -l help -d 'Print help (see more with \'--help\')'
complete -c bcache-super-show -s V -l version -d 'Print version'
