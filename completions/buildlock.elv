
use builtin;
use str;

set edit:completion:arg-completer[buildlock] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'buildlock'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'buildlock'= {
            cand -t 'Image that the build command builds (repeatable)'
            cand --tag 'Image that the build command builds (repeatable)'
            cand -w 'Longest wait for all locks, and for a slot of --max-builds'
            cand --timeout 'Longest wait for all locks, and for a slot of --max-builds'
            cand --build-timeout 'End a build that runs longer, with all its descendants'
            cand -k 'Time between SIGTERM and SIGKILL'
            cand --kill-after 'Time between SIGTERM and SIGKILL'
            cand -E 'Exit status when a lock or a slot was not acquired in time'
            cand --conflict-exit-code 'Exit status when a lock or a slot was not acquired in time'
            cand --if-changed 'Build if the image was not built from the current inputs'
            cand --inputs 'File or folder that the build command reads, for --if-changed (repeatable)'
            cand --on-failure 'What a waiter does when the build that it waited for failed'
            cand --lock 'Another exclusive lock, for a shared resource that is not an image (repeatable)'
            cand --share 'The same lock, shared with other callers that say --share (repeatable)'
            cand --max-builds 'Build only if fewer than N builds run that say --max-builds, whatever they build'
            cand --cache 'Build cache that the build command writes (repeatable)'
            cand --engine 'Engine where images are looked up'
            cand --check 'Where the image must be: local, registry, or a command that checks'
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -f 'Build even if the image exists; still one at a time'
            cand --force 'Build even if the image exists; still one at a time'
            cand --each 'Build each image of docker compose build or docker buildx bake by itself, at the same time'
            cand --fail-fast 'With --each, end all other builds as soon as one has failed'
            cand --no-retry 'After a failure with a shared cache, do not run the build command again alone'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand -V 'Print version'
            cand --version 'Print version'
            cand status 'List held locks: tag, holder, since when, number of waiters, command'
            cand path 'Print the path of a lock file, for scripts in other languages'
            cand prune 'Remove lock files that nobody holds or waits for'
            cand cache 'List or forget the build caches that are known to be warm'
            cand lint 'Find what makes builds race: cache mounts without a lock, images that are built twice'
            cand fingerprint 'Print the fingerprint of what a build command reads, as --if-changed computes it'
            cand completions 'Print a completion script'
            cand man 'Print a man page'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;status'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand --json 'Print a JSON array'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;path'= {
            cand --lock 'Name of a lock (--lock), instead of a tag'
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;prune'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;cache'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand ls 'List the caches that are known to be warm: ID, since when, for which files'
            cand forget 'Forget that a cache is warm, so that the next build with it runs alone'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;cache;ls'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand --json 'Print a JSON array'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;cache;forget'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;cache;help'= {
            cand ls 'List the caches that are known to be warm: ID, since when, for which files'
            cand forget 'Forget that a cache is warm, so that the next build with it runs alone'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;cache;help;ls'= {
        }
        &'buildlock;cache;help;forget'= {
        }
        &'buildlock;cache;help;help'= {
        }
        &'buildlock;lint'= {
            cand --format 'How to print the findings'
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand --fix 'Add sharing=locked to the cache mounts that race, and change nothing else'
            cand --strict 'Treat notes as errors: caches of tools that buildlock does not know'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;fingerprint'= {
            cand -t 'Image that the build command builds (repeatable)'
            cand --tag 'Image that the build command builds (repeatable)'
            cand --inputs 'File or folder that the build command reads (repeatable)'
            cand --engine 'Engine where images are looked up'
            cand --check 'Where the image must be: local or registry'
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand --diff 'Say in what the inputs differ from those of the image'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;completions'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;man'= {
            cand --lock-dir 'The lock folder, where lock files live'
            cand --store 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;help'= {
            cand status 'List held locks: tag, holder, since when, number of waiters, command'
            cand path 'Print the path of a lock file, for scripts in other languages'
            cand prune 'Remove lock files that nobody holds or waits for'
            cand cache 'List or forget the build caches that are known to be warm'
            cand lint 'Find what makes builds race: cache mounts without a lock, images that are built twice'
            cand fingerprint 'Print the fingerprint of what a build command reads, as --if-changed computes it'
            cand completions 'Print a completion script'
            cand man 'Print a man page'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;help;status'= {
        }
        &'buildlock;help;path'= {
        }
        &'buildlock;help;prune'= {
        }
        &'buildlock;help;cache'= {
            cand ls 'List the caches that are known to be warm: ID, since when, for which files'
            cand forget 'Forget that a cache is warm, so that the next build with it runs alone'
        }
        &'buildlock;help;cache;ls'= {
        }
        &'buildlock;help;cache;forget'= {
        }
        &'buildlock;help;lint'= {
        }
        &'buildlock;help;fingerprint'= {
        }
        &'buildlock;help;completions'= {
        }
        &'buildlock;help;man'= {
        }
        &'buildlock;help;help'= {
        }
    ]
    $completions[$command]
}
