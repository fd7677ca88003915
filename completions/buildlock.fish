# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_buildlock_global_optspecs
    string join \n t/tag= w/timeout= build-timeout= k/kill-after= E/conflict-exit-code= f/force if-changed= inputs= each fail-fast on-failure= lock= share= max-builds= cache= no-retry engine= check= lock-dir= store= q/quiet v/verbose log-format= color= h/help V/version
end

function __fish_buildlock_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_buildlock_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_buildlock_using_subcommand
    set -l cmd (__fish_buildlock_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c buildlock -n "__fish_buildlock_needs_command" -s t -l tag -d 'Image that the build command builds (repeatable)' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -s w -l timeout -d 'Longest wait for all locks, and for a slot of --max-builds' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l build-timeout -d 'End a build that runs longer, with all its descendants' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -s k -l kill-after -d 'Time between SIGTERM and SIGKILL' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -s E -l conflict-exit-code -d 'Exit status when a lock or a slot was not acquired in time' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l if-changed -d 'Build if the image was not built from the current inputs' -r -f -a "true\t''
false\t''"
complete -c buildlock -n "__fish_buildlock_needs_command" -l inputs -d 'File or folder that the build command reads, for --if-changed (repeatable)' -r -F
complete -c buildlock -n "__fish_buildlock_needs_command" -l on-failure -d 'What a waiter does when the build that it waited for failed' -r -f -a "retry\t'Build again'
share\t'Exit with the status of the failed build'"
complete -c buildlock -n "__fish_buildlock_needs_command" -l lock -d 'Another exclusive lock, for a shared resource that is not an image (repeatable)' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l share -d 'The same lock, shared with other callers that say --share (repeatable)' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l max-builds -d 'Build only if fewer than N builds run that say --max-builds, whatever they build' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l cache -d 'Build cache that the build command writes (repeatable)' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l engine -d 'Engine where images are looked up' -r -f -a "docker\t'Docker Engine'
podman\t'Podman'
nerdctl\t'containerd, through nerdctl'"
complete -c buildlock -n "__fish_buildlock_needs_command" -l check -d 'Where the image must be: local, registry, or a command that checks' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_needs_command" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_needs_command" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_needs_command" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_needs_command" -s f -l force -d 'Build even if the image exists; still one at a time'
complete -c buildlock -n "__fish_buildlock_needs_command" -l each -d 'Build each image of docker compose build or docker buildx bake by itself, at the same time'
complete -c buildlock -n "__fish_buildlock_needs_command" -l fail-fast -d 'With --each, end all other builds as soon as one has failed'
complete -c buildlock -n "__fish_buildlock_needs_command" -l no-retry -d 'After a failure with a shared cache, do not run the build command again alone'
complete -c buildlock -n "__fish_buildlock_needs_command" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_needs_command" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_needs_command" -s V -l version -d 'Print version'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "status" -d 'List held locks: tag, holder, since when, number of waiters, command'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "path" -d 'Print the path of a lock file, for scripts in other languages'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "prune" -d 'Remove lock files that nobody holds or waits for'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "cache" -d 'List or forget the build caches that are known to be warm'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "lint" -d 'Find what makes builds race: cache mounts without a lock, images that are built twice'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "fingerprint" -d 'Print the fingerprint of what a build command reads, as --if-changed computes it'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "completions" -d 'Print a completion script'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "man" -d 'Print a man page'
complete -c buildlock -n "__fish_buildlock_needs_command" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -l json -d 'Print a JSON array'
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -l lock -d 'Name of a lock (--lock), instead of a tag' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand path" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand prune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -f -a "ls" -d 'List the caches that are known to be warm: ID, since when, for which files'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -f -a "forget" -d 'Forget that a cache is warm, so that the next build with it runs alone'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and not __fish_seen_subcommand_from ls forget help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -l json -d 'Print a JSON array'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from forget" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "ls" -d 'List the caches that are known to be warm: ID, since when, for which files'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "forget" -d 'Forget that a cache is warm, so that the next build with it runs alone'
complete -c buildlock -n "__fish_buildlock_using_subcommand cache; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l format -d 'How to print the findings' -r -f -a "text\t'For people and editors: PATH:LINE:COLUMN: LEVEL: MESSAGE'
json\t'A JSON array of objects'
github\t'Annotations for GitHub Actions'
sarif\t'SARIF 2.1.0, for code scanning'"
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l fix -d 'Add sharing=locked to the cache mounts that race, and change nothing else'
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -l strict -d 'Treat notes as errors: caches of tools that buildlock does not know'
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand lint" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -s t -l tag -d 'Image that the build command builds (repeatable)' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l inputs -d 'File or folder that the build command reads (repeatable)' -r -F
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l engine -d 'Engine where images are looked up' -r -f -a "docker\t'Docker Engine'
podman\t'Podman'
nerdctl\t'containerd, through nerdctl'"
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l check -d 'Where the image must be: local or registry' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -l diff -d 'Say in what the inputs differ from those of the image'
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand fingerprint" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -l lock-dir -d 'The lock folder, where lock files live' -r -f -a "(__fish_complete_directories)"
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -l store -d 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://' -r
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -l log-format -d 'How to write the log, to stderr' -r -f -a "text\t'For people'
json\t'For machines'"
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -l color -d 'When to use colours and a live line while waiting' -r -f -a "auto\t'On a terminal'
always\t'Always'
never\t'Never'"
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -s q -l quiet -d 'Only warnings and errors'
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -s v -l verbose -d 'Say more'
complete -c buildlock -n "__fish_buildlock_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "status" -d 'List held locks: tag, holder, since when, number of waiters, command'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "path" -d 'Print the path of a lock file, for scripts in other languages'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "prune" -d 'Remove lock files that nobody holds or waits for'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "cache" -d 'List or forget the build caches that are known to be warm'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "lint" -d 'Find what makes builds race: cache mounts without a lock, images that are built twice'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "fingerprint" -d 'Print the fingerprint of what a build command reads, as --if-changed computes it'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "completions" -d 'Print a completion script'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "man" -d 'Print a man page'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and not __fish_seen_subcommand_from status path prune cache lint fingerprint completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and __fish_seen_subcommand_from cache" -f -a "ls" -d 'List the caches that are known to be warm: ID, since when, for which files'
complete -c buildlock -n "__fish_buildlock_using_subcommand help; and __fish_seen_subcommand_from cache" -f -a "forget" -d 'Forget that a cache is warm, so that the next build with it runs alone'
