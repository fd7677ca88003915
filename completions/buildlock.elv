
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
            cand -t 'Image that COMMAND builds (repeatable)'
            cand --tag 'Image that COMMAND builds (repeatable)'
            cand -w 'Longest wait for all locks'
            cand --timeout 'Longest wait for all locks'
            cand --build-timeout 'End a COMMAND that runs longer, with all its descendants'
            cand -k 'From SIGTERM to SIGKILL'
            cand --kill-after 'From SIGTERM to SIGKILL'
            cand -E 'Exit status when a lock was not had in time'
            cand --conflict-exit-code 'Exit status when a lock was not had in time'
            cand --on-failure 'What to do when the build that was waited for failed'
            cand --lock 'One more exclusive lock, for a shared resource that is not an image (repeatable)'
            cand --cache 'Build cache that COMMAND writes (repeatable)'
            cand --engine 'Where images are looked up'
            cand --check 'Where the image has to be: local, registry, or a command that tells'
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -f 'Build even when the image exists; still one at a time'
            cand --force 'Build even when the image exists; still one at a time'
            cand --no-retry 'Do not run COMMAND again, alone, when it failed with a shared cache'
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
            cand cache 'What is known of build caches'
            cand lint 'Find what makes builds race: cache mounts without a lock, images that two services build'
            cand completions 'Print a completion script'
            cand man 'Print a manual page'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;status'= {
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand --lock 'A named lock instead of a tag'
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand ls 'List the caches that are known to be warm: id, since when, for which files'
            cand forget 'Forget that a cache is warm: the next build with it runs alone'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;cache;ls'= {
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand ls 'List the caches that are known to be warm: id, since when, for which files'
            cand forget 'Forget that a cache is warm: the next build with it runs alone'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;cache;help;ls'= {
        }
        &'buildlock;cache;help;forget'= {
        }
        &'buildlock;cache;help;help'= {
        }
        &'buildlock;lint'= {
            cand --format 'How to print what was found'
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
            cand --log-format 'How to write the log, to stderr'
            cand --color 'When to use colours and a live line while waiting'
            cand --fix 'Add sharing=locked to the cache mounts that race, and change nothing else'
            cand --strict 'Take notes for errors: caches of tools that buildlock does not know'
            cand -q 'Only warnings and errors'
            cand --quiet 'Only warnings and errors'
            cand -v 'Say more'
            cand --verbose 'Say more'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'buildlock;completions'= {
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand --lock-dir 'Where lock files live'
            cand --store 'Where locks are taken: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://'
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
            cand cache 'What is known of build caches'
            cand lint 'Find what makes builds race: cache mounts without a lock, images that two services build'
            cand completions 'Print a completion script'
            cand man 'Print a manual page'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'buildlock;help;status'= {
        }
        &'buildlock;help;path'= {
        }
        &'buildlock;help;prune'= {
        }
        &'buildlock;help;cache'= {
            cand ls 'List the caches that are known to be warm: id, since when, for which files'
            cand forget 'Forget that a cache is warm: the next build with it runs alone'
        }
        &'buildlock;help;cache;ls'= {
        }
        &'buildlock;help;cache;forget'= {
        }
        &'buildlock;help;lint'= {
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
